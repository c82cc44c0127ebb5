"""Contract tests for sendmsg and recvmsg: ownership, truncation, limits and guards, on real sockets."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fdpool.errors import ControlTruncatedError, FdLimitError
from fdpool.kernel import (
    CONTROL_BYTES,
    ControlBuffer,
    EventFd,
    Ipv4Ttl,
    OwnedFd,
    PidFd,
    ScmCredentials,
    ScmPidfd,
    ScmRights,
    ScmTimestampNs,
    UnknownControlMessage,
    enable,
    recv_with_fds,
    recvmsg,
    sendmsg,
)
from fdpool.kernel.received import received_from
from tests.support.interrupts import interrupt_at
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]
ALL_TYPES = [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM]


@pytest.fixture(params=ALL_TYPES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, request.param)
    with left, right:
        yield left, right


@pytest.fixture
def datagrams() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        yield left, right


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let this process open *count* more descriptors and no other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir("/proc/self/fd")))
    top = max(used) + 1
    fillers: list[EventFd] = []
    with EventFd() as event:
        while len(fillers) < 1000 and (filler := event.duplicate()).fileno() < top:
            fillers.append(filler)
        filler.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                filler.close()


def test_messages_arrive_typed_and_descriptors_owned(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    with EventFd(1) as one, EventFd(2) as two:
        assert sendmsg(left, [b"pay", b"load"], [ScmRights([one, two.fileno()])]) == 7
    buffers = [bytearray(3), bytearray(9)]
    with recvmsg(right, buffers) as received:
        assert (received.nbytes, received.length, received.flags, received.truncated) == (7, 7, 0, False)
        assert b"".join(buffers)[:7] == b"payload"
        assert received.find(ScmCredentials) == ScmCredentials.current()
        assert [type(message) for message in received.control] == [ScmCredentials, ScmRights]
        assert [os.eventfd_read(fd.fileno()) for fd in received.fds] == [1, 2]
        assert not any(os.get_inheritable(fd.fileno()) for fd in received.fds)
        assert received.find(ScmRights) == ScmRights(received.fds)
        assert received.find(ScmPidfd) is None


def test_what_nobody_took_is_closed_and_what_was_taken_stays(pair: Pair) -> None:
    left, right = pair
    before = descriptor_count()
    with EventFd() as event:
        sendmsg(left, [b"x"], [ScmRights([event] * 5)])
        with recvmsg(right, [bytearray(1)]) as received:
            number = received.fds[1].detach()
            file = received.fds[2].into_file("r+b", buffering=0)
            assert descriptor_count() == before + 6
        assert descriptor_count() == before + 3
        assert [fd.closed for fd in received.fds] == [True] * 5
        os.close(number)
        file.close()
        sendmsg(left, [b"x"], [ScmRights([event] * 5)])
        with recvmsg(right, [bytearray(1)]) as received:
            taken = received.take_fds()
        received.close()
        assert [fd.closed for fd in taken] == [False] * 5
        for fd in taken:
            fd.close()
    assert descriptor_count() == before


def test_descriptors_with_gaps_between_their_numbers_are_all_closed_and_nobody_elses(datagrams: Pair) -> None:
    left, right = datagrams
    with EventFd() as event:
        others = [event.duplicate() for _ in range(60)]
        for other in others[::3]:
            other.close()
        before = descriptor_count()
        sendmsg(left, [b"x"], [ScmRights([event] * 50)])
        with recvmsg(right, [bytearray(1)]) as received:
            received.fds[7].close()
            assert descriptor_count() == before + 49
        assert descriptor_count() == before
        for other in others:
            other.close()


def test_the_sender_comes_as_a_process_that_is_owned(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmPidfd)
    with EventFd() as event:
        sendmsg(left, [b"x"], [ScmRights([event])])
    with recvmsg(right, [bytearray(1)]) as received:
        assert [type(message) for message in received.control] == [ScmRights, ScmPidfd]
        assert len(received.fds) == 1
        pidfd = received.take_pidfd()
    assert received.fds[0].closed
    assert pidfd is not None
    with pidfd:
        assert pidfd.pid == os.getpid()
        assert not os.get_inheritable(pidfd.fileno())


def test_taking_the_descriptors_leaves_the_pidfd_to_be_closed(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmPidfd)
    before = descriptor_count()
    sendmsg(left, [b"x"])
    with recvmsg(right, [bytearray(1)]) as received:
        assert received.take_fds() == []
        assert received.find(ScmPidfd) is not None
        assert descriptor_count() == before + 1
    assert descriptor_count() == before


def test_the_sender_comes_along_with_send_and_recv_with_fds_and_leaks_nothing(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmPidfd)
    before = descriptor_count()
    sendmsg(left, [b"x"])
    assert recv_with_fds(right, [bytearray(1)]) == (1, [])
    assert descriptor_count() == before


def test_at_the_descriptor_limit_the_pidfd_is_an_errno(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmPidfd)
    sendmsg(left, [b"x"])
    with room_for(0), recvmsg(right, [bytearray(1)]) as received:
        assert received.control == (ScmPidfd(None, errno.EMFILE),)
        assert received.take_pidfd() is None


def test_peeking_duplicates_the_descriptors_every_time(pair: Pair) -> None:
    left, right = pair
    with EventFd() as event:
        sendmsg(left, [b"payload"], [ScmRights([event])])
    before = descriptor_count()
    for _ in range(3):
        with recvmsg(right, [bytearray(7)], flags=socket.MSG_PEEK) as received:
            assert len(received.fds) == 1
            assert descriptor_count() == before + 1
        assert descriptor_count() == before
    with recvmsg(right, [bytearray(7)]) as received:
        assert len(received.fds) == 1


def test_a_datagram_longer_than_the_buffers_is_reported_with_its_full_length(datagrams: Pair) -> None:
    left, right = datagrams
    with EventFd() as event:
        sendmsg(left, [b"0123456789"], [ScmRights([event])])
    buffers = [bytearray(2), bytearray(2)]
    with recvmsg(right, buffers) as received:
        assert received.truncated
        assert (received.nbytes, received.length) == (4, 10)
        assert buffers == [b"01", b"23"]
        assert len(received.fds) == 1
        assert "4 of 10 bytes" in repr(received)


def test_a_stream_keeps_what_did_not_fit() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(b"0123456789")
        with recvmsg(right, [bytearray(4)]) as received:
            assert not received.truncated
            assert (received.nbytes, received.length) == (4, 4)
        assert right.recv(10) == b"456789"


def test_a_tcp_stream_keeps_what_did_not_fit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"0123456789")
            buffer = bytearray(4)
            with recvmsg(server, [buffer], flags=socket.MSG_WAITALL) as received:
                assert (received.nbytes, bytes(buffer)) == (4, b"0123")
            assert server.recv(6, socket.MSG_WAITALL) == b"456789"


# What fits is the kernel's arithmetic: a header of 16 bytes, then 4 for each descriptor; a header alone is not used.
@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_little_room_the_error_says_how_much_it_took(pair: Pair, count: int) -> None:
    left, right = pair
    needed = socket.CMSG_LEN(4 * count)
    before = descriptor_count()
    for room in [*range(49), 100, 200, 300]:
        sendmsg(left, [b"payload"], [ScmRights([left] * count)])
        if room >= needed:
            with recvmsg(right, [bytearray(7)], control_bytes=room) as received:
                assert len(received.fds) == count
            continue
        with pytest.raises(ControlTruncatedError) as caught:
            recvmsg(right, [bytearray(7)], control_bytes=room)
        assert descriptor_count() == before
        assert caught.value.errno == errno.ENOBUFS
        assert caught.value.data == b"payload"
        assert caught.value.capacity == room
        assert room < caught.value.needed <= needed
        arrived = [fd for message in caught.value.control if isinstance(message, ScmRights) for fd in message.fds]
        assert len(arrived) == max(0, (room - 16) // 4)
        assert all(isinstance(fd, OwnedFd) and fd.closed for fd in arrived)


def test_with_any_room_credentials_rights_and_pidfd_are_whole_or_an_error(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmCredentials)
    enable(right, ScmPidfd)
    enough = ScmCredentials.space() + ScmRights.space(3) + socket.CMSG_LEN(4)
    before = descriptor_count()
    for room in range(enough):
        sendmsg(left, [b"payload"], [ScmRights([left] * 3)])
        with pytest.raises(ControlTruncatedError) as caught:
            recvmsg(right, [bytearray(7)], control_bytes=room)
        assert room < caught.value.needed <= enough
        assert caught.value.data == b"payload"
        assert descriptor_count() == before
    sendmsg(left, [b"payload"], [ScmRights([left] * 3)])
    with recvmsg(right, [bytearray(7)], control_bytes=enough) as received:
        assert [type(message) for message in received.control] == [ScmCredentials, ScmRights, ScmPidfd]
    assert descriptor_count() == before


def test_a_message_cut_short_is_in_the_error_as_it_came(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmCredentials)
    sendmsg(left, [b"x"])
    with pytest.raises(ControlTruncatedError, match="room for 24 bytes, and at least 28 were needed") as caught:
        recvmsg(right, [bytearray(1)], control_bytes=24)
    payload = ScmCredentials.current().encode()
    assert caught.value.control == (UnknownControlMessage(1, 2, payload[:8]),)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_at_the_descriptor_limit_the_error_has_the_figures_and_what_came(pair: Pair, room: int) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    with EventFd() as event:
        sendmsg(left, [b"payload"], [ScmRights([event] * 3)])
    before = descriptor_count()
    with room_for(room), pytest.raises(FdLimitError, match="did not arrive") as caught:
        recvmsg(right, [bytearray(7)])
    assert descriptor_count() == before
    assert caught.value.data == b"payload"
    assert caught.value.control[0] == ScmCredentials.current()
    arrived = [fd for message in caught.value.control if isinstance(message, ScmRights) for fd in message.fds]
    assert len(arrived) == room
    assert caught.value.limit - caught.value.in_use <= room


def test_a_small_buffer_at_the_descriptor_limit_still_blames_the_limit(datagrams: Pair) -> None:
    left, right = datagrams
    with EventFd() as event:
        sendmsg(left, [b"x"], [ScmRights([event] * 3)])
    with room_for(1), pytest.raises(FdLimitError):
        recvmsg(right, [bytearray(1)], control_bytes=ScmRights.space(4))


def test_alignment_lets_a_second_descriptor_in_and_it_is_owned_too(datagrams: Pair) -> None:
    left, right = datagrams
    before = descriptor_count()
    with EventFd() as event:
        sendmsg(left, [b"x"], [ScmRights([event] * 2)])
    with recvmsg(right, [bytearray(1)], control_bytes=ScmRights.space(1)) as received:
        assert len(received.fds) == 2
    assert descriptor_count() == before


def test_several_rights_of_one_message_arrive_as_one(pair: Pair) -> None:
    left, right = pair
    with EventFd(1) as one, EventFd(2) as two, EventFd(3) as three:
        sendmsg(left, [b"x"], [ScmRights([one]), ScmRights([]), ScmRights([two, three])])
    with recvmsg(right, [bytearray(1)]) as received:
        (rights,) = received.control
        assert isinstance(rights, ScmRights)
        assert [os.eventfd_read(fd.fileno()) for fd in received.fds] == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_half_a_number_is_no_descriptor(datagrams: Pair, cut: int) -> None:
    left, right = datagrams
    with EventFd() as event:
        payload = struct.pack("2i", event.fileno(), event.fileno())
        sendmsg(left, [b"x"], [UnknownControlMessage(socket.SOL_SOCKET, socket.SCM_RIGHTS, payload[: 4 + cut])])
    with recvmsg(right, [bytearray(1)]) as received:
        assert len(received.fds) == 1


def test_the_limit_of_253_counts_all_of_a_message(pair: Pair) -> None:
    left, right = pair
    with EventFd() as event:
        with pytest.raises(ValueError, match="254 descriptors in one message: the kernel takes at most 253"):
            sendmsg(left, [b"x"], [ScmRights([event] * 200), ScmRights([event] * 54)])
        sendmsg(left, [b"x"], [ScmRights([event] * 200), ScmRights([event] * 53)])
    with recvmsg(right, [bytearray(1)]) as received:
        assert len(received.fds) == 253


@pytest.mark.parametrize("message", [ScmRights([0]), ScmRights([]), ScmCredentials(1, 2, 3)], ids=str)
def test_what_a_udp_socket_would_drop_is_refused(message: ScmRights | ScmCredentials) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match=r"only AF_UNIX sockets carry descriptors|would be dropped without a word"):
            sendmsg(udp, [b"x"], [message], 0, udp.getsockname())
        with pytest.raises(BlockingIOError):
            recvmsg(udp, [bytearray(1)], flags=socket.MSG_DONTWAIT)


def test_what_a_unix_socket_would_drop_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="Ipv4Ttl means nothing to a socket of AF_UNIX"):
        sendmsg(pair[0], [b"x"], [Ipv4Ttl(3)])


def test_a_stream_needs_a_byte_for_descriptors_and_for_nothing_else() -> None:
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ValueError, match="the payload is empty"):
            sendmsg(left, [b"", bytearray()], [ScmRights([left])])
        assert sendmsg(left, [], [ScmRights([])]) == 0


@pytest.mark.parametrize("handle", [-1, True, "3", None, 2**31], ids=str)
def test_what_is_no_open_handle_is_refused_before_the_syscall(pair: Pair, handle: int) -> None:
    with pytest.raises((TypeError, ValueError), match=r"negative|not bool|no fileno|too big"):
        sendmsg(pair[0], [b"x"], [ScmRights([pair[0], handle])])


def test_a_closed_handle_is_named(pair: Pair) -> None:
    event = EventFd()
    event.close()
    with pytest.raises(ValueError, match="<EventFd closed> is closed"):
        sendmsg(pair[0], [b"x"], [ScmRights([pair[0], event])])


def test_numbers_and_numbers_of_other_classes_are_handles(pair: Pair) -> None:
    class Number(int):
        pass

    left, right = pair
    sendmsg(left, [b"x"], [ScmRights([Number(left.fileno()), left.fileno(), left])])
    with recvmsg(right, [bytearray(1)]) as received:
        assert len(received.fds) == 3


def test_an_address_is_sent_to_and_received_from() -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as right,
    ):
        left.bind(b"\0fdpool-test-left-%d" % os.getpid())
        right.bind(b"\0fdpool-test-right-%d" % os.getpid())
        sendmsg(left, [b"x"], [ScmRights([left])], 0, right.getsockname())
        with recvmsg(right, [bytearray(1)]) as received:
            assert received.address == left.getsockname()


def test_nothing_there_is_blocking_io_error_and_the_end_of_a_stream_is_nothing() -> None:
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(BlockingIOError):
            recvmsg(right, [bytearray(1)], flags=socket.MSG_DONTWAIT)
        left.close()
        with recvmsg(right, [bytearray(1)]) as received:
            assert (received.nbytes, received.control) == (0, ())


def test_the_peer_is_gone_raises_no_signal() -> None:
    left, right = socket.socketpair()
    with left:
        right.close()
        with pytest.raises(BrokenPipeError):
            sendmsg(left, [b"x"])


def test_the_default_room_is_enough_for_everything_at_once(datagrams: Pair) -> None:
    left, right = datagrams
    for kind in (ScmTimestampNs, ScmCredentials, ScmPidfd):
        enable(right, kind)
    with EventFd() as event:
        sendmsg(left, [b"x"], [ScmRights([event] * 253)])
    with recvmsg(right, [bytearray(1)]) as received:
        assert [type(message) for message in received.control] == [ScmTimestampNs, ScmCredentials, ScmRights, ScmPidfd]
        assert len(received.fds) == 253
    assert CONTROL_BYTES >= 1500


class Answering:
    """Stands in for a socket of a kernel with SO_RIGHTS_NOTRUNC, which is newer than those the tests run on."""

    def __init__(self, numbers: list[int], *others: tuple[int, int, bytes]) -> None:
        self.numbers = numbers
        self.others = others

    def recvmsg_into(self, *_: object) -> tuple[int, list[tuple[int, int, bytes]], int, None]:
        data = array.array("i", self.numbers).tobytes()
        return 0, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data), *self.others], 0, None


def test_a_denied_descriptor_is_reported_by_position_and_is_nobodys_number() -> None:
    with EventFd() as event:
        mine = [event.duplicate().detach() for _ in range(2)]
        answer = Answering([mine[0], -errno.EPERM, mine[1]])
        with received_from([answer.recvmsg_into()], []) as received:
            assert [fd.fileno() for fd in received.fds] == mine
            assert received.denied == [(1, errno.EPERM)]
            assert received.control == (ScmRights(received.fds),)


def test_where_every_descriptor_was_denied_the_sender_is_still_a_process() -> None:
    number = os.pidfd_open(os.getpid())
    pidfd = (socket.SOL_SOCKET, 4, struct.pack("i", number))
    with received_from([Answering([-errno.EPERM], pidfd).recvmsg_into()], []) as received:
        assert received.fds == []
        sender = received.take_pidfd()
    assert isinstance(sender, PidFd)
    with sender:
        assert sender.fileno() == number


def test_recv_with_fds_takes_all_or_nothing_when_one_was_denied() -> None:
    with EventFd() as event:
        before = descriptor_count()
        answer = Answering([event.duplicate().detach(), -errno.EPERM])
        with pytest.raises(PermissionError, match="descriptor 1 was withheld"):
            recv_with_fds(answer, [])  # type: ignore[arg-type]
        assert descriptor_count() == before


def drain(sock: socket.socket) -> None:
    try:
        while True:
            recvmsg(sock, [bytearray(1)], flags=socket.MSG_DONTWAIT).close()
    except BlockingIOError:
        pass


# The owners themselves close, with a warning, what an interrupt keeps from being returned.
@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
@pytest.mark.parametrize("room", [CONTROL_BYTES, ScmCredentials.space() + ScmRights.space(2)])
@pytest.mark.parametrize("into_buffer", [False, True])
def test_an_interrupt_at_any_bytecode_of_receiving_leaks_nothing(datagrams: Pair, room: int, into_buffer: bool) -> None:
    left, right = datagrams
    enable(right, ScmCredentials)
    enable(right, ScmPidfd)
    with EventFd() as event, ControlBuffer(room) as buffer:
        before = descriptor_count()
        step = 0
        while True:
            sendmsg(left, [b"x"], [ScmRights([event] * 3)])
            received = None
            try:
                with interrupt_at(step, __file__):
                    received = recvmsg(
                        right, [bytearray(1)], control_bytes=room, control=buffer if into_buffer else None
                    )
                    assert len(received.control) == 3
                    received.close()
            except KeyboardInterrupt:
                step += 1
                if received is not None:
                    received.close()
            except ControlTruncatedError:
                break
            else:
                break
            drain(right)
            buffer.clear()
            assert descriptor_count() == before, f"leaked at step {step}"
        buffer.clear()
        assert descriptor_count() == before
        assert step > 50


@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("is_asked", [False, True])
@pytest.mark.parametrize("has_process", [False, True])
def test_an_interrupt_at_any_bytecode_of_closing_closes_each_once(
    datagrams: Pair, count: int, is_asked: bool, has_process: bool
) -> None:
    left, right = datagrams
    if has_process:
        enable(right, ScmPidfd)
    with EventFd() as event:
        before = descriptor_count()
        step = 0
        while True:
            sendmsg(left, [b"x"], [ScmRights([event] * count)])
            received = recvmsg(right, [bytearray(1)])
            is_interrupted = False
            try:
                with interrupt_at(step, __file__):
                    if is_asked:
                        assert len(received.fds) == count
                    received.close()
            except KeyboardInterrupt:
                is_interrupted = True
            # Whatever gets the number of one that was closed stays open.
            strangers = [event.duplicate() for _ in range(count + 2)]
            if step % 2:
                received.close()
                assert [fd.closed for fd in received.fds] == [True] * count
            del received
            for stranger in strangers:
                assert os.fstat(stranger.fileno())
                stranger.close()
            assert descriptor_count() == before, f"step {step}"
            if not is_interrupted:
                break
            step += 1
        assert step > 30


@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("has_process", [False, True])
def test_an_interrupt_at_any_bytecode_of_taking_leaves_each_with_one_owner(
    datagrams: Pair, count: int, has_process: bool
) -> None:
    left, right = datagrams
    if has_process:
        enable(right, ScmPidfd)
    with EventFd() as event:
        before = descriptor_count()
        step = 0
        while True:
            sendmsg(left, [b"x"], [ScmRights([event] * count)])
            received = recvmsg(right, [bytearray(1)])
            taken = []
            try:
                with interrupt_at(step, __file__):
                    taken = received.take_fds()
            except KeyboardInterrupt:
                assert descriptor_count() <= before + count + has_process
                if step % 2:
                    assert all(type(fd) is OwnedFd for fd in received.fds)
                    received.close()
            else:
                assert [type(fd) for fd in taken] == [OwnedFd] * count
                break
            del received
            assert descriptor_count() == before, f"step {step}"
            step += 1
        for fd in taken:
            fd.close()
        received.close()
        assert descriptor_count() == before
        assert step > 30


def test_what_was_closed_before_anybody_asked_is_there_as_closed(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmPidfd)
    sendmsg(left, [b"x"], [ScmRights([left] * 3)])
    with recvmsg(right, [bytearray(1)]) as received:
        pass
    with EventFd() as stranger:
        received.close()
        assert [fd.fileno() for fd in received.fds] == [-1, -1, -1]
        assert received.find(ScmRights) == ScmRights(received.fds)
        pidfd = received.take_pidfd()
        assert pidfd is not None
        assert pidfd.closed
        assert os.fstat(stranger.fileno())


def test_forgetting_a_received_message_closes_with_a_warning(datagrams: Pair) -> None:
    left, right = datagrams
    sendmsg(left, [b"x"], [ScmRights([left])])
    received = recvmsg(right, [bytearray(1)])
    with pytest.warns(ResourceWarning, match="unclosed <OwnedFd"):
        del received


def test_the_pidfd_of_a_sender_that_is_gone_is_still_a_process(datagrams: Pair) -> None:
    left, right = datagrams
    enable(right, ScmPidfd)
    pid = os.fork()
    if pid == 0:
        left.send(b"x")
        os._exit(0)
    os.waitpid(pid, 0)
    with recvmsg(right, [bytearray(1)]) as received:
        message = received.find(ScmPidfd)
        assert message is not None
        # Older kernels answer with an errno here.
        assert isinstance(message.fd, PidFd) if message.errno == 0 else message.errno in (errno.ESRCH, errno.EINVAL)


def test_passing_descriptors_loads_no_class_of_other_control_messages() -> None:
    code = """
import socket, sys
from fdpool.kernel import recv_with_fds, send_with_fds
left, right = socket.socketpair()
send_with_fds(left, [b"x"], [left])
_, (fd,) = recv_with_fds(right, [bytearray(1)])
fd.close(), left.close(), right.close()
sys.exit(any(name in sys.modules for name in ("ipaddress", "fdpool.kernel.control_table", "trio")))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
