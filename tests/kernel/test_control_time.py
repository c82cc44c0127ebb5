"""Contract tests for timestamps and transmit times, on real sockets."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import (
    ControlMessage,
    Ipv4RecvErr,
    ScmTimestamp,
    ScmTimestamping,
    ScmTimestampingNew,
    ScmTimestampNew,
    ScmTimestampNs,
    ScmTimestampNsNew,
    Timestamp,
    TxTime,
    enable,
    recvmsg,
    sendmsg,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def udp() -> Iterator[Pair]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
    ):
        right.bind(("127.0.0.1", 0))
        left.connect(right.getsockname())
        yield left, right


@pytest.mark.parametrize(
    "kind",
    [
        ScmTimestamp,
        ScmTimestampNs,
        ScmTimestamping,
        ScmTimestampNew,
        ScmTimestampNsNew,
        ScmTimestampingNew,
    ],
)
def test_a_timestamp_lies_between_two_readings_of_the_clock(udp: Pair, kind: type[Timestamp]) -> None:
    # The example of nix's ControlMessage.
    left, right = udp
    enable(right, kind)
    stamps: Sequence[ControlMessage] = ()
    give_up = time.monotonic() + 30
    # The kernel may begin to stamp a moment after it was asked to: docs/kernel-notes.md.
    while not stamps and time.monotonic() < give_up:
        earliest = time.time_ns()
        sendmsg(left, ["Ohayō!".encode()])
        with recvmsg(right, [bytearray(7)]) as received:
            latest = time.time_ns()
            stamps = received.control
    (stamp,) = stamps
    assert type(stamp) is kind
    # A microsecond timestamp is rounded down.
    assert earliest - 1000 <= stamp.nanoseconds <= latest
    assert abs(stamp.datetime().timestamp() - stamp.nanoseconds / 1e9) < 1e-5


@pytest.mark.parametrize("kind", [ScmTimestamp, ScmTimestampNs, ScmTimestampNew, ScmTimestampNsNew])
@pytest.mark.parametrize("socket_type", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_messages_between_unix_sockets_are_stamped(kind: type[Timestamp], socket_type: socket.SocketKind) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket_type)
    with left, right:
        enable(right, kind)
        earliest = time.time_ns()
        sendmsg(left, [b"x"])
        with recvmsg(right, [bytearray(1)]) as received:
            (stamp,) = received.control
            assert isinstance(stamp, kind)
            assert earliest - 1000 <= stamp.nanoseconds <= time.time_ns()


def test_the_time_of_leaving_comes_through_the_error_queue(udp: Pair) -> None:
    left, _ = udp
    tx_software_and_no_copy = 1 << 1 | 1 << 4 | 1 << 11
    enable(left, ScmTimestamping, tx_software_and_no_copy)
    earliest = time.time_ns()
    sendmsg(left, [b"x"])
    with recvmsg(left, [], flags=socket.MSG_ERRQUEUE) as received:
        assert received.flags & socket.MSG_ERRQUEUE
        stamp = received.find(ScmTimestamping)
        note = received.find(Ipv4RecvErr)
    assert stamp is not None
    assert stamp.software == stamp.nanoseconds
    assert stamp.hardware == 0
    assert earliest <= stamp.nanoseconds <= time.time_ns()
    assert note is not None
    assert (note.origin, note.offender) == (4, None)


def test_of_several_kinds_the_last_enabled_comes(udp: Pair) -> None:
    left, right = udp
    enable(right, ScmTimestamp)
    enable(right, ScmTimestampNs)
    sendmsg(left, [b"x"])
    with recvmsg(right, [bytearray(1)]) as received:
        assert [type(message) for message in received.control] == [ScmTimestampNs]


def test_what_was_enabled_can_be_turned_off(udp: Pair) -> None:
    left, right = udp
    enable(right, ScmTimestampNs)
    enable(right, ScmTimestampNs, 0)
    sendmsg(left, [b"x"])
    with recvmsg(right, [bytearray(1)]) as received:
        assert received.control == ()


def test_a_transmit_time_needs_enabling_and_is_then_taken(udp: Pair) -> None:
    left, right = udp
    when: list[ControlMessage] = [TxTime(time.monotonic_ns())]
    with pytest.raises(OSError, match="Invalid argument"):
        sendmsg(left, [b"x"], when)
    enable(left, TxTime)
    sendmsg(left, [b"x"], when)
    assert right.recv(1) == b"x"


def test_the_clock_of_transmit_times_can_be_chosen(udp: Pair) -> None:
    left, _ = udp
    enable(left, TxTime, struct.pack("iI", time.CLOCK_TAI, 0))
    assert struct.unpack("iI", left.getsockopt(socket.SOL_SOCKET, 61, 8)) == (time.CLOCK_TAI, 0)
