"""Control messages about the path of an IP packet: interface, addresses, hops, class. See ip(7), ipv6(7)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Final, Self

from fdpool.kernel import constants as k
from fdpool.kernel.control import INTERNET, StructMessage, pack, unpack

ONLY_IPV6: Final = frozenset({int(socket.AF_INET6)})
_INT: Final = struct.Struct("i")
_ANY_IPV4: Final = IPv4Address(0)
_ANY_IPV6: Final = IPv6Address(0)
# struct sockaddr_in and sockaddr_in6, linux/in.h and linux/in6.h: the family in the machine's order, the rest as
# bytes because it is in the network's.
SOCKADDR_IN: Final = struct.Struct("=H2s4s8x")
SOCKADDR_IN6: Final = struct.Struct("=H2s4s16sI")


@dataclass(frozen=True, slots=True)
class Ipv4PacketInfo(StructMessage):
    """Which way a datagram came, or is to go (IP_PKTINFO).

    Attributes:
      interface_index: The interface it came in by; when sending, the one to use, 0 for the routing table's.
      local_address: Where this host would answer from; when sending, the source address, 0.0.0.0 for any.
      destination_address: What its header says; not used in sending.
    """

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IP)
    TYPE: ClassVar[int] = k.IP_PKTINFO
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = struct.Struct("i4s4s")

    interface_index: int = 0
    local_address: IPv4Address = _ANY_IPV4
    destination_address: IPv4Address = _ANY_IPV4

    def encode(self) -> bytes:
        """Return the payload."""
        local, destination = self.local_address.packed, self.destination_address.packed
        return pack(self, self.WIRE, self.interface_index, local, destination)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        index, local, destination = unpack(cls, cls.WIRE, data)
        return cls(index, IPv4Address(local), IPv4Address(destination))


@dataclass(frozen=True, slots=True)
class Ipv6PacketInfo(StructMessage):
    """Which way a datagram came, or is to go (IPV6_PKTINFO, RFC 3542).

    Attributes:
      address: Where it was sent to; when sending, the source address, :: for any.
      interface_index: The interface it came in by; when sending, the one to use, 0 for the routing table's.
    """

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IPV6)
    TYPE: ClassVar[int] = k.IPV6_PKTINFO
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = struct.Struct("16sI")

    address: IPv6Address = _ANY_IPV6
    interface_index: int = 0

    def encode(self) -> bytes:
        """Return the payload."""
        return pack(self, self.WIRE, self.address.packed, self.interface_index)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        address, index = unpack(cls, cls.WIRE, data)
        return cls(IPv6Address(address), index)


@dataclass(frozen=True, slots=True)
class Ipv4OrigDstAddr(StructMessage):
    """Where a datagram was sent to before a transparent proxy's rule turned it (IP_ORIGDSTADDR). Received only."""

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IP)
    TYPE: ClassVar[int] = k.IP_RECVORIGDSTADDR
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = SOCKADDR_IN

    address: IPv4Address
    port: int

    def encode(self) -> bytes:
        """Return the payload."""
        return pack(self, self.WIRE, int(socket.AF_INET), _port_bytes(self.port), self.address.packed)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        family, port, address = unpack(cls, cls.WIRE, data)
        check_family(family, socket.AF_INET)
        return cls(IPv4Address(address), int.from_bytes(port))


@dataclass(frozen=True, slots=True)
class Ipv6OrigDstAddr(StructMessage):
    """Where a datagram was sent to before a transparent proxy's rule turned it (IPV6_ORIGDSTADDR). Received only."""

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IPV6)
    TYPE: ClassVar[int] = k.IPV6_RECVORIGDSTADDR
    FAMILIES: ClassVar[frozenset[int]] = ONLY_IPV6
    WIRE: ClassVar[struct.Struct] = SOCKADDR_IN6

    address: IPv6Address
    port: int
    flow_info: int = 0
    scope_id: int = 0

    def encode(self) -> bytes:
        """Return the payload."""
        if not 0 <= self.flow_info < 2**32:
            raise ValueError(f"{self} has no payload: flow_info has 32 bits")
        flow = self.flow_info.to_bytes(4)
        return pack(
            self, self.WIRE, int(socket.AF_INET6), _port_bytes(self.port), flow, self.address.packed, self.scope_id
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        family, port, flow, address, scope_id = unpack(cls, cls.WIRE, data)
        check_family(family, socket.AF_INET6)
        return cls(IPv6Address(address), int.from_bytes(port), int.from_bytes(flow), scope_id)


@dataclass(frozen=True, slots=True)
class Ipv4Ttl(StructMessage):
    """How many hops a packet has left (IP_TTL): as it arrived, or to send it with, 1 to 255."""

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IP)
    TYPE: ClassVar[int] = k.IP_TTL
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = _INT

    ttl: int


@dataclass(frozen=True, slots=True)
class Ipv6HopLimit(StructMessage):
    """How many hops a packet has left (IPV6_HOPLIMIT): as it arrived, or to send it with; -1 is the route's own."""

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IPV6)
    TYPE: ClassVar[int] = k.IPV6_HOPLIMIT
    FAMILIES: ClassVar[frozenset[int]] = ONLY_IPV6
    WIRE: ClassVar[struct.Struct] = _INT

    hop_limit: int


@dataclass(frozen=True, slots=True)
class Ipv4Tos(StructMessage):
    """A packet's type of service (IP_TOS): six bits of DSCP, two of ECN."""

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IP)
    TYPE: ClassVar[int] = k.IP_TOS
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = struct.Struct("B")

    tos: int


@dataclass(frozen=True, slots=True)
class Ipv6TClass(StructMessage):
    """A packet's traffic class (IPV6_TCLASS): six bits of DSCP, two of ECN; -1 in sending is the socket's own."""

    LEVEL: ClassVar[int] = int(socket.IPPROTO_IPV6)
    TYPE: ClassVar[int] = k.IPV6_TCLASS
    FAMILIES: ClassVar[frozenset[int]] = ONLY_IPV6
    WIRE: ClassVar[struct.Struct] = _INT

    tclass: int


def check_family(family: int, expected: int) -> None:
    """Check the family of a socket address in a payload.

    Raises:
      ValueError: it is another one.
    """
    if family != expected:
        raise ValueError(f"the address in the payload is of family {family}, not {expected}")


def _port_bytes(port: int) -> bytes:
    if not 0 <= port < 2**16:
        raise ValueError(f"{port} is not a port")
    return port.to_bytes(2)
