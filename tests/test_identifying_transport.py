"""Contract tests for channels that say who sent each message, with real processes that share one end."""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import fdpool
from fdpool.channel import Channel, open_channel_pair
from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.identifying_transport import IdentifyingTransport
from fdpool.kernel import EventFd, ScmPidfd, Sender, enable, peer_credentials
from fdpool.transport import Message, Transport, interject
from tests.kernel.test_message import room_for
from tests.support.leaks import descriptor_count
from tests.support.sweep import cancellation_points
from tests.support.unprivileged import NOBODY, run_as_nobody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ME = (os.getpid(), os.getuid(), os.getgid())
LONG = 64 * 1024 + 1


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Channel, Channel]]:
    left, right = (Channel(sock, identify=True) for sock in socket.socketpair(socket.AF_UNIX, request.param))
    async with left, right:
        yield left, right


def has_pidfds() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            enable(sock, ScmPidfd)
        except OSError:
            return False
        return True


needs_pidfds = pytest.mark.skipif(not has_pidfds(), reason="SO_PASSPIDFD needs Linux 6.5")


def in_child(action: Callable[[], object]) -> int:
    """Run *action* in a forked child, wait for its end, and return the pid that it had."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return pid


@contextmanager
def child_that_stays(action: Callable[[], object]) -> Iterator[int]:
    """Run *action* in a forked child, which then lives until the block is left."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            action()
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield pid
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def ids(message: Message) -> tuple[int, int, int]:
    assert message.sender is not None
    return message.sender.pid, message.sender.uid, message.sender.gid


def test_without_identify_no_message_has_a_sender() -> None:
    left, right = open_channel_pair()
    left.send_nowait(b"x")
    message = right.receive_nowait()
    assert message.sender is None
    assert message.take_pidfd() is None
    left.close()
    right.close()


@pytest.mark.parametrize(("size", "handles"), [(0, 0), (5, 0), (5, 3), (LONG, 0), (LONG, 1), (5, 600)])
async def test_a_message_of_any_form_has_its_sender(pair: tuple[Channel, Channel], size: int, handles: int) -> None:
    left, right = pair
    with EventFd() as event:
        before = descriptor_count()
        await left.send(bytes(size), [event] * handles)
        with await right.receive() as message:
            assert (len(message.payload), len(message.handles)) == (size, handles)
            assert ids(message) == ME
            assert descriptor_count() == before + handles + has_pidfds()
        assert descriptor_count() == before
        right.send_nowait(bytes(size), [event] * min(handles, 200))
        with left.receive_nowait() as message:
            assert ids(message) == ME
        assert descriptor_count() == before


@needs_pidfds
async def test_processes_that_share_an_end_are_told_apart_though_the_peer_is_who_made_the_pair(
    pair: tuple[Channel, Channel],
) -> None:
    left, right = pair
    with child_that_stays(lambda: left.send_nowait(b"child")) as child:
        with await right.receive() as message:
            assert message.payload == b"child"
            assert ids(message) == (child, *ME[1:])
            assert peer_credentials(right._transport.socket).pid == os.getpid()
            assert message.sender is not None
            assert message.sender.pidfd is not None
            assert not message.sender.pidfd.has_exited()
            assert message.sender.pidfd.pid == child
            left.send_nowait(b"parent")
            with await right.receive() as other:
                assert (other.payload, ids(other)) == (b"parent", ME)
            message.sender.pidfd.send_signal(signal.SIGKILL)
            await trio.lowlevel.wait_readable(message.sender.pidfd)


def test_another_user_is_told_from_us() -> None:
    left, right = open_channel_pair(identify=True)
    run_as_nobody(lambda: left.send_nowait(b"x"))
    with right.receive_nowait() as message:
        assert message.sender is not None
        assert message.sender.pid not in (0, os.getpid())
        assert message.sender.uid == (NOBODY if os.getuid() == 0 else os.getuid())
    left.close()
    right.close()


