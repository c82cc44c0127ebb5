"""Contract tests for Connection, on real socketpairs; raw peers send what a well-behaved one would not."""

from __future__ import annotations

import array
import errno
import os
import resource
import signal
import socket
import struct
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from fdpool.connection import Connection, Disconnected, PartialMessage, StreamMessage
from fdpool.errors import FdLimitError, OversizedMessage, RemoteProtocolError, UnexpectedFds
from fdpool.kernel import EventFd, MemFd, OwnedFd, recv_with_fds, send_with_fds
from tests.support.attempts import cancel_at_every_step
from tests.support.leaks import descriptor_count
from tests.support.programs import run_python

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from tests.support.sweep import CancellationPoint

HEADER = struct.Struct("<II4s")  # kind, size of the body, padding


def body_size(header: bytes) -> int:
    size: int = HEADER.unpack(header)[1]
    return size


def header(body: bytes = b"", kind: int = 1) -> bytes:
    return HEADER.pack(kind, len(body), b"")


def message(body: bytes = b"", kind: int = 1) -> bytes:
    return header(body, kind) + body


async def receive(connection: Connection, max_fds: int = 32, max_body_size: int = 1 << 20) -> StreamMessage:
    return await connection.receive_message(HEADER.size, body_size, max_fds=max_fds, max_body_size=max_body_size)


def close_all(fds: Iterable[OwnedFd]) -> None:
    for fd in fds:
        fd.close()


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[Connection, Connection]]:
    left, right = Connection.pair()
    async with left, right:
        yield left, right


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Connection, Connection]]:
    async with open_pair() as both:
        yield both


@pytest.fixture
async def raw_pair() -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection, and a plain blocking socket as its peer."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with Connection(ours) as connection:
            yield connection, theirs


# Messages, whole


async def test_a_message_arrives_with_its_parts_in_order_and_its_descriptors(
    pair: tuple[Connection, Connection],
) -> None:
    left, right = pair
    with MemFd.from_bytes(b"one") as one, MemFd.from_bytes(b"two") as two:
        with trio.testing.assert_checkpoints():
            await left.send_message(HEADER.pack(7, 11, b""), b"body", b"payload", [one, two])
    with trio.testing.assert_checkpoints():
        received = await receive(right)
    assert received.header == HEADER.pack(7, 11, b"")
    assert received.body == b"bodypayload"
    assert [os.pread(fd.fileno(), 9, 0) for fd in received.fds] == [b"one", b"two"]
    assert not any(os.get_inheritable(fd.fileno()) for fd in received.fds)
    close_all(received.fds)


