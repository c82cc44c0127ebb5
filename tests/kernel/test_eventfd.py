"""Contract tests for EventFd: counting, and never blocking."""

from __future__ import annotations

import os
import socket

import pytest

from fdpool.kernel import MAX_EVENTFD_VALUE, EventFd, recv_with_fd, send_with_fd


def test_reading_takes_everything_written() -> None:
    with EventFd() as event:
        event.write()
        event.write(1202)
        assert event.read() == 1203


def test_semaphore_mode_takes_one_at_a_time() -> None:
    with EventFd(2, semaphore=True) as event:
        assert [event.read(), event.read()] == [1, 1]
        with pytest.raises(BlockingIOError):
            event.read()


@pytest.mark.parametrize("blocking", [False, True])
def test_nothing_blocks_whatever_a_peer_did_to_the_flag(blocking: bool) -> None:
    with EventFd() as event, event.duplicate() as peer:
        os.set_blocking(peer.fileno(), blocking)
        with pytest.raises(BlockingIOError):
            event.read()
        event.write(MAX_EVENTFD_VALUE - 1)
        with pytest.raises(BlockingIOError):
            event.write(2)
        event.write(1)
        with pytest.raises(BlockingIOError):
            event.write(1)
        assert event.read() == MAX_EVENTFD_VALUE
        assert os.get_blocking(event.fileno()) is blocking


@pytest.mark.parametrize("n", [0, -1, MAX_EVENTFD_VALUE + 1])
def test_what_cannot_be_added_is_refused(n: int) -> None:
    with EventFd() as event, pytest.raises(ValueError, match="only 1 to"):
        event.write(n)


@pytest.mark.parametrize("initial", [-1, 2**32])
def test_what_cannot_be_the_first_value_is_refused(initial: int) -> None:
    with pytest.raises(ValueError, match="not 0 to"):
        EventFd(initial)


def test_a_closed_one_says_so() -> None:
    event = EventFd()
    event.close()
    with pytest.raises(ValueError, match="EventFd is closed"):
        event.read()
    with pytest.raises(ValueError, match="EventFd is closed"):
        event.write()


def test_no_exec_inherits_it() -> None:
    with EventFd() as event:
        assert not os.get_inheritable(event.fileno())


def test_a_value_written_through_a_passed_eventfd_is_read_here() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, EventFd() as event:
        assert send_with_fd(left, bytes([237]), event) == 1
        buffer = bytearray(1)
        nbytes, fd = recv_with_fd(right, buffer)
        assert buffer[:nbytes] == bytes([237])
        assert fd is not None
        with EventFd.adopt(fd.detach()) as passed:
            passed.write(1203)
        assert event.read() == 1203


def test_what_is_no_eventfd_is_not_read_as_one() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with EventFd.adopt(reader) as event, pytest.raises(OSError, match="not an eventfd"):
        event.read()
