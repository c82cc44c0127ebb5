"""End-to-end tests of the pool behind the standard executor interface."""

from __future__ import annotations

import asyncio
import os
import random
import select
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import fdpool
from fdpool import Executor, RemoteError, WorkerDied
from fdpool.executor import BrokenPool
from fdpool.kernel import EventFd, PidFd
from tests.support import tasks
from tests.support.leaks import children
from tests.test_processes import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future


class ExitsWhenPickled:
    def __reduce__(self) -> NoReturn:
        raise SystemExit(3)


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


@pytest.mark.parametrize(
    ("function", "argument", "kind"),
    [
        (tasks.take, ExitsWhenPickled(), SystemExit),
        (tasks.take, tasks.ExitsWhenLoaded(), RemoteError),
        (tasks.exit_politely, 3, RemoteError),
    ],
)
def test_what_exits_on_its_way_fails_its_future_only(
    executor: Executor, function: Any, argument: Any, kind: type[BaseException]
) -> None:
    assert isinstance(executor.submit(function, argument).exception(30), kind)
    assert isinstance(executor.submit(tasks.return_what_exits).exception(30), RemoteError)
    assert executor.submit(tasks.add, 1).result(30) == 2


def test_map_keeps_the_order(executor: Executor) -> None:
    assert list(executor.map(tasks.add, range(100))) == list(range(1, 101))
    assert list(executor.map(tasks.add, range(100), range(50), chunksize=7)) == [2 * number for number in range(50)]
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(tasks.add, [1], chunksize=0)


def test_map_draws_only_as_many_items_ahead_as_it_may(executor: Executor) -> None:
    drawn: list[int] = []
    items = (drawn.append(number) or number for number in range(100))  # type: ignore[func-returns-value]
    results = executor.map(tasks.add, items, buffersize=5)
    assert len(drawn) == 5
    for fetched, result in enumerate(results):
        assert result == fetched + 1
        assert len(drawn) == min(5 + fetched, 100)


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_with_a_buffer_yields_every_result(executor: Executor, chunksize: int) -> None:
    assert list(executor.map(tasks.add, range(20), chunksize=chunksize, buffersize=2)) == list(range(1, 21))


@pytest.mark.parametrize(("buffersize", "error"), [(0, ValueError), (-1, ValueError), ("5", TypeError)])
def test_map_refuses_a_buffer_that_makes_no_sense(executor: Executor, buffersize: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="buffersize must be"):
        executor.map(tasks.add, [1], buffersize=buffersize)


def test_map_raises_where_the_result_would_have_been_and_cancels_the_rest(executor: Executor) -> None:
    with EventFd() as event, EventFd() as cleaned_up:
        results = executor.map(tasks.divide_or_wait, [2, 0, 1], [event] * 3, [cleaned_up] * 3)
        assert next(results) == 0.5
        wait_for(event)
        with pytest.raises(ZeroDivisionError):
            next(results)
        wait_for(cleaned_up)


