"""End-to-end tests of how workers are watched, ended and limited."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from fdpool import Backoff, Doorbell, Limits, PoolBroken, Restart, WorkerDied, open_pool
from fdpool.protocol.ladder import Ladder, Step
from fdpool.protocol.lifecycle import State
from tests.support import tasks
from tests.support.leaks import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fdpool import Pool


@pytest.fixture(autouse=True, params=["exec", "zygote"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with workers made in either way."""
    made: str = request.param
    monkeypatch.setitem(open_pool.__wrapped__.__kwdefaults__, "start", made)
    return made


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """End a test that hangs."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


async def run_until_it_rings(pool: Pool, nursery: trio.Nursery, function: Callable[..., Any], bell: Doorbell) -> None:
    """Have a call started that rings; return once it runs. Its end is nobody's concern."""

    async def call() -> None:
        with pytest.raises((WorkerDied, trio.ClosedResourceError)):
            await pool.run_sync(function, bell._event)

    nursery.start_soon(call)
    await bell.wait()


# States.


async def test_the_states_of_the_places_follow_the_workers() -> None:
    async with open_pool(1) as pool:
        assert pool._supervisor.states == [State.EXITED]
        await pool.run_sync(tasks.pid)
        assert pool._supervisor.states == [State.READY]
    assert pool._supervisor.states == [State.EXITED]


async def test_a_place_that_is_given_up_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    async with open_pool(1, restart=Restart(intensity=1, backoff=Backoff(first=0.01))) as pool:
        with pytest.raises(PoolBroken):
            await pool.run_sync(tasks.pid)
        assert pool._supervisor.states == [State.FAILED]


# The ladder.


def test_the_ladder_goes_from_asking_to_signals() -> None:
    assert Ladder(drain=3, interrupt=2, terminate=1).steps == (
        (Step.DRAIN, 3),
        (Step.INTERRUPT, 2),
        (Step.TERMINATE, 1),
    )
    with pytest.raises(ValueError, match="no deadline can be negative"):
        Ladder(interrupt=-1)


async def test_a_call_may_finish_while_its_pool_closes() -> None:
    async with Doorbell() as bell, Doorbell() as leave, trio.open_nursery() as nursery:
        outcome = []

        async def call() -> None:
            outcome.append(await pool.run_sync(tasks.ring_and_leave, bell._event, leave._event))

        async with open_pool(1, grace_period=60) as pool:
            nursery.start_soon(call)
            await bell.wait()
            leave.ring()
    assert outcome == ["left"]


async def test_a_task_that_outstays_its_time_hears_sigterm() -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        async with open_pool(1, grace_period=0) as pool:
            await run_until_it_rings(pool, nursery, tasks.ring_when_terminated, bell)
        assert await bell.wait() == 7


async def test_a_stopped_worker_hears_sigterm_as_well() -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        async with open_pool(1, grace_period=0) as pool:
            await run_until_it_rings(pool, nursery, tasks.ring_when_terminated, bell)
            os.kill(pool._supervisor.workers[0].pid, signal.SIGSTOP)
        assert await bell.wait() == 7


async def test_closing_many_deaf_workers_takes_as_long_as_closing_one() -> None:
    seconds = []
    for workers in (1, 20):
        async with trio.open_nursery() as nursery, Doorbell() as bell:
            async with open_pool(workers, grace_period=0) as pool:
                for _ in range(workers):
                    await run_until_it_rings(pool, nursery, tasks.ring_and_be_deaf, bell)
                started = time.monotonic()
            seconds.append(time.monotonic() - started)
    # Two deadlines, for SIGINT and for SIGTERM, each waited for once; twenty times as many would take ten seconds.
    assert seconds[0] > 0.5
    assert seconds[1] < seconds[0] + 2
    assert not children()


async def test_cancelling_a_pool_that_closes_kills_at_once() -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_pool(1, grace_period=1000) as pool:
                await run_until_it_rings(pool, nursery, tasks.ring_and_be_deaf, bell)
                scope.cancel()
    assert not children()


# Signs of life.


