"""Control messages that tell when: timestamps of arrival, and the time to transmit at. See socket(7)."""

from __future__ import annotations

import datetime as dates
import socket
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from fdpool.kernel import constants as k
from fdpool.kernel.control import INTERNET, StructMessage, pack, unpack

SECOND: Final = 10**9  # in nanoseconds
_OLD_PAIR: Final = struct.Struct("ll")  # struct timeval and timespec, as wide as a long
_NEW_PAIR: Final = struct.Struct("qq")  # struct __kernel_sock_timeval and __kernel_timespec: 64 bits everywhere
_EPOCH: Final = dates.datetime(1970, 1, 1, tzinfo=dates.UTC)


class Timestamp(StructMessage):
    """A time of the system clock, exact in `nanoseconds` since the epoch."""

    __slots__ = ()

    LEVEL: ClassVar[int] = k.SOL_SOCKET

    nanoseconds: int

    def datetime(self) -> dates.datetime:
        """Return it in UTC; of the nanoseconds, whole microseconds remain."""
        return _EPOCH + dates.timedelta(microseconds=self.nanoseconds // 1000)


class PairTimestamp(Timestamp):
    """A timestamp whose payload is whole seconds and a rest, in units of `UNIT` nanoseconds."""

    __slots__ = ()

    UNIT: ClassVar[int]

    def encode(self) -> bytes:
        """Return the payload."""
        if self.nanoseconds % self.UNIT:
            raise ValueError(f"{self} is not a whole number of microseconds, which is all its payload can say")
        seconds, rest = divmod(self.nanoseconds, SECOND)
        return pack(self, self.WIRE, seconds, rest // self.UNIT)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        seconds, rest = unpack(cls, cls.WIRE, data)
        return cls(join_seconds(seconds, rest, cls.UNIT))  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class ScmTimestamp(PairTimestamp):
    """When a message arrived, to the microsecond (SO_TIMESTAMP)."""

    TYPE: ClassVar[int] = k.SO_TIMESTAMP
    WIRE: ClassVar[struct.Struct] = _OLD_PAIR
    UNIT: ClassVar[int] = 1000

    nanoseconds: int


@dataclass(frozen=True, slots=True)
class ScmTimestampNew(PairTimestamp):
    """As `ScmTimestamp`, with 64 bits on every machine (SO_TIMESTAMP_NEW, Linux 5.1)."""

    TYPE: ClassVar[int] = k.SO_TIMESTAMP_NEW
    WIRE: ClassVar[struct.Struct] = _NEW_PAIR
    UNIT: ClassVar[int] = 1000

    nanoseconds: int


@dataclass(frozen=True, slots=True)
class ScmTimestampNs(PairTimestamp):
    """When a message arrived, to the nanosecond (SO_TIMESTAMPNS)."""

    TYPE: ClassVar[int] = k.SO_TIMESTAMPNS
    WIRE: ClassVar[struct.Struct] = _OLD_PAIR
    UNIT: ClassVar[int] = 1

    nanoseconds: int


@dataclass(frozen=True, slots=True)
class ScmTimestampNsNew(PairTimestamp):
    """As `ScmTimestampNs`, with 64 bits on every machine (SO_TIMESTAMPNS_NEW, Linux 5.1)."""

    TYPE: ClassVar[int] = k.SO_TIMESTAMPNS_NEW
    WIRE: ClassVar[struct.Struct] = _NEW_PAIR
    UNIT: ClassVar[int] = 1

    nanoseconds: int


class TripleTimestamp(Timestamp):
    """The timestamps of SO_TIMESTAMPING: three times, of which one or two are taken. Each is in nanoseconds."""

    __slots__ = ()

    software: int
    legacy: int
    hardware: int

    @property
    def nanoseconds(self) -> int:  # type: ignore[override]  # derived here, a field in the others
        """The system clock's time where it was taken, else the network card's."""
        return self.software or self.hardware

    def encode(self) -> bytes:
        """Return the payload."""
        times = (self.software, self.legacy, self.hardware)
        return pack(self, self.WIRE, *(part for time in times for part in divmod(time, SECOND)))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        parts = unpack(cls, cls.WIRE, data)
        software, legacy, hardware = (join_seconds(parts[i], parts[i + 1], 1) for i in (0, 2, 4))
        return cls(software, legacy, hardware)  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class ScmTimestamping(TripleTimestamp):
    """When a message arrived or, in the error queue, when it left (SO_TIMESTAMPING, kernel timestamping.rst).

    Attributes:
      software: The system clock's time in nanoseconds since the epoch, 0 where it was not taken.
      legacy: Not filled by today's kernels.
      hardware: The network card's own clock in nanoseconds, 0 where it was not taken.
    """

    TYPE: ClassVar[int] = k.SO_TIMESTAMPING
    WIRE: ClassVar[struct.Struct] = struct.Struct("6l")

    software: int
    legacy: int
    hardware: int


@dataclass(frozen=True, slots=True)
class ScmTimestampingNew(TripleTimestamp):
    """As `ScmTimestamping`, with 64 bits on every machine (SO_TIMESTAMPING_NEW, Linux 5.1)."""

    TYPE: ClassVar[int] = k.SO_TIMESTAMPING_NEW
    WIRE: ClassVar[struct.Struct] = struct.Struct("6q")

    software: int
    legacy: int
    hardware: int


@dataclass(frozen=True, slots=True)
class TxTime(StructMessage):
    """When a datagram is to leave, for a queueing discipline such as etf. Sent only; `enable` it first.

    Attributes:
      nanoseconds: A time of the clock that was chosen in enabling it, CLOCK_MONOTONIC unless told otherwise.
    """

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SO_TXTIME
    FAMILIES: ClassVar[frozenset[int]] = INTERNET | {int(socket.AF_PACKET)}
    WIRE: ClassVar[struct.Struct] = struct.Struct("Q")

    nanoseconds: int


def join_seconds(seconds: int, rest: int, unit: int) -> int:
    """Return the nanoseconds in a pair of seconds and a rest, in units of *unit* nanoseconds.

    Raises:
      ValueError: the rest is a whole second or more, or negative.
    """
    if not 0 <= rest * unit < SECOND:
        raise ValueError(f"{rest} times {unit} ns is not a part of a second")
    return seconds * SECOND + rest * unit
