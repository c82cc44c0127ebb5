"""End-to-end tests of memory between a pool and its workers."""

from __future__ import annotations

import array
import gc
import mmap
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import fdpool
from fdpool import Pool, WorkerDied, open_pool
from fdpool.kernel.mapping import address_of
from fdpool.memory.addresses import keeper_of
from fdpool.memory.arena import arena
from fdpool.warehouse import Warehouse
from tests.support import memory_tasks as tasks
from tests.support.leaks import descriptor_count, mapped_memfds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

np = pytest.importorskip("numpy")

BIG = 300_000


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            yield pool


async def all_released(pool: Pool) -> None:
    """Let the worker of *pool* say what it needs no longer, which it does before it takes up another call."""
    gc.collect()
    await pool.run_sync(tasks.identity, None)


def watch_news(monkeypatch: pytest.MonkeyPatch, *, on_trim: bool) -> trio.Event:
    """Return an event that is set when news are sent by themselves."""
    sent = trio.Event()
    send = Warehouse._send_news

    def note(*args: Any, trim: bool) -> None:
        send(*args, trim=trim)
        if trim == on_trim:
            sent.set()

    monkeypatch.setattr(Warehouse, "_send_news", note)
    return sent


def is_by_reference(value: Any) -> bool:
    return keeper_of(address_of(value), memoryview(value).nbytes)[0] is not None


ARRAYS = {
    "flat": lambda: np.arange(40_000.0),
    "fortran": lambda: np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
    "reversed": lambda: np.arange(40_000.0)[::-1],
    "strided": lambda: np.arange(90_000.0).reshape(300, 300)[10:200, 5:250:3],
    "broadcast": lambda: np.broadcast_to(np.arange(10_000.0), (4, 10_000)),
    "structured": lambda: np.zeros(10_000, [("a", "i4"), ("b", "f8", 3)]),
    "objects": lambda: np.array([{"a": 1}, np.arange(50_000)], dtype=object),
    "empty": lambda: np.zeros((0, 7)),
    "scalar": lambda: np.array(5.0),
    "masked": lambda: np.ma.masked_less(np.arange(40_000.0), 10),
    "bool": lambda: np.ones(70_000, bool),
    "dates": lambda: np.arange(40_000).astype("M8[s]"),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=list(ARRAYS))
@pytest.mark.parametrize("placed", ["ordinary", "allocated"])
async def test_arrays_of_every_kind_make_the_round_trip(pool: Pool, make: Any, placed: str) -> None:
    value = make()
    if placed == "allocated":
        if value.dtype.hasobject or isinstance(value, np.ma.MaskedArray):
            pytest.skip("cannot lie in allocated memory")
        backing = fdpool.copy(np.arange(90_000.0))
        value = fdpool.copy(value) if value.flags.forc else backing.reshape(300, 300)[10:200, 5:250:3]
    result = await pool.run_sync(tasks.identity, value)
    assert type(result) is type(value)
    assert (result.dtype, result.shape) == (value.dtype, value.shape)
    if value.dtype.hasobject:
        assert (result[1] == value[1]).all()
    else:
        assert (result == value).all()
        assert np.isfortran(result) == np.isfortran(value)