async def test_a_sender_that_has_died_is_still_named(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    child = in_child(lambda: left.send_nowait(b"last words"))
    with await right.receive() as message:
        assert (message.payload, ids(message)) == (b"last words", (child, *ME[1:]))
        assert message.sender is not None
        # Older kernels cannot make a pidfd for a process that was waited for.
        assert message.sender.pidfd is None or message.sender.pidfd.has_exited()


@needs_pidfds
async def test_a_pidfd_that_was_taken_stays_when_the_message_closes(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    await left.send(b"x")
    with await right.receive() as message:
        process = message.take_pidfd()
        assert process is not None
        assert message.sender == Sender(*ME)
        assert message.take_pidfd() is None
    with process:
        assert process.pid == os.getpid()
        assert not os.get_inheritable(process.fileno())


async def test_chunks_of_one_message_are_of_one_process(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    with EventFd() as event:
        before = descriptor_count()
        with left._transport.outgoing(b"payload", [event] * 300) as outgoing:
            left._transport.send_next(outgoing)
            in_child(lambda: left._transport.send_next(outgoing))
            with pytest.raises(RemoteProtocolError, match="comes from another process"):
                await right.receive()
            assert descriptor_count() == before + 253
            # The one that began the message can still complete it.
            left._transport.send_next(outgoing)
        with await right.receive() as message:
            assert (len(message.handles), ids(message)) == (300, ME)
        assert descriptor_count() == before


async def test_a_message_that_another_process_begins_takes_the_place_of_one_half_there(
    pair: tuple[Channel, Channel],
) -> None:
    left, right = pair
    with EventFd() as event:
        before = descriptor_count()
        with left._transport.outgoing(b"ours", [event] * 300) as outgoing:
            left._transport.send_next(outgoing)
            # A forked process counts its messages on from where we were: id and place alone do not tell whose it is.
            in_child(lambda: left._transport.send_next(left._transport.outgoing(b"theirs", [event] * 300)))
            with pytest.raises(trio.WouldBlock):
                right.receive_nowait()
            left._transport.send_next(outgoing)
            with pytest.raises(RemoteProtocolError, match="comes from another process"):
                right.receive_nowait()
        await left.send(b"next")
        with await right.receive() as message:
            assert (message.payload, ids(message)) == (b"next", ME)
        assert descriptor_count() == before


async def test_a_process_that_interjects_has_its_own_name_and_no_part_in_the_message_half_there(
    pair: tuple[Channel, Channel],
) -> None:
    left, right = pair
    with EventFd() as event:
        with left._transport.outgoing(b"ours", [event] * 600) as outgoing:
            left._transport.send_next(outgoing)
            child = in_child(lambda: interject(left._transport.socket, b"theirs"))
            with await right.receive() as message:
                assert (message.payload, ids(message)) == (b"theirs", (child, *ME[1:]))
            in_child(lambda: left._transport.send_next(outgoing))
            with pytest.raises(RemoteProtocolError, match="comes from another process"):
                await right.receive()
            left._transport.send_next(outgoing)
            left._transport.send_next(outgoing)
        with await right.receive() as message:
            assert (message.payload, len(message.handles), ids(message)) == (b"ours", 600, ME)


@pytest.mark.parametrize("garbage", [b"x", b"garbage that is longer than a header", bytes(70_000)])
@pytest.mark.parametrize("handles", [0, 2])
async def test_a_malformed_message_leaks_no_descriptor(
    pair: tuple[Channel, Channel], garbage: bytes, handles: int
) -> None:
    left, right = pair
    before = descriptor_count()
    socket.send_fds(left._transport.socket, [garbage], [left.fileno()] * handles)
    with pytest.raises(RemoteProtocolError):
        await right.receive()
    assert descriptor_count() == before
    await left.send(b"next")
    with await right.receive() as message:
        assert (message.payload, ids(message)) == (b"next", ME)


async def test_the_end_of_a_seqpacket_channel_is_seen() -> None:
    left, right = (Channel(s, identify=True) for s in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    async with right:
        left.close()
        with pytest.raises(trio.EndOfChannel):
            await right.receive()


@pytest.mark.parametrize(("handles", "room"), [(4, 2), (600, 300)])
async def test_the_receivers_limit_costs_one_message(pair: tuple[Channel, Channel], handles: int, room: int) -> None:
    left, right = pair
    with EventFd() as event:
        await left.send(b"too many", [event] * handles)
        await left.send(b"next", [event])
    before = descriptor_count()
    with room_for(room), pytest.raises(FdLimitError) as caught:
        await right.receive()
    assert caught.value.data == b"too many"
    assert descriptor_count() == before
    with await right.receive() as message:
        assert (message.payload, len(message.handles), ids(message)) == (b"next", 1, ME)


async def test_at_the_limit_the_ids_arrive_without_the_process(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    await left.send(b"x")
    with room_for(0), await right.receive() as message:
        assert message.sender == Sender(*ME)


def test_of_a_message_sent_before_there_is_no_sender() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left = Channel(ours)
    left.send_nowait(b"early")
    right = Channel(theirs, identify=True)
    with right.receive_nowait() as message:
        assert message.sender == Sender(0, NOBODY, NOBODY)
    # The option is the socket's, and whoever else holds it can turn it off.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    left.send_nowait(b"late")
    with right.receive_nowait() as message:
        assert ids(message) == (0, NOBODY, NOBODY)
    left.close()
    right.close()


class OldSocket(socket.socket):
    """A socket of a kernel that has no SO_PASSPIDFD, or that refuses it."""

    answer = errno.ENOPROTOOPT

    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
        if option != socket.SO_PASSCRED:
            raise OSError(self.answer, os.strerror(self.answer))
        super().setsockopt(level, option, value)


def test_an_old_kernel_tells_the_ids() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left, right = Channel(ours), Channel(OldSocket(fileno=theirs.detach()), identify=True)
    with EventFd() as event:
        left.send_nowait(b"x", [event] * 2)
        with right.receive_nowait() as message:
            assert message.sender == Sender(*ME)
            assert len(message.handles) == 2
    left.close()
    right.close()


def test_another_failure_to_identify_is_an_error_and_the_socket_stays_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OldSocket, "answer", errno.EPERM)
    with OldSocket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        with pytest.raises(PermissionError):
            Channel(sock, identify=True)
        assert sock.fileno() >= 0


def test_a_channel_is_pickled_as_what_it_is() -> None:
    left, right = open_channel_pair(identify=True)
    rebuild, arguments = left.__reduce__()
    again = rebuild(*(sock.dup() for sock in arguments))
    right.send_nowait(b"x")
    with again.receive_nowait() as message:
        assert ids(message) == ME
    for channel in (left, right, again):
        channel.close()


def test_other_channels_do_not_ask() -> None:
    left, right = open_channel_pair()
    assert type(left._transport) is Transport
    assert not isinstance(left._transport, IdentifyingTransport)
    assert right._transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 0
    left.close()
    right.close()


def test_the_sender_is_on_the_front_page() -> None:
    assert fdpool.Sender is Sender


@pytest.mark.parametrize(("size", "handles"), [(5, 0), (LONG, 1), (5, 600)])
@pytest.mark.parametrize("is_there", [True, False])
async def test_a_receive_cancelled_at_any_point_takes_nothing(
    pair: tuple[Channel, Channel], size: int, handles: int, is_there: bool
) -> None:
    left, right = pair
    before = descriptor_count()

    async def send_when_blocked() -> None:
        if not is_there:
            await trio.testing.wait_all_tasks_blocked()
        await left.send(bytes(size), [event] * handles)

    was_cancelled = []
    with EventFd() as event:
        for point in cancellation_points():
            message: Message | None = None
            async with trio.open_nursery() as nursery:
                if is_there:
                    await send_when_blocked()
                else:
                    nursery.start_soon(send_when_blocked)
                with point:
                    message = await right.receive()
            assert point.cancelled_caught == (message is None)
            with message or await right.receive() as message:
                assert (len(message.payload), len(message.handles), ids(message)) == (size, handles, ME)
            assert descriptor_count() == before + 1
            was_cancelled.append(point.cancelled_caught)
    assert was_cancelled[0]
    assert not was_cancelled[-1]
