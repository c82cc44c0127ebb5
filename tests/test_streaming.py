"""End-to-end tests of streams, with real workers."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import random
import signal
import socket
import time
import traceback
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import assert_checkpoints

import fdpool
from fdpool import Doorbell, EventFd, Pool, RemoteError, RemoteProtocolError, WorkerDied, open_pool
from fdpool.errors import FdLimitError
from fdpool.kernel.mapping import PAGE_BYTES
from tests.support import memory_tasks, tasks
from tests.support import stream_tasks as streams
from tests.support.attempts import cancel_at_every_step
from tests.support.forgery import parcel_of
from tests.support.leaks import children, descriptor_count
from tests.support.stream_tasks import Made
from tests.test_pool import limited_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fdpool.process.worker_process import WorkerProcess
    from fdpool.streaming import Items
    from tests.support.sweep import CancellationPoint

SECONDS = float(os.environ.get("FDPOOL_RACE_SECONDS", "1"))
MIB = 1 << 20

either_kind = pytest.mark.parametrize("numbers", [streams.numbers, streams.async_numbers], ids=["plain", "async"])


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            await until(lambda: len(pool._dispatcher._seats) == 2)
            yield pool


@asynccontextmanager
async def open_one() -> AsyncIterator[Pool]:
    """Open a pool of one worker."""
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            yield pool


def worker_of(items: Items[Any]) -> WorkerProcess:
    """Return the worker that a stream runs on, or has run on."""
    worker = items._call.worker
    assert worker is not None
    return worker


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a worker does to memory."""
    while not condition():  # noqa: ASYNC110 - nobody rings when it does
        await trio.sleep(0.001)


# What comes.


@either_kind
async def test_items_come_in_order_and_then_no_more(pool: Pool, numbers: Any) -> None:
    async with pool.stream(numbers, 100) as items:
        assert [item async for item in items] == list(range(100))
        assert items.received == 100
        for _ in range(3):
            with pytest.raises(StopAsyncIteration):
                await anext(items)


async def test_entering_iterating_and_its_end_are_checkpoints(pool: Pool) -> None:
    with assert_checkpoints():
        stream = pool.stream(streams.numbers, 2)
        items = await stream.__aenter__()
    for _ in range(2):
        with assert_checkpoints():
            await anext(items)
    with assert_checkpoints(), pytest.raises(StopAsyncIteration):
        await anext(items)
    await stream.__aexit__(None, None, None)