def test_map_times_out(executor: Executor) -> None:
    with EventFd() as event:
        results = executor.map(tasks.ring_and_hang, [event], timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        assert executor._thread is not None
        for future in list(executor._thread._futures):
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


def test_waiting_calls_can_be_cancelled_though_those_that_run_may_not_be_stopped() -> None:
    with Executor(1, on_cancel="wait") as executor, EventFd() as event, EventFd() as go_on, EventFd() as has_ended:
        running = executor.submit(tasks.ring_and_wait_and_ring, event, go_on, has_ended)
        wait_for(event)
        waiting = [executor.submit(tasks.kill_self) for _ in range(5)]
        assert executor._thread is not None
        while executor._thread._caller.dispatcher.queued < 5:
            pass
        assert all(future.cancel() for future in [*waiting, running])
        assert wait([*waiting, running], 30).not_done == set()
        go_on.write()
        wait_for(has_ended)
        assert executor.submit(tasks.add, 1).result(30) == 2


def test_calls_wait_for_room_in_the_budget_and_can_be_cancelled_there() -> None:
    with Executor(1, memory_budget=3_000_000) as executor, EventFd() as event, EventFd() as go_on:
        running = executor.submit(tasks.ring_and_wait, event, go_on)
        wait_for(event)
        first, second, third = [executor.submit(tasks.add, bytes(2_000_000), bytes([number])) for number in range(3)]
        small = executor.submit(tasks.add, 1)
        assert second.cancel()
        assert wait([second], 30).not_done == set()
        go_on.write()
        assert [future.result(30)[-1:] for future in (first, third)] == [b"\0", b"\2"]
        assert (small.result(30), running.result(30)) == (2, 1)
        # All of it is there again.
        assert len(executor.submit(tasks.add, bytes(2_999_000), b"!").result(30)) == 2_999_001
        assert isinstance(executor.submit(tasks.add, bytes(3_100_000)).exception(30), ValueError)


@pytest.mark.parametrize("on_cancel", ["interrupt", "wait"])
def test_whenever_calls_are_cancelled_each_ends_and_all_room_is_there_again(on_cancel: Any) -> None:
    chance = random.Random(5)
    with Executor(2, on_cancel=on_cancel, memory_budget=1_000_000) as executor:
        under_way: deque[Future[bytes]] = deque()
        ended = 0
        for _ in range(400):
            # Not all of them fit at once.
            under_way.append(executor.submit(tasks.add, bytes(chance.choice([10, 300_000, 800_000])), b"!"))
            if chance.random() < 0.6:
                chance.choice(under_way).cancel()
            while len(under_way) > 8:
                future = under_way.popleft()
                assert wait([future], 30).not_done == set()
                ended += future.cancelled() or future.result(0).endswith(b"!")
        assert len(executor.submit(tasks.add, bytes(999_000), b"!").result(30)) == 999_001
        assert ended == 392


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_callback_that_raises_is_logged_and_hurts_nobody_else(
    executor: Executor, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_future: Future[int]) -> None:
        raise error("of the callback")

    with EventFd() as event, EventFd() as go_on:
        future = executor.submit(tasks.ring_and_wait, event, go_on)
        future.add_done_callback(fail)
        go_on.write()
        assert future.result(30) == 1
    assert executor.submit(tasks.add, 1).result(30) == 2
    assert "of the callback" in caplog.text


def test_a_broken_pool_that_a_task_has_of_its_own_breaks_no_other(executor: Executor) -> None:
    error = executor.submit(tasks.raise_pool_broken).exception(30)
    assert isinstance(error, fdpool.PoolBroken)
    assert not isinstance(error, BrokenPool)
    assert executor.submit(tasks.add, 1).result(30) == 2


def test_answers_are_taken_while_calls_are_made_without_end(executor: Executor) -> None:
    first = executor.submit(tasks.add, 1)
    more = 0
    while not first.done():
        executor.submit(tasks.add, more)
        more += 1
        assert more < 1_000_000
    assert first.result(0) == 2


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


@pytest.mark.parametrize("wait_for_it", [True, False], ids=["wait", "no wait"])
@pytest.mark.parametrize("cancel_futures", [True, False], ids=["cancel", "no cancel"])
def test_shutdown_lets_what_runs_finish_and_cancels_what_waits_if_told_to(
    wait_for_it: bool, cancel_futures: bool
) -> None:
    with EventFd() as event, EventFd() as go_on:
        executor = Executor(1)
        running = executor.submit(tasks.ring_and_wait, event, go_on)
        wait_for(event)
        waiting = [executor.submit(tasks.add, number) for number in range(3)]
        if wait_for_it:
            # Otherwise it would wait for ever.
            go_on.write(3)
        executor.shutdown(wait=wait_for_it, cancel_futures=cancel_futures)
        assert running.done() is wait_for_it
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(tasks.add, 1)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.map(tasks.add, [1])
        if not wait_for_it:
            go_on.write(3)
        assert running.result(30) == 3
        if cancel_futures and not wait_for_it:
            assert all(future.cancelled() for future in waiting)
        elif not cancel_futures:
            assert [future.result(30) for future in waiting] == [1, 2, 3]
        assert wait(waiting, 30).not_done == set()
        # It may be said again.
        executor.shutdown()
    assert not children()


def test_a_block_waits_for_its_calls() -> None:
    with Executor(2) as executor:
        futures = [executor.submit(tasks.add, number) for number in range(20)]
    assert [future.result(0) for future in futures] == list(range(1, 21))


def test_a_dropped_executor_finishes_what_it_was_given() -> None:
    executor = Executor(1)
    futures = [executor.submit(tasks.add, number) for number in range(20)]
    thread = executor._thread
    assert thread is not None
    del executor
    assert [future.result(30) for future in futures] == list(range(1, 21))
    thread.join()


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


def test_what_asyncio_cancels_is_interrupted_and_its_worker_stays() -> None:
    async def main(executor: Executor, event: EventFd, cleaned_up: EventFd) -> None:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        loop.add_reader(event.fileno(), rung.set)
        worker = await loop.run_in_executor(executor, tasks.pid)
        future = loop.run_in_executor(executor, tasks.clean_up, event, cleaned_up)
        await rung.wait()
        loop.remove_reader(event.fileno())
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(executor, tasks.ring_and_hang, event), 0.01)
        assert await loop.run_in_executor(executor, tasks.pid) == worker

    with EventFd() as event, EventFd() as cleaned_up, Executor(1) as executor:
        asyncio.run(main(executor, event, cleaned_up))
        assert cleaned_up.read() == 1


def test_waiting_can_end_with_the_first_that_is_done_or_raises(executor: Executor) -> None:
    with EventFd() as event, EventFd() as go_on:
        held = executor.submit(tasks.ring_and_wait, event, go_on)
        wait_for(event)
        quick = executor.submit(tasks.add, 1)
        assert wait([held, quick], 30, FIRST_COMPLETED) == ({quick}, {held})
        wrong = executor.submit(tasks.divide, 1, 0)
        assert wait([held, wrong], 30, FIRST_EXCEPTION) == ({wrong}, {held})
        assert wait([held], 0.01) == (set(), {held})
        with pytest.raises(TimeoutError):
            list(as_completed([held], 0.01))
        go_on.write(4)
        assert {future.result() for future in as_completed([held, quick], 30)} == {4, 2}