async def test_header_and_body_may_be_received_apart(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    with EventFd() as event:
        await left.send_message(header(b"body"), b"body", fds=[event])
    with trio.testing.assert_checkpoints():
        data, fds = await right.receive_exactly(HEADER.size, allow_fds=True)
    assert data == header(b"body")
    assert len(fds) == 1
    close_all(fds)
    assert await right.receive_exactly(4) == (b"body", [])


async def test_one_read_scatters_over_the_buffers(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    first, second, third = bytearray(4), array.array("H", [0, 0]), bytearray(9)
    await left.send_message(b"Mary had a")
    with trio.testing.assert_checkpoints():
        assert await right.receive_into([first, second, third]) == (10, [])
    assert bytes(first) + second.tobytes() + bytes(third) == b"Mary had a" + bytes(7)


async def test_several_megabytes_go_through_in_parts_with_the_descriptors_once(
    pair: tuple[Connection, Connection],
) -> None:
    left, right = pair
    body = os.urandom(1 << 16) * 80
    with EventFd() as event:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_message, header(body), body[:100], body[100:], [event])
            received = await receive(right, max_body_size=len(body))
    assert received.body == body
    assert len(received.fds) == 1
    close_all(received.fds)
    await left.aclose()
    with pytest.raises(Disconnected):
        await receive(right)


async def test_both_directions_work_at_once_while_neither_end_reads_first(pair: tuple[Connection, Connection]) -> None:
    body = bytes(1 << 20)
    async with trio.open_nursery() as nursery:
        for connection in pair:
            nursery.start_soon(connection.send_message, header(body), body)
        await trio.testing.wait_all_tasks_blocked()
        for connection in pair:
            assert (await receive(connection)).body == body


async def test_a_peer_that_sends_byte_by_byte_is_understood(raw_pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = raw_pair
    received = []

    async def receive_two() -> None:
        received.append(await receive(connection))
        received.append(await receive(connection))

    with EventFd() as event:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_two)
            for number, byte in enumerate(message(b"slow") + message(b"second")):
                await trio.testing.wait_all_tasks_blocked()
                send_with_fds(peer, [bytes([byte])], [event] if number == 0 else [])
    assert [(m.body, len(m.fds)) for m in received] == [(b"slow", 1), (b"second", 0)]
    close_all(received[0].fds)


async def test_two_messages_in_one_segment_are_two_messages(raw_pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        send_with_fds(peer, [message(b"first") + message(b"second")], [event])
        first, second = await receive(connection), await receive(connection)
    assert (first.body, len(first.fds)) == (b"first", 1)
    assert (second.body, second.fds) == (b"second", [])
    close_all(first.fds)


async def test_descriptors_of_the_next_message_stay_with_it(raw_pair: tuple[Connection, socket.socket]) -> None:
    """The remainder of a read that was cut short may bring the next message's descriptors along, but for the limits."""
    connection, peer = raw_pair
    with EventFd() as event:
        send_with_fds(peer, [message(b"first")], [event])
        send_with_fds(peer, [message(b"second")], [event] * 2)
        first, second = await receive(connection), await receive(connection)
    assert [len(first.fds), len(second.fds)] == [1, 2]
    close_all([*first.fds, *second.fds])


# Descriptors where none may be


async def test_other_tasks_have_their_turn_while_a_message_comes_in_many_pieces(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    """Descriptors on every byte stop every read behind it."""
    connection, peer = raw_pair
    whole = message(b"a body of 28 bytes, as it is")
    with EventFd() as event:
        before = descriptor_count()
        for byte in whole:
            send_with_fds(peer, [bytes([byte])], [event])
        steps = count_steps()
        with pytest.raises(UnexpectedFds) as caught:
            await receive(connection)
        trio.lowlevel.remove_instrument(steps)
        assert steps.taken >= len(whole) // 16
        assert caught.value.data == whole
        assert descriptor_count() == before


async def test_descriptors_with_the_second_half_of_a_message_are_closed_and_reported(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    for cut in range(1, HEADER.size + 4):
        whole = message(b"body")
        with EventFd() as event:
            before = descriptor_count()
            send_with_fds(peer, [whole[:cut]], [])
            send_with_fds(peer, [whole[cut:]], [event])
            with pytest.raises(UnexpectedFds, match="sent 1 descriptors where at most 0") as caught:
                await receive(connection)
            assert caught.value.data == whole
            assert descriptor_count() == before
    peer.send(message(b"next"))
    assert (await receive(connection)).body == b"next"


async def test_descriptors_on_both_halves_are_all_closed(raw_pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"body")[:14]], [event])
        send_with_fds(peer, [message(b"body")[14:]], [event])
        with pytest.raises(UnexpectedFds):
            await receive(connection)
        assert descriptor_count() == before


@pytest.mark.parametrize(("sent", "allowed"), [(1, 0), (33, 32), (253, 252)])
async def test_more_descriptors_than_allowed_are_closed_and_the_next_message_is_received(
    raw_pair: tuple[Connection, socket.socket], sent: int, allowed: int
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"greedy")], [event] * sent)
        peer.send(message(b"next"))
        with pytest.raises(UnexpectedFds, match=f"sent {sent} descriptors where at most {allowed}") as caught:
            await receive(connection, max_fds=allowed)
        assert caught.value.data == message(b"greedy")
        assert isinstance(caught.value, RemoteProtocolError)
        assert descriptor_count() == before
        assert (await receive(connection, max_fds=allowed)).body == b"next"


@pytest.mark.parametrize("count", [33, 253])
async def test_as_many_descriptors_as_the_kernel_takes_arrive(pair: tuple[Connection, Connection], count: int) -> None:
    left, right = pair
    with EventFd() as event:
        await left.send_message(header(), fds=[event] * count)
    received = await receive(right, max_fds=253)
    assert len(received.fds) == count
    close_all(received.fds)


async def test_two_hundred_and_fifty_four_descriptors_are_refused_with_nothing_sent(
    pair: tuple[Connection, Connection],
) -> None:
    left, right = pair
    with EventFd() as event:
        with pytest.raises(ValueError, match="254 descriptors in one message: the kernel takes at most 253"):
            await left.send_message(header(), fds=[event] * 254)
    await left.send_message(message(b"usable"))
    assert (await receive(right)).body == b"usable"


