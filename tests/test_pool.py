"""End-to-end tests of the pool, with real workers."""

from __future__ import annotations

import math
import operator
import os
import pickle
import resource
import select
import signal
import socket
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import assert_checkpoints

import fdpool
from fdpool import Doorbell, EventFd, MemFd, PidFd, Pool, RemoteError, WorkerDied, open_pool
from fdpool.errors import FdLimitError, PoolBroken, RemoteProtocolError
from tests.support import tasks
from tests.support.leaks import children, descriptor_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fdpool.process.worker_process import WorkerProcess


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


async def test_a_function_runs_in_another_process(pool: Pool) -> None:
    assert await pool.run_sync(tasks.add, 40, right=2) == 42
    assert await pool.run_sync(tasks.pid) != os.getpid()
    with assert_checkpoints():
        assert await pool.run_sync(math.factorial, 5) == 120


async def test_calls_run_side_by_side_and_in_any_number(pool: Pool) -> None:
    results: dict[int, int] = {}

    async def one(number: int) -> None:
        results[number] = await pool.run_sync(tasks.add, number)

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
    assert results == {number: number + 1 for number in range(300)}


CALLABLES = [(bytes.upper, b"a"), (b"-".join, [b"a", b"b"]), (int.from_bytes, b"a"), (operator.itemgetter(1), "ab")]


@pytest.mark.parametrize(("function", "argument"), CALLABLES)
async def test_methods_of_built_in_types_run(pool: Pool, function: Any, argument: Any) -> None:
    assert await pool.run_sync(function, argument) == function(argument)


async def test_a_worker_imports_no_trio_for_plain_functions(pool: Pool) -> None:
    assert not await pool.run_sync(tasks.loaded, "trio")


async def test_an_exception_group_comes_back_as_itself(pool: Pool) -> None:
    with pytest.RaisesGroup(ValueError, KeyError):
        await pool.run_sync(tasks.raise_error, "group")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("unpicklable", "RuntimeError: holds a generator"),
        ("fails to load", "tests.support.tasks.FailsToLoad: 1 and 2"),
        ("interrupt", "KeyboardInterrupt"),
    ],
)
async def test_an_exception_that_cannot_be_itself_here_is_told_in_words(pool: Pool, kind: str, says: str) -> None:
    with pytest.raises(RemoteError, match=says) as caught:
        await pool.run_sync(tasks.raise_error, kind)
    assert "in raise_error" in caught.value.traceback
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_exiting_is_the_callers_error_and_not_the_callers_exit(pool: Pool) -> None:
    with pytest.raises(RemoteError, match="SystemExit: 3"):
        await pool.run_sync(tasks.exit_politely, 3)
    with pytest.raises(RemoteError, match="SystemExit: 3"):
        await pool.run_sync(tasks.return_what_exits)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_result_that_cannot_be_pickled_is_an_error_that_says_so(pool: Pool) -> None:
    with pytest.raises(TypeError, match="generator") as caught:
        await pool.run_sync(tasks.return_generator)
    assert "packing the result of return_generator, a generator" in caught.value.__notes__[0]


async def test_a_killed_worker_fails_its_own_call_only(pool: Pool) -> None:
    with pytest.raises(
        WorkerDied, match=r"was killed by SIGKILL while running tests\.support\.tasks\.kill_self"
    ) as caught:
        await pool.run_sync(tasks.kill_self)
    assert caught.value.signal is not None
    assert signal.Signals(caught.value.signal) is signal.SIGKILL
    assert caught.value.exitcode is None
    assert caught.value.pid not in {os.getpid(), await pool.run_sync(tasks.pid)}


