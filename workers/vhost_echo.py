"""A vhost-user device that echoes: what a request gives it to read, it writes into the rest of the request.

    python workers/vhost_echo.py SOCKET_PATH

The back end of the protocol whose front end is in `examples/vhost_user`: it is handed memory and eventfds,
and works in that memory. `run_device` takes a socket that listens or is connected, so a supervisor can own it.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from fdpool.connection import Connection, StreamMessage
from fdpool.connection_listener import ConnectionListener, open_connection_listener, serve_connections
from fdpool.errors import ProtocolError, RemoteProtocolError
from fdpool.kernel import EventFd
from fdpool.kernel.kind import HandleKind, handle_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdpool.kernel import OwnedFd

HEADER: Final = struct.Struct("<III")  # request, flags, size of the body
NUMBER: Final = struct.Struct("<Q")
VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3
MAX_BODY_BYTES: Final = 4096
MAX_CONFIG_BYTES: Final = 256
MAX_REGIONS: Final = 8
MAX_QUEUE_SIZE: Final = 1024
PROTOCOL_FEATURES, VERSION_1 = 1 << 30, 1 << 32
REPLY_ACK, CONFIG = 1 << 3, 1 << 9
NEXT, DEVICE_WRITES = 1, 2  # flags of a descriptor
CONFIG_BYTES: Final = b"fdpool echo".ljust(64, b"\0")


class Region:
    """Memory that the front end shares."""

    def __init__(self, numbers: bytes, fd: OwnedFd) -> None:
        guest, size, user, offset = struct.unpack("<QQQQ", numbers)
        # A mapping beyond the end of the file would kill this process where it is touched. So does one that the
        # front end cuts later, which it may: it is trusted to the extent that it owns the device.
        if offset % mmap.PAGESIZE or not 0 < size <= os.fstat(fd.fileno()).st_size - offset:
            raise RemoteProtocolError(f"a region of {size} bytes at {offset} is not inside its memfd")
        self.guest, self.user, self.size = guest, user, size
        self.bytes = memoryview(mmap.mmap(fd.fileno(), size, offset=offset))
        # Elements of this view are loaded and stored at once, where struct goes byte by byte.
        self.words = self.bytes[: size & ~1].cast("H")


@dataclass
class Queue:
    """The device's side of the one virtqueue."""

    size: int = 0
    descriptors: int = 0  # where its parts are, by the front end's own addresses
    available: int = 0
    used: int = 0
    position: int = 0  # how many requests were taken, modulo 2**16
    scope: trio.CancelScope | None = None
    kick: EventFd | None = None
    call: EventFd | None = None