def test_callbacks_are_called_whatever_comes_of_the_call(executor: Executor) -> None:
    called: list[tuple[str, bool]] = []

    def note(name: str, future: Future[Any]) -> None:
        called.append((name, future.cancelled()))

    with EventFd() as event:
        futures = {
            "returned": executor.submit(tasks.add, 1),
            "raised": executor.submit(tasks.divide, 1, 0),
            "died": executor.submit(tasks.kill_self),
        }
        for name, future in futures.items():
            future.add_done_callback(partial(note, name))
        assert wait(futures.values(), 30).not_done == set()
        running = executor.submit(tasks.ring_and_hang, event)
        running.add_done_callback(partial(note, "cancelled"))
        wait_for(event)
        running.cancel()
    executor.shutdown()
    assert sorted(called) == [("cancelled", True), ("died", False), ("raised", False), ("returned", False)]


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


def test_each_future_has_an_exception_of_its_own() -> None:
    restart = fdpool.Restart(intensity=0)
    with Executor(1, initializer=tasks.divide, initargs=(1, 0), restart=restart) as executor:
        errors = [error_of_a_call(executor) for _ in range(3)]
    with Executor(1, no_such_option=1) as executor:
        errors += [error_of_a_call(executor) for _ in range(3)]
    assert [type(error) for error in errors] == [BrokenPool] * 3 + [TypeError] * 3
    assert len(set(map(id, errors))) == 6


def error_of_a_call(executor: Executor) -> BaseException | None:
    """Return what a call raises, or what submitting it raises where that is known already."""
    try:
        future: Future[int] = executor.submit(tasks.add, 1)
    except Exception as exc:
        return exc
    return future.exception(30)


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


START_OF_PROGRAM = """
import atexit, os, sys, threading, time
import fdpool
from tests.support import tasks
"""
ENDS_OF_PROGRAMS = {
    "with a result": (
        "future = fdpool.Executor(2).submit(tasks.add, 1); print(future.result())",
        "2",
    ),
    "with a call under way": (
        "executor = fdpool.Executor(2)\n"
        "executor.submit(tasks.add, 1).add_done_callback(lambda future: print(future.result()))",
        "2",
    ),
    "with a shutdown that did not wait": (
        "executor = fdpool.Executor(1)\n"
        "futures = [executor.submit(tasks.add, n) for n in range(3)]\n"
        "executor.shutdown(wait=False)\n"
        "atexit.register(lambda: print(*[future.result(0) for future in futures]))",
        "1 2 3",
    ),
    "with a shutdown that cancels": (
        "executor = fdpool.Executor(1)\n"
        "futures = [executor.submit(tasks.add, n) for n in range(3)]\n"
        "executor.shutdown(wait=False, cancel_futures=True)\n"
        "atexit.register(lambda: print(all(future.done() for future in futures)))",
        "True",
    ),
    "with a submit that comes too late": (
        "executor = fdpool.Executor(1)\n"
        "@atexit.register\n"
        "def late():\n"
        "    try: executor.submit(tasks.add, 1)\n"
        "    except RuntimeError as exc: print(exc)\n"
        "executor.submit(tasks.add, 1)",
        "cannot schedule new futures after interpreter shutdown",
    ),
    "with a thread that goes on submitting": (
        "executor = fdpool.Executor(2)\n"
        "def submit():\n"
        "    try:\n"
        "        while True: executor.submit(tasks.add, 1).result()\n"
        "    except RuntimeError as exc: print(exc)\n"
        "thread = threading.Thread(target=submit)\n"
        "thread.start()\n"
        "executor.submit(tasks.add, 1).result()",
        "cannot schedule new futures after interpreter shutdown",
    ),
    "after a fork that ended like a program": (
        "executor = fdpool.Executor(1)\n"
        "executor.submit(tasks.add, 1).result()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    executor.shutdown()\n"
        "    sys.exit(3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), executor.submit(tasks.add, 1).result())",
        "3 2",
    ),
}


@pytest.mark.parametrize("how", ENDS_OF_PROGRAMS)
def test_a_program_may_just_end(how: str) -> None:
    program, says = ENDS_OF_PROGRAMS[how]
    result = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", START_OF_PROGRAM + program],
        capture_output=True, text=True, timeout=60, check=False, env={**ENVIRONMENT, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert (" ".join(result.stdout.split()), result.stderr, result.returncode) == (says, "", 0)


def test_a_dropped_executor_ends_its_workers() -> None:
    executor = Executor(1)
    pid = executor.submit(tasks.pid).result(30)
    thread = executor._thread
    assert thread is not None
    with PidFd(pid) as worker:
        del executor
        thread.join()
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