async def test_a_single_read_and_an_exact_one_refuse_descriptors_unless_told(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        buffer = bytearray(8)
        send_with_fds(peer, [b"read"], [event])
        with pytest.raises(UnexpectedFds) as caught:
            await connection.receive_into([buffer])
        assert caught.value.data == b"read"
        assert bytes(buffer) == b"read" + bytes(4)
        send_with_fds(peer, [b"read"], [event])
        with pytest.raises(UnexpectedFds) as caught:
            await connection.receive_exactly(4)
        assert caught.value.data == b"read"
        assert descriptor_count() == before
        send_with_fds(peer, [b"read"], [event])
        nbytes, fds = await connection.receive_into([buffer], allow_fds=True)
        assert (nbytes, len(fds)) == (4, 1)
        close_all(fds)


@contextmanager
def no_more_descriptors(room: int) -> Iterator[None]:
    """Let this process open *room* more descriptors and no further ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    with EventFd() as filler:
        fillers = [filler.duplicate()]
        while max(fd.fileno() for fd in fillers) <= highest:
            fillers.append(filler.duplicate())
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fd.fileno() for fd in fillers) + 1 + room, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            close_all(fillers)


@pytest.mark.parametrize("room", [0, 1])
async def test_a_receiver_at_its_descriptor_limit_is_told_and_goes_on(
    raw_pair: tuple[Connection, socket.socket], room: int
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"too much")], [event] * 2)
        send_with_fds(peer, [message(b"next")], [event] * 2)
        with no_more_descriptors(room):
            with pytest.raises(FdLimitError, match="did not arrive") as caught:
                await receive(connection)
        assert caught.value.data == message(b"too much")
        assert descriptor_count() == before
        received = await receive(connection)
        assert (received.body, len(received.fds)) == (b"next", 2)
        close_all(received.fds)


# Ends


@pytest.mark.parametrize("max_fds", [0, 32])
async def test_the_end_between_messages_is_a_disconnect_and_inside_one_a_partial_message(max_fds: int) -> None:
    whole = message(b"body")
    with EventFd() as event:
        for cut in range(len(whole) + 1):
            ours, theirs = socket.socketpair()
            async with Connection(ours) as connection:
                before = descriptor_count() - 1
                with theirs:
                    if cut:
                        send_with_fds(theirs, [whole[:cut]], [event] if max_fds else [])
                if cut == len(whole):
                    close_all((await receive(connection, max_fds)).fds)
                elif cut:
                    with pytest.raises(PartialMessage, match=f"after {cut} bytes") as partial:
                        await receive(connection, max_fds)
                    assert partial.value.data == whole[:cut]
                    assert isinstance(partial.value, trio.BrokenResourceError)
                with pytest.raises(Disconnected):
                    await receive(connection, max_fds)
                with pytest.raises(trio.EndOfChannel):
                    await connection.receive_into([bytearray(1)])
                assert descriptor_count() == before


async def test_the_end_inside_an_exact_read_is_a_partial_message(raw_pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = raw_pair
    peer.send(b"123")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(PartialMessage) as caught:
        await connection.receive_exactly(4)
    assert caught.value.data == b"123"
    with pytest.raises(Disconnected):
        await connection.receive_exactly(4)
    await connection.send_message(b"the other direction works")
    assert peer.recv(99) == b"the other direction works"


@pytest.mark.parametrize("arrived", [b"", message(b"body")[:14]])
async def test_a_peer_that_leaves_with_messages_unread_broke_the_connection(arrived: bytes) -> None:
    left, right = socket.socketpair()
    async with Connection(left) as connection:
        with right:
            await connection.send_message(b"never read")
            right.send(message(b"whole") + arrived)
        assert (await receive(connection)).body == b"whole"
        with pytest.raises(trio.BrokenResourceError) as caught:
            await receive(connection)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        if arrived:
            assert isinstance(caught.value, PartialMessage)
            assert caught.value.data == arrived


async def test_sending_to_a_peer_that_is_gone_is_broken_and_what_it_sent_can_still_be_received() -> None:
    left, right = socket.socketpair()
    async with Connection(left) as connection:
        with right:
            right.send(message(b"last words"))
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="the peer is gone") as caught:
                await connection.send_message(b"hello")
            assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert (await receive(connection)).body == b"last words"


async def test_a_header_that_promises_four_gibibytes_ends_the_direction(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [HEADER.pack(1, (1 << 32) - 1, b""), b"some of it"], [event])
        with pytest.raises(OversizedMessage, match="promises a body of 4294967295 bytes, over the limit of 1048576"):
            await receive(connection)
        assert descriptor_count() == before
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="a body was not read"):
            await receive(connection)
    await connection.send_message(b"still")
    assert peer.recv(5) == b"still"


@pytest.mark.parametrize("method", ["receive_message", "receive_messages"])
@pytest.mark.parametrize("error", [LookupError, BlockingIOError, trio.EndOfChannel])
async def test_what_body_size_raises_passes_through_and_ends_the_direction(
    raw_pair: tuple[Connection, socket.socket], method: str, error: type[Exception]
) -> None:
    connection, peer = raw_pair

    def refuse(_: bytes) -> int:
        raise error("unknown kind")

    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"body")], [event])
        with pytest.raises(error, match="unknown kind"):
            await getattr(connection, method)(HEADER.size, refuse)
        assert descriptor_count() == before
    with pytest.raises(trio.BrokenResourceError, match="a body was not read"):
        await connection.receive_into([bytearray(1)])


# Waiting, and other tasks


async def test_a_peer_that_never_reads_makes_the_sender_wait_without_spinning(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, _ = raw_pair
    steps = count_steps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_message, bytes(1 << 22))
        await trio.testing.wait_all_tasks_blocked()
        before = steps.taken
        await trio.testing.wait_all_tasks_blocked(cushion=0.01)
        assert steps.taken - before <= 2  # this task's own
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(steps)


class count_steps(trio.abc.Instrument):
    def __init__(self) -> None:
        self.taken = 0
        trio.lowlevel.add_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


async def test_a_second_sender_or_receiver_is_refused(pair: tuple[Connection, Connection]) -> None:
    left, _ = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_message, bytes(1 << 22))
        nursery.start_soon(receive, left)
        await trio.testing.wait_all_tasks_blocked()
        for attempt in (left.send_message(b"x"), left.send_messages([StreamMessage(b"x")])):
            with pytest.raises(trio.BusyResourceError, match="sending"):
                await attempt
        for refused in (
            receive(left),
            left.receive_exactly(1),
            left.receive_into([bytearray(1)]),
            left.receive_messages(HEADER.size, body_size),
        ):
            with pytest.raises(trio.BusyResourceError, match="receiving"):
                await refused
        with pytest.raises(trio.BusyResourceError):
            left.into_socket()
        nursery.cancel_scope.cancel()


async def test_closing_wakes_the_sender_and_the_receiver(pair: tuple[Connection, Connection]) -> None:
    left, _ = pair

    async def expect_closed(operation: Callable[[], object]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await operation()  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, lambda: left.send_message(bytes(1 << 22)))
        nursery.start_soon(expect_closed, lambda: receive(left))
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            await left.aclose()


async def test_a_closed_connection_says_so(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    left.close()
    left.close()
    await left.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await left.send_message(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await receive(left)
    with pytest.raises(Disconnected):
        await receive(right)


async def test_closing_under_cancellation_closes(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    with trio.move_on_after(0) as scope:
        await left.aclose()
    assert scope.cancelled_caught
    with pytest.raises(Disconnected):
        await receive(right)


async def test_closing_while_a_part_of_a_message_is_held_closes_its_descriptors(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"body")[:14]], [event])
        await cancel_once_blocked(lambda: receive(connection))
        assert descriptor_count() == before + 1
        await connection.aclose()
        assert descriptor_count() == before - 1


async def cancel_once_blocked(operation: Callable[[], object]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operation)  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_closing_while_a_part_of_a_message_was_read_closes_its_descriptors(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"body")[:14]], [event])
        with pytest.RaisesGroup(trio.ClosedResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, connection)
                await trio.testing.wait_all_tasks_blocked()
                assert descriptor_count() == before + 1
                connection.close()
        assert descriptor_count() == before - 1


async def test_other_tasks_run_while_a_fast_peer_keeps_a_receiver_busy(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    await left.send_messages([StreamMessage(message(bytes([i]))) for i in range(100)])
    seen: list[object] = []

    async def watch() -> None:
        while True:
            seen.append("watcher")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for _ in range(100):
            seen.append(await receive(right))
        nursery.cancel_scope.cancel()
    assert seen.count("watcher") >= 90


# Cancellation


async def test_sending_can_be_cancelled_anywhere_and_is_whole_or_says_it_is_not() -> None:
    body = bytes(600_000)
    outcomes = set()

    async def attempt(scope: CancellationPoint) -> None:
        async with open_pair() as (left, right):
            received: list[StreamMessage | type[BaseException]] = []
            with EventFd() as event:
                before = descriptor_count()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive_or_note, right, received)
                    with scope:
                        await left.send_message(header(body), body, fds=[event])
                    if not scope.cancelled_caught:
                        outcome = "sent"
                    else:
                        try:
                            await left.send_message(header(body), body, fds=[event])
                            outcome = "not sent, then sent"
                        except trio.BrokenResourceError as exc:
                            assert "a message was left half sent: " in str(exc)  # noqa: PT017
                            outcome = "cut"
                outcomes.add(outcome)
                [found] = received
                if outcome == "cut":
                    assert found is PartialMessage
                    # The other direction is as before.
                    await right.send_message(message(b"reply"))
                    assert (await receive(left)).body == b"reply"
                else:
                    assert isinstance(found, StreamMessage)
                    assert (len(found.body), len(found.fds)) == (len(body), 1)
                    close_all(found.fds)
                assert descriptor_count() == before

    assert await cancel_at_every_step(attempt) >= 3
    assert outcomes == {"sent", "not sent, then sent", "cut"}


async def receive_or_note(connection: Connection, received: list[StreamMessage | type[BaseException]]) -> None:
    try:
        received.append(await receive(connection))
    except PartialMessage as exc:
        received.append(type(exc))


async def test_receiving_can_be_cancelled_anywhere_and_nothing_is_lost() -> None:
    parts = [message(b"body")[:1], message(b"body")[1:7], message(b"body")[7:14], message(b"body")[14:]]

    async def attempt(scope: CancellationPoint) -> None:
        ours, peer = socket.socketpair()
        async with Connection(ours) as connection, trio.open_nursery() as nursery:
            with peer, EventFd() as event:
                before = descriptor_count()
                nursery.start_soon(send_in_parts, peer, parts, event)
                received = None
                with scope:
                    received = await receive(connection)
                if received is None:
                    received = await receive(connection)
                assert (received.body, len(received.fds)) == (b"body", 1)
                close_all(received.fds)
                assert descriptor_count() == before

    assert await cancel_at_every_step(attempt) >= 4


async def send_in_parts(peer: socket.socket, parts: list[bytes], event: EventFd) -> None:
    for number, part in enumerate(parts):
        await trio.testing.wait_all_tasks_blocked()
        send_with_fds(peer, [part], [] if number else [event])


async def test_what_a_cancelled_receiver_had_got_is_what_any_receive_begins_with(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        send_with_fds(peer, [message(b"body")[:14]], [event] * 2)
        await cancel_once_blocked(lambda: receive(connection))
        with pytest.raises(ValueError, match="would be lost"):
            connection.into_socket()
        peer.send(message(b"body")[14:])
        first, rest = bytearray(3), bytearray(99)
        nbytes, fds = await connection.receive_into([first], allow_fds=True)
        assert (nbytes, bytes(first), len(fds)) == (3, message(b"body")[:3], 2)
        close_all(fds)
        assert await connection.receive_into([rest]) == (11, [])
        assert await connection.receive_exactly(2) == (b"dy", [])


async def test_descriptors_a_cancelled_receiver_had_got_are_judged_by_the_next_ones_limit(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"body")[:14]], [event] * 2)
        await cancel_once_blocked(lambda: receive(connection))
        peer.send(message(b"body")[14:])
        with pytest.raises(UnexpectedFds, match="2 descriptors where at most 1") as caught:
            await receive(connection, max_fds=1)
        assert caught.value.data == message(b"body")
        assert descriptor_count() == before


async def test_a_part_so_large_that_reading_it_again_takes_turns_can_be_given_back_again() -> None:
    body = os.urandom(1 << 20) * 5

    async def attempt(scope: CancellationPoint) -> None:
        async with open_pair() as (left, right):
            with EventFd() as event:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive, right, 1, len(body))
                    await left.send_message(header(body), body[:-1], fds=[event])
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
            received = None
            await left.send_message(body[-1:])
            with scope:
                received = await receive(right, 1, len(body))
            received = received or await receive(right, 1, len(body))
            assert (received.body, len(received.fds)) == (body, 1)
            close_all(received.fds)

    assert await cancel_at_every_step(attempt) >= 2


async def test_several_messages_can_be_cancelled_anywhere_and_none_is_lost() -> None:
    async def attempt(scope: CancellationPoint) -> None:
        ours, peer = socket.socketpair()
        async with Connection(ours) as connection, trio.open_nursery() as nursery:
            with peer, EventFd() as event:
                before = descriptor_count()
                whole = message(b"one") + message(b"two")
                nursery.start_soon(send_in_parts, peer, [whole[:5], whole[5:20], whole[20:]], event)
                received: list[StreamMessage] = []
                with scope:
                    received += await connection.receive_messages(HEADER.size, body_size)
                while len(received) < 2:
                    received += await connection.receive_messages(HEADER.size, body_size)
                assert [(m.body, len(m.fds)) for m in received] == [(b"one", 1), (b"two", 0)]
                close_all(received[0].fds)
                assert descriptor_count() == before

    assert await cancel_at_every_step(attempt) >= 3


def test_an_interrupt_inside_a_receive_waits_until_the_message_is_safe() -> None:
    def interrupt(head: bytes) -> int:
        signal.raise_signal(signal.SIGINT)
        return body_size(head)

    async def main() -> None:
        async with open_pair() as (left, right):
            with EventFd() as event:
                await left.send_message(message(b"body"), fds=[event])
            received = await right.receive_message(HEADER.size, interrupt)
            assert (received.body, len(received.fds)) == (b"body", 1)
            close_all(received.fds)
            with pytest.raises(KeyboardInterrupt):
                await trio.lowlevel.checkpoint()

    trio.run(main)


# Many messages at once


async def test_many_messages_are_sent_and_received_with_their_descriptors(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    sent = []
    for number in range(300):
        fds = [MemFd.from_bytes(str(number).encode())] if number % 7 == 3 else []
        sent.append(StreamMessage(header(b"x" * (number % 5)), b"x" * (number % 5), fds))
    received: list[StreamMessage] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_messages, sent)
        while len(received) < len(sent):
            received += await right.receive_messages(HEADER.size, body_size, max_messages=100)
    for before, after in zip(sent, received, strict=True):
        assert before[:2] == after[:2]
        assert [os.pread(fd.fileno(), 9, 0) for fd in after.fds] == [os.pread(fd.fileno(), 9, 0) for fd in before.fds]
        close_all([*before.fds, *after.fds])


async def test_what_is_there_is_received_at_once_up_to_the_limit(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    await left.send_messages([StreamMessage(message(bytes([i]))) for i in range(10)])
    with trio.testing.assert_checkpoints():
        first = await right.receive_messages(HEADER.size, body_size, max_messages=7)
    second = await right.receive_messages(HEADER.size, body_size, max_messages=7)
    assert [m.body[0] for m in first] == list(range(7))
    assert [m.body[0] for m in second] == [7, 8, 9]


async def test_what_is_wrong_with_a_later_message_waits_for_its_turn(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    connection, peer = raw_pair
    with EventFd() as event:
        before = descriptor_count()
        for number in range(6):
            send_with_fds(peer, [message(bytes([number]))], [event] if number in {2, 3} else [])
        peer.send(HEADER.pack(1, 1 << 31, b""))
        seen: list[object] = []
        while OversizedMessage not in seen:
            try:
                messages = await connection.receive_messages(HEADER.size, body_size, max_fds=0)
                seen += [m.body[0] for m in messages]
            except (UnexpectedFds, OversizedMessage) as exc:
                seen.append(type(exc))
        assert seen == [0, 1, UnexpectedFds, UnexpectedFds, 4, 5, OversizedMessage]
        assert descriptor_count() == before


async def test_descriptors_inside_a_batch_are_never_given_to_another_message(
    raw_pair: tuple[Connection, socket.socket],
) -> None:
    """One send of two messages has its descriptors on the first; two sends glued together on the second."""
    connection, peer = raw_pair
    with EventFd() as event:
        send_with_fds(peer, [message(b"a") + message(b"b")], [event])
        peer.send(message(b"c"))
        send_with_fds(peer, [message(b"d")], [event] * 2)
        peer.send(message(b"e") + message(b"f")[:5])
        send_with_fds(peer, [message(b"f")[5:]], [event])
        received = await connection.receive_messages(HEADER.size, body_size)
        assert [(m.body, len(m.fds)) for m in received] == [(b"a", 1), (b"b", 0), (b"c", 0), (b"d", 2), (b"e", 0)]
        with pytest.raises(UnexpectedFds) as caught:
            await connection.receive_messages(HEADER.size, body_size)
        assert caught.value.data == message(b"f")
        for m in received:
            close_all(m.fds)


async def test_credentials_on_the_socket_change_nothing(raw_pair: tuple[Connection, socket.socket]) -> None:
    """They make every look at the queue say that there may be descriptors."""
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with peer, EventFd() as event:
        async with Connection(ours) as connection:
            peer.send(message(b"a") + message(b"b"))
            send_with_fds(peer, [message(b"c")], [event])
            received = await connection.receive_messages(HEADER.size, body_size)
            assert [(m.body, len(m.fds)) for m in received] == [(b"a", 0), (b"b", 0), (b"c", 1)]
            close_all(received[2].fds)


async def test_a_broken_end_behind_a_batch_is_reported_after_it() -> None:
    left, right = socket.socketpair()
    async with Connection(left) as connection:
        with right:
            await connection.send_message(b"never read")
            right.send(message(b"one") + message(b"two"))
        received = await connection.receive_messages(HEADER.size, body_size)
        assert [m.body for m in received] == [b"one", b"two"]
        with pytest.raises(trio.BrokenResourceError) as caught:
            await connection.receive_messages(HEADER.size, body_size)
        assert isinstance(caught.value.__cause__, ConnectionResetError)


# Short of room


class Reluctant(socket.socket):
    """A socket whose first calls find the kernel out of memory, which it will not be on demand."""

    code = errno.ENOMEM
    refusals = 0
    spared = 0

    def _refuse(self) -> None:
        if self.spared:
            self.spared -= 1
        elif self.refusals:
            self.refusals -= 1
            raise OSError(self.code, os.strerror(self.code))

    def sendmsg(self, *args: object) -> int:
        self._refuse()
        return super().sendmsg(*args)  # type: ignore[arg-type]

    def recvmsg_into(self, *args: object) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        self._refuse()
        return super().recvmsg_into(*args)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS])
async def test_a_kernel_short_of_room_is_waited_for(code: int, autojump_clock: trio.testing.MockClock) -> None:
    left, right = socket.socketpair()
    reluctant = Reluctant(fileno=left.detach())
    reluctant.refusals, reluctant.code = 12, code
    async with Connection(reluctant) as connection, Connection(right) as peer:
        await connection.send_message(message(b"at last"))
        assert (await receive(peer)).body == b"at last"
        assert 0.5 < trio.current_time() < 1.0
        await peer.send_messages([StreamMessage(message(b"reply"))] * 2)
        reluctant.refusals = 3
        assert len(await connection.receive_messages(HEADER.size, body_size)) == 2
        reluctant.refusals = 3
        with trio.move_on_after(0.001) as scope:
            await connection.send_message(message(b"never"))
        assert scope.cancelled_caught
        reluctant.refusals = 0
        await connection.send_message(message(b"usable"))
        assert (await receive(peer)).body == b"usable"


@pytest.fixture
async def reluctant_pair() -> AsyncIterator[tuple[Connection, Reluctant, socket.socket]]:
    left, right = socket.socketpair()
    reluctant = Reluctant(fileno=left.detach())
    with right:
        async with Connection(reluctant) as connection:
            yield connection, reluctant, right


@pytest.mark.parametrize("spared", range(6))
async def test_a_kernel_short_of_room_between_two_looks_loses_nothing(
    reluctant_pair: tuple[Connection, Reluctant, socket.socket], spared: int
) -> None:
    connection, reluctant, peer = reluctant_pair
    with EventFd() as event:
        for number in range(3):
            send_with_fds(peer, [message(bytes([number]))], [event] * number)
        reluctant.spared, reluctant.refusals = spared, 1
        received: list[StreamMessage] = []
        while len(received) < 3:
            received += await connection.receive_messages(HEADER.size, body_size)
        assert reluctant.refusals == 0
        assert [(m.body, len(m.fds)) for m in received] == [(bytes([n]), n) for n in range(3)]
        for m in received:
            close_all(m.fds)


async def test_an_error_of_another_kind_passes_and_loses_nothing(
    reluctant_pair: tuple[Connection, Reluctant, socket.socket],
) -> None:
    connection, reluctant, peer = reluctant_pair
    with EventFd() as event:
        send_with_fds(peer, [message(b"body")], [event])
        reluctant.spared, reluctant.refusals, reluctant.code = 1, 1, errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            await receive(connection)
        received = await receive(connection)
        assert (received.body, len(received.fds)) == (b"body", 1)
        close_all(received.fds)


async def test_closing_during_a_pause_says_so(
    reluctant_pair: tuple[Connection, Reluctant, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    connection, reluctant, peer = reluctant_pair
    with EventFd() as event:
        before = descriptor_count()
        send_with_fds(peer, [message(b"body")], [event])
        reluctant.spared, reluctant.refusals = 1, 1
        with pytest.RaisesGroup(trio.ClosedResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, connection)
                await trio.testing.wait_all_tasks_blocked()
                connection.close()
        assert descriptor_count() == before - 1


async def test_an_error_of_another_kind_passes_and_leaves_the_connection_usable(
    pair: tuple[Connection, Connection],
) -> None:
    left, right = pair
    with EventFd() as event:
        number = event.fileno()

    class Stale:
        def fileno(self) -> int:
            return number

    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await left.send_message(message(b"x"), fds=[Stale()])
    assert caught.value.errno == errno.EBADF
    await left.send_message(message(b"usable"))
    assert (await receive(right)).body == b"usable"


def test_too_many_descriptors_in_flight_make_the_sender_wait_until_they_are_received() -> None:
    """Root is exempt from this limit, so an unprivileged child meets it."""
    program = Path(__file__).parent / "programs" / "too_many_in_flight.py"
    finished = run_python(program)
    assert finished.stderr == ""
    assert finished.stdout == "the sender had to wait, then all 96 descriptors arrived\n"


# Arguments


async def test_what_makes_no_sense_is_refused_before_anything_happens(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    with EventFd() as event:
        closed = event.duplicate()
        closed.close()
        with pytest.raises(ValueError, match="at least one byte"):
            await left.send_message(b"", fds=[event])
        with pytest.raises(ValueError, match="closed"):
            await left.send_messages([StreamMessage(b"good"), StreamMessage(b"bad", b"", [closed])])
    for bad in (-1, 254):
        with pytest.raises(ValueError, match=f"max_fds is {bad}, not 0 to 253"):
            await receive(right, max_fds=bad)
        with pytest.raises(ValueError, match=f"max_fds is {bad}, not 0 to 253"):
            await right.receive_messages(HEADER.size, body_size, max_fds=bad)
    with pytest.raises(ValueError, match="max_messages is 0, not at least 1"):
        await right.receive_messages(HEADER.size, body_size, max_messages=0)
    with pytest.raises(ValueError, match="at least 1"):
        await right.receive_exactly(0)
    with pytest.raises(ValueError, match="would lose descriptors"):
        await right.receive_into([bytearray()])
    await left.aclose()
    with pytest.raises(Disconnected):
        await receive(right)


@pytest.mark.parametrize(
    ("family", "kind"), [(socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)]
)
def test_only_a_unix_stream_is_a_connection(family: int, kind: int) -> None:
    with socket.socket(family, kind) as sock:
        with pytest.raises(ValueError, match="a connection is an AF_UNIX stream"):
            Connection(sock)
        assert sock.fileno() >= 0


async def test_a_sockets_own_timeout_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with theirs:
        async with Connection(ours) as connection:
            await cancel_once_blocked(lambda: receive(connection))


async def test_the_sockets_blocking_mode_is_left_alone(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    await left.send_message(message(b"x"))
    await receive(right)
    for connection in pair:
        with connection.into_socket() as sock:
            assert os.get_blocking(sock.fileno())
            assert sock.gettimeout() is None


async def test_a_socket_that_was_given_up_belongs_to_the_caller(pair: tuple[Connection, Connection]) -> None:
    left, right = pair
    with left.into_socket() as sock:
        with pytest.raises(trio.ClosedResourceError):
            await left.send_message(b"x")
        with pytest.raises(ValueError, match="closed, or was given up"):
            left.into_socket()
        left.close()
        sock.send(message(b"from the socket"))
        assert (await receive(right)).body == b"from the socket"
        await right.send_message(b"back")
        assert recv_with_fds(sock, [bytearray(4)]) == (4, [])


@pytest.mark.parametrize("size", [None, 4.0, "4"])
async def test_a_body_size_that_is_no_integer_costs_no_other_message(size: Any) -> None:
    left, right = Connection.pair()
    sizes = {1: 4, 9: size}
    async with left, right:
        with EventFd() as event:
            await left.send_message(b"\1", b"body", fds=[event])
        await left.send_message(b"\x09", b"what")
        [first] = await right.receive_messages(1, lambda header: sizes[header[0]], max_fds=1)
        with first.fds[0]:
            assert (first.header, first.body) == (b"\1", b"body")
        with pytest.raises(TypeError):
            await right.receive_messages(1, lambda header: sizes[header[0]], max_fds=1)
        with pytest.raises(trio.BrokenResourceError):
            await right.receive_exactly(1)


async def test_lengths_that_are_no_integers_are_refused_before_anything_is_read() -> None:
    left, right = Connection.pair()
    half: Any = 4.0
    async with left, right:
        await left.send_message(b"four")
        with pytest.raises(TypeError):
            await right.receive_exactly(half)
        with pytest.raises(TypeError):
            await right.receive_message(half, lambda _: 0)
        assert await right.receive_exactly(4) == (b"four", [])


async def test_descriptors_of_a_message_with_a_fault_are_closed_by_the_read_that_tells() -> None:
    left, right = Connection.pair()
    async with left, right:
        with EventFd() as event:
            socket.send_fds(left._socket, [b"HH"], [event.fileno()] * 2)
            socket.send_fds(left._socket, [b"HH"], [event.fileno()])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(right.receive_message, 8, lambda _: 0, max_fds=4))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        before = descriptor_count()
        with pytest.raises(UnexpectedFds) as caught:
            await right.receive_into([bytearray(16)], allow_fds=True)
        assert caught.value.data == b"HHHH"
        assert descriptor_count() == before - 2