async def test_a_worker_that_exits_fails_its_own_call_only(pool: Pool) -> None:
    with pytest.raises(WorkerDied, match="exited with code 7 while running") as caught:
        await pool.run_sync(tasks.exit_at_once, 7)
    assert (caught.value.exitcode, caught.value.signal) == (7, None)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_of_500_calls_exactly_those_die_that_kill_their_worker() -> None:
    deadly = frozenset(range(25, 500, 50))
    outcomes: dict[int, object] = {}

    async def one(pool: Pool, number: int) -> None:
        try:
            outcomes[number] = await pool.run_sync(tasks.square_or_die, number, deadly)
        except WorkerDied as exc:
            outcomes[number] = exc.signal

    before = descriptor_count()
    with trio.fail_after(120):
        async with open_pool(2) as pool, trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(one, pool, number)
    assert outcomes == {n: signal.SIGKILL if n in deadly else n * n for n in range(500)}
    assert descriptor_count() == before
    assert not children()


async def test_a_call_that_had_not_begun_runs_elsewhere_with_its_handles() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            victim = await pool.run_sync(tasks.pid)
            os.kill(victim, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                event, answer = EventFd(7), []

                async def ask() -> None:
                    answer.append(await pool.run_sync(tasks.read_events, [event]))

                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(victim, signal.SIGKILL)
            event.close()
            assert answer == [[7]]
            assert await pool.run_sync(tasks.pid) != victim


async def start_and_cancel(pool: Pool, task: Any, *args: Any) -> PidFd:
    """Cancel a task once it runs; return the worker it ran on, when the cancelled call has returned."""
    async with Doorbell() as bell:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, task, bell._event, *args)
                await bell.wait()
                (seat,) = [seat for seat in pool._dispatcher._seats.values() if seat.calls]
                process = PidFd(seat.worker.pid)
                scope.cancel()
        assert scope.cancelled_caught
    return process


async def test_a_cancelled_call_is_interrupted_and_its_worker_stays(pool: Pool) -> None:
    with EventFd() as cleaned_up, await start_and_cancel(pool, tasks.clean_up, cleaned_up) as worker:
        assert cleaned_up.read() == 1
        assert not worker.has_exited()
        assert worker.pid in {await pool.run_sync(tasks.pid) for _ in range(4)}


@pytest.mark.parametrize("task", [tasks.ring_and_spin_in_c, tasks.ring_and_refuse])
async def test_a_task_that_cannot_be_interrupted_is_killed_after_its_grace(pool: Pool, task: Any) -> None:
    with await start_and_cancel(pool.options(grace_period=0.05), task) as worker:
        assert worker.has_exited()
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_call_can_be_cancelled_by_killing_its_worker(pool: Pool) -> None:
    with EventFd() as cleaned_up:
        with await start_and_cancel(pool.options(on_cancel="kill"), tasks.clean_up, cleaned_up) as worker:
            assert worker.has_exited()
        with pytest.raises(BlockingIOError):
            cleaned_up.read()


async def test_a_call_that_may_not_be_cancelled_returns_its_result(pool: Pool) -> None:
    async with Doorbell() as bell:
        with EventFd() as go_on, trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    results.append(
                        await pool.options(on_cancel="wait").run_sync(tasks.ring_and_wait, bell._event, go_on)
                    )

                results: list[int] = []
                nursery.start_soon(wait)
                await bell.wait()
                scope.cancel()
                go_on.write(5)
        assert results == [5]


async def test_an_interrupt_that_was_meant_for_an_earlier_call_hits_nothing(pool: Pool) -> None:
    for number in range(200):
        with trio.move_on_after(0) as scope:
            scope.cancel()
            await pool.run_sync(tasks.add, number)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, tasks.add, number)
                nursery.start_soon(pool.run_sync, tasks.add, number)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                scope.cancel()
        assert await pool.run_sync(tasks.add, number) == number + 1


