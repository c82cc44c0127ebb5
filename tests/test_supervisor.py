"""End-to-end tests of how many workers there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from fdpool import Backoff, Doorbell, EventFd, Pool, PoolBroken, Restart, open_pool
from tests.support import tasks
from tests.support.leaks import children

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(autouse=True, params=["exec", "zygote"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with workers made in either way."""
    made: str = request.param
    monkeypatch.setitem(open_pool.__wrapped__.__kwdefaults__, "start", made)
    return made


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(2) as pool:
            yield pool


async def all_at_once(pool: Pool, count: int) -> set[int]:
    """Have *count* calls run at the same time; return the workers they ran on."""
    pids = set()

    async def one(bell: Doorbell, go_on: EventFd) -> None:
        pids.add(await pool.run_sync(tasks.ring_and_stay, bell._event, go_on))

    async with Doorbell() as bell, trio.open_nursery() as nursery:
        with EventFd() as go_on:
            for _ in range(count):
                nursery.start_soon(one, bell, go_on)
            rung = 0
            while rung < count:
                rung += await bell.wait()
            go_on.write()
            while len(pids) < count:
                await wait_all_tasks_blocked(0.01)
    return pids


async def test_a_pool_grows(pool: Pool) -> None:
    with assert_checkpoints():
        await pool.resize(5)
    assert pool.statistics().size == 5
    assert len(await all_at_once(pool, 5)) == 5


async def test_a_pool_shrinks_and_waits_for_those_that_go(pool: Pool) -> None:
    before = await all_at_once(pool, 2)
    await pool.resize(1)
    assert pool.statistics().size == 1
    assert pool.statistics().states == {"ready": 1}
    after = {await pool.run_sync(tasks.pid) for _ in range(5)}
    assert len(after) == 1
    assert after < before
    assert not [child for child in children() if any(child.startswith(f"{pid} ") for pid in before - after)]


async def test_shrinking_takes_the_idle_worker_and_not_the_busy_one(pool: Pool) -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        with EventFd() as go_on:
            busy = []

            async def call() -> None:
                busy.append(await pool.run_sync(tasks.ring_and_stay, bell._event, go_on))

            nursery.start_soon(call)
            await bell.wait()
            await pool.resize(1)
            go_on.write()
            assert await pool.run_sync(tasks.pid) == busy[0]
    assert pool.statistics().calls.returned == 2


async def test_a_busy_worker_that_is_to_go_finishes_its_call_and_hands_back_what_it_was_sent_ahead() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
            with EventFd() as go_on:
                results = []

                async def call() -> None:
                    results.append(await pool.run_sync(tasks.ring_and_stay, bell._event, go_on))

                # Short calls first, so that later ones are sent ahead.
                for _ in range(50):
                    await pool.run_sync(tasks.add, 1)
                for _ in range(6):
                    nursery.start_soon(call)
                rung = 0
                while rung < 2:
                    rung += await bell.wait()
                nursery.start_soon(pool.resize, 1)
                await wait_all_tasks_blocked()
                assert pool.statistics().size == 1
                go_on.write()
                while len(results) < 6:
                    await wait_all_tasks_blocked(0.01)
    assert len(set(results)) == 2


async def test_resizing_on_and_on_while_calls_run_loses_none(pool: Pool) -> None:
    results = []

    async def one(number: int) -> None:
        results.append(await pool.run_sync(tasks.add, number))

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
        for size in (5, 1, 4, 2, 6, 1, 3):
            await pool.resize(size)
    assert sorted(results) == list(range(1, 301))
    assert pool.statistics().size == 3
    assert pool.statistics().crashed == 0


async def test_resizing_up_and_down_before_workers_are_ready_leaves_the_right_number() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.resize, 8)
                await wait_all_tasks_blocked()
                nursery.start_soon(pool.resize, 2)
            assert len(await all_at_once(pool, 2)) == 2
            while sum(pool.statistics().states.values()) > 2:
                await wait_all_tasks_blocked(0.01)
            assert pool.statistics().states == {"ready": 2}


async def test_a_worker_set_aside_is_the_last_to_go(pool: Pool) -> None:
    async with pool.worker() as worker:
        await pool.resize(1)
        assert await worker.run_sync(tasks.pid) == worker.pid


@pytest.mark.parametrize("size", [0, -1])
async def test_a_pool_cannot_be_without_places(pool: Pool, size: int) -> None:
    with pytest.raises(ValueError, match=rf"workers is {size}: a pool needs at least 1"):
        await pool.resize(size)
    assert pool.statistics().size == 2


async def test_resizing_a_pool_that_is_closed_or_broken_says_so() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await pool.resize(2)
        never = Restart(intensity=0, backoff=Backoff(first=0, cap=0))
        async with open_pool(1, initializer=tasks.raise_error, initargs=("value",), restart=never) as pool:
            with pytest.raises(PoolBroken):
                await pool.run_sync(tasks.add, 1)
            with pytest.raises(PoolBroken):
                await pool.resize(2)


async def test_a_resize_that_is_cancelled_still_happens(pool: Pool) -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        with EventFd() as go_on:
            for _ in range(2):
                nursery.start_soon(pool.run_sync, tasks.ring_and_stay, bell._event, go_on)
            rung = 0
            while rung < 2:
                rung += await bell.wait()
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_blocked, scope)
                await pool.resize(1)
            assert scope.cancelled_caught
            assert pool.statistics().size == 1
            go_on.write()
            while sum(pool.statistics().states.values()) > 1:
                await wait_all_tasks_blocked(0.01)
    assert pool.statistics().calls.returned == 2


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()