async def test_a_worker_that_never_gets_ready_is_killed() -> None:
    policy = Restart(intensity=0)
    async with open_pool(1, initializer=signal.pause, ready_timeout=1.0, restart=policy) as pool:
        with pytest.raises(PoolBroken, match="it was not ready within 1 seconds"):
            await pool.run_sync(tasks.pid)


async def test_a_worker_that_holds_the_gil_and_waits_is_stuck_and_says_where() -> None:
    async with Doorbell() as bell, open_pool(1, liveness=0.4) as pool:
        with pytest.raises(WorkerDied, match="it gave no sign of life for") as caught:
            await pool.run_sync(tasks.ring_and_wait_with_the_gil, bell._event)
        assert caught.value.signal == signal.SIGKILL
        assert "in ring_and_wait_with_the_gil" in caught.value.note
        assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_worker_that_is_stopped_is_stuck() -> None:
    async with Doorbell() as bell, open_pool(1, liveness=0.4) as pool, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(WorkerDied, match=r"it was stopped for \d\.\d seconds"):
                await pool.run_sync(tasks.ring_and_hang, bell._event)

        nursery.start_soon(call)
        await bell.wait()
        os.kill(pool._supervisor.workers[0].pid, signal.SIGSTOP)


@pytest.mark.parametrize("task", [tasks.ring_and_hang, tasks.ring_and_spin_in_c])
async def test_a_worker_that_waits_or_computes_is_not_stuck(task: Any) -> None:
    async with Doorbell() as bell, open_pool(1, liveness=0.3) as pool:
        with trio.move_on_after(1.2) as scope:
            await pool.run_sync(task, bell._event)
        assert scope.cancelled_caught


async def test_the_stacks_of_all_workers_can_be_seen_while_they_hold_the_gil() -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        async with open_pool(2, grace_period=0) as pool:
            await run_until_it_rings(pool, nursery, tasks.ring_and_spin_in_c, bell)
            await run_until_it_rings(pool, nursery, tasks.ring_and_hang, bell)
            for _ in range(2):
                stacks = await pool.dump_stacks()
                assert stacks.keys() == {worker.pid for worker in pool._supervisor.workers}
                text = "".join(stacks.values())
                assert text.count("in ring_and_spin_in_c") == 1
                assert text.count("in ring_and_hang") == 1


# Limits.


@pytest.mark.parametrize(
    ("limits", "task", "error", "says"),
    [
        (
            Limits(nofile=40),
            tasks.open_many_files,
            OSError,
            "this worker may use 40 open descriptors: Limits(nofile=40)",
        ),
        (
            Limits(data=256 << 20),
            tasks.use_memory,
            MemoryError,
            f"this worker may use {256 << 20} bytes of memory: Limits(data={256 << 20})",
        ),
        (Limits(fsize=1 << 20), tasks.write_a_file, OSError, f"1048576 bytes in a file: Limits(fsize={1 << 20})"),
    ],
)
async def test_a_task_that_meets_a_limit_gets_an_error_that_names_it(
    limits: Limits, task: Any, error: type[Exception], says: str
) -> None:
    async with open_pool(1, limits=limits) as pool:
        with pytest.raises(error) as caught:
            await pool.run_sync(task)
        assert says in caught.value.__notes__[-1]
        assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_task_that_takes_too_much_processor_time_dies_of_it() -> None:
    async with open_pool(1, limits=Limits(cpu=1)) as pool:
        with pytest.raises(WorkerDied, match=r"1 seconds of processor time: Limits\(cpu=1\)") as caught:
            await pool.run_sync(pow, 7, 10**9)
        assert caught.value.signal == signal.SIGXCPU
        assert await pool.run_sync(tasks.add, 1) == 2


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="the limit data is 0: it must be at least 1"):
        Limits(data=0)


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "no"), ValueError(), OSError(errno.EMFILE, "full")])
def test_an_error_that_comes_from_no_limit_is_not_blamed_on_one(error: Exception) -> None:
    assert Limits(data=1, fsize=1).explain_error(error) is None
    assert Limits(data=1, fsize=1).explain_signal(signal.SIGXCPU) is None