async def test_ctrl_c_between_and_during_calls_is_left_to_the_supervisor(pool: Pool) -> None:
    assert await pool.run_sync(tasks.interrupt_self) == "went on"
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_call_declared_repeatable_is_run_again(pool: Pool) -> None:
    with MemFd(size=8) as memory:
        assert await pool.options(retries=2).run_sync(tasks.die_until, memory, 2) == 2
        with pytest.raises(WorkerDied):
            await pool.options(retries=1).run_sync(tasks.die_until, memory, 9)
        with memory.map() as view:
            assert view[0] == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_cancel": "ask"}, "on_cancel is 'ask'"),
        ({"grace_period": -1}, "cannot be negative"),
        ({"retries": -1}, "retries is -1"),
    ],
)
async def test_options_that_make_no_sense_are_refused(pool: Pool, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pool.options(**options)


async def test_a_call_sent_ahead_of_a_long_one_runs_elsewhere() -> None:
    with trio.fail_after(60):
        async with open_pool(2) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
            # Short calls, until the pool believes that all are.
            for number in range(60):
                await pool.run_sync(tasks.add, number)
            assert pool._dispatcher._average_seconds < 0.002
            answers = []

            async def short(number: int) -> None:
                answers.append(await pool.run_sync(tasks.add, number))

            nursery.start_soon(pool.run_sync, tasks.ring_and_hang, bell._event)
            await bell.wait()
            async with trio.open_nursery() as others:
                for number in range(100):
                    others.start_soon(short, number)
            assert sorted(answers) == list(range(1, 101))
            nursery.cancel_scope.cancel()


async def test_cancelling_a_call_that_waits_takes_nothing_away() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, tasks.ring_and_hang, bell._event)
            await bell.wait()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as waiting:
                    for _ in range(1000):
                        waiting.start_soon(pool.run_sync, tasks.pid)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert not pool._dispatcher.waiting
            nursery.cancel_scope.cancel()


