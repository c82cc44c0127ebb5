"""End-to-end tests of the pool behind the standard executor interface."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import pytest

import fdpool
from fdpool import Executor, WorkerDied
from fdpool.kernel import EventFd, PidFd
from tests.support import tasks
from tests.support.leaks import children
from tests.test_processes import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


def test_submit_returns_a_future_of_the_result(executor: Executor) -> None:
    future = executor.submit(tasks.add, 40, right=2)
    assert future.result(30) == 42
    assert future.done()
    assert not future.cancel()


def test_an_exception_is_the_futures(executor: Executor) -> None:
    assert isinstance(executor.submit(tasks.divide, 1, 0).exception(30), ZeroDivisionError)
    error = executor.submit(tasks.add, (number for number in [1])).exception(30)
    assert isinstance(error, TypeError)


def test_map_keeps_the_order(executor: Executor) -> None:
    assert list(executor.map(tasks.add, range(100))) == list(range(1, 101))
    assert list(executor.map(tasks.add, range(100), range(50), chunksize=7)) == [2 * number for number in range(50)]
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(tasks.add, [1], chunksize=0)


def test_map_times_out(executor: Executor) -> None:
    with EventFd() as event:
        results = executor.map(tasks.ring_and_hang, [event], timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        assert executor._background is not None
        for future in list(executor._background._futures):
            future.cancel()


def test_a_worker_that_dies_fails_its_own_future_only(executor: Executor) -> None:
    dead = executor.submit(tasks.kill_self)
    others = [executor.submit(tasks.add, number) for number in range(20)]
    assert isinstance(dead.exception(30), WorkerDied)
    assert [other.result(30) for other in others] == list(range(1, 21))


def test_a_running_call_can_be_cancelled_and_its_worker_stays(executor: Executor) -> None:
    with EventFd() as event, EventFd() as cleaned_up:
        future = executor.submit(tasks.clean_up, event, cleaned_up)
        wait_for(event)
        assert future.running()
        assert future.cancel()
        assert future.cancelled()
        with pytest.raises(CancelledError):
            future.result(30)
        wait_for(cleaned_up)
    assert executor.submit(tasks.add, 1).result(30) == 2


def test_waiting_calls_can_be_cancelled_and_are_never_begun() -> None:
    with Executor(1) as executor, EventFd() as event:
        running = executor.submit(tasks.ring_and_hang, event)
        wait_for(event)
        waiting = [executor.submit(tasks.kill_self) for _ in range(50)]
        assert all(future.cancel() for future in waiting)
        assert wait(waiting, 30).not_done == set()
        assert running.cancel()
        assert executor.submit(tasks.add, 1).result(30) == 2


def test_shutdown_can_cancel_what_waits() -> None:
    with EventFd() as event, EventFd() as go_on:
        executor = Executor(1)
        running = executor.submit(tasks.ring_and_wait, event, go_on)
        wait_for(event)
        waiting = [executor.submit(tasks.kill_self) for _ in range(5)]
        executor.shutdown(wait=False, cancel_futures=True)
        go_on.write(3)
        executor.shutdown()
        assert running.result(0) == 3
        assert all(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.add, 1)


def test_it_may_be_used_from_several_threads(executor: Executor) -> None:
    results: list[int] = []

    def use() -> None:
        results.extend(future.result(30) for future in as_completed(executor.submit(tasks.add, n) for n in range(50)))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(list(range(1, 51)) * 4)


def test_asyncio_can_use_it(executor: Executor) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(executor, tasks.add, number) for number in range(20)])

    assert list(asyncio.run(main())) == list(range(1, 21))


def test_each_worker_is_initialized() -> None:
    with Executor(2, initializer=tasks.set_state, initargs=("ready",)) as executor:
        assert set(executor.map(tasks.get_state, range(20))) == {"ready"}


def test_an_initializer_that_fails_breaks_the_pool_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    restart = fdpool.Restart(intensity=0)
    with Executor(1, initializer=tasks.divide, initargs=(1, 0), restart=restart) as executor:
        with pytest.raises(BrokenProcessPool, match="its initializer raised") as caught:
            executor.submit(tasks.add, 1).result(30)
        assert "ZeroDivisionError" in str(caught.value)
        with pytest.raises(BrokenProcessPool):
            executor.submit(tasks.add, 1)


def test_workers_are_replaced_after_so_many_calls() -> None:
    with Executor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(tasks.pid).result(30) for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


def test_workers_are_replaced_after_so_many_calls_also_when_calls_are_sent_ahead() -> None:
    with Executor(2, max_tasks_per_child=5) as executor:
        pids = list(executor.map(tasks.pid_of, range(200)))
    counts = sorted(pids.count(pid) for pid in set(pids))
    # The two that were at work at the end had not done their share yet.
    assert max(counts) == 5
    assert set(counts[2:]) == {5}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -1}, ValueError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"initializer": 3}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Executor(**arguments)


def test_options_of_the_pool_that_do_not_exist_fail_the_first_call() -> None:
    with Executor(1, no_such_option=1) as executor:
        with pytest.raises(TypeError, match="no_such_option"):
            executor.submit(tasks.add, 1).result(30)


def test_an_executor_that_was_never_used_starts_nothing() -> None:
    before = threading.active_count()
    with Executor(4):
        assert threading.active_count() == before
        assert not children()


def test_a_forked_child_is_told_to_make_its_own(executor: Executor) -> None:
    assert executor.submit(tasks.add, 1).result(30) == 2
    child = os.fork()
    if child == 0:
        try:
            executor.submit(tasks.add, 1)
        except RuntimeError:
            os._exit(42)
        os._exit(1)
    with PidFd(child) as process:
        assert process.wait_exit().exitcode == 42


END_OF_INTERPRETER = """
import fdpool
from tests.support import tasks
executor = fdpool.Executor(2)
future = executor.submit(tasks.add, 1)
{}
"""


@pytest.mark.parametrize("last", ["print(future.result())", "future.add_done_callback(lambda f: print(f.result()))"])
def test_the_end_of_the_interpreter_waits_for_calls_and_ends_the_workers(last: str) -> None:
    program = END_OF_INTERPRETER.format(last)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    assert (result.stdout, result.stderr, result.returncode) == ("2\n", "", 0)


def test_a_dropped_executor_ends_its_workers() -> None:
    executor = Executor(1)
    pid = executor.submit(tasks.pid).result(30)
    background = executor._background
    assert background is not None
    with PidFd(pid) as worker:
        del executor
        background.join()
        assert worker.has_exited()


def wait_for(event: EventFd) -> None:
    assert select.select([event], [], [], 30)[0]
    event.read()


def test_the_tests_of_the_standard_library_pass_against_it() -> None:
    pytest.importorskip("test.test_concurrent_futures", reason="this interpreter came without its own tests")
    result = subprocess.run(
        [sys.executable, "-m", "unittest", "-q", "tests.programs.standard_executor_tests"],
        capture_output=True, text=True, timeout=200, check=False,
        env={**ENVIRONMENT, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
