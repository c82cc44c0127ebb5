"""Objects packed, sent through a real socket, and taken in on the other side, as by a worker."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fdpool.memory.exchange import Exchange
from fdpool.memory.pickling import pack, unpack
from fdpool.transport import Handle, Transport

if TYPE_CHECKING:
    from fdpool.memory.parcel import Packed, Parcel


@dataclass
class Delivery:
    """What has arrived of a parcel."""

    parcel: Parcel
    handles: list[Handle]

    def open(self) -> Any:
        """Return the objects in it."""
        return unpack(self.parcel, self.handles)


def deliver(packed: Packed) -> Delivery:
    """Send a parcel through a socket."""
    left, right = map(Transport, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        wrapped = Exchange().wrap(packed)
        with left.outgoing(wrapped.body, wrapped.handles) as outgoing:
            while outgoing.pending:
                left.send_next(outgoing)
        packed.close()
        while (message := right.receive_next()) is None:
            pass
        parcel = Exchange().take_in(memoryview(message.payload), message.handles)
        assert parcel is not None
        return Delivery(parcel, message.handles)
    finally:
        left.close()
        right.close()


def travel(value: Any) -> Any:
    """Return what arrives of *value*."""
    return deliver(pack(value)).open()
