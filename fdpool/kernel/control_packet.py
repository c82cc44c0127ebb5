"""Control messages about packets as the socket layer handles them: segments, marks, drops. See udp(7), socket(7)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import ClassVar

from fdpool.kernel import constants as k
from fdpool.kernel.control import INTERNET, StructMessage


@dataclass(frozen=True, slots=True)
class UdpGsoSegments(StructMessage):
    """Cut one send into datagrams of *size* bytes, the last one shorter (UDP_SEGMENT, Linux 4.18). Sent only."""

    LEVEL: ClassVar[int] = k.SOL_UDP
    TYPE: ClassVar[int] = k.UDP_SEGMENT
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = struct.Struct("H")

    size: int


@dataclass(frozen=True, slots=True)
class UdpGroSegments(StructMessage):
    """Several datagrams of one sender arrived as one, each of *size* bytes, the last maybe shorter (UDP_GRO)."""

    LEVEL: ClassVar[int] = k.SOL_UDP
    TYPE: ClassVar[int] = k.UDP_GRO
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = struct.Struct("i")

    size: int


@dataclass(frozen=True, slots=True)
class RxqOvfl(StructMessage):
    """How many datagrams this socket has dropped so far because its queue was full (SO_RXQ_OVFL).

    Comes only once something was dropped.
    """

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SO_RXQ_OVFL
    WIRE: ClassVar[struct.Struct] = struct.Struct("I")

    dropped: int


@dataclass(frozen=True, slots=True)
class SoMark(StructMessage):
    """A packet's mark, for routing and filters (SO_MARK). To send one takes CAP_NET_ADMIN or CAP_NET_RAW."""

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SO_MARK
    FAMILIES: ClassVar[frozenset[int]] = INTERNET | {int(socket.AF_PACKET)}
    WIRE: ClassVar[struct.Struct] = struct.Struct("I")

    mark: int
