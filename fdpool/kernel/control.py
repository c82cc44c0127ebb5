"""ControlMessage: what travels beside the bytes of one sendmsg(2) or recvmsg(2), as a value."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

# Level, type and payload, as Python's socket module has them.
ControlItem: TypeAlias = tuple[int, int, bytes]

INTERNET: Final[frozenset[int]] = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})


class ControlMessage:
    """One control message. Each subclass is a frozen dataclass for one (level, type); see cmsg(3).

    Attributes:
      LEVEL: The `cmsg_level` it is sent with.
      TYPE: The `cmsg_type` it is sent with.
      FAMILIES: The address families whose sockets heed it; empty where that is not known. The kernel drops
          most others without a word, so `sendmsg` refuses them.
    """

    __slots__: tuple[str, ...] = ()

    LEVEL: ClassVar[int]
    TYPE: ClassVar[int]
    FAMILIES: ClassVar[frozenset[int]] = frozenset()

    def encode(self) -> bytes:
        """Return the payload, as the kernel wants it.

        Raises:
          ValueError: a field is outside the range of its place in the payload.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message that *data*, a payload from the kernel, stands for.

        Raises:
          ValueError: *data* is too short, too long or otherwise no such payload.
        """
        raise NotImplementedError

    def payload_size(self) -> int:
        """Return how many bytes the payload has."""
        return len(self.encode())

    def wire(self) -> ControlItem:
        """Return level, type and payload: an item of the *ancdata* of `socket.sendmsg`."""
        return self.LEVEL, self.TYPE, self.encode()


class StructMessage(ControlMessage):
    """A message whose payload is one C struct, `WIRE`, with the dataclass's fields in order."""

    __slots__ = ()

    WIRE: ClassVar[struct.Struct]

    def encode(self) -> bytes:
        """Return the payload."""
        return pack(self, self.WIRE, *map(self.__getattribute__, self.__slots__))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        # The fields are the subclass's, which only the subclass's own __init__ knows.
        return cls(*unpack(cls, cls.WIRE, data))

    def payload_size(self) -> int:
        """Return how many bytes the payload has."""
        return self.WIRE.size

    @classmethod
    def space(cls) -> int:
        """Return the room one such message takes in a control buffer, padding included."""
        return socket.CMSG_SPACE(cls.WIRE.size)


@dataclass(frozen=True, slots=True)
class UnknownControlMessage(ControlMessage):
    """A message that has no class here, or one with a malformed payload; and the way to send any other.

    Attributes:
      level: Its `cmsg_level`.
      type: Its `cmsg_type`.
      data: The payload as it came.
    """

    level: int
    type: int
    data: bytes

    def encode(self) -> bytes:
        """Return the payload, unchanged."""
        return self.data

    def wire(self) -> ControlItem:
        """Return level, type and payload."""
        return self.level, self.type, self.data

    @staticmethod
    def space(size_bytes: int) -> int:
        """Return the room a message with a payload of *size_bytes* takes in a control buffer."""
        return socket.CMSG_SPACE(size_bytes)


def control_space(*messages: ControlMessage | type[StructMessage]) -> int:
    """Return the room that all these take together in a control buffer.

    Args:
      messages: Messages to measure; or the classes of messages whose size never varies. For the others
          there is arithmetic: `ScmRights.space(2) + ScmCredentials.space()`.
    """
    return sum(message.space() if isinstance(message, type) else message_space(message) for message in messages)


def message_space(message: ControlMessage) -> int:
    """Return the room *message* takes in a control buffer, padding included."""
    return socket.CMSG_SPACE(message.payload_size())


def used_space(control: Iterable[ControlItem]) -> int:
    """Return how much room the kernel used up for control data that was received."""
    return sum(socket.CMSG_SPACE(len(data)) for _, _, data in control)


def pack(message: ControlMessage, wire: struct.Struct, *values: object) -> bytes:
    """Return *values* as the struct *wire*.

    Raises:
      ValueError: one is outside its range.
    """
    try:
        return wire.pack(*values)
    except struct.error as error:
        raise ValueError(f"{message} has no payload: {error}") from None


def unpack(kind: type[ControlMessage], wire: struct.Struct, data: bytes) -> tuple[Any, ...]:
    """Return the values in *data*, exactly one struct *wire*.

    Raises:
      ValueError: it has another length.
    """
    if len(data) != wire.size:
        raise ValueError(f"the payload of {kind.__name__} is {wire.size} bytes, not {len(data)}")
    return wire.unpack(data)
