"""End-to-end tests of tasks that fork: the other process must not act as the worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from fdpool import EventFd, OwnedFd, Pool, open_pool
from fdpool.kernel import PidFd
from tests.support import fork_tasks, tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            yield pool


async def said(capfd: pytest.CaptureFixture[str], words: str) -> str:
    """Wait until *words* have come from a worker by way of the supervisor; return all that has."""
    text = capfd.readouterr().err
    while words not in text:
        await trio.sleep(0.001)
        text += capfd.readouterr().err
    return text


@pytest.mark.parametrize(
    ("then", "code", "says"),
    [
        ("a value", 0, ""),
        ("generator", 0, ""),
        (ValueError("of the child"), 1, "ValueError: of the child\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(), 0, ""),
        ("exit", 1, "the child's last words\n"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_forked_process_ends_where_the_task_does_and_only_the_worker_answers(
    pool: Pool, then: Any, code: int, says: str, is_async: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    call: Any = pool.run if is_async else pool.run_sync
    function: Any = fork_tasks.async_forked if is_async else fork_tasks.forked
    worker = await pool.run_sync(tasks.pid)
    assert await call(function, then) == code
    error = await said(capfd, says)
    assert error.endswith(says)
    assert bool(error) == bool(says)
    assert await pool.run_sync(tasks.pid) == worker


@pytest.mark.parametrize("function", [fork_tasks.forked_items, fork_tasks.async_forked_items])
async def test_a_process_forked_in_a_stream_ends_where_it_yields(
    pool: Pool, function: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with pool.stream(function, ["a value", ValueError("of the child"), SystemExit(3), "a value"]) as items:
        assert [item async for item in items] == [0, 1, 3, 0]
    assert (await said(capfd, "ValueError: of the child\n")).startswith("Traceback")
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_forked_process_that_outlives_its_call_answers_nothing(pool: Pool) -> None:
    ends = os.pipe()
    with OwnedFd(ends[0]) as read_end, OwnedFd(ends[1]):
        child = PidFd(await pool.run_sync(fork_tasks.fork_and_forget, read_end))
        assert [await pool.run_sync(tasks.add, number) for number in range(50)] == list(range(1, 51))
        assert not child.has_exited()
    with child:
        # Its parent is the worker, so only its end can be seen from here.
        await trio.lowlevel.wait_readable(child)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_process_forked_while_a_result_is_pickled_answers_nothing(
    pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await pool.run_sync(fork_tasks.make_one_that_forks_when_pickled) == 70
    await said(capfd, "the channel to its supervisor is lost")
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_forked_process_takes_ctrl_c_as_python_does(pool: Pool) -> None:
    assert await pool.run_sync(fork_tasks.fork_and_interrupt) == 5


async def test_a_forked_process_that_waits_in_the_workers_loop_is_ended(
    pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    with EventFd() as event:
        assert await pool.run(fork_tasks.fork_and_wait, event) == 70
    await said(capfd, "and was ended")
    assert [await pool.run(tasks.async_add, number) for number in range(20)] == list(range(1, 21))


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_multiprocessing_works_in_a_task(pool: Pool, method: str) -> None:
    result = await pool.run_sync(fork_tasks.use_multiprocessing, method)
    assert result == ([2 * number for number in range(10)], [0, 2, 4])
