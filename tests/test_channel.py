"""Contract tests for Channel: waiting, cancelling, closing, and the errors in trio's words.

What travels and how it is checked is the transport's, and in its tests.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import fdpool
from fdpool.channel import Channel, open_channel_pair
from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel import EventFd, MemFd, OwnedFd
from tests.support.leaks import descriptor_count
from tests.support.sweep import SigintAt, cancellation_points
from tests.test_transport import room_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from fdpool.transport import Message

LONG = 64 * 1024 + 1


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Channel, Channel]]:
    left, right = open_channel_pair()
    async with left, right:
        yield left, right


@pytest.fixture
async def seqpacket_pair() -> AsyncIterator[tuple[Channel, Channel]]:
    left, right = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    async with left, right:
        yield left, right


def fill(channel: Channel) -> int:
    """Send until the queue is full; return how many messages that took."""
    for sent in count():
        try:
            channel.send_nowait(b"filler")
        except trio.WouldBlock:
            return sent
    raise AssertionError


def drain(channel: Channel) -> list[bytes]:
    """Take out what is there, but for fillers."""
    payloads = []
    with suppress(trio.WouldBlock):
        while True:
            with channel.receive_nowait() as message:
                payloads.append(message.payload)
    return [payload for payload in payloads if payload != b"filler"]


async def test_a_message_arrives_with_its_handles(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    with EventFd() as event:
        with assert_checkpoints():
            await left.send(b"payload", [event])
        with assert_checkpoints():
            message = await right.receive()
        with message:
            assert message.payload == b"payload"
            [arrived] = message.handles
            assert isinstance(arrived, EventFd)
            arrived.write(4)
        assert event.read() == 4


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, LONG, 5 << 20])
async def test_payloads_of_any_size_go_both_ways_at_once(pair: tuple[Channel, Channel], size: int) -> None:
    payload = os.urandom(size)

    async def exchange(channel: Channel) -> None:
        await channel.send(payload)
        assert (await channel.receive()).payload == payload

    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange, pair[0])
        nursery.start_soon(exchange, pair[1])


async def test_a_channel_can_be_sent_over_a_channel(pair: tuple[Channel, Channel]) -> None:
    inner = open_channel_pair()
    async with inner[0]:
        await pair[0].send(b"", [inner[1]])
        await inner[1].aclose()
        [handle] = (await pair[1].receive()).handles
        assert isinstance(handle, socket.socket)
        async with Channel(handle) as arrived:
            await arrived.send(b"through the inner one")
            assert (await inner[0].receive()).payload == b"through the inner one"


async def test_iteration_yields_messages_until_the_end(seqpacket_pair: tuple[Channel, Channel]) -> None:
    left, right = seqpacket_pair
    for number in range(3):
        await left.send(str(number).encode())
    await left.aclose()
    assert [message.payload async for message in right] == [b"0", b"1", b"2"]


# Waiting.


async def test_a_full_queue_makes_send_wait_until_the_peer_reads(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    assert fill(left) > 10
    sent: list[bytes] = []

    async def send() -> None:
        with EventFd(1) as event:
            await left.send(b"waited", [event])
        sent.append(b"waited")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert sent == []
        drain(right)
        await wait_all_tasks_blocked()
        assert sent == [b"waited"]
    with await right.receive() as message:
        assert message.payload == b"waited"
        assert len(message.handles) == 1


async def test_a_message_of_many_datagrams_passes_through_a_queue_that_is_too_short_for_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)  # the kernel's minimum
    left, right = Channel(ours), Channel(theirs)
    handles = 600
    with EventFd() as event:
        async with left, right, trio.open_nursery() as nursery:
            fill(left)
            nursery.start_soon(left.send, b"long", [event] * handles)
            await wait_all_tasks_blocked()
            while (message := await right.receive()).payload == b"filler":
                pass
            with message:
                assert len(message.handles) == handles


async def test_receive_waits_for_a_message(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    received: list[Message] = []

    async def receive() -> None:
        received.append(await right.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        assert received == []
        left.send_nowait(b"at last")
    assert received[0].payload == b"at last"


async def test_a_peer_that_sends_first_chunks_for_ever_does_not_stop_other_tasks(
    pair: tuple[Channel, Channel],
) -> None:
    left, right = pair
    with EventFd() as event, left._transport.outgoing(b"never whole", [event] * 254) as outgoing:
        first = outgoing.pending[-1]
        for _ in range(20):
            outgoing.pending.append(first)
            left._transport.send_next(outgoing)

    async def other() -> None:
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.receive)
        nursery.start_soon(other)
    # It came to its turn before everything was read.
    assert right._transport.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def test_too_many_descriptors_in_flight_make_send_wait() -> None:
    # The kernel exempts root from the limit, and its count is kept per user: only another process can show it.
    program = [sys.executable, "-m", "tests.programs.flood_descriptors"]
    root = Path(__file__).parents[1]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all good\n", "")


# At once.


async def test_nowait_sends_and_receives_what_is_there(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    with pytest.raises(trio.WouldBlock):
        right.receive_nowait()
    with EventFd() as event:
        left.send_nowait(bytes(LONG), [event] * 252)
    with right.receive_nowait() as message:
        assert (len(message.payload), len(message.handles)) == (LONG, 252)
    with pytest.raises(trio.WouldBlock):
        right.receive_nowait()


async def test_send_nowait_sends_nothing_of_what_takes_several_datagrams(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    with EventFd() as event, pytest.raises(trio.WouldBlock):
        left.send_nowait(b"payload", [event] * 254)
    with pytest.raises(trio.WouldBlock):
        right.receive_nowait()


async def test_receive_nowait_takes_a_message_of_several_datagrams_or_keeps_what_came(
    pair: tuple[Channel, Channel],
) -> None:
    left, right = pair
    with EventFd() as event, left._transport.outgoing(b"payload", [event] * 300) as outgoing:
        left._transport.send_next(outgoing)
        with pytest.raises(trio.WouldBlock):
            right.receive_nowait()
        left._transport.send_next(outgoing)
        with right.receive_nowait() as message:
            assert len(message.handles) == 300


# Closing, and a peer that closes.


@pytest.mark.parametrize("is_polite", [True, False])
async def test_close_wakes_the_receiver_and_the_sender(pair: tuple[Channel, Channel], is_polite: bool) -> None:
    left, _ = pair
    fill(left)

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await left.receive()

    async def send() -> None:
        with EventFd() as event, pytest.raises(trio.ClosedResourceError):
            await left.send(bytes(LONG), [event])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        if is_polite:
            await left.aclose()
        else:
            left.close()


async def test_a_closed_channel_says_so(pair: tuple[Channel, Channel]) -> None:
    left, _ = pair
    assert repr(left) == f"<Channel fd={left.fileno()}>"
    with assert_checkpoints():
        await left.aclose()
    with assert_checkpoints():
        await left.aclose()
    left.close()
    with pytest.raises(trio.ClosedResourceError):
        await left.send(b"")
    with pytest.raises(trio.ClosedResourceError):
        left.send_nowait(b"")
    with pytest.raises(trio.ClosedResourceError):
        await left.receive()
    with pytest.raises(trio.ClosedResourceError):
        left.receive_nowait()
    assert left.fileno() == -1
    assert repr(left) == "<Channel closed>"


async def test_aclose_closes_even_when_cancelled(pair: tuple[Channel, Channel]) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await pair[0].aclose()
    assert scope.cancelled_caught
    assert pair[0].fileno() == -1


async def test_sending_to_a_peer_that_is_gone_fails_every_time(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    right.close()
    for _ in range(2):  # first ECONNREFUSED, then ENOTCONN
        with pytest.raises(trio.BrokenResourceError, match="the peer closed its end") as caught:
            await left.send(b"")
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(trio.BrokenResourceError):
        left.send_nowait(b"")


async def test_a_sender_that_waits_learns_that_the_peer_is_gone(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    fill(left)

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await left.send(b"")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            right.close()


async def test_the_end_of_a_seqpacket_channel_wakes_the_receiver(seqpacket_pair: tuple[Channel, Channel]) -> None:
    left, right = seqpacket_pair

    async def receive() -> None:
        with pytest.raises(trio.EndOfChannel):
            await right.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        left.close()
    with pytest.raises(trio.BrokenResourceError):
        await right.send(b"")


async def test_a_seqpacket_peer_that_left_messages_unread_is_told_of_first(
    seqpacket_pair: tuple[Channel, Channel],
) -> None:
    left, right = seqpacket_pair
    await left.send(b"last words")
    await right.send(b"never read")
    left.close()
    with pytest.raises(trio.BrokenResourceError, match="Connection reset"):
        await right.receive()
    assert (await right.receive()).payload == b"last words"
    with pytest.raises(trio.EndOfChannel):
        await right.receive()


# Errors that leave the channel as it was.


async def test_two_senders_or_two_receivers_are_one_too_many(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    fill(left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send, b"first")
        nursery.start_soon(left.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task is sending"):
            await left.send(b"second")
        with pytest.raises(trio.BusyResourceError, match="another task is sending"):
            left.send_nowait(b"second")
        with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
            await left.receive()
        with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
            left.receive_nowait()
        nursery.cancel_scope.cancel()
    assert drain(right) == []
    await left.send(b"third")
    assert (await right.receive()).payload == b"third"


async def test_what_cannot_be_sent_is_refused_and_the_channel_goes_on(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    with EventFd() as event:
        pass
    with pytest.raises(ValueError, match="<EventFd closed> is closed"):
        await left.send(bytes(LONG), [event])
    with pytest.raises(ValueError, match="<EventFd closed> is closed"):
        left.send_nowait(bytes(LONG), [event])
    await left.send(b"next")
    assert drain(right) == [b"next"]


async def test_a_handle_closed_while_send_waits_is_not_replaced_by_a_stranger(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    fill(left)
    event = EventFd()

    async def send() -> None:
        with pytest.raises(ValueError, match="<EventFd closed> is closed"):
            await left.send(b"", [event])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        number = event.fileno()
        event.close()
        with MemFd() as stranger:
            assert stranger.fileno() == number
            drain(right)
            await wait_all_tasks_blocked()
    assert drain(right) == []


async def test_a_malformed_message_is_refused_and_the_next_arrives(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    left._transport.socket.send(b"garbage")
    await left.send(b"next")
    with pytest.raises(RemoteProtocolError):
        await right.receive()
    assert (await right.receive()).payload == b"next"


@pytest.mark.parametrize(("handles", "room"), [(4, 2), (600, 300)])
async def test_the_receivers_limit_costs_one_message(pair: tuple[Channel, Channel], handles: int, room: int) -> None:
    left, right = pair
    with EventFd() as event:
        await left.send(b"too many", [event] * handles)
        await left.send(b"next", [event])
    with room_for(room), pytest.raises(FdLimitError) as caught:
        await right.receive()
    assert caught.value.data == b"too many"
    with await right.receive() as message:
        assert (message.payload, len(message.handles)) == (b"next", 1)


def test_other_sockets_are_refused() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="needs an AF_UNIX socket"):
        Channel(sock)


def test_only_a_handoff_pickles_a_channel() -> None:
    left, right = open_channel_pair()
    with pytest.raises(TypeError, match="cannot pickle 'socket' object"):
        pickle.dumps(left)
    left.close()
    right.close()


def test_the_channel_is_the_one_of_the_front_page() -> None:
    assert fdpool.Channel is Channel
    assert fdpool.open_channel_pair is open_channel_pair


# Stopped at every point.


@pytest.mark.parametrize(("size", "handles"), [(5, 1), (LONG, 1), (5, 600)])
@pytest.mark.parametrize("room", [0, 1, 1000])
async def test_a_send_cancelled_at_any_point_delivers_nothing(
    pair: tuple[Channel, Channel], size: int, handles: int, room: int
) -> None:
    left, right = pair
    payload = bytes(size)
    fillers = fill(left)
    before = descriptor_count()

    async def drain_when_blocked() -> None:
        await wait_all_tasks_blocked()
        arrived.extend(drain(right))

    was_cancelled = []
    with EventFd() as event:
        for point in cancellation_points():
            fill(left)
            for _ in range(min(room, fillers)):
                right.receive_nowait()
            arrived: list[bytes] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain_when_blocked)
                with point:
                    await left.send(payload, [event] * handles)
            arrived += drain(right)
            assert arrived == ([] if point.cancelled_caught else [payload])
            await left.send(b"next", [event])
            assert drain(right) == [b"next"]
            assert descriptor_count() == before + 1
            was_cancelled.append(point.cancelled_caught)
    assert was_cancelled[0]
    assert not was_cancelled[-1]
    assert sum(was_cancelled) == (2 if room == 0 or (room == 1 and handles == 600) else 1)


@pytest.mark.parametrize(("size", "handles"), [(5, 1), (LONG, 1), (5, 600)])
@pytest.mark.parametrize("is_there", [True, False])
async def test_a_receive_cancelled_at_any_point_takes_nothing(
    pair: tuple[Channel, Channel], size: int, handles: int, is_there: bool
) -> None:
    left, right = pair
    payload = bytes(size)
    before = descriptor_count()

    async def send_when_blocked() -> None:
        if not is_there:
            await wait_all_tasks_blocked()
        await left.send(payload, [event] * handles)

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
                assert (message.payload, len(message.handles)) == (payload, handles)
            assert descriptor_count() == before + 1
            was_cancelled.append(point.cancelled_caught)
    assert was_cancelled[0]
    assert not was_cancelled[-1]


def sigint_points() -> Iterator[SigintAt]:
    """Yield a place for Ctrl-C after the other, until one is not reached."""
    for step in count():
        point = SigintAt(step)
        yield point
        if not point.was_sent:
            assert step > 30
            return


async def exchange(left: Channel, right: Channel, payload: bytes, event: EventFd) -> Message:
    await left.send(payload, [event] * 3)
    return await right.receive()


async def exchange_nowait(left: Channel, right: Channel, payload: bytes, event: EventFd) -> Message:
    left.send_nowait(payload, [event] * 3)
    return right.receive_nowait()


@pytest.mark.parametrize(
    ("exchange", "size", "per_datagram"), [(exchange, 5, 2), (exchange, LONG, 253), (exchange_nowait, 5, 253)]
)
def test_an_interrupt_at_any_line_leaks_nothing_and_hurts_nothing(
    monkeypatch: pytest.MonkeyPatch,
    exchange: Callable[[Channel, Channel, bytes, EventFd], Awaitable[Message]],
    size: int,
    per_datagram: int,
) -> None:
    monkeypatch.setattr("fdpool.protocol.datagram.MAX_HANDLES_PER_DATAGRAM", per_datagram)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    async def attempt(point: SigintAt) -> None:
        received: Message | None = None
        try:
            with point:
                received = await exchange(left, right, bytes(size), event)
        finally:
            with trio.CancelScope(shield=True):
                if received is None:
                    drain(right)
                    await left.send(b"next", [event])
                    received = await right.receive()
                    assert received.payload == b"next"
                received.close()

    left, right = open_channel_pair()
    with EventFd() as event:
        before = descriptor_count()
        for point in sigint_points():
            try:
                trio.run(attempt, point)
            except KeyboardInterrupt:
                assert point.was_sent
            assert descriptor_count() == before
    left.close()
    right.close()


async def test_a_timeout_of_the_socket_does_not_hold_up_the_thread() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        left, right = open_channel_pair()
    finally:
        socket.setdefaulttimeout(before)
    async with left, right:
        with trio.fail_after(10):
            with pytest.raises(trio.WouldBlock):
                right.receive_nowait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(right.receive)
                await wait_all_tasks_blocked()
                await left.send(b"at last")


async def test_an_end_that_somebody_shut_down_says_so(pair: tuple[Channel, Channel]) -> None:
    _, right = pair
    with socket.socket(fileno=os.dup(right.fileno())) as duplicate:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.BrokenResourceError, match="was shut down"):
                    await right.receive()

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            duplicate.shutdown(socket.SHUT_RD)


async def test_an_empty_payload_may_have_any_shape(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    empty = memoryview(bytearray(8)).cast("B", (2, 4))[:0]
    with EventFd() as event:
        for handles in ([], [event]):
            await left.send(empty, handles)
            with await right.receive() as message:
                assert (message.payload, len(message.handles)) == (b"", len(handles))


async def test_a_place_of_a_socket_arrives_as_the_file_it_is(pair: tuple[Channel, Channel], tmp_path: Path) -> None:
    left, right = pair
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "place"))
        with OwnedFd(os.open(tmp_path / "place", os.O_PATH | os.O_CLOEXEC)) as place:
            await left.send(b"here", [place])
    with await right.receive() as message:
        [arrived] = message.handles
        assert type(arrived) is OwnedFd
        assert stat.S_ISSOCK(os.fstat(arrived.fileno()).st_mode)


async def test_an_end_that_refuses_more_still_gives_what_was_sent(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    await left.send(b"before")
    right.refuse_more()
    with pytest.raises(trio.BrokenResourceError):
        await left.send(b"after")
    with await right.receive() as message:
        assert message.payload == b"before"
    with pytest.raises(trio.WouldBlock):
        right.receive_nowait()
    right.close()
    with pytest.raises(trio.ClosedResourceError):
        right.refuse_more()
