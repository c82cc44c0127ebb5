"""End-to-end tests of tasks that do to their worker what they should not: the right error, and nobody else is hurt."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from fdpool import Doorbell, EventFd, Limits, RemoteError, WorkerDied, open_pool
from tests.support import fault_tasks, tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fdpool import Pool

DEEP = 100_000
"""Levels of nesting, far above the limit of any interpreter."""


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """End a test that hangs."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


async def error_of(pool: Pool, function: Callable[..., Any], *args: Any) -> Exception:
    """Return what a call raises, having seen that all the calls made beside it return."""
    errors: list[Exception] = []
    results: list[int] = []

    async def fail() -> None:
        try:
            result = await pool.run_sync(function, *args)
        except Exception as exc:
            errors.append(exc)
        else:
            pytest.fail(f"it returned {result!r}")

    async def succeed(number: int) -> None:
        results.append(await pool.run_sync(tasks.add, number))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(succeed, number)
            if number == 10:
                nursery.start_soon(fail)
    assert sorted(results) == list(range(1, 21))
    assert await pool.run_sync(tasks.add, 1) == 2
    (error,) = errors
    return error


# What ends the worker.


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (os.abort, "was killed by SIGABRT while running posix.abort"),
        (fault_tasks.overflow_the_c_stack, "was killed by SIGSEGV while running .*overflow_the_c_stack"),
        (fault_tasks.close_everything, "exited with code 70 while running .*close_everything"),
    ],
)
async def test_a_task_that_destroys_its_worker_fails_and_no_other_does(
    task: Callable[..., Any], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_pool(2) as pool:
        error = await error_of(pool, task)
    assert isinstance(error, WorkerDied)
    assert re.search(says, str(error))
    # What is left of it is what it said itself: its stack, or that it lost its channel.
    assert error.stderr_tail
    assert capfd.readouterr().err.splitlines() == error.stderr_tail.splitlines()


# What does not.


@pytest.mark.parametrize(
    ("task", "args", "kind", "says"),
    [
        (fault_tasks.recurse, (), RecursionError, "maximum recursion depth exceeded"),
        (fault_tasks.nested, (DEEP,), RecursionError, "maximum recursion depth exceeded while pickling an object"),
        (fault_tasks.raise_what_cannot_be_reduced, (), RemoteError, "CannotBeReduced: the text"),
        (fault_tasks.begin_session, (), PermissionError, "Operation not permitted"),
    ],
)
async def test_a_task_that_goes_too_far_fails_and_its_worker_stays(
    task: Callable[..., Any], args: tuple[Any, ...], kind: type[Exception], says: str
) -> None:
    async with open_pool(1) as pool:
        worker = await pool.run_sync(tasks.pid)
        error = await error_of(pool, task, *args)
        assert isinstance(error, kind)
        assert says in str(error)
        assert await pool.run_sync(tasks.pid) == worker


async def test_arguments_nested_too_deeply_fail_in_the_caller() -> None:
    async with open_pool(1) as pool:
        worker = await pool.run_sync(tasks.pid)
        error = await error_of(pool, tasks.take, fault_tasks.nested(DEEP))
        assert isinstance(error, RecursionError)
        assert error.__cause__ is None
        assert await pool.run_sync(tasks.pid) == worker


async def test_a_task_that_uses_all_memory_fails_and_what_it_held_is_there_again() -> None:
    async with open_pool(1, limits=Limits(data=100 << 20)) as pool:
        worker = await pool.run_sync(tasks.pid)
        for _ in range(2):
            error = await error_of(pool, fault_tasks.use_all_memory)
            assert isinstance(error, MemoryError)
            assert "Limits(data=104857600)" in error.__notes__[-1]
        assert await pool.run_sync(tasks.pid) == worker


# Cancelling what cannot be interrupted.


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "idle before"])
async def test_a_call_on_a_stopped_worker_can_be_cancelled(is_running: bool) -> None:
    async with open_pool(1, grace_period=0.1) as pool, Doorbell() as bell:
        worker = await pool.run_sync(tasks.pid)
        async with trio.open_nursery() as nursery:
            if is_running:
                nursery.start_soon(pool.run_sync, tasks.ring_and_hang, bell._event)
                await bell.wait()
            os.kill(worker, signal.SIGSTOP)
            if not is_running:
                nursery.start_soon(pool.run_sync, tasks.add, 1)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await pool.run_sync(tasks.pid) != worker


async def test_cancelling_a_thousand_calls_in_line_leaves_the_one_that_runs_alone() -> None:
    async with open_pool(1) as pool, Doorbell() as bell:
        with EventFd() as go_on, EventFd() as handle:
            async with trio.open_nursery() as nursery:
                result: list[int] = []

                async def wait() -> None:
                    result.append(await pool.run_sync(tasks.ring_and_wait, bell._event, go_on))

                nursery.start_soon(wait)
                await bell.wait()
                async with trio.open_nursery() as waiting:
                    for _ in range(1000):
                        waiting.start_soon(pool.run_sync, tasks.take, handle)
                    await trio.testing.wait_all_tasks_blocked()
                    waiting.cancel_scope.cancel()
                go_on.write(7)
        assert result == [7]
        assert pool.memory_statistics().in_flight_bytes == 0


# What a task leaves behind.


async def test_what_a_task_changes_in_its_process_stays_with_the_worker(tmp_path: Path) -> None:
    async with open_pool(1) as pool:
        before = await pool.run_sync(fault_tasks.see_everything)
        await pool.run_sync(fault_tasks.change_everything, str(tmp_path))
        assert await pool.run_sync(fault_tasks.see_everything) == {
            "directory": str(tmp_path),
            "variable": "by an earlier call",
            "umask": 0o077,
            "handler": signal.SIG_IGN,
            "stdout": False,
        }
        with pytest.raises(WorkerDied):
            await pool.run_sync(tasks.kill_self)
        assert await pool.run_sync(fault_tasks.see_everything) == before


async def test_a_worker_for_each_call_finds_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    async with open_pool(1, max_tasks_per_worker=1) as pool:
        before = await pool.run_sync(fault_tasks.see_everything)
        await pool.run_sync(fault_tasks.change_everything, str(tmp_path))
        assert await pool.run_sync(fault_tasks.see_everything) == before


@pytest.mark.parametrize("start", ["exec", "zygote"])
async def test_a_thread_left_behind_holds_nothing_up_for_longer_than_the_grace_period(start: Any) -> None:
    async with open_pool(1, start=start, grace_period=0.05) as pool:
        for _ in range(3):
            await pool.run_sync(fault_tasks.leave_thread_behind)
        assert await pool.run_sync(tasks.add, 1) == 2
        (worker,) = pool._supervisor.workers
    assert worker.status is not None
    assert worker.status.signal == signal.SIGTERM


@pytest.mark.parametrize("how", ["none", "closed", "descriptors closed", "raises"])
async def test_a_worker_whose_output_was_spoilt_goes_on_and_ends_as_others_do(how: str) -> None:
    async with open_pool(1, grace_period=30) as pool:
        await pool.run_sync(fault_tasks.spoil_output, how)
        with EventFd(5) as event:
            assert await pool.run_sync(tasks.read_events, [event]) == [5]
        (worker,) = pool._supervisor.workers
    assert worker.status is not None
    assert (worker.status.exitcode, worker.status.signal) == (0, None)