async def test_any_function_that_returns_an_iterable_will_do(pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("one\ntwo\n")
    for function, args, expected in (
        (range, (3,), [0, 1, 2]),
        (streams.lines_of, (str(file),), ["one\n", "two\n"]),
        (partial(streams.numbers, 2), (), [0, 1]),
        (partial(streams.async_numbers, 2), (), [0, 1]),
        (streams.Numbers(), (2,), [0, 1]),
        (streams.Numbers().async_numbers, (2,), [0, 1]),
        (streams.Numbers, (), [5]),
    ):
        async with pool.stream(function, *args) as items:
            assert [item async for item in items] == expected
    before = await pool.run_sync(tasks.descriptor_total)
    async with pool.stream(streams.lines_of, str(file)) as lines:
        assert await anext(lines) == "one\n"
    assert await pool.run_sync(tasks.descriptor_total) == before


async def test_every_keyword_is_the_functions_own(pool: Pool) -> None:
    words = {"stream_items": 1, "function": 2, "self": 3, "ordered": 4}
    async with pool.stream(streams.keywords, **words) as items:
        assert dict([item async for item in items]) == words


async def test_nothing_and_none_can_be_streamed(pool: Pool) -> None:
    async with pool.stream(streams.numbers, 0) as items:
        assert [item async for item in items] == []
    async with pool.stream(itertools.repeat, None, 3) as nothings:
        assert [item async for item in nothings] == [None] * 3


async def test_a_worker_imports_no_trio_for_a_plain_stream(pool: Pool) -> None:
    async with pool.stream(streams.loaded_modules) as names:
        assert "trio" not in [name async for name in names]


async def test_two_streams_run_at_once_on_two_workers(pool: Pool) -> None:
    async with pool.stream(streams.pids, 50) as left, pool.stream(streams.pids, 50) as right:
        pairs = [(await anext(left), await anext(right)) for _ in range(50)]
    assert len({pid for pair in pairs for pid in pair}) == 2
    assert len(set(pairs)) == 1


async def test_async_streams_run_side_by_side_in_one_worker() -> None:
    """Each waits for the one before it to ring: one after the other they would never begin."""
    async with open_one() as pool:
        bells = [EventFd() for _ in range(5)]
        circle = list(zip(bells, [*bells[1:], bells[0]], strict=True))
        found: list[int] = []

        async def consume(bell: EventFd, next_bell: EventFd) -> None:
            async with pool.stream(streams.pass_on, bell, next_bell) as items:
                for _ in range(20):
                    found.append(await anext(items))

        async with trio.open_nursery() as nursery:
            for bell, next_bell in circle:
                nursery.start_soon(consume, bell, next_bell)
            bells[0].write()
            assert await pool.run(tasks.async_add, 1) == 2
        assert len(found) == 100
        assert len(set(found)) == 1
        for bell in bells:
            bell.close()


async def test_a_generator_may_run_trio_and_threads(pool: Pool) -> None:
    async with pool.stream(streams.run_trio, 5) as items:
        assert [item async for item in items] == [0, 1, 2, 3, 4]
    async with pool.stream(streams.from_a_thread, 5) as items:
        assert [item async for item in items] == [0, 1, 2, 3, 4]
    async with pool.stream(streams.run_trio_within, 1) as items:
        with pytest.raises(RuntimeError, match="Attempted to call run"):
            await anext(items)


# How far ahead.


@either_kind
@pytest.mark.parametrize("window", [1, 2, 5, 16])
async def test_a_generator_is_never_further_ahead_than_its_window(pool: Pool, numbers: Any, window: int) -> None:
    made = Made()
    async with pool.options(stream_items=window).stream(numbers, 10**9, made) as items:
        for expected in range(1000):
            assert await anext(items) == expected
            assert made.items <= items.received + window
        # It is told once half of the window was taken, and does make use of the rest while nobody looks.
        await until(lambda: made.items > items.received + window // 2)
    assert made.ended == 1


@pytest.mark.parametrize("pieces", [streams.pieces, streams.async_pieces])
async def test_the_window_is_one_of_bytes_as_well(pool: Pool, pieces: Any) -> None:
    made = Made()
    async with pool.options(stream_items=100, stream_bytes=3 * MIB).stream(pieces, MIB, made) as items:
        for expected in range(100):
            piece = await anext(items)
            assert (piece[0], len(piece)) == (expected, MIB)
            assert made.items <= items.received + 3
        await until(lambda: made.items == items.received + 3)


async def test_an_item_larger_than_the_window_goes_alone(pool: Pool) -> None:
    made = Made()
    async with pool.options(stream_bytes=1).stream(streams.pieces, MIB, made) as items:
        for _ in range(20):
            assert len(await anext(items)) == MIB
            assert made.items <= items.received + 1


@pytest.mark.parametrize("items_at_once", [3, 16])
@pytest.mark.parametrize("size", [10, 40_000, 100_000, 700_000])
async def test_no_mixture_of_windows_and_sizes_comes_to_a_halt(pool: Pool, items_at_once: int, size: int) -> None:
    made = Made()
    for nbytes in (1, size, size + 1, 2 * size, 5 * size + 300):
        async with pool.options(stream_items=items_at_once, stream_bytes=nbytes).stream(
            streams.pieces, size, made
        ) as items:
            for _ in range(40):
                await anext(items)


async def test_a_gigabyte_goes_through_a_small_window_in_flat_memory() -> None:
    pytest.importorskip("numpy")
    async with open_one() as pool:
        held = []
        async with pool.options(stream_items=4).stream(streams.arrays, 1000, (1024, 1024)) as items:
            async for array in items:
                assert array[0, 0] == array[-1, -1] == (items.received - 1) % 256
                array[0, 0] = 7  # it is writable, and nobody else sees that
                del array
                if items.received % 100 == 0:
                    # By then every page that is used again has been.
                    held.append((shared_bytes(worker_of(items).pid), shared_bytes(os.getpid()), own_bytes(os.getpid())))
        assert items.received == 1000
        for first, last in zip(held[1], held[-1], strict=True):
            assert last < first + 4 * MIB
        assert held[-1][0] < 32 * MIB
        assert pool.memory_statistics().workers[0].mapped_bytes == 64 * MIB


def shared_bytes(pid: int) -> int:
    """Return how much of shared memory a process has in its page tables."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[2]) * PAGE_BYTES


def own_bytes(pid: int) -> int:
    """Return how much memory of its own a process has."""
    resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return (resident - shared) * PAGE_BYTES


async def test_items_that_are_kept_stay_what_they_were(pool: Pool) -> None:
    np = pytest.importorskip("numpy")
    async with pool.options(stream_items=2).stream(streams.arrays, 30, (300, 1000)) as items:
        kept = [item async for item in items]
    gc.collect()
    assert all((array == value).all() for value, array in enumerate(kept))
    assert isinstance(kept[0], np.ndarray)
    del kept
    gc.collect()
    await pool.run_sync(tasks.add, 1)


async def test_memory_that_travels_by_reference_is_seen_as_it_is_now(pool: Pool) -> None:
    pytest.importorskip("numpy")
    async with pool.stream(streams.filled_in_place, 5, 300_000) as items:
        seen = [item async for item in items]
    # The first is the memory itself. While that is held, the others are what it was as they arrived.
    assert seen[0][0] == 4
    assert all(number <= item[0] <= 4 for number, item in enumerate(seen))


# Errors.


@pytest.mark.parametrize("function", [streams.yield_and_raise, streams.async_yield_and_raise])
async def test_what_a_generator_raises_comes_after_all_its_items(pool: Pool, function: Any) -> None:
    async with pool.stream(function, 40) as items:
        assert [await anext(items) for _ in range(40)] == list(range(40))
        with pytest.raises(ValueError, match="of the generator") as caught:
            await anext(items)
        printed = "".join(traceback.format_exception(caught.value))
        assert 'tests/support/stream_tasks.py", line' in printed
        assert "fdpool/worker/streaming.py" not in printed
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_exiting_is_the_consumers_error_and_not_its_exit(pool: Pool) -> None:
    async with pool.stream(streams.exit_politely_at, 2) as items:
        assert [await anext(items), await anext(items)] == [0, 1]
        with pytest.raises(RemoteError, match="SystemExit: 3"):
            await anext(items)
    assert await pool.run_sync(tasks.add, 1) == 2


@pytest.mark.parametrize("function", [streams.yield_a_generator, streams.async_yield_a_generator])
async def test_an_item_that_cannot_be_pickled_ends_the_stream_after_the_others(pool: Pool, function: Any) -> None:
    made = Made()
    async with pool.stream(function, 20, made) as items:
        assert [await anext(items) for _ in range(20)] == list(range(20))
        with pytest.raises(TypeError, match="generator") as caught:
            await anext(items)
        assert f"packing an item of {function.__name__}, a generator" in caught.value.__notes__[0]
        assert made.ended == 1
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_an_item_whose_handle_is_closed_ends_the_stream(pool: Pool) -> None:
    async with pool.stream(streams.closed_sockets) as items:
        assert await anext(items) == 1
        with pytest.raises(ValueError, match="closed"):
            await anext(items)


async def test_an_item_that_cannot_be_loaded_costs_that_item_only(pool: Pool) -> None:
    async with pool.stream(streams.items_that_fail_to_load) as items:
        assert await anext(items) == 1
        with pytest.raises(LookupError, match="not here"):
            await anext(items)
        assert [item async for item in items] == [3]
        assert items.received == 3


async def test_what_cannot_be_streamed_is_told(pool: Pool) -> None:
    with pytest.raises(TypeError, match="int cannot be called"):
        pool.stream(3)
    with pytest.raises(TypeError, match="async_add is an async function that yields nothing"):
        pool.stream(tasks.async_add, 1)
    with pytest.raises(TypeError, match="generator"):
        async with pool.stream(tasks.add, (number for number in [1])):
            pass
    for function, args, says in (
        (tasks.add, (1,), "add returned int, which cannot be iterated over"),
        (streams.yield_and, (0, tasks.divide, 1, 0), "division by zero"),
        (streams.async_generator_of, (3,), "returned async_generator and is no async generator function"),
        (tasks.divide, (1, 0), "division by zero"),
    ):
        async with pool.stream(function, *args) as items:
            with pytest.raises((TypeError, ZeroDivisionError), match=says):
                await anext(items)
    assert await pool.run_sync(tasks.add, 1) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stream_items": 0}, "stream_items is 0: at least 1 item"),
        ({"stream_bytes": 0}, "stream_bytes is 0: at least 1 byte"),
    ],
)
async def test_windows_that_make_no_sense_are_refused(pool: Pool, options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pool.options(**options)


async def test_one_task_iterates_at_a_time(pool: Pool) -> None:
    async with Doorbell() as bell, pool.stream(streams.yield_and, 0, tasks.ring_and_hang, bell._event) as items:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, items)
            await bell.wait()
            with pytest.raises(trio.BusyResourceError, match="another task is iterating over this stream"):
                await anext(items)
            nursery.cancel_scope.cancel()


async def test_a_stream_whose_block_was_left_says_so(pool: Pool) -> None:
    async with pool.stream(streams.numbers, 100) as items:
        assert await anext(items) == 0
    with pytest.raises(trio.ClosedResourceError, match="the block of this stream was left"):
        await anext(items)


async def test_a_task_that_waits_for_an_item_is_told_that_the_block_was_left(pool: Pool) -> None:
    async def iterate(items: Any) -> None:
        with pytest.raises(trio.ClosedResourceError, match="the block of this stream was left"):
            await anext(items)
        has_ended.set()

    has_ended = trio.Event()
    async with trio.open_nursery() as nursery, Doorbell() as bell:
        async with pool.stream(streams.yield_and, 0, tasks.ring_and_hang, bell._event) as items:
            nursery.start_soon(iterate, items)
            await bell.wait()
        await has_ended.wait()


# Ending it early.


@either_kind
async def test_leaving_the_block_ends_an_endless_generator(pool: Pool, numbers: Any) -> None:
    made = Made()
    for _ in range(10):
        async with pool.stream(numbers, 10**9, made) as items:
            async for item in items:
                if item == 20:
                    break
    assert made.ended == 10
    assert await pool.run_sync(tasks.add, 1) == 2


@either_kind
async def test_a_stream_that_nobody_iterates_over_is_ended_too(pool: Pool, numbers: Any) -> None:
    made = Made()
    async with pool.stream(numbers, 10**9, made):
        await until(lambda: made.items == 16)
    assert made.ended == 1


@pytest.mark.parametrize(
    ("function", "waits", "raised"),
    [
        (streams.tell_what_is_raised, False, 1),
        (streams.tell_what_is_raised, True, 2),
        (streams.async_tell_what_is_raised, False, 3),
        (streams.async_tell_what_is_raised, True, 12),
    ],
)
async def test_a_generator_is_interrupted_where_it_runs_and_closed_where_it_waits(
    pool: Pool, function: Any, waits: bool, raised: int
) -> None:
    async with Doorbell() as bell:
        with EventFd() as told:
            async with pool.options(stream_items=1 if waits else 16).stream(
                function, bell._event, told, waits
            ) as items:
                assert await anext(items) == 1
                await bell.wait()
                # With a window of one it has made the second item, and waits until that is taken.
                await until(lambda: not waits or bool(items._call.items))
            assert told.read() == raised
            worker = worker_of(items)
            assert worker.status is None
    assert worker.pid in {await pool.run_sync(tasks.pid) for _ in range(4)}


async def test_cancelling_the_consumer_ends_the_generator_before_it_leaves(pool: Pool) -> None:
    made = Made()
    with trio.CancelScope() as scope:
        async with pool.stream(streams.numbers, 10**9, made) as items:
            async for item in items:
                if item == 50:
                    scope.cancel()
    assert scope.cancelled_caught
    assert made.ended == 1
    assert items.received == 51


async def test_a_generator_that_refuses_to_end_is_killed_after_its_grace(pool: Pool) -> None:
    async with Doorbell() as bell:
        async with pool.options(grace_period=0.05).stream(streams.refuse_to_end, bell._event) as items:
            assert await anext(items) == 1
            await bell.wait()
        assert worker_of(items).status is not None
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_stream_can_be_ended_by_killing_its_worker(pool: Pool) -> None:
    made = Made()
    async with pool.options(on_cancel="kill").stream(streams.numbers, 10**9, made) as items:
        assert await anext(items) == 0
    assert worker_of(items).status is not None
    assert made.ended == 0
    assert await pool.run_sync(tasks.add, 1) == 2


@pytest.mark.parametrize("function", [streams.wait_in_the_open, streams.async_wait_in_the_open])
async def test_a_stream_that_may_not_be_interrupted_is_closed_at_its_next_item(pool: Pool, function: Any) -> None:
    made = Made()
    is_leaving, has_left = trio.Event(), trio.Event()

    async def consume() -> None:
        with trio.CancelScope() as scope:
            async with pool.options(on_cancel="wait", grace_period=0).stream(
                function, bell._event, go_on, made
            ) as items:
                assert await anext(items) == 1
                await bell.wait()
                scope.cancel()
                is_leaving.set()
        has_left.set()

    async with Doorbell() as bell:
        with EventFd() as go_on:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume)
                await is_leaving.wait()
                await trio.testing.wait_all_tasks_blocked()
                assert not has_left.is_set()
                assert made.ended == 0
                if function is streams.async_wait_in_the_open:
                    # Asked for behind the end of the stream, so it was told of that when this is answered.
                    assert await pool.run(tasks.async_add, 1) == 2
                go_on.write()
    # It went on to its next item, and no further.
    assert (made.items, made.ended) == (1, 1)


async def test_a_generator_that_ignores_its_exit_is_an_error_and_its_worker_stays(pool: Pool) -> None:
    made = Made()
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        async with pool.stream(streams.ignore_exits, made) as items:
            assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    assert made.ended >= 1
    worker = worker_of(items)
    assert worker.status is None
    assert worker.pid in {await pool.run_sync(tasks.pid) for _ in range(4)}


async def test_a_generator_that_yields_while_it_cleans_up_is_an_error(pool: Pool) -> None:
    made = Made()
    async with pool.stream(streams.yield_in_finally, made) as items:
        assert [item async for item in items] == [1, 2]
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        async with pool.options(stream_items=1).stream(streams.yield_in_finally, made) as items:
            await until(lambda: len(items._call.items) == 1)
    assert made.ended == 2
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_generator_that_goes_on_when_interrupted_is_closed(pool: Pool) -> None:
    async with Doorbell() as bell:
        async with pool.stream(streams.ignore_interrupts, bell._event) as items:
            assert await anext(items) == 1
            await bell.wait()
        assert worker_of(items).status is None


@pytest.mark.parametrize("function", [streams.raise_when_closed, streams.async_raise_when_closed])
async def test_what_is_raised_while_it_is_closed_leaves_the_block(pool: Pool, function: Any) -> None:
    with pytest.raises(ValueError, match="while it was closed") as caught:
        async with pool.stream(function) as items:
            assert await anext(items) == 0
    assert "in raise_when_closed" in "".join(traceback.format_exception(caught.value)).replace("async_", "")
    with pytest.raises(KeyError, match="mine") as mine:  # noqa: PT012 - the block is what is tested
        async with pool.stream(function) as items:
            assert await anext(items) == 0
            raise KeyError("mine")
    assert "raise_when_closed raised ValueError('while it was closed') while it was closed" in mine.value.__notes__[0]
    with trio.CancelScope() as scope:
        async with pool.stream(function) as items:
            assert await anext(items) == 0
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_generator_that_crashes_while_it_is_closed_is_not_passed_over(pool: Pool) -> None:
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        async with pool.stream(streams.die_when_closed) as items:
            assert await anext(items) == 0


async def test_an_async_generator_may_yield_inside_a_cancel_scope(pool: Pool) -> None:
    made = Made()
    async with pool.stream(streams.yield_in_a_scope, made) as items:
        assert [await anext(items) for _ in range(40)] == list(range(40))
    assert made.ended == 1
    assert await pool.run(tasks.async_add, 1) == 2


@either_kind
async def test_cancelling_at_any_point_leaves_nothing_behind(pool: Pool, numbers: Any) -> None:
    made = Made()
    pids = [worker.pid for worker in pool._supervisor.workers]
    before = descriptor_count()

    async def attempt(point: CancellationPoint) -> None:
        with point:
            async with pool.options(stream_items=2).stream(numbers, 5, made) as items:
                async for item in items:
                    assert item == items.received - 1
        assert not any(seat.calls or seat.hosted for seat in pool._dispatcher._seats.values())
        assert not pool._dispatcher.waiting
        assert descriptor_count() == before

    assert await cancel_at_every_step(attempt) > 8
    assert [worker.pid for worker in pool._supervisor.workers] == pids, "no worker was lost to it"


async def test_no_interrupt_hits_a_message_or_another_call() -> None:
    """A stream that is ended at a random moment, again and again: what its worker says is whole all the same."""
    chance = random.Random(5)
    async with open_one() as pool:
        (pid,) = {await pool.run_sync(tasks.pid)}
        deadline = time.monotonic() + SECONDS
        ended = 0
        while time.monotonic() < deadline:
            with trio.move_on_after(chance.random() / 300):
                async with pool.options(stream_items=chance.choice([1, 2, 50])).stream(itertools.count) as items:
                    async for item in items:
                        assert item == items.received - 1
            ended += 1
            assert await pool.run_sync(tasks.pid) == pid
        assert ended > 10


# The worker, and the pool.


@pytest.mark.parametrize("function", [streams.die_after, streams.async_die_after])
@pytest.mark.parametrize("number", [0, 1, 15, 16])
async def test_what_came_before_the_workers_death_is_delivered(pool: Pool, function: Any, number: int) -> None:
    async with pool.stream(function, number) as items:
        assert [await anext(items) for _ in range(number)] == list(range(number))
        with pytest.raises(WorkerDied, match=f"SIGKILL while running tests.support.stream_tasks.{function.__name__}"):
            await anext(items)
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_items_in_memory_of_a_dead_worker_can_still_be_taken(pool: Pool) -> None:
    pytest.importorskip("numpy")
    async with pool.options(stream_items=4).stream(streams.arrays, 10, (1000, 1000)) as items:
        await until(lambda: len(items._call.items) == 4)
        worker = worker_of(items)
        worker.kill()
        await worker.exited.wait()
        for expected in range(4):
            array = await anext(items)
            assert (array == expected).all()
        with pytest.raises(WorkerDied):
            await anext(items)


async def test_a_stream_that_had_begun_is_never_run_again(pool: Pool) -> None:
    made = Made()
    async with pool.options(retries=5).stream(streams.count_and_die, made) as items:
        with pytest.raises(WorkerDied):
            await anext(items)
    assert made.items == 1


async def test_a_stream_that_had_not_begun_runs_elsewhere() -> None:
    async with open_one() as pool:
        victim = await pool.run_sync(tasks.pid)
        os.kill(victim, signal.SIGSTOP)
        async with pool.stream(streams.pids, 2) as items:
            os.kill(victim, signal.SIGKILL)
            assert victim not in [item async for item in items]


async def test_calls_wait_until_the_only_worker_has_ended_its_stream() -> None:
    async with open_one() as pool:
        answers = []

        async def ask(number: int) -> None:
            answers.append(await pool.run_sync(tasks.add, number))

        # Short calls, until the pool would send some ahead.
        for number in range(60):
            await pool.run_sync(tasks.add, number)
        async with trio.open_nursery() as nursery:
            async with pool.stream(streams.numbers, 200) as items:
                for number in range(10):
                    nursery.start_soon(ask, number)
                assert [item async for item in first_of(items, 100)] == list(range(100))
                assert not answers
                assert len(pool._dispatcher.waiting) == 10
            # The second half of the stream was not waited for.
        assert sorted(answers) == list(range(1, 11))
        assert pool._dispatcher._average_seconds < 0.002, "a stream says nothing about how long calls take"


async def first_of(items: Any, number: int) -> AsyncIterator[Any]:
    for _ in range(number):
        yield await anext(items)


async def test_a_stream_may_be_sent_ahead_and_nothing_behind_it() -> None:
    async with open_one() as pool:
        for number in range(60):
            await pool.run_sync(tasks.add, number)
        results: list[Any] = []

        async def consume() -> None:
            async with pool.stream(streams.numbers, 50) as items:
                results.append([item async for item in items])

        async def ask(number: int) -> None:
            results.append(await pool.run_sync(tasks.add, number))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
                nursery.start_soon(consume)
        assert sorted(result for result in results if isinstance(result, int)) == list(range(1, 21))
        assert [result for result in results if isinstance(result, list)] == [list(range(50))] * 20


async def test_a_stream_waits_in_line_and_can_be_given_up_there() -> None:
    async with open_one() as pool, Doorbell() as bell, trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, tasks.ring_and_hang, bell._event)
        await bell.wait()
        with trio.move_on_after(0.01) as scope:
            async with pool.stream(streams.numbers, 5) as items:
                await anext(items)
        assert scope.cancelled_caught
        assert not pool._dispatcher.waiting
        nursery.cancel_scope.cancel()


async def test_a_plain_stream_waits_for_async_calls_to_end() -> None:
    async with open_one() as pool, trio.open_nursery() as nursery, Doorbell() as bell:
        with EventFd() as cleaned_up:
            scope = trio.CancelScope()

            async def hang() -> None:
                with scope:
                    await pool.run(tasks.async_ring_and_hang, bell._event, cleaned_up)

            nursery.start_soon(hang)
            await bell.wait()
            async with pool.stream(streams.run_trio, 3) as items:
                await trio.testing.wait_all_tasks_blocked()
                assert len(pool._dispatcher.waiting) == 1
                scope.cancel()
                assert [item async for item in items] == [0, 1, 2]


@either_kind
async def test_a_worker_set_aside_streams_as_well(pool: Pool, numbers: Any) -> None:
    async with pool.worker() as worker:
        await worker.run_sync(tasks.set_state, "kept")
        async with worker.stream(streams.pids, 20) as items:
            assert {item async for item in items} == {worker.pid}
        async with worker.options(stream_items=1).stream(numbers, 20) as items:
            assert [item async for item in items] == list(range(20))
        assert await worker.run_sync(tasks.get_state, 0) == "kept"


async def test_a_worker_set_aside_runs_nothing_beside_a_plain_stream(pool: Pool) -> None:
    answers = []

    async with pool.worker() as worker, trio.open_nursery() as nursery, Doorbell() as bell:

        async def ask(number: int) -> None:
            answers.append(await worker.run(tasks.async_add, number))

        async with worker.stream(streams.numbers, 100) as items:
            nursery.start_soon(ask, 1)
            assert [item async for item in first_of(items, 50)] == list(range(50))
            assert not answers
        await until(lambda: answers == [2])
        with EventFd() as cleaned_up, trio.CancelScope() as scope:
            async with trio.open_nursery() as others:
                others.start_soon(worker.run, tasks.async_ring_and_hang, bell._event, cleaned_up)
                await bell.wait()
                async with worker.stream(streams.run_trio, 3):
                    await trio.testing.wait_all_tasks_blocked()
                    assert pool.statistics().queued == 1
                    scope.cancel()
        assert scope.cancelled_caught


async def test_the_account_of_streams_is_that_of_calls(pool: Pool) -> None:
    for number in (3, 10**9):
        async with pool.stream(streams.numbers, number) as items:
            assert [item async for item in first_of(items, 3)] == [0, 1, 2]
            if number == 3:
                with pytest.raises(StopAsyncIteration):
                    await anext(items)
            else:
                assert pool.statistics().running == 1
    async with pool.stream(streams.yield_and_raise, 0) as items:
        with pytest.raises(ValueError, match="of the generator"):
            await anext(items)
    counts = pool.statistics().calls
    assert (counts.returned, counts.raised, counts.cancelled) == (1, 1, 1)


@either_kind
async def test_a_stream_may_go_on_within_the_grace_of_a_pool_that_is_closed(numbers: Any) -> None:
    made = Made()
    taken = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with open_pool(1, grace_period=30) as pool:
                ready = trio.Event()

                async def consume() -> None:
                    async with pool.options(stream_items=4).stream(numbers, 200, made) as items:
                        async for item in items:
                            taken.append(item)
                            ready.set()

                nursery.start_soon(consume)
                await ready.wait()
    assert taken == list(range(200))
    assert made.ended == 1


@either_kind
async def test_closing_the_pool_ends_a_stream_that_waits_for_its_consumer(numbers: Any) -> None:
    made = Made()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with open_pool(1, grace_period=0) as pool:
                is_closed, ready = trio.Event(), trio.Event()

                async def consume() -> None:
                    async with pool.options(stream_items=4).stream(numbers, 10**9, made) as items:
                        assert await anext(items) == 0
                        await until(lambda: made.items == 4)
                        ready.set()
                        await is_closed.wait()
                        assert [await anext(items) for _ in range(3)] == [1, 2, 3]
                        with pytest.raises(trio.ClosedResourceError, match="the pool was closed"):
                            await anext(items)

                nursery.start_soon(consume)
                await ready.wait()
            assert made.ended == 1, "its finally block ran"
            is_closed.set()
    assert not children()


async def test_a_pool_that_is_closed_streams_nothing() -> None:
    async with open_one() as pool:
        pass
    async with pool.stream(streams.numbers, 3) as items:
        with pytest.raises(trio.ClosedResourceError, match="the pool was closed"):
            await anext(items)


async def test_a_worker_may_retire_after_a_stream() -> None:
    with trio.fail_after(60):
        async with open_pool(1, max_tasks_per_worker=1) as pool:
            found = []
            for _ in range(3):
                async with pool.stream(streams.pids, 20) as items:
                    found.append({item async for item in items})
            assert [len(pids) for pids in found] == [1, 1, 1]
            assert len(set.union(*found)) == 3


async def test_a_streams_arguments_have_their_room_in_the_budget() -> None:
    with trio.fail_after(60):
        async with open_pool(2, memory_budget=MIB) as pool:
            async with pool.stream(iter, bytearray(700_000)) as items:
                assert pool.memory_statistics().in_flight_bytes >= 700_000
                with trio.move_on_after(0.02) as scope:
                    async with pool.stream(iter, bytearray(700_000)):
                        pytest.fail("there is no room for it")
                assert scope.cancelled_caught
                assert await anext(items) == 0
            assert pool.memory_statistics().in_flight_bytes == 0
            with pytest.raises(ValueError, match="memory_budget"):
                async with pool.stream(iter, bytearray(2 * MIB)):
                    pass


# Handles.


async def test_sockets_can_be_streamed_and_those_that_are_not_taken_are_closed(pool: Pool) -> None:
    before = descriptor_count()
    async with pool.options(stream_items=6).stream(streams.sockets, 50) as items:
        for _ in range(10):
            left, right = await anext(items)
            with left, right:
                left.sendall(b"hello")
                assert right.recv(5) == b"hello"
        await until(lambda: len(items._call.items) >= 4)
        assert descriptor_count() >= before + 8
    assert descriptor_count() == before
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_worker_keeps_no_copy_of_a_socket_that_is_given() -> None:
    async with open_one() as pool:
        async with Doorbell() as bell, pool.stream(streams.kept_socket, bell._event) as items:
            sock = await anext(items)
            sock.close()
            await bell.wait()
        total = await pool.run_sync(tasks.descriptor_total)
        for function in (streams.sockets, streams.given_sockets):
            async with pool.stream(function, 40) as pairs:
                async for left, right in pairs:
                    left.close()
                    right.close()
        assert await pool.run_sync(tasks.descriptor_total) == total


async def test_an_item_there_are_no_descriptors_for_is_an_error_in_its_place(pool: Pool) -> None:
    async with pool.stream(streams.events, 4, 40) as items:
        await until(lambda: len(items._call.items) == 4)
        for _ in range(4):
            for event in await anext(items):
                event.close()
    with limited_descriptors(64):
        async with pool.options(stream_items=1).stream(streams.events, 2, 64) as items:
            for _ in range(2):
                with pytest.raises(FdLimitError, match="arrive"):
                    await anext(items)
            assert [item async for item in items] == []
            assert items.received == 2
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_arguments_are_handed_over_as_in_a_call(pool: Pool) -> None:
    left, right = socket.socketpair()
    with left:
        async with pool.stream(streams.read_all, fdpool.give(right)) as items:
            left.sendall(b"abc")
            assert await anext(items) == b"abc"
            assert right.fileno() == -1
            left.shutdown(socket.SHUT_WR)
            assert [item async for item in items] == []


# Workers that break the rules.


async def test_an_item_of_a_call_that_is_no_stream_costs_the_worker(pool: Pool) -> None:
    with pytest.raises(RemoteProtocolError, match=r"an item came for .*forge, which is no stream"):
        await pool.run_sync(memory_tasks.forge, parcel_of(tail=pickle.dumps(1)), "ITEM")
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_more_items_than_the_window_cost_the_worker(pool: Pool) -> None:
    body = parcel_of(tail=pickle.dumps("forged"))
    async with pool.options(stream_items=4).stream(streams.forge_items, 4, body) as items:
        await until(lambda: items._call.is_done)
        assert [await anext(items) for _ in range(4)] == [0, "forged", "forged", "forged"]
        with pytest.raises(RemoteProtocolError, match="an item came beyond the window of 4"):
            await anext(items)
    assert await pool.run_sync(tasks.add, 1) == 2


@pytest.mark.parametrize("body", [b"", parcel_of(buffers=1, tail=b"\xff" * 24 + b"N.")], ids=["short", "buffer"])
async def test_a_malformed_item_costs_the_worker(pool: Pool, body: bytes) -> None:
    async with pool.stream(streams.forge_items, 1, body) as items:
        assert await anext(items) == 0
        with pytest.raises(RemoteProtocolError):
            await anext(items)
        await worker_of(items).exited.wait()
    assert await pool.run_sync(tasks.add, 1) == 2


# All at once.


async def test_whatever_happens_to_workers_a_stream_is_a_beginning_of_what_it_should_be() -> None:
    chance = random.Random(7)
    restart = fdpool.Restart(intensity=10**6, backoff=fdpool.Backoff(first=0, cap=0))
    outcomes: dict[str, int] = {"whole": 0, "died": 0, "left": 0}
    before = descriptor_count()
    with trio.fail_after(SECONDS + 60):
        async with open_pool(3, restart=restart) as pool:
            deadline = trio.current_time() + SECONDS

            async def consume() -> None:
                while trio.current_time() < deadline:
                    function = chance.choice([streams.numbers, streams.async_numbers])
                    leaves_at = chance.choice([None, None, 0, 30])
                    window = chance.choice([1, 3, 16])
                    try:
                        async with pool.options(stream_items=window).stream(function, 100) as items:
                            async for item in items:
                                assert item == items.received - 1
                                if item == leaves_at:
                                    break
                            outcomes["whole" if items.received == 100 else "left"] += 1
                    except WorkerDied:
                        outcomes["died"] += 1

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(consume)
                while trio.current_time() < deadline:
                    await trio.sleep(chance.random() / 20)
                    with suppress(ProcessLookupError, IndexError):
                        os.kill(chance.choice([worker.pid for worker in pool._supervisor.workers]), signal.SIGKILL)
            assert await pool.run_sync(tasks.add, 1) == 2
    assert outcomes["whole"] > 0
    assert descriptor_count() == before
