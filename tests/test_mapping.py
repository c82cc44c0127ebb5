"""End-to-end tests of maps, with real workers."""

from __future__ import annotations

import signal
import socket
import sys
import traceback
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import assert_checkpoints

from fdpool import Doorbell, EventFd, Pool, RemoteError, WorkerDied, open_pool
from tests.support import memory_tasks, tasks
from tests.support.attempts import cancel_at_every_step
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.sweep import CancellationPoint


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            yield pool


# What comes.


async def test_map_keeps_the_order_of_the_items(pool: Pool) -> None:
    async with pool.map_sync(tasks.add, range(50), range(100)) as results:
        assert [result async for result in results] == [2 * number for number in range(50)]


async def test_map_out_of_order_yields_every_result(pool: Pool) -> None:
    async with pool.map_sync(tasks.add, range(50), ordered=False) as results:
        assert sorted([result async for result in results]) == list(range(1, 51))


@pytest.mark.parametrize("ordered", [True, False])
async def test_map_of_nothing_yields_nothing(pool: Pool, ordered: bool) -> None:
    async with pool.map_sync(tasks.add, [], ordered=ordered) as results:
        assert [result async for result in results] == []


async def test_map_draws_from_an_endless_iterable_only_what_it_needs(pool: Pool) -> None:
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        for number in count():
            drawn += 1
            yield number

    async with pool.map_sync(tasks.add, numbers(), buffer=3) as results:
        async for result in results:
            assert drawn <= result + 4
            if result == 20:
                break
    assert drawn <= 24


async def test_map_raises_where_the_result_would_have_been_and_goes_on(pool: Pool) -> None:
    async with pool.map_sync(tasks.square_or_die, range(5), [frozenset({2})] * 5, chunksize=1) as results:
        assert [await anext(results), await anext(results)] == [0, 1]
        with pytest.raises(WorkerDied):
            await anext(results)
        assert [result async for result in results] == [9, 16]