async def test_arguments_that_cannot_be_pickled_fail_in_the_caller(pool: Pool) -> None:
    with pytest.raises(TypeError, match="generator"):
        await pool.run_sync(tasks.add, (number for number in [1]))
    with pytest.raises(TypeError, match="int cannot be called"):
        await pool.run_sync(3)
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        await pool.run_sync(tasks.take, closed)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_function_that_workers_cannot_import_fails_in_the_caller(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises((pickle.PicklingError, AttributeError)) as caught:
        await pool.run_sync(lambda: 1)
    assert "fdpool[cloudpickle]" in caught.value.__notes__[0]


async def test_a_closure_travels_with_cloudpickle(pool: Pool) -> None:
    pytest.importorskip("cloudpickle")
    step = 5
    assert await pool.run_sync(lambda number: number + step, 1) == 6


async def test_handles_nested_in_a_dict_work_in_the_worker(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, EventFd() as event:
        with MemFd.from_bytes(b"\x07 is the first byte") as memfd:
            handles = {"listener": listener, "event": event, "nested": [{"memfd": memfd}]}
            client = socket.create_connection(listener.getsockname())
            assert await pool.run_sync(tasks.use_handles, handles) == b"\x07 is the first byte"
            with client:
                assert client.recv(100) == b"\x07 is the first byte"
            assert event.read() == 7
            assert listener.fileno() >= 0


async def test_a_connected_socket_comes_back_as_a_result(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = await pool.run_sync(tasks.connect, listener.getsockname())
        peer, _ = listener.accept()
        with sock, peer:
            sock.sendall(b"hello")
            assert peer.recv(5) == b"hello"


@pytest.mark.parametrize("handles", [1, 253, 254, 600])
async def test_any_number_of_handles_travels_both_ways(pool: Pool, handles: int) -> None:
    events = await pool.run_sync(tasks.make_handles, handles)
    assert [event.fileno() >= 0 for event in events] == [True] * handles
    assert await pool.run_sync(tasks.read_events, events[1:]) == list(range(1, handles))
    for event in events:
        event.close()


async def test_handles_of_an_answer_that_comes_as_its_call_is_cancelled_are_closed() -> None:
    async def make(pool: Pool, gate: EventFd) -> None:
        for event in await pool.run_sync(tasks.make_handles_when, gate, 3):
            event.close()

    async def cancel_when(ready: EventFd, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(ready)
        scope.cancel()

    with trio.fail_after(60):
        async with open_pool(1) as pool:
            await pool.run_sync(tasks.pid)
            (worker,) = pool._supervisor.workers
            for _ in range(20):
                with EventFd() as gate, EventFd() as ready, trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(make, pool, gate)
                        nursery.start_soon(cancel_when, ready, scope)
                        await trio.testing.wait_all_tasks_blocked()
                        gate.write()
                        # Both the answer and the reason to cancel are there when trio looks again, in either order.
                        select.select([worker.channel], [], [])
                        ready.write()


async def test_what_is_given_is_closed_here_and_what_is_lent_is_not(pool: Pool) -> None:
    left, right = socket.socketpair()
    with left:
        await pool.run_sync(tasks.take, fdpool.give(right))
        assert right.fileno() == -1
        # Both copies are closed now, the one over there because the task did not keep it.
        assert left.recv(1) == b""


async def test_a_given_handle_is_closed_here_while_the_task_still_runs(pool: Pool) -> None:
    left, right = socket.socketpair()
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, tasks.read_until_end, fdpool.give(right), bell._event)
        await bell.wait()
        assert right.fileno() == -1
        nursery.cancel_scope.cancel()
    left.close()


async def test_handles_that_a_task_forgets_are_closed_by_the_worker() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            with EventFd() as event:
                await pool.run_sync(tasks.take, [event] * 3)
                before = await pool.run_sync(tasks.descriptor_total)
                for _ in range(20):
                    await pool.run_sync(tasks.take, [event] * 3)
                    (made,) = await pool.run_sync(tasks.make_handles, 1)
                    made.close()
                assert await pool.run_sync(tasks.descriptor_total) == before


async def test_arrays_arrive_equal_and_writable_and_the_original_is_untouched(pool: Pool) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000.0)
    assert await pool.run_sync(tasks.describe, array) == ((1_000_000,), "<f8", True, array.sum())
    doubled = await pool.run_sync(tasks.double_in_place, array)
    assert (doubled == array * 2).all()
    assert array[1] == 1.0
    doubled[0] = 5.0
    del doubled
    assert pool.memory_statistics().used_bytes == 0


async def test_big_bytes_travel_at_any_depth(pool: Pool) -> None:
    big = os.urandom(3 << 20)
    assert await pool.run_sync(tasks.add, {"a": [big]}["a"], [bytearray(big)]) == [big, bytearray(big)]


async def test_the_calls_of_a_closed_pool_say_so() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            pass
        with pytest.raises(trio.ClosedResourceError, match="the pool was closed"):
            await pool.run_sync(tasks.pid)


async def test_calls_under_way_end_when_the_pool_is_closed() -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, Doorbell() as bell:
            async with open_pool(1, grace_period=0) as pool:
                failures = []

                async def hang() -> None:
                    with pytest.raises(trio.ClosedResourceError) as caught:
                        await pool.run_sync(tasks.ring_and_hang, bell._event)
                    failures.append(caught.value)

                nursery.start_soon(hang)
                nursery.start_soon(hang)
                await bell.wait()
    assert len(failures) == 2
    assert failures[0] is not failures[1]


async def test_an_error_in_the_block_leaves_it_bare_and_no_worker_behind() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_pool(2):
            raise KeyError("mine")
    assert not children()


async def test_closing_takes_as_long_as_one_worker_takes() -> None:
    async with open_pool(8) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(pool.run_sync, tasks.pid)
    assert not children()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"workers": 0}, "workers is 0: a pool needs at least 1"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 1, "grace_period": -1.0}, "cannot be negative"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        async with open_pool(**arguments):
            pass


