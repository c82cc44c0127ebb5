"""End-to-end tests of interrupting calls that have their own way with signals: event loops, other handlers."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from fdpool import Doorbell, EventFd, Pool, open_pool
from tests.support import loop_tasks, tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KINDS: dict[str, Callable[..., Any]] = {
    "trio, waiting": partial(loop_tasks.run_trio, "waiting"),
    "trio, busy": partial(loop_tasks.run_trio, "busy"),
    "trio, computing": loop_tasks.compute_in_trio,
    "asyncio, waiting": partial(loop_tasks.run_asyncio, "waiting"),
    "asyncio, busy": partial(loop_tasks.run_asyncio, "busy"),
    "asyncio, computing": loop_tasks.compute_in_asyncio,
}


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(1, grace_period=20) as pool:
            yield pool


async def cancel_once_it_runs(pool: Pool, function: Callable[..., Any], cleaned_up: EventFd) -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, function, bell._event, cleaned_up)
        await bell.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_runs_a_loop_is_cancelled_as_the_loop_cancels(
    pool: Pool, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = await pool.run_sync(tasks.pid)
    for _ in range(20):
        with EventFd() as cleaned_up:
            await cancel_once_it_runs(pool, KINDS[kind], cleaned_up)
            # One task may not have begun when the other one rang, and then it has nothing to clean up.
            assert cleaned_up.read() in (1, 2)
    # The worker was not killed, and nothing was said of callbacks or of loops that crashed.
    assert await pool.run_sync(tasks.pid) == worker
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "handler", [signal.SIG_IGN, signal.SIG_DFL, loop_tasks.handle_by_exiting], ids=["ignored", "default", "own"]
)
async def test_a_call_can_be_interrupted_whatever_an_earlier_one_made_of_sigint(pool: Pool, handler: Any) -> None:
    await pool.run_sync(loop_tasks.handle_sigint, handler)
    worker = await pool.run_sync(tasks.pid)
    with EventFd() as cleaned_up:
        await cancel_once_it_runs(pool, loop_tasks.ring_and_compute, cleaned_up)
        assert cleaned_up.read() == 2
    assert await pool.run_sync(tasks.pid) == worker


async def test_a_plain_call_beside_async_ones_is_interrupted_and_they_are_not(pool: Pool) -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, tasks.async_ring_and_hang, bell._event, bell._event)
        await bell.wait()
        with EventFd() as cleaned_up:
            await cancel_once_it_runs(pool, loop_tasks.ring_and_compute, cleaned_up)
            assert cleaned_up.read() == 2
        assert await pool.run(tasks.async_add, 1) == 2
        nursery.cancel_scope.cancel()