async def test_map_reports_an_iterable_that_raises(pool: Pool) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the source is gone")

    async with pool.map_sync(tasks.add, broken()) as results:
        assert await anext(results) == 2
        with pytest.raises(OSError, match="the source is gone"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_leaving_the_block_cancels_the_rest(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with Doorbell() as bell, pool.map_sync(tasks.ring_and_hang, [bell._event] * 10):
            await bell.wait()
            raise ZeroDivisionError
    assert not any(seat.calls for seat in pool._dispatcher._seats.values())
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_map_refuses_what_makes_no_sense(pool: Pool) -> None:
    with pytest.raises(ValueError, match="buffer is 0"):
        pool.map_sync(tasks.add, [1], buffer=0)
    with pytest.raises(ValueError, match="chunksize is 0"):
        pool.map_sync(tasks.add, [1], chunksize=0)
    with pytest.raises(TypeError, match="at least one iterable"):
        pool.map_sync(tasks.add)


async def test_map_takes_several_items_at_a_time_when_they_are_short(pool: Pool) -> None:
    async with pool.map_sync(tasks.pid_and, range(2000)) as results:
        items = [item async for item in results]
    assert [number for _, _, number in items] == list(range(2000))
    assert len({chunk for _, chunk, _ in items}) < 1000
    assert pool.statistics().calls.returned < 500


@pytest.mark.parametrize("ordered", [True, False])
async def test_calls_are_as_large_as_they_are_to_be_however_slowly_results_are_fetched(
    pool: Pool, ordered: bool
) -> None:
    async with pool.map_sync(tasks.add, range(1000), ordered=ordered, chunksize=100) as results:
        assert sorted([result async for result in results]) == list(range(1, 1001))
    assert pool.statistics().calls.returned == 10


@pytest.mark.parametrize(("chunksize", "buffer"), [(100, 30), (7, 10), (10, 10), (None, 1), (None, 5), (1, 1)])
@pytest.mark.parametrize("ordered", [True, False])
async def test_no_mixture_of_chunks_and_buffers_comes_to_a_halt(
    pool: Pool, ordered: bool, chunksize: int | None, buffer: int
) -> None:
    for nbytes in (1, 1000, 1 << 20):
        async with pool.map_sync(
            tasks.add, range(100), ordered=ordered, chunksize=chunksize, buffer=buffer, buffer_bytes=nbytes
        ) as results:
            assert sorted([result async for result in results]) == list(range(1, 101))


@pytest.mark.parametrize("chunksize", [1, 7, 100])
async def test_map_takes_as_many_items_at_a_time_as_it_is_told(pool: Pool, chunksize: int) -> None:
    async with pool.map_sync(tasks.add, range(100), chunksize=chunksize) as results:
        assert [result async for result in results] == list(range(1, 101))


async def test_map_yields_exceptions_instead_of_raising_them_when_told_to(pool: Pool) -> None:
    async with pool.map_sync(tasks.divide, [4, 2], [2, 0], return_exceptions=True, chunksize=2) as results:
        two, error = [result async for result in results]
    assert two == 2
    assert isinstance(error, ZeroDivisionError)
    assert "in divide" in "".join(traceback.format_exception(error))


async def test_map_draws_from_asynchronous_iterables(pool: Pool) -> None:
    send, receive = trio.open_memory_channel[int](0)

    async def produce() -> None:
        async with send:
            for number in range(5):
                await send.send(number)

    async with trio.open_nursery() as nursery, pool.map_sync(tasks.add, receive, count()) as results:
        nursery.start_soon(produce)
        assert [result async for result in results] == [0, 2, 4, 6, 8]


async def test_map_reports_progress(pool: Pool) -> None:
    reports: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None) -> None:
        reports.append((done, total))

    async with pool.map_sync(tasks.add, range(10), chunksize=4, progress=report) as results:
        assert len([result async for result in results]) == 10
    assert reports[-1] == (10, 10)
    assert [total for _, total in reports] == [10, 10, 10]


async def test_map_draws_a_progress_bar(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    async with pool.map_sync(tasks.add, range(10), progress="adding") as results:
        assert len([result async for result in results]) == 10
    shown = capsys.readouterr().out
    assert "adding" in shown
    assert "10/10" in shown


async def test_map_without_rich_says_what_to_install(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match="fdpool\\[demo\\]"):
        async with pool.map_sync(tasks.add, range(10), progress=True):
            pass


async def test_an_async_function_is_mapped_as_well(pool: Pool) -> None:
    async with pool.map(tasks.async_add, range(50), range(100)) as results:
        assert [result async for result in results] == [2 * number for number in range(50)]
    async with pool.map(tasks.async_add, range(50), ordered=False, chunksize=7) as results:
        assert sorted([result async for result in results]) == list(range(1, 51))


@pytest.mark.parametrize("chunksize", [1, 10, 50])
async def test_async_items_run_side_by_side(pool: Pool, chunksize: int) -> None:
    """Each waits for the one behind it to ring: one after the other they would never end."""
    bells = [EventFd() for _ in range(51)]
    # Two items of a chunk would have one and the same object, and each of them closes its own.
    others = [bell.duplicate() for bell in bells]
    async with pool.map(tasks.wait_and_pass_on, bells[1:], others[:-1], chunksize=chunksize) as results:
        bells[-1].write()
        assert len({pid async for pid in results}) == 1
    assert bells[0].read() == 1
    for bell in (*bells, *others):
        bell.close()


async def test_plain_and_async_functions_are_told_apart(pool: Pool) -> None:
    with pytest.raises(TypeError, match="async_add is an async function: call it with map, not with map_sync"):
        pool.map_sync(tasks.async_add, [1])
    with pytest.raises(TypeError, match="int cannot be called"):
        pool.map(3, [1])
    with pytest.raises(TypeError, match="map needs at least one iterable"):
        pool.map(tasks.async_add)
    async with pool.map(tasks.add, [1]) as results:
        with pytest.raises(TypeError, match="returned a int, not an awaitable: call it with map_sync"):
            await anext(results)


async def test_no_more_is_said_again_and_again(pool: Pool) -> None:
    async with pool.map_sync(tasks.add, range(2)) as results:
        for _ in range(2):
            with assert_checkpoints():
                await anext(results)
        for _ in range(3):
            with assert_checkpoints(), pytest.raises(StopAsyncIteration):
                await anext(results)


async def test_one_task_iterates_at_a_time(pool: Pool) -> None:
    async with Doorbell() as bell, pool.map_sync(tasks.ring_and_hang, [bell._event]) as results:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, results)
            await bell.wait()
            with pytest.raises(trio.BusyResourceError, match="another task is iterating over these results"):
                await anext(results)
            nursery.cancel_scope.cancel()


async def test_a_map_whose_block_was_left_says_so(pool: Pool) -> None:
    async def iterate(results: Any) -> None:
        with pytest.raises(trio.ClosedResourceError, match="the block of this map was left"):
            await anext(results)
        has_ended.set()

    has_ended = trio.Event()
    async with trio.open_nursery() as nursery, Doorbell() as bell:
        async with pool.map_sync(tasks.ring_and_hang, [bell._event]) as results:
            nursery.start_soon(iterate, results)
            await bell.wait()
        await has_ended.wait()
    with pytest.raises(trio.ClosedResourceError, match="the block of this map was left"):
        await anext(results)


# Errors.


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_an_item_that_raises_costs_itself_alone(pool: Pool, kind: str, chunksize: int) -> None:
    if kind == "plain":
        mapped: Any = pool.map_sync(tasks.divide, [1, 2, 3], [1, 0, 3], chunksize=chunksize)
    else:
        mapped = pool.map(tasks.async_divide, [1, 2, 3], [1, 0, 3], chunksize=chunksize)
    async with mapped as results:
        assert await anext(results) == 1
        with pytest.raises(ZeroDivisionError) as caught:
            await anext(results)
        assert "divide" in "".join(traceback.format_exception(caught.value))
        assert [result async for result in results] == [1]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_exceptions_are_yielded_where_that_is_wanted(pool: Pool, kind: str) -> None:
    function: Any = {"plain": tasks.divide, "async": tasks.async_divide}[kind]
    map_it = {"plain": pool.map_sync, "async": pool.map}[kind]
    async with map_it(function, [4, 2], [2, 0], return_exceptions=True, chunksize=2) as results:
        two, error = [result async for result in results]
    assert two == 2
    assert isinstance(error, ZeroDivisionError)


async def test_an_item_that_exits_costs_itself_alone(pool: Pool) -> None:
    for mapped in (
        pool.map_sync(tasks.exit_if_odd, range(4), chunksize=4, return_exceptions=True),
        pool.map(tasks.async_exit_if_odd, range(4), chunksize=4, return_exceptions=True),
    ):
        async with mapped as results:
            zero, one, two, three = [result async for result in results]
        assert (zero, two) == (0, 2)
        for error in (one, three):
            assert isinstance(error, RemoteError)
            assert error.type_name == "SystemExit"


async def test_a_death_names_the_function_that_was_mapped(pool: Pool) -> None:
    async with pool.map_sync(tasks.kill_self, [signal.SIGKILL]) as results:
        with pytest.raises(WorkerDied, match=r"while running tests\.support\.tasks\.kill_self"):
            await anext(results)


# How much is under way.


class Drawn:
    """Counts how many items were drawn."""

    def __init__(self) -> None:
        self.items = 0

    def __iter__(self) -> Iterator[int]:
        for number in count():
            self.items += 1
            yield number


@pytest.mark.parametrize("ordered", [True, False])
async def test_results_that_wait_are_bounded_in_bytes(pool: Pool, ordered: bool) -> None:
    drawn = Drawn()
    # Each of the two workers may be at one whose result comes on top.
    most = 5_000_000 + 2 * 1_001_000
    async with pool.map_sync(
        memory_tasks.megabyte, drawn, ordered=ordered, chunksize=1, buffer=1000, buffer_bytes=5_000_000
    ) as results:
        for fetched in range(60):
            await anext(results)
            assert results._ready_bytes <= most
            assert drawn.items <= fetched + 1 + 8
            if fetched % 20 == 0:
                # Nobody fetches anything for a while.
                await until_nothing_is_under_way(pool)
                assert 5_000_000 <= results._ready_bytes <= most
    assert drawn.items < 80


async def until_nothing_is_under_way(pool: Pool) -> None:
    await trio.testing.wait_all_tasks_blocked()
    while pool.statistics().running + pool.statistics().queued:  # noqa: ASYNC110 - nobody rings when it is so
        await trio.sleep(0.001)
    await trio.testing.wait_all_tasks_blocked()


async def test_async_results_that_wait_are_bounded_in_bytes() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            drawn = Drawn()
            async with pool.map(memory_tasks.async_megabyte, drawn, buffer=1000, buffer_bytes=5_000_000) as results:
                await anext(results)
                # As many as the workers take at a time were drawn before anything was known of results.
                assert drawn.items <= 100 + 2
                for _ in range(98):
                    await anext(results)
                for _ in range(20):
                    await anext(results)
                    assert results._ready_bytes <= 5_000_000 + 1_001_000
                await until_nothing_is_under_way(pool)
                assert drawn.items <= results._next + 7


@pytest.mark.parametrize("chunksize", [1, 4, None])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_result_larger_than_all_that_may_wait_comes_all_the_same(
    pool: Pool, ordered: bool, chunksize: int | None
) -> None:
    async with pool.map_sync(
        memory_tasks.megabyte, range(30), ordered=ordered, chunksize=chunksize, buffer_bytes=1
    ) as results:
        assert sorted([result[0] async for result in results]) == list(range(30))
    async with pool.map(
        memory_tasks.async_megabyte, range(30), ordered=ordered, chunksize=chunksize or 1, buffer_bytes=1
    ) as others:
        assert sorted([result[0] async for result in others]) == list(range(30))


async def test_bytes_that_make_no_sense_are_refused(pool: Pool) -> None:
    with pytest.raises(ValueError, match="buffer_bytes is 0: at least 1 byte"):
        pool.map_sync(tasks.add, [1], buffer_bytes=0)
    with pytest.raises(ValueError, match="chunksize is 0"):
        pool.map(tasks.async_add, [1], chunksize=0)


# Leaving early.


async def test_leaving_the_block_cancels_the_async_calls_that_are_left(pool: Pool) -> None:
    with EventFd() as cleaned_up:
        async with Doorbell() as bell:
            async with pool.map(tasks.async_ring_and_hang, [bell._event] * 5, [cleaned_up] * 5):
                rung = 0
                while rung < 5:
                    rung += await bell.wait()
        assert cleaned_up.read() == 5
    assert await pool.run(tasks.async_add, 1) == 2


async def test_results_that_nobody_fetches_close_their_handles(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await pool.run_sync(tasks.add, 1)
        async with pool.map_sync(tasks.connect, [listener.getsockname()] * 4, buffer=4) as results:
            (await anext(results)).close()
            await until_nothing_is_under_way(pool)
            assert len(results._ready) == 3
        ends = [listener.accept()[0] for _ in range(4)]
        for end in ends:
            # Whoever had the other one has closed it.
            assert end.recv(1) == b""
            end.close()


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_cancelling_at_any_point_leaves_nothing_behind(pool: Pool, kind: str) -> None:
    closed: list[object] = []
    await pool.run_sync(tasks.add, 1)
    while len(pool._dispatcher._seats) < 2:  # noqa: ASYNC110 - nobody rings when they are ready
        await trio.sleep(0.001)
    before = descriptor_count()
    entered = 0

    async def attempt(point: CancellationPoint) -> None:
        nonlocal entered
        source = numbers_of(closed, 6)
        with point:
            if kind == "plain":
                mapped: Any = pool.map_sync(tasks.add, source, chunksize=2)
            else:
                mapped = pool.map(tasks.async_add, source, buffer=3)
            async with mapped as results:
                entered += 1
                async for result in results:
                    assert result == results._next
        await source.aclose()
        assert pool.statistics().running + pool.statistics().queued == 0
        assert descriptor_count() == before

    assert await cancel_at_every_step(attempt) > 8
    assert len(closed) <= entered


async def numbers_of(closed: list[object], limit: int) -> AsyncGenerator[int, None]:
    try:
        for number in range(limit):
            yield number
    finally:
        closed.append(trio.lowlevel.current_task())


# Where items come from.


async def test_a_generator_is_closed_when_the_block_is_left(pool: Pool) -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from count()
        finally:
            closed.append("closed")

    async with pool.map_sync(tasks.add, numbers()) as results:
        assert await anext(results) == 1
    assert closed == ["closed"]
    # The shortest ends it, and the other is left standing where it is.
    async with pool.map_sync(tasks.add, numbers(), range(3)) as results:
        assert [result async for result in results] == [0, 2, 4]
        assert closed == ["closed"] * 2


async def test_an_async_generator_is_closed_by_the_task_that_has_drawn_and_may_wait(pool: Pool) -> None:
    events = []

    async def numbers() -> AsyncIterator[int]:
        lock = trio.Lock()
        async with lock:
            try:
                for number in count():
                    yield number
            except GeneratorExit:
                await trio.sleep(0.01)
                events.append("closed")
                raise

    async with pool.map_sync(tasks.add, numbers()) as results:
        assert await anext(results) == 1
    assert events == ["closed"]
    async with pool.map(tasks.async_add, numbers(), range(3)) as results:
        assert [result async for result in results] == [0, 2, 4]
        assert events == ["closed"] * 2


async def test_a_generator_that_waits_is_cancelled_when_the_block_is_left(pool: Pool) -> None:
    events = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            await trio.sleep_forever()
        except trio.Cancelled:
            events.append("cancelled")
            raise

    async with pool.map_sync(tasks.add, numbers()) as results:
        assert await anext(results) == 2
    assert events == ["cancelled"]


async def test_a_generator_may_yield_inside_a_scope_of_its_own(pool: Pool) -> None:
    async def numbers() -> AsyncIterator[int]:
        with trio.CancelScope():
            for number in count():
                yield number
                await trio.lowlevel.checkpoint()

    async with pool.map_sync(tasks.add, numbers()) as results:
        assert [await anext(results) for _ in range(20)] == list(range(1, 21))


async def test_leaving_at_once_draws_nothing(pool: Pool) -> None:
    drawn = Drawn()
    async with pool.map_sync(tasks.add, drawn):
        pass
    assert drawn.items == 0


async def test_what_a_generator_raises_in_being_closed_leaves_the_block(pool: Pool) -> None:
    def numbers() -> Iterator[int]:
        try:
            yield from count()
        finally:
            raise ValueError("while it was closed")

    with pytest.raises(ValueError, match="while it was closed"):
        async with pool.map_sync(tasks.add, numbers()) as results:
            assert await anext(results) == 1
    with pytest.raises(KeyError, match="mine") as caught:  # noqa: PT012 - the block is what is tested
        async with pool.map_sync(tasks.add, numbers()) as results:
            assert await anext(results) == 1
            raise KeyError("mine")
    assert "raised as well as the map was ended: ValueError('while it was closed')" in caught.value.__notes__
    # Drawn out, it is the iteration's.
    async with pool.map_sync(tasks.add, numbers(), [1, 1]) as results:
        assert [await anext(results), await anext(results)] == [1, 2]
        with pytest.raises(ValueError, match="while it was closed"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_only_generators_are_closed(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("1\n2\n" * 1000)
    send, receive = trio.open_memory_channel[int](100)
    with path.open() as file:
        send.send_nowait(1)
        async with pool.map_sync(tasks.add, file, [" one"] * 100) as lines:
            assert await anext(lines) == "1\n one"
        async with pool.map_sync(tasks.add, receive) as results:
            assert await anext(results) == 2
        assert not file.closed
        send.send_nowait(2)
        assert receive.receive_nowait() == 2
    send.close()
    receive.close()


# Progress.


class Lies:
    """An iterable that says another length than it has."""

    def __init__(self, says: int, items: int) -> None:
        self.says = says
        self.items = items

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.items))


@pytest.mark.parametrize(("says", "items"), [(10, 7), (5, 7), (7, 7), (0, 7), (3, 0)])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_progress_ends_with_the_truth(pool: Pool, kind: str, says: int, items: int) -> None:
    reports: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None) -> None:
        reports.append((done, total))

    source = Lies(says, items)
    if kind == "plain":
        mapped: Any = pool.map_sync(tasks.add, source, chunksize=1, progress=report)
    else:
        mapped = pool.map(tasks.async_add, source, progress=report)
    async with mapped as results:
        assert len([result async for result in results]) == items
    assert reports[-1] == (items, items)
    assert all(total is None or done <= total for done, total in reports)
    assert [done for done, _ in reports if done][:items] == list(range(1, items + 1))


async def test_progress_of_what_has_no_length_is_known_in_the_end(pool: Pool) -> None:
    reports: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None) -> None:
        reports.append((done, total))

    async with pool.map_sync(tasks.add, iter(range(3)), chunksize=1, buffer=1, progress=report) as results:
        assert len([result async for result in results]) == 3
    assert reports == [(1, None), (2, None), (3, None), (3, 3)]