@pytest.mark.parametrize(
    "value",
    [
        os.urandom(BIG),
        bytearray(os.urandom(BIG)),
        array.array("d", range(BIG // 8)),
        array.array("d"),
        memoryview(os.urandom(BIG)),
        memoryview(os.urandom(BIG))[::2],
        memoryview(array.array("h", range(30_000))),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_big_buffers_of_every_kind_make_the_round_trip(pool: Pool, value: Any) -> None:
    result = await pool.run_sync(tasks.identity, [value, {"again": value}])
    assert result == [value, {"again": value}]
    assert type(result[0]) is type(value)


async def test_a_mapped_file_arrives_as_its_bytes(pool: Pool) -> None:
    with mmap.mmap(-1, BIG) as mapped:
        mapped[:5] = b"hello"
        result = await pool.run_sync(tasks.identity, mapped)
        assert bytes(result) == mapped[:]


async def test_frames_tables_and_images_travel_out_of_band(pool: Pool) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(50_000.0), "b": np.arange(50_000)})
    assert (await pool.run_sync(tasks.identity, frame)).equals(frame)
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": np.arange(50_000.0), "s": ["text"] * 50_000})
    assert (await pool.run_sync(tasks.identity, table)).equals(table)


async def test_thousands_of_small_arrays_take_one_block(pool: Pool) -> None:
    arrays = [np.full(5_000, number, "f8") for number in range(2_000)]
    result = await pool.run_sync(tasks.identity, arrays)
    assert all((a == b).all() for a, b in zip(arrays, result, strict=True))
    assert len({keeper_of(address_of(a), a.nbytes)[0] for a in result}) == 1


# By reference.


async def test_allocated_memory_is_not_copied_and_changes_in_it_are_seen(pool: Pool) -> None:
    frame = fdpool.empty((100, 1000))
    frame[:] = 1.0
    used = arena().statistics().used_bytes
    await pool.run_sync(tasks.keep, frame)
    assert arena().statistics().used_bytes == used
    frame[:] = 2.0
    kept = await pool.run_sync(tasks.take_kept)
    assert (kept == 2.0).all()


async def test_slices_of_allocated_memory_travel_alone_and_by_reference(pool: Pool) -> None:
    frame = fdpool.empty((1000, 1000), "f4")
    frame[:] = np.arange(1000)
    used = arena().statistics().used_bytes
    for part in (frame[100:200], frame[:, 17:400:7], frame[::-2], frame.T, frame.reshape(-1)[5:100_000]):
        result = await pool.run_sync(tasks.identity, part)
        assert (result == part).all()
        assert (result.strides, result.flags.writeable) == (part.strides, True)
        assert arena().statistics().used_bytes == used
        result[...] = -1
        assert (frame == np.arange(1000)).all()
        del result


async def test_a_view_of_allocated_bytes_keeps_its_place(pool: Pool) -> None:
    memory = fdpool.allocate(BIG)
    memory[:] = os.urandom(BIG)
    assert await pool.run_sync(tasks.digest, memory[1000:200_000]) == tasks.digest(memory[1000:200_000])


async def test_a_read_only_array_stays_read_only(pool: Pool) -> None:
    frame = fdpool.zeros(100_000)
    frame.flags.writeable = False
    assert not (await pool.run_sync(tasks.identity, frame)).flags.writeable


async def test_what_a_worker_writes_nobody_else_sees(pool: Pool) -> None:
    frame = fdpool.zeros(100_000)
    result = await pool.run_sync(tasks.write_and_return, frame, 7.0)
    assert (result == 7.0).all()
    assert (frame == 0.0).all()
    result[0] = 9.0
    assert (await pool.run_sync(tasks.identity, frame) == 0.0).all()


async def test_an_argument_that_was_not_written_comes_back_by_reference(pool: Pool) -> None:
    value = np.arange(1_000_000.0)
    result = await pool.run_sync(tasks.identity, value)
    (worker,) = pool._memory.statistics().workers
    assert worker.mapped_bytes == 0, "the worker had to make nothing"
    result[3] = -1.0
    assert value[3] == 3.0
    again = await pool.run_sync(tasks.identity, result)
    assert again[3] == -1.0
    assert (again[4:] == value[4:]).all()


async def test_a_result_is_passed_on_by_reference_until_it_is_written() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            made = await pool.run_sync(tasks.make_empty, 1_000_000, 5)
            used = arena().statistics().used_bytes
            async with trio.open_nursery() as nursery:  # both workers, the one that made it as well
                for _ in range(2):
                    nursery.start_soon(pool.run_sync, tasks.keep, made)
            assert arena().statistics().used_bytes == used == 0
            made[:] = 6
            assert set(await pool.run_sync(tasks.take_kept)) == {5}
            assert set(await pool.run_sync(tasks.identity, made)) == {6}


async def test_a_worker_that_still_holds_a_block_gets_it_again_unspoilt(pool: Pool) -> None:
    frame = fdpool.zeros(100_000)
    await pool.run_sync(tasks.keep, frame)
    await pool.run_sync(tasks.write_kept, 5, 1.0)
    assert (await pool.run_sync(tasks.identity, frame) == 0.0).all()
    await pool.run_sync(tasks.write_and_return, frame, 3.0)
    kept = await pool.run_sync(tasks.take_kept)
    assert (kept[5], kept[6]) == (1.0, 0.0)


async def test_two_parts_in_one_page_do_not_spoil_each_other(pool: Pool) -> None:
    frame = fdpool.zeros(100_000)
    await pool.run_sync(tasks.keep, frame[:50_001])
    assert (await pool.run_sync(tasks.write_and_return, frame[50_001:], 1.0) == 1.0).all()
    await pool.run_sync(tasks.write_kept, 50_000, 8.0)
    await pool.run_sync(tasks.identity, frame[50_001:])
    assert (await pool.run_sync(tasks.take_kept))[50_000] == 8.0


async def test_no_later_block_shows_what_a_task_wrote_into_an_earlier_one(pool: Pool) -> None:
    """A task scribbles over random places; whatever comes next at those addresses is as it was sent."""
    random = np.random.default_rng(7)
    for number in range(150):
        length = int(random.integers(40_000, 3_000_000))
        value = np.full(length, number % 251, "u1")
        places = random.integers(0, length, int(random.integers(0, 50))).tolist()
        assert await pool.run_sync(tasks.digest, value) == tasks.digest(value)
        await pool.run_sync(tasks.write_at, value, places, 255)
        result = await pool.run_sync(tasks.identity, value)
        assert (result == value).all()
        result[random.integers(0, length, 20)] = 254


async def test_what_a_task_wrote_is_dropped_once_it_was_answered(pool: Pool) -> None:
    value = np.zeros(5_000_000, "u1")
    assert await pool.run_sync(tasks.write_and_count_private_bytes, value) >= value.nbytes
    assert await pool.run_sync(tasks.private_bytes) == 0


# Leases.


async def test_a_block_is_in_use_as_long_as_a_task_keeps_it(pool: Pool) -> None:
    value = np.arange(1_000_000.0)
    await pool.run_sync(tasks.keep, value)
    for number in range(5):
        await pool.run_sync(tasks.digest, np.full(1_000_000, number))
    assert (await pool.run_sync(tasks.take_kept) == value).all()
    assert pool._memory.statistics().used_bytes >= value.nbytes
    await pool.run_sync(tasks.drop_kept)
    await all_released(pool)
    assert pool._memory.statistics().used_bytes == 0


async def test_the_answer_of_an_async_call_gives_its_arguments_back(pool: Pool) -> None:
    value = fdpool.zeros(1_000_000)
    assert await pool.run(tasks.first_of, value) == 0.0
    (worker,) = pool._memory.statistics().workers
    assert worker.leased_bytes == 0


async def test_a_result_that_is_dropped_is_released_without_another_call(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = await pool.run_sync(tasks.make_empty, 5_000_000, 1)
    part = result[100:200]
    del result
    assert (await pool.run_sync(tasks.footprint))["used"] >= 5_000_000
    sent = watch_news(monkeypatch, on_trim=False)
    results = [part]
    del part
    # From another thread, as any view may end.
    thread = threading.Thread(target=results.clear)
    thread.start()
    thread.join()
    await sent.wait()
    (exchange,) = pool._memory._exchanges.values()
    assert not exchange.has_news
    assert (await pool.run_sync(tasks.footprint))["used"] == 0


async def test_leases_of_a_dead_worker_end_at_once(pool: Pool) -> None:
    await pool.run_sync(tasks.digest, np.zeros(100_000))
    before = descriptor_count()
    with pytest.raises(WorkerDied):
        await pool.run_sync(tasks.keep_and_die, np.zeros(1_000_000))
    assert arena().statistics().used_bytes == 0
    assert await pool.run_sync(tasks.digest, np.zeros(100_000)) == tasks.digest(np.zeros(100_000))
    assert descriptor_count() == before


async def test_a_result_outlives_its_worker_and_the_pool() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            result = await pool.run_sync(tasks.make_empty, 1_000_000, 3)
            mine = await pool.run_sync(tasks.identity, np.full(1_000_000, 4, "u1"))
            with pytest.raises(WorkerDied):
                await pool.run_sync(tasks.make_and_die, 10_000_000)
            assert (result == 3).all()
            assert (await pool.run_sync(tasks.identity, result) == 3).all()
    result[0] = 9
    mine[0] = 8
    assert (result[1:] == 3).all()
    assert (mine[1:] == 4).all()
    del result, mine
    gc.collect()
    assert not [line for line in mapped_memfds() if "fdpool" in line]


async def test_a_dying_worker_leaves_nothing_whatever_it_was_doing(pool: Pool) -> None:
    await pool.run_sync(tasks.digest, np.zeros(100_000))
    before = tasks.footprint()
    for task, argument in ((tasks.make_and_die, 3_000_000), (tasks.keep_and_die, np.zeros(400_000))) * 5:
        with pytest.raises(WorkerDied):
            await pool.run_sync(task, argument)
    await pool.run_sync(tasks.digest, np.zeros(100_000))
    after = tasks.footprint()
    assert (after["fds"], after["memfds"], after["used"]) == (before["fds"], before["memfds"], before["used"])


async def test_a_worker_killed_from_outside_while_it_answers_hurts_nobody() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            outcomes = []

            async def one(number: int) -> None:
                try:
                    result = await pool.run_sync(tasks.make_empty, 2_000_000, number)
                    outcomes.append(bool((result == number).all()))
                except WorkerDied:
                    outcomes.append(True)
                if number % 10 == 5:
                    next(iter(pool._supervisor.workers)).kill()

            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(one, number)
            assert outcomes == [True] * 60


async def test_many_calls_leave_no_descriptor_and_no_mapping(pool: Pool) -> None:
    value = np.ones(1 << 17)
    for number in range(320):
        if number == 20:
            here, there = tasks.footprint(), await pool.run_sync(tasks.footprint)
        result = await pool.run_sync(tasks.write_and_return, value, number)
        assert result[-1] == number
        del result
    assert {**tasks.footprint(), "rss": 0, "maps": 0, "used": 0} == {**here, "rss": 0, "maps": 0, "used": 0}
    after = await pool.run_sync(tasks.footprint)
    assert after["memfds"] == there["memfds"]
    assert after["fds"] == there["fds"]
    assert after["rss"] < there["rss"] + (8 << 20)


async def test_idle_memory_goes_back_to_the_kernel(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fdpool.warehouse.IDLE_SECONDS", 0.01)
    trimmed = watch_news(monkeypatch, on_trim=True)
    result = await pool.run_sync(tasks.make_empty, 1_000_000, 1)
    await pool.run_sync(tasks.digest, result + 1)
    del result
    await trimmed.wait()
    assert arena().statistics().segments == 0
    assert not [line for line in mapped_memfds() if "fdpool-arena" in line and " rw-s " in line]
    assert (await pool.run_sync(tasks.footprint))["memfds"] <= 3  # its own segment; the control page


# Mapping, and memory that everybody may write.


@pytest.mark.parametrize("value", [np.zeros(100_000), bytearray(BIG)], ids=["array", "bytearray"])
async def test_mapping_readonly_makes_arrays_read_only_both_ways(value: Any) -> None:
    with trio.fail_after(60):
        async with open_pool(1, mapping="readonly") as pool:
            result = await pool.run_sync(tasks.identity, value)
            readonly = isinstance(value, np.ndarray)  # a bytearray is its own copy in any case
            assert await pool.run_sync(tasks.kind, value) == (type(value).__name__, readonly)
            assert memoryview(result).readonly == readonly
            assert bytes(result) == bytes(value)


async def test_read_only_blocks_may_be_held_twice_and_are_passed_on_by_reference() -> None:
    with trio.fail_after(60):
        async with open_pool(2, mapping="readonly") as pool:
            frame = fdpool.zeros(1_000_000)
            for _ in range(4):
                await pool.run_sync(tasks.keep, frame)
            used = arena().statistics().used_bytes
            result = await pool.run_sync(tasks.identity, frame)
            assert is_by_reference(result)
            await pool.run_sync(tasks.keep, result)
            assert arena().statistics().used_bytes == used


async def test_mapping_copy_leaves_nothing_lent() -> None:
    with trio.fail_after(60):
        async with open_pool(1, mapping="copy") as pool:
            await pool.run_sync(tasks.keep, np.ones(1_000_000))
            await all_released(pool)
            (worker,) = pool.memory_statistics().workers
            assert worker.leased_bytes == 0
            result = await pool.run_sync(tasks.take_kept)
            assert not is_by_reference(result)
            result += 1
            assert (await pool.run_sync(tasks.take_kept) == 1.0).all()


async def test_several_workers_fill_one_shared_array() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            image = fdpool.zeros((400, 600), "u1", shared=True)
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    tile = image[number // 4 * 200 :][:200, number % 4 * 150 :][:, :150]
                    nursery.start_soon(pool.run_sync, tasks.add_to, tile, number + 1)
            expected = np.kron(np.arange(1, 9).reshape(2, 4), np.ones((200, 150)))
            assert (image == expected).all()


async def test_shared_memory_is_shared_however_small_and_whoever_made_it() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            counter = fdpool.zeros(1, "i8", shared=True)
            made = await pool.run_sync(make_shared, 10)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(pool.run_sync, tasks.keep, (counter, made))
            await pool.run_sync(add_to_both, counter, made)
            assert counter[0] == 1
            assert made.tolist() == [1] * 10
            again = await pool.run_sync(tasks.identity, made)
            again[0] = 50
            assert made[0] == 50


def make_shared(length: int) -> Any:
    return fdpool.zeros(length, "i8", shared=True)


def add_to_both(counter: Any, made: Any) -> None:
    counter += 1
    made += 1


async def test_allocated_bytes_may_be_shared_as_well(pool: Pool) -> None:
    memory = fdpool.allocate(100, shared=True)
    await pool.run_sync(tasks.fill, memory[50:], 7)
    assert bytes(memory[50:]) == b"\x07" * 50


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fdpool.allocate(-1), "-1 bytes"),
        (lambda: fdpool.empty(3, object), "hold objects"),
        (lambda: fdpool.copy(np.array([{}])), "hold objects"),
    ],
)
def test_what_cannot_be_allocated_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_allocated_arrays_are_what_numpy_would_make() -> None:
    assert fdpool.zeros((3, 4), "f4", order="F").flags.f_contiguous
    assert fdpool.zeros(7).tolist() == [0.0] * 7
    assert fdpool.empty((0, 3)).shape == (0, 3)
    transposed = fdpool.copy(np.arange(6).reshape(2, 3).T)
    assert transposed.flags.f_contiguous
    assert transposed.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert fdpool.allocate(0).nbytes == 0


# The budget.


async def test_calls_wait_for_room_in_order_and_can_be_cancelled() -> None:
    with trio.fail_after(60):
        async with open_pool(1, memory_budget=3_000_000) as pool, trio.open_nursery() as nursery:
            order: list[int] = []

            async def one(number: int, nbytes: int) -> None:
                await pool.run_sync(tasks.digest, np.zeros(nbytes, "u1"))
                order.append(number)

            for number, nbytes in enumerate([2_000_000, 2_500_000, 600_000, 2_900_000]):
                nursery.start_soon(one, number, nbytes)
                await trio.testing.wait_all_tasks_blocked()
                if number == 1:
                    with trio.move_on_after(0):
                        await one(-1, 100_000)
                assert pool.memory_statistics().in_flight_bytes <= 3_000_000
            nursery.start_soon(one, 4, 0)  # without bytes to copy nobody waits
        assert sorted(order) == [0, 1, 2, 3, 4]
        assert [number for number in order if number < 4] == [0, 1, 2, 3]
        assert pool.memory_statistics().in_flight_bytes == 0


async def test_a_call_larger_than_the_budget_is_refused_with_both_numbers() -> None:
    with trio.fail_after(60):
        async with open_pool(1, memory_budget=1_000_000) as pool:
            with pytest.raises(ValueError, match="has 8000000 bytes to copy, and the memory_budget is 1000000 bytes"):
                await pool.run_sync(tasks.identity, np.zeros(1_000_000))
            frame = fdpool.zeros(1_000_000)
            assert (await pool.run_sync(tasks.identity, frame) == frame).all()


async def test_statistics_say_what_is_lent_to_whom(pool: Pool) -> None:
    frame = fdpool.zeros(1_000_000, "u1")
    worker = await pool.run_sync(tasks.keep, frame)
    result = await pool.run_sync(tasks.make_empty, 5_000_000, 1)
    statistics = pool.memory_statistics()
    assert statistics.workers[0].pid == worker
    assert statistics.workers[0].leased_bytes == 1_000_000
    assert statistics.workers[0].mapped_bytes >= 5_000_000
    assert statistics.used_bytes >= 1_000_000
    del result


@pytest.mark.parametrize(("options", "says"), [({"memory_budget": 0}, "0 bytes"), ({"mapping": "shared"}, "'shared'")])
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        async with open_pool(1, **options):
            pass
