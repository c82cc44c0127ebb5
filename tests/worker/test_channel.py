"""Contract tests for the worker's end of a channel, with the transport of a supervisor at the other."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel import EventFd, MemFd, PidFd
from fdpool.transport import Transport
from fdpool.worker.channel import BlockingChannel, SideChannel, SupervisorGone
from tests.support.leaks import descriptor_count
from tests.test_transport import receive, room_for, send

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 64 * 1024 + 1


class Supervisor:
    """A child process in the supervisor's place, whose death is up to the test."""

    def __init__(self) -> None:
        self._until, write_end = os.pipe()
        self._alive = write_end
        self.pid = os.fork()
        if self.pid == 0:
            os.close(write_end)
            os.read(self._until, 1)
            os._exit(0)
        self.pidfd = PidFd(self.pid)

    def die(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            os.close(self._until)
            self._alive = -1
            self.pidfd.wait_exit()


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.die()
    supervisor.pidfd.close()


@pytest.fixture
def ends(supervisor: Supervisor) -> Iterator[tuple[BlockingChannel, Transport]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    transport = Transport(theirs)
    with ours:
        yield BlockingChannel(ours, supervisor.pidfd), transport
        transport.close()


def fill(channel: BlockingChannel) -> None:
    """Send until one more would wait."""
    with suppress(BlockingIOError):
        while True:
            with channel.outgoing(b"filler") as outgoing:
                channel._transport.send_next(outgoing, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(("size", "handles"), [(0, 0), (7, 1), (LONG, 2), (7, 600)])
def test_messages_go_both_ways(ends: tuple[BlockingChannel, Transport], size: int, handles: int) -> None:
    channel, transport = ends
    payload = os.urandom(size)
    with EventFd() as event:
        send(transport, payload, [event] * handles)
        with channel.receive() as message:
            assert (message.payload, len(message.handles)) == (payload, handles)
        before = descriptor_count()
        channel.send(channel.outgoing(payload, [event] * handles))
        assert descriptor_count() == before
        with receive(transport) as message:
            assert (message.payload, len(message.handles)) == (payload, handles)
    channel.send_bytes(b"plain")
    assert receive(transport).payload == b"plain"


def test_receive_waits_for_a_message(ends: tuple[BlockingChannel, Transport]) -> None:
    channel, transport = ends
    ready = threading.Event()
    received: list[bytes] = []

    def work() -> None:
        ready.set()
        received.append(channel.receive().payload)
        channel.send_bytes(b"answer")

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    assert received == []
    send(transport, b"call")
    thread.join(5)
    assert received == [b"call"]
    assert receive(transport).payload == b"answer"


def test_send_waits_while_the_queue_is_full(ends: tuple[BlockingChannel, Transport]) -> None:
    channel, transport = ends
    fill(channel)
    thread = threading.Thread(target=channel.send_bytes, args=(b"waited",))
    thread.start()
    transport.socket.settimeout(5)
    while (message := transport.receive_next()) is not None and message.payload == b"filler":
        pass
    assert message is not None
    assert message.payload == b"waited"
    thread.join(5)


def test_what_was_sent_before_the_supervisor_died_is_still_received(
    ends: tuple[BlockingChannel, Transport], supervisor: Supervisor
) -> None:
    channel, transport = ends
    send(transport, b"last")
    supervisor.die()
    assert channel.receive().payload == b"last"
    with pytest.raises(SupervisorGone):
        channel.receive()


def test_the_death_of_the_supervisor_ends_a_receive_that_waits(
    ends: tuple[BlockingChannel, Transport], supervisor: Supervisor
) -> None:
    channel, _ = ends
    is_gone = threading.Event()

    def work() -> None:
        with pytest.raises(SupervisorGone):
            channel.receive()
        is_gone.set()

    thread = threading.Thread(target=work)
    thread.start()
    supervisor.die()
    thread.join(5)
    assert is_gone.is_set()


def test_the_death_of_the_supervisor_ends_a_send_that_waits(
    ends: tuple[BlockingChannel, Transport], supervisor: Supervisor
) -> None:
    channel, _ = ends
    fill(channel)
    supervisor.die()
    before = descriptor_count()
    with pytest.raises(SupervisorGone):
        channel.send(channel.outgoing(bytes(LONG)))
    assert descriptor_count() == before


def test_a_supervisor_that_closed_its_end_is_gone_however_often_one_sends(
    ends: tuple[BlockingChannel, Transport],
) -> None:
    channel, transport = ends
    transport.close()
    for _ in range(2):  # first ECONNREFUSED, then ENOTCONN
        with pytest.raises(SupervisorGone):
            channel.send_bytes(b"")


def test_a_task_that_closes_the_descriptor_is_found_out(ends: tuple[BlockingChannel, Transport]) -> None:
    channel, _ = ends
    number = channel._transport.socket.detach()
    os.close(number)
    for call in (channel.receive, lambda: channel.send_bytes(b"")):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_a_task_that_closes_the_descriptor_while_it_waits_is_found_out(
    ends: tuple[BlockingChannel, Transport],
) -> None:
    channel, _ = ends
    os.close(channel._transport.socket.detach())
    with pytest.raises(OSError, match="a task closed the descriptor of the worker's channel") as caught:
        channel._wait(0)
    assert caught.value.errno == errno.EBADF


def test_a_task_that_puts_something_else_in_its_place_is_found_out(ends: tuple[BlockingChannel, Transport]) -> None:
    channel, _ = ends
    with MemFd() as memory:
        os.dup2(memory.fileno(), channel._transport.socket.fileno(), inheritable=False)
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        channel.receive()
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        channel.send_bytes(b"")


def test_a_result_that_cannot_be_sent_leaves_the_channel_as_it_was(ends: tuple[BlockingChannel, Transport]) -> None:
    channel, transport = ends
    with EventFd() as event:
        pass
    with pytest.raises(ValueError, match="<EventFd closed> is closed"):
        channel.outgoing(b"result", [event])
    channel.send_bytes(b"error")
    assert receive(transport).payload == b"error"


@pytest.fixture
def beside(ends: tuple[BlockingChannel, Transport]) -> Iterator[SideChannel]:
    side = SideChannel(ends[0])
    yield side
    side.close()


def test_a_message_beside_arrives_between_the_datagrams_of_another(
    ends: tuple[BlockingChannel, Transport], beside: SideChannel
) -> None:
    channel, transport = ends
    with EventFd() as event, channel.outgoing(b"long", [event] * 600) as outgoing:
        for number in range(3):
            channel._transport.send_next(outgoing)
            beside.send(b"between %d" % number)
        payloads = []
        for _ in range(4):
            with receive(transport) as message:
                payloads.append((message.payload, len(message.handles)))
    assert payloads == [(b"between 0", 0), (b"between 1", 0), (b"long", 600), (b"between 2", 0)]


def test_many_threads_send_beside_a_long_message_that_waits_for_room(
    ends: tuple[BlockingChannel, Transport], beside: SideChannel
) -> None:
    channel, transport = ends
    fill(channel)
    threads = [threading.Thread(target=beside.send, args=(b"%d" % number,)) for number in range(8)]
    with EventFd() as event:
        threads.append(threading.Thread(target=lambda: channel.send(channel.outgoing(b"long", [event] * 600))))
        for thread in threads:
            thread.start()
        transport.socket.settimeout(5)
        arrived: list[bytes] = []
        while len(arrived) < len(threads):
            message = transport.receive_next()
            if message is not None and message.payload != b"filler":
                arrived.append(message.payload)
                assert len(message.handles) == (600 if message.payload == b"long" else 0)
                message.close()
        for thread in threads:
            thread.join(5)
    assert sorted(arrived) == [*(b"%d" % number for number in range(8)), b"long"]


def test_the_death_of_the_supervisor_ends_a_send_beside_that_waits(
    ends: tuple[BlockingChannel, Transport], beside: SideChannel, supervisor: Supervisor
) -> None:
    fill(ends[0])
    supervisor.die()
    with pytest.raises(SupervisorGone):
        beside.send(b"nobody")


def test_a_send_beside_to_a_closed_end_finds_the_supervisor_gone(
    ends: tuple[BlockingChannel, Transport], beside: SideChannel
) -> None:
    ends[1].close()
    for _ in range(2):  # first ECONNREFUSED, then ENOTCONN
        with pytest.raises(SupervisorGone):
            beside.send(b"nobody")


def test_a_process_that_has_no_channel_any_more_can_send_beside_it(
    ends: tuple[BlockingChannel, Transport], beside: SideChannel
) -> None:
    channel, transport = ends
    pid = os.fork()
    if pid == 0:
        try:
            channel.close()
            beside.send(b"from a child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert receive(transport).payload == b"from a child"


def test_bad_messages_are_errors_that_leave_the_channel_as_it_was(ends: tuple[BlockingChannel, Transport]) -> None:
    channel, transport = ends
    with EventFd() as event:
        send(transport, b"too many", [event] * 4)
        with room_for(2), pytest.raises(FdLimitError) as caught:
            channel.receive()
        assert caught.value.data == b"too many"
    transport.socket.send(b"garbage")
    with pytest.raises(RemoteProtocolError):
        channel.receive()
    send(transport, b"next")
    assert channel.receive().payload == b"next"