async def test_a_length_is_asked_for_only_if_somebody_wants_to_see_it(pool: Pool) -> None:
    async with pool.map_sync(tasks.add, range(10**30), buffer=2) as results:
        assert await anext(results) == 1
    async with pool.map_sync(tasks.add, range(10**30), buffer=2, progress=lambda _done, _total: None) as results:
        assert await anext(results) == 1
    async with pool.map_sync(tasks.add, Lies(-5, 1), progress=lambda _done, _total: None) as results:
        assert [result async for result in results] == [1]


async def test_progress_that_raises_ends_the_map(pool: Pool) -> None:
    def report(_done: int, _total: int | None) -> None:
        raise OSError("nothing to write to")

    async with pool.map_sync(tasks.add, count(), chunksize=1, progress=report) as results:
        with pytest.raises(OSError, match="nothing to write to"):
            async for _ in results:
                pass
        with pytest.raises(StopAsyncIteration):
            await anext(results)
    with pytest.raises(OSError, match="nothing to write to"):
        async with pool.map(tasks.async_add, [1], progress=report):
            await until_nothing_is_under_way(pool)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_source_that_raises_is_no_item_of_the_progress(pool: Pool) -> None:
    reports: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None) -> None:
        reports.append((done, total))

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the source is gone")

    async with pool.map(tasks.async_add, broken(), progress=report, return_exceptions=True) as results:
        two, error = [result async for result in results]
    assert two == 2
    assert isinstance(error, OSError)
    assert reports[-1] == (1, 1)
