"""Contract tests for segments, drops and marks, over the loopback interface."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import RxqOvfl, SoMark, UdpGroSegments, UdpGsoSegments, enable, recvmsg, sendmsg
from tests.support.unprivileged import run_as_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_one_send_is_cut_into_datagrams(udp: Pair) -> None:
    left, right = udp
    assert sendmsg(left, [b"a" * 1000, b"b" * 1000, b"c" * 500], [UdpGsoSegments(1000)]) == 2500
    sizes = []
    for _ in range(3):
        with recvmsg(right, [bytearray(2000)]) as received:
            sizes.append(received.nbytes)
    assert sizes == [1000, 1000, 500]


def test_many_datagrams_arrive_as_one_with_the_size_of_each(udp: Pair) -> None:
    left, right = udp
    enable(right, UdpGroSegments)
    sendmsg(left, [bytes(2500)], [UdpGsoSegments(1000)])
    with recvmsg(right, [bytearray(4000)]) as received:
        assert received.nbytes == 2500
        assert received.control == (UdpGroSegments(1000),)


def test_datagrams_dropped_for_want_of_room_are_counted(udp: Pair) -> None:
    left, right = udp
    enable(right, RxqOvfl)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(50):
        sendmsg(left, [bytes(500)])
    arrived = 0
    try:
        while True:
            recvmsg(right, [bytearray(500)], flags=socket.MSG_DONTWAIT).close()
            arrived += 1
    except BlockingIOError:
        pass
    assert 0 < arrived < 50
    sendmsg(left, [b"x"])
    with recvmsg(right, [bytearray(1)]) as received:
        assert received.control == (RxqOvfl(50 - arrived),)


def test_a_mark_is_sent_and_received(udp: Pair) -> None:
    left, right = udp
    enable(right, SoMark)
    try:
        sendmsg(left, [b"x"], [SoMark(42)])
    except PermissionError:
        pytest.skip("sending a mark takes CAP_NET_ADMIN or CAP_NET_RAW")
    with recvmsg(right, [bytearray(1)]) as received:
        (message,) = received.control
    # Routing through the loopback interface clears the mark of a packet, unless told to keep it.
    assert message in (SoMark(42), SoMark(0))


def test_a_mark_takes_privileges() -> None:
    def check() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left, pytest.raises(PermissionError):
            sendmsg(left, [b"x"], [SoMark(42)], 0, ("127.0.0.1", 9))

    run_as_nobody(check)
