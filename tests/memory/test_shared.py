"""End-to-end tests of shared objects, with real workers."""

from __future__ import annotations

import gc
import os
import pickle

import pytest
import trio

import fdpool
from fdpool import EventFd, WorkerDied, open_pool
from fdpool.memory.arena import arena
from tests.support import memory_tasks as tasks
from tests.support import tasks as other_tasks

np = pytest.importorskip("numpy")


async def test_a_shared_object_is_pickled_once_and_loaded_once_in_each_worker() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            pickled = tasks.Table.pickled
            table = await pool.share(tasks.Table([np.full(100_000, number, "f8") for number in range(5)]))
            assert table.nbytes >= 4_000_000
            used = arena().statistics().used_bytes
            answers = []

            async def one(number: int) -> None:
                answers.append(await pool.run_sync(tasks.look_up, table, number % 5))

            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(one, number)
            assert tasks.Table.pickled == pickled + 1
            assert {loaded for _, _, loaded in answers} == {1}
            assert sorted(total for _, total, _ in answers) == sorted([100_000.0 * n for n in range(5)] * 8)
            assert arena().statistics().used_bytes == used


async def test_it_is_freed_everywhere_when_its_last_reference_is_gone() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            table = await pool.share([np.zeros(100_000)])
            await pool.run_sync(tasks.identity, [1, {"deep": table}])
            del table
            gc.collect()
            for _ in range(2):  # the news go with the first, and come back before the second is answered
                await pool.run_sync(tasks.identity, None)
            assert arena().statistics().used_bytes == 0
            (worker,) = pool.memory_statistics().workers
            assert worker.leased_bytes == 0


async def test_a_new_worker_gets_it_as_well() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            table = await pool.share(tasks.Table([np.ones(100_000)]))
            first, _, _ = await pool.run_sync(tasks.look_up, table, 0)
            with pytest.raises(WorkerDied):
                await pool.run_sync(other_tasks.kill_self)
            second, total, loaded = await pool.run_sync(tasks.look_up, table, 0)
            assert first != second
            assert (total, loaded) == (100_000.0, 1)


async def test_small_objects_and_allocated_memory_may_be_shared() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            frame = fdpool.zeros(100_000)
            table = await pool.share({"small": 5, "frame": frame})
            assert table.nbytes < 1000
            result = await pool.run_sync(tasks.identity, (table, table))
            assert result[0] is result[1]
            assert result[0]["small"] == 5
            assert (result[0]["frame"] == frame).all()


async def test_an_object_that_fails_to_load_is_tried_again() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            table = await pool.share(tasks.LoadsTheSecondTime())
            with pytest.raises(ValueError, match="not yet"):
                await pool.run_sync(tasks.identity, table)
            assert await pool.run_sync(tasks.identity, table) == "loaded"


async def test_it_outlives_the_pool_and_serves_the_next_one() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            table = await pool.share(b"x" * 1_000_000)
        async with open_pool(1) as pool:
            assert len(await pool.run_sync(tasks.identity, table)) == 1_000_000
    del table
    gc.collect()
    assert arena().statistics().segments == 0


async def test_what_cannot_be_shared_is_refused() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            with EventFd() as event, pytest.raises(pickle.PicklingError, match="cannot be part of a shared object"):
                await pool.share([event])
            table = await pool.share(1)
            with pytest.raises(pickle.PicklingError, match="cannot be part"):
                await pool.share([table])
            with pytest.raises(TypeError, match="nothing else can carry it"):
                pickle.dumps(table)
            assert repr(table).startswith("<Shared ")
            assert await pool.run_sync(os.getpid) > 0
