"""Control messages of a socket's error queue: what went wrong with which packet, and who said so. See ip(7)."""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Final, Self

from fdpool.kernel import constants as k
from fdpool.kernel.control import INTERNET, ControlMessage, pack
from fdpool.kernel.control_ip import ONLY_IPV6, SOCKADDR_IN, SOCKADDR_IN6, check_family

_EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")  # struct sock_extended_err, linux/errqueue.h


class ErrorOrigin(enum.IntEnum):
    """Who reported an error: `SO_EE_ORIGIN_…` of linux/errqueue.h. A newer kernel may use others."""

    NONE = 0
    LOCAL = 1
    ICMP = 2
    ICMP6 = 3
    TIMESTAMPING = 4
    """Not an error: a packet left, and a timestamp says when."""
    ZEROCOPY = 5
    """Not an error: memory sent with MSG_ZEROCOPY may be used again."""
    TXTIME = 6


class ErrorQueueMessage(ControlMessage):
    """An entry of the error queue: struct sock_extended_err, then the offender's address if there is one."""

    __slots__ = ()

    errno: int
    origin: int
    type: int
    code: int
    info: int
    data: int

    def _encode_error(self) -> bytes:
        return pack(self, _EXTENDED_ERROR, self.errno, self.origin, self.type, self.code, self.info, self.data)


@dataclass(frozen=True, slots=True)
class Ipv4RecvErr(ErrorQueueMessage):
    """What went wrong with a packet sent earlier. Received only, with MSG_ERRQUEUE. See ip(7), IP_RECVERR.

    Attributes:
      errno: The error, for instance ECONNREFUSED.
      origin: Who reported it, an `ErrorOrigin`.
      type: The ICMP message's type.
      code: The ICMP message's code.
      info: More, by origin: the path MTU with EMSGSIZE.
      data: More, by origin.
      offender: The address of who sent the ICMP message; None where the error is local.
    """

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IP)
    TYPE: ClassVar[int] = k.IP_RECVERR
    FAMILIES: ClassVar[frozenset[int]] = INTERNET

    errno: int
    origin: int
    type: int
    code: int
    info: int
    data: int
    offender: IPv4Address | None = None

    def encode(self) -> bytes:
        """Return the payload."""
        if self.offender is None:
            return self._encode_error() + bytes(SOCKADDR_IN.size)
        return self._encode_error() + SOCKADDR_IN.pack(int(socket.AF_INET), b"\0\0", self.offender.packed)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        error, rest = _split(data, SOCKADDR_IN)
        errno, origin, kind, code, info, more = _EXTENDED_ERROR.unpack(error)
        return cls(errno, origin, kind, code, info, more, _ipv4_offender(rest))

    @staticmethod
    def space() -> int:
        """Return the room it takes in a control buffer, padding included."""
        return socket.CMSG_SPACE(_EXTENDED_ERROR.size + SOCKADDR_IN.size)


@dataclass(frozen=True, slots=True)
class Ipv6RecvErr(ErrorQueueMessage):
    """What went wrong with a packet sent earlier. Received only, with MSG_ERRQUEUE. See ipv6(7), IPV6_RECVERR.

    Attributes:
      errno: The error, for instance ECONNREFUSED.
      origin: Who reported it, an `ErrorOrigin`.
      type: The ICMP message's type.
      code: The ICMP message's code.
      info: More, by origin: the path MTU with EMSGSIZE.
      data: More, by origin.
      offender: The address of who sent the ICMP message, with its scope if it has one; None where the error is local.
    """

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IPV6)
    TYPE: ClassVar[int] = k.IPV6_RECVERR
    FAMILIES: ClassVar[frozenset[int]] = ONLY_IPV6

    errno: int
    origin: int
    type: int
    code: int
    info: int
    data: int
    offender: IPv6Address | None = None

    def encode(self) -> bytes:
        """Return the payload."""
        if self.offender is None:
            return self._encode_error() + bytes(SOCKADDR_IN6.size)
        scope_id = int(self.offender.scope_id or 0)
        address = pack(self, SOCKADDR_IN6, int(socket.AF_INET6), b"\0\0", b"\0\0\0\0", self.offender.packed, scope_id)
        return self._encode_error() + address

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        error, rest = _split(data, SOCKADDR_IN6)
        errno, origin, kind, code, info, more = _EXTENDED_ERROR.unpack(error)
        return cls(errno, origin, kind, code, info, more, _ipv6_offender(rest))

    @staticmethod
    def space() -> int:
        """Return the room it takes in a control buffer, padding included."""
        return socket.CMSG_SPACE(_EXTENDED_ERROR.size + SOCKADDR_IN6.size)


def _split(data: bytes, address: struct.Struct) -> tuple[bytes, bytes]:
    if len(data) not in (_EXTENDED_ERROR.size, _EXTENDED_ERROR.size + address.size):
        raise ValueError(f"{len(data)} bytes are not an extended error with or without an address")
    return data[: _EXTENDED_ERROR.size], data[_EXTENDED_ERROR.size :]


def _ipv4_offender(data: bytes) -> IPv4Address | None:
    if not any(data[:2]):
        return None
    family, _, address = SOCKADDR_IN.unpack(data)
    check_family(family, socket.AF_INET)
    return IPv4Address(address)


def _ipv6_offender(data: bytes) -> IPv6Address | None:
    if not any(data[:2]):
        return None
    family, _, _, address, scope_id = SOCKADDR_IN6.unpack(data)
    check_family(family, socket.AF_INET6)
    return IPv6Address(f"{IPv6Address(address)}%{scope_id}" if scope_id else address)