async def test_workers_that_cannot_start_break_the_pool_with_the_reasons(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    patience = fdpool.Restart(intensity=2, backoff=fdpool.Backoff(first=0.01))
    with trio.fail_after(60):
        async with open_pool(1, restart=patience) as pool:
            for _ in range(2):
                with pytest.raises(PoolBroken, match="died 3 times within 10 seconds") as caught:
                    await pool.run_sync(tasks.pid)
                assert len(caught.value.exits) == 3
                early = {"exec": "before it was ready", "zygote": "while it loaded the interpreter"}[start]
                assert f"exited with code 1 {early}" in str(caught.value)


async def test_an_interpreter_that_is_not_there_breaks_the_pool_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with trio.fail_after(60):
        async with open_pool(1, restart=fdpool.Restart(intensity=0)) as pool:
            with pytest.raises(PoolBroken, match="the interpreter /no/such/python cannot be run"):
                await pool.run_sync(tasks.pid)


async def test_calls_that_kill_their_workers_never_break_the_pool() -> None:
    with trio.fail_after(60):
        async with open_pool(1, restart=fdpool.Restart(intensity=0)) as pool:
            for _ in range(4):
                with pytest.raises(WorkerDied):
                    await pool.run_sync(tasks.kill_self)
            assert await pool.run_sync(tasks.add, 1) == 2


@pytest.mark.parametrize("garbage", [b"", b"x", b"\x01" + bytes(200), os.urandom(100)])
async def test_garbage_in_the_channel_fails_its_call_and_costs_the_worker(pool: Pool, garbage: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        await pool.run_sync(tasks.write_garbage, garbage)
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_worker_without_its_channel_fails_its_call(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerDied, match="exited with code 70 while running"):
        await pool.run_sync(tasks.close_channel)
    assert "the channel to its supervisor is lost" in capfd.readouterr().err
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_worker_at_its_descriptor_limit_fails_the_right_call() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            await pool.run_sync(tasks.limit_descriptors, 64)
            events = [EventFd(1) for _ in range(300)]
            for number in (64, 300):
                with pytest.raises(FdLimitError, match="arrive"):
                    await pool.run_sync(tasks.take, events[:number])
            assert await pool.run_sync(tasks.read_events, events[:10]) == [1] * 10
            for event in events:
                event.close()
            with pytest.raises(OSError, match="Too many open files"):
                await pool.run_sync(tasks.make_handles, 64)
            assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_supervisor_at_its_descriptor_limit_fails_the_right_call(pool: Pool) -> None:
    assert await pool.run_sync(tasks.add, 1) == 2
    with limited_descriptors(64):
        with pytest.raises(FdLimitError, match="arrive") as caught:
            await pool.run_sync(tasks.make_handles, 64)
        assert caught.value.in_use <= caught.value.limit
        assert await pool.run_sync(tasks.add, 1) == 2


@contextmanager
def limited_descriptors(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Async functions.


async def test_an_async_function_runs_in_the_trio_loop_of_a_worker(pool: Pool) -> None:
    assert await pool.run(tasks.async_add, 40, right=2) == 42
    with pytest.raises(ZeroDivisionError) as caught:
        await pool.run(tasks.async_divide, 1, 0)
    assert "in async_divide" in "".join(traceback.format_exception(caught.value))


async def test_async_calls_run_side_by_side_in_one_worker(pool: Pool) -> None:
    """Each waits for the next one to ring: one after the other they would never end."""
    bells = [EventFd() for _ in range(50)]
    pids = set()

    async def link(number: int) -> None:
        pids.add(await pool.run(tasks.wait_and_pass_on, bells[number], bells[number + 1]))

    async with trio.open_nursery() as nursery:
        for number in range(49):
            nursery.start_soon(link, number)
        bells[0].write()
    assert bells[-1].read() == 1
    assert len(pids) == 1
    for bell in bells:
        bell.close()


async def test_plain_and_async_calls_mix(pool: Pool) -> None:
    results = []

    async def one(number: int) -> None:
        if number % 2:
            results.append(await pool.run(tasks.async_add, number))
        else:
            results.append(await pool.run_sync(tasks.add, number))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    assert sorted(results) == list(range(1, 201))


async def test_a_plain_call_runs_beside_async_ones_where_there_is_only_one_worker() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, tasks.async_ring_and_hang, bell._event, bell._event)
            await bell.wait()
            assert await pool.run_sync(tasks.add, 1) == 2
            nursery.cancel_scope.cancel()


async def test_cancelling_an_async_call_cancels_its_scope_and_no_other(pool: Pool) -> None:
    with EventFd() as cleaned_up, EventFd() as second_cleaned_up:
        async with Doorbell() as bell, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, tasks.async_ring_and_hang, bell._event, second_cleaned_up)
            await bell.wait()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(pool.run, tasks.async_ring_and_hang, bell._event, cleaned_up)
                    await bell.wait()
                    scope.cancel()
            assert cleaned_up.read() == 1
            with pytest.raises(BlockingIOError):
                second_cleaned_up.read()
            assert await pool.run(tasks.async_add, 1) == 2
            nursery.cancel_scope.cancel()
        assert second_cleaned_up.read() == 1


async def test_closing_the_pool_cancels_the_async_calls_that_are_left() -> None:
    with trio.fail_after(60), EventFd() as cleaned_up:
        async with trio.open_nursery() as nursery, Doorbell() as bell:
            async with open_pool(1, grace_period=0) as pool:

                async def hang() -> None:
                    with pytest.raises(trio.ClosedResourceError, match="the pool was closed"):
                        await pool.run(tasks.async_ring_and_hang, bell._event, cleaned_up)

                nursery.start_soon(hang)
                await bell.wait()
            assert cleaned_up.read() == 1


async def test_async_calls_may_end_within_the_grace_of_a_pool_that_is_closed() -> None:
    with trio.fail_after(60), EventFd() as first, EventFd() as second:
        async with trio.open_nursery() as nursery:
            async with open_pool(1, grace_period=30) as pool:
                nursery.start_soon(pool.run, tasks.wait_and_pass_on, first, second)
                await pool.run(tasks.async_add, 1)
                (worker,) = pool._supervisor.workers
                nursery.start_soon(ring_once_asked_to_stop, worker, first)
        assert second.read() == 1


async def ring_once_asked_to_stop(worker: WorkerProcess, event: EventFd) -> None:
    while not worker._is_stopping:  # noqa: ASYNC110 - nobody rings when it is
        await trio.sleep(0.001)
    event.write()


async def test_a_worker_that_dies_fails_the_async_calls_it_had_received(pool: Pool) -> None:
    async with Doorbell() as bell:
        deaths = []

        async def hang() -> None:
            with pytest.raises(WorkerDied) as caught:
                await pool.run(tasks.async_ring_and_hang, bell._event, bell._event)
            deaths.append(caught.value.pid)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang)
            nursery.start_soon(hang)
            rung = 0
            while rung < 2:
                rung += await bell.wait()
            (host,) = [seat.worker for seat in pool._dispatcher._seats.values() if seat.hosted]
            host.kill()
    assert deaths == [host.pid] * 2
    assert await pool.run(tasks.async_add, 1) == 2


async def test_async_and_plain_functions_are_told_apart(pool: Pool) -> None:
    with pytest.raises(TypeError, match=r"async_add is an async function: call it with run"):
        await pool.run_sync(tasks.async_add, 1)
    with pytest.raises(TypeError, match="returned a int, not an awaitable: call it with run_sync"):
        await pool.run(tasks.add, 1)


async def test_a_function_may_open_a_pool_in_its_worker(pool: Pool) -> None:
    assert await pool.run(tasks.use_a_pool, 5) == 6
    assert await pool.run_sync(tasks.use_a_pool_of_its_own, 5) == 6


async def test_a_timeout_that_sockets_have_by_default_changes_nothing() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with trio.fail_after(20):
            async with open_pool(1) as pool:
                await pool.run_sync(socket.setdefaulttimeout, 30)
                assert await pool.run_sync(tasks.add, 1) == 2
                assert await pool.run(tasks.async_add, 1) == 2
    finally:
        socket.setdefaulttimeout(before)
