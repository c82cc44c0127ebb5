"""Contract tests for the send/receive-with-fds core, on real sockets."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel import EventFd, MemFd, OwnedFd, recv_with_fd, recv_with_fds, send_with_fd, send_with_fds
from tests.support.interrupts import interrupt_at
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, request.param)
    with left, right:
        yield left, right


def close_all(fds: list[OwnedFd]) -> None:
    for fd in fds:
        fd.close()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 252, 253])
def test_descriptors_arrive_in_order_and_owned(pair: Pair, count: int) -> None:
    left, right = pair
    memfds = [MemFd.from_bytes(str(i).encode()) for i in range(count)]
    assert send_with_fds(left, [b"pay", b"load"], memfds) == 7
    close_all([*memfds])
    buffer = bytearray(16)
    nbytes, fds = recv_with_fds(right, [buffer])
    assert bytes(buffer[:nbytes]) == b"payload"
    assert [os.pread(fd.fileno(), 10, 0) for fd in fds] == [str(i).encode() for i in range(count)]
    assert not any(os.get_inheritable(fd.fileno()) for fd in fds)
    close_all(fds)


def test_two_hundred_and_fifty_four_are_refused_before_anything_is_sent(pair: Pair) -> None:
    left, right = pair
    with EventFd() as event:
        with pytest.raises(ValueError, match="254 descriptors in one message: the kernel takes at most 253"):
            send_with_fds(left, [b"x"], [event] * 254)
    assert_nothing_arrived(right)


@pytest.mark.parametrize("bad", [-1, -24])
def test_negative_numbers_are_refused_before_anything_is_sent(pair: Pair, bad: int) -> None:
    left, right = pair
    with pytest.raises(ValueError, match="negative"):
        send_with_fd(left, b"x", bad)
    assert_nothing_arrived(right)


def test_closed_handles_are_refused_before_anything_is_sent(pair: Pair) -> None:
    left, right = pair
    event = EventFd()
    event.close()
    with pytest.raises(ValueError, match="<EventFd closed> is closed"):
        send_with_fd(left, b"x", event)
    with EventFd() as still_open:
        number = still_open.fileno()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        send_with_fd(left, b"x", number)
    assert caught.value.errno == errno.EBADF
    assert_nothing_arrived(right)


def test_what_is_not_a_handle_is_refused(pair: Pair) -> None:
    with pytest.raises(TypeError, match="str has no fileno\\(\\)"):
        send_with_fd(pair[0], b"x", "3")  # type: ignore[arg-type]


def test_a_stream_needs_a_byte_for_descriptors_to_ride_on() -> None:
    left, right = socket.socketpair()
    with left, right, EventFd() as event, pytest.raises(ValueError, match="the payload is empty"):
        send_with_fds(left, [b"", b""], [event])


def test_an_empty_datagram_carries_descriptors() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, EventFd() as event:
        assert send_with_fds(left, [], [event]) == 0
        nbytes, fd = recv_with_fd(right, bytearray(1))
        assert nbytes == 0
        assert fd is not None
        fd.close()


def test_a_socket_that_would_drop_descriptors_silently_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, EventFd() as event:
        udp.bind(("127.0.0.1", 0))
        udp.connect(udp.getsockname())
        with pytest.raises(ValueError, match="only AF_UNIX sockets carry descriptors"):
            send_with_fd(udp, b"x", event)


@pytest.mark.parametrize(("sent", "wanted"), [(1, 0), (2, 1), (4, 3), (253, 252)])
def test_more_than_wanted_are_all_closed_and_the_bytes_are_in_the_error(pair: Pair, sent: int, wanted: int) -> None:
    left, right = pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(left, [b"payload"], [event] * sent)
        with pytest.raises(RemoteProtocolError, match=f"sent {sent} descriptors where at most {wanted}") as caught:
            recv_with_fds(right, [bytearray(3), bytearray(9)], wanted)
        assert caught.value.data == b"payload"
        assert descriptor_count() == before


@pytest.mark.parametrize("room", [0, 1, 3])
def test_at_the_limit_nothing_is_half_received_and_the_error_has_the_figures(pair: Pair, room: int) -> None:
    left, right = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with EventFd() as event:
        send_with_fds(left, [b"payload"], [event] * 4)
        before = descriptor_count()
        highest = max(map(int, os.listdir("/proc/self/fd")))
        fillers = [event.duplicate() for _ in range(highest + 1 - before)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + room, hard))
        try:
            with pytest.raises(FdLimitError, match="did not arrive") as caught:
                recv_with_fds(right, [bytearray(16)])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            close_all([*fillers])
        assert descriptor_count() == before
    assert caught.value.errno == errno.EMFILE
    assert caught.value.data == b"payload"
    assert caught.value.limit == highest + 1 + room
    assert caught.value.in_use <= caught.value.limit


def test_credentials_on_the_socket_do_not_eat_the_room() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, EventFd() as event:
        right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        send_with_fds(left, [b"x"], [event] * 253)
        _, fds = recv_with_fds(right, [bytearray(1)])
        assert len(fds) == 253
        close_all(fds)


def test_several_arrays_in_one_message_arrive_as_one_list() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, EventFd() as event:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [event.fileno()]))
        left.sendmsg([b"x"], [rights, rights])
        _, fds = recv_with_fds(right, [bytearray(1)])
        assert len(fds) == 2
        close_all(fds)


# The owners themselves close, with a warning, what an interrupt keeps from being returned.
@pytest.mark.filterwarnings("ignore:unclosed <OwnedFd:ResourceWarning")
def test_an_interrupt_at_any_bytecode_of_receiving_leaks_nothing(pair: Pair) -> None:
    left, right = pair
    with EventFd() as event:
        before = descriptor_count()
        step = 0
        while True:
            send_with_fds(left, [b"x"], [event] * 3)
            try:
                with interrupt_at(step, __file__):
                    _, fds = recv_with_fds(right, [bytearray(1)])
            except KeyboardInterrupt:
                step += 1
            else:
                close_all(fds)
                break
            drain(right)
            assert descriptor_count() == before, f"leaked at step {step}"
        assert step > 10


def drain(sock: socket.socket) -> None:
    try:
        while True:
            _, fds = recv_with_fds(sock, [bytearray(1)], flags=socket.MSG_DONTWAIT)
            close_all(fds)
    except BlockingIOError:
        pass


def assert_nothing_arrived(sock: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        recv_with_fds(sock, [bytearray(1)], flags=socket.MSG_DONTWAIT)


def test_the_example_of_scm_socket() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, EventFd() as event:
        assert send_with_fds(left, [bytes([237])], [event]) == 1
        nbytes, fds = recv_with_fds(right, [bytearray(1)], 2)
        assert (nbytes, len(fds)) == (1, 1)
        with fds[0].into_file("wb", buffering=0) as file:
            file.write((1203).to_bytes(8, "little"))
        assert event.read() == 1203