@dataclass
class EchoDevice:
    """One front end's device, from its first message to its last."""

    connection: Connection
    nursery: trio.Nursery
    echoed: int = 0
    _queue: Queue = field(default_factory=Queue)
    _regions: list[Region] = field(default_factory=list)
    _must_acknowledge: bool = False

    async def serve(self) -> None:
        """Answer the front end until it disconnects."""
        try:
            while True:
                try:
                    message = await self.connection.receive_message(
                        HEADER.size, body_size, max_body_size=MAX_BODY_BYTES, max_fds=MAX_REGIONS
                    )
                except trio.EndOfChannel:
                    return
                with ExitStack() as unused:
                    for fd in message.fds:
                        unused.enter_context(fd)
                    await self._answer(message)
        finally:
            self._stop_queue()
            for event in (self._queue.kick, self._queue.call):
                if event is not None:
                    event.close()

    async def _answer(self, message: StreamMessage) -> None:
        request, flags, _ = HEADER.unpack(message.header)
        try:
            reply = self._handle(request, message.body, message.fds)
        except struct.error as exc:
            raise RemoteProtocolError(f"request {request} has a body of {len(message.body)} bytes") from exc
        if not reply and flags & NEED_REPLY and self._must_acknowledge:
            reply = NUMBER.pack(0)
        if reply:
            await self.connection.send_message(HEADER.pack(request, VERSION | REPLY, len(reply)), reply)

    def _handle(self, request: int, body: bytes, fds: Sequence[OwnedFd]) -> bytes:
        """Do what is asked; return the body of the reply, if the request has one of its own."""
        queue = self._queue
        match request:
            case 1:  # GET_FEATURES
                return NUMBER.pack(PROTOCOL_FEATURES | VERSION_1)
            case 15:  # GET_PROTOCOL_FEATURES
                return NUMBER.pack(REPLY_ACK | CONFIG)
            case 16:  # SET_PROTOCOL_FEATURES
                self._must_acknowledge = bool(NUMBER.unpack(body)[0] & REPLY_ACK)
            case 2 | 3:  # SET_FEATURES, SET_OWNER
                pass
            case 5:  # SET_MEM_TABLE
                self._map_memory(body, fds)
            case 8:  # SET_VRING_NUM
                _, queue.size = struct.unpack("<II", body)
                if not 0 < queue.size <= MAX_QUEUE_SIZE:
                    raise RemoteProtocolError(f"a queue of {queue.size} descriptors")
            case 9:  # SET_VRING_ADDR
                _, _, queue.descriptors, queue.used, queue.available, _ = struct.unpack("<IIQQQQ", body)
            case 10:  # SET_VRING_BASE
                _, queue.position = struct.unpack("<II", body)
            case 11:  # GET_VRING_BASE
                self._stop_queue()
                return struct.pack("<II", 0, queue.position)
            case 12:  # SET_VRING_KICK
                self._stop_queue()
                queue.kick = _replace(queue.kick, fds)
            case 13:  # SET_VRING_CALL
                queue.call = _replace(queue.call, fds)
            case 18:  # SET_VRING_ENABLE
                _, is_enabled = struct.unpack("<II", body)
                self._stop_queue()
                if is_enabled:
                    self._start_queue()
            case 24:  # GET_CONFIG
                offset, nbytes, _ = struct.unpack("<III", body[:12])
                if offset + nbytes > MAX_CONFIG_BYTES:
                    raise RemoteProtocolError(f"{nbytes} bytes of configuration at {offset}")
                return body[:12] + CONFIG_BYTES[offset : offset + nbytes].ljust(nbytes, b"\0")
            case _:
                raise RemoteProtocolError(f"request {request} is not known")
        return b""

    def _map_memory(self, body: bytes, fds: Sequence[OwnedFd]) -> None:
        self._stop_queue()
        count, _ = struct.unpack_from("<II", body)
        if count != len(fds) or len(body) != 8 + 32 * count:
            raise RemoteProtocolError(f"{count} regions with {len(fds)} descriptors in {len(body)} bytes")
        table = [body[at : at + 32] for at in range(8, len(body), 32)]
        self._regions = list(map(Region, table, fds))

    def _start_queue(self) -> None:
        if self._queue.kick is None or not self._queue.size:
            raise RemoteProtocolError("a queue was enabled that has no size or no kick")
        self._queue.scope = trio.CancelScope()
        self.nursery.start_soon(self._work, self._queue, self._queue.kick, self._queue.scope)

    def _stop_queue(self) -> None:
        if self._queue.scope is not None:
            self._queue.scope.cancel()
            self._queue.scope = None

    async def _work(self, queue: Queue, kick: EventFd, scope: trio.CancelScope) -> None:
        with scope:
            # It may have been stopped before it began.
            await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                if self._echo_what_is_there(queue) and queue.call is not None:
                    with suppress(BlockingIOError):  # it has been rung often enough
                        queue.call.write()
                await trio.lowlevel.wait_readable(kick.fileno())
                with suppress(BlockingIOError):
                    kick.read()

    def _echo_what_is_there(self, queue: Queue) -> int:
        available, at = self._find_ring(queue.available, 4 + 2 * queue.size)
        used, used_at = self._find_ring(queue.used, 4 + 8 * queue.size)
        echoed = 0
        while queue.position != available.words[at // 2 + 1] and echoed <= queue.size:
            head = available.words[at // 2 + 2 + queue.position % queue.size]
            written = self._echo(queue, head)
            slot = queue.position % queue.size
            struct.pack_into("<II", used.bytes, used_at + 4 + 8 * slot, head, written)
            queue.position = (queue.position + 1) & 0xFFFF
            # The index comes last: it is what makes the answer visible.
            used.words[used_at // 2 + 1] = queue.position
            echoed += 1
        self.echoed += echoed
        return echoed

    def _echo(self, queue: Queue, head: int) -> int:
        """Copy what the request lets us read into what it lets us write, as far as both go; return how much."""
        table, at = self._find_ring(queue.descriptors, 16 * queue.size)
        data, room = bytearray(), []
        index = head
        for _ in range(queue.size):
            if index >= queue.size:
                raise RemoteProtocolError(f"descriptor {index} of {queue.size}")
            guest, nbytes, flags, following = struct.unpack_from("<QIHH", table.bytes, at + 16 * index)
            part = self._guest_memory(guest, nbytes)
            if flags & DEVICE_WRITES:
                room.append(part)
            else:
                data += part
            if not flags & NEXT:
                break
            index = following
        else:
            raise RemoteProtocolError(f"the request at descriptor {head} has no end")
        written = 0
        for part in room:
            piece = data[written : written + len(part)]
            part[: len(piece)] = piece
            written += len(piece)
        return written

    def _guest_memory(self, address: int, nbytes: int) -> memoryview:
        for region in self._regions:
            if region.guest <= address and address + nbytes <= region.guest + region.size:
                return region.bytes[address - region.guest :][:nbytes]
        raise RemoteProtocolError(f"{nbytes} bytes at {address:#x} are in no region")

    def _find_ring(self, address: int, nbytes: int) -> tuple[Region, int]:
        for region in self._regions:
            if region.user <= address and address + nbytes <= region.user + region.size and not address % 2:
                return region, address - region.user
        raise RemoteProtocolError(f"a ring of {nbytes} bytes at {address:#x} is in no region")


async def serve_front_end(connection: Connection) -> int:
    """Be one front end's device until it disconnects; return how many requests were echoed."""
    async with trio.open_nursery() as nursery:
        device = EchoDevice(connection, nursery)
        await device.serve()
    return device.echoed


async def serve_or_report(connection: Connection) -> None:
    """Be one front end's device. What it does wrong ends its connection, and no other's."""
    try:
        await serve_front_end(connection)
    except* (ProtocolError, trio.BrokenResourceError, OSError) as group:
        print(f"a front end was dropped: {group.exceptions[0]}", file=sys.stderr, flush=True)


def run_device(sock: socket.socket) -> int:
    """Serve *sock*, owned from here on: as the device of its one peer, or, if it listens, of each that comes.

    Returns:
      How many requests of the one peer were echoed. A listening socket is served until the process is told to end.
    """

    async def serve_one() -> int:
        async with Connection(sock) as connection:
            return await serve_front_end(connection)

    async def serve_all() -> int:
        await serve_connections(serve_or_report, ConnectionListener(sock))
        return 0

    return trio.run(serve_all if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else serve_one)


def body_size(header: bytes) -> int:
    """Return what a header says of the length of the body."""
    size: int = HEADER.unpack(header)[2]
    return size


def _replace(event: EventFd | None, fds: Sequence[OwnedFd]) -> EventFd:
    if len(fds) != 1:
        raise RemoteProtocolError(f"{len(fds)} descriptors with a request that takes one eventfd")
    if handle_kind(fds[0].fileno()) is not HandleKind.EVENTFD:
        raise RemoteProtocolError("a request that takes an eventfd came with something else")
    if event is not None:
        event.close()
    return EventFd.adopt(fds[0].detach())


async def listen(path: str) -> None:
    """Serve *path* until SIGTERM or SIGINT, and remove it then."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_connections, serve_or_report, await open_connection_listener(path))
            print(f"listening on {path}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


def main() -> None:
    """Serve the path given on the command line."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} SOCKET_PATH")
    trio.run(listen, sys.argv[1])


if __name__ == "__main__":
    main()
