"""End-to-end tests of who runs what: workers set aside, how long workers stay, and the account of it all."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from fdpool import Doorbell, EventFd, Pool, WorkerDied, allocate, open_pool
from fdpool.dispatch import OVERDUE_SECONDS
from tests.support import tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fdpool import Worker
    from fdpool.mapping import Results


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


# Workers set aside.


async def test_calls_of_a_worker_set_aside_all_run_there_and_find_what_they_left(pool: Pool) -> None:
    async with pool.worker() as worker:
        assert await worker.run_sync(tasks.pid) == worker.pid
        await worker.run_sync(tasks.set_state, "left")
        assert await worker.run_sync(tasks.get_state, 0) == "left"
        assert await worker.run(tasks.async_pid) == worker.pid
    assert worker.pid is None


async def test_nobody_elses_calls_run_on_a_worker_set_aside(pool: Pool) -> None:
    pids = []

    async def one() -> None:
        pids.append(await pool.run_sync(tasks.pid))

    async with pool.worker() as worker:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
                nursery.start_soon(worker.run_sync, tasks.add, 1)
        assert len(pids) == 100
        assert worker.pid not in pids


async def test_its_calls_wait_for_one_another_in_their_order(pool: Pool) -> None:
    done = []

    async def one(number: int) -> None:
        done.append(await worker.run_sync(tasks.add, number, 0))

    async with pool.worker() as worker, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
            await wait_all_tasks_blocked()
    assert done == list(range(50))


async def test_async_and_plain_calls_run_beside_each_other_on_it(pool: Pool) -> None:
    async with pool.worker() as worker, Doorbell() as bell, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, tasks.async_ring_and_hang, bell._event, bell._event)
        await bell.wait()
        assert await worker.run_sync(tasks.pid) == worker.pid
        nursery.cancel_scope.cancel()


async def test_with_all_workers_set_aside_the_others_wait(pool: Pool) -> None:
    async with trio.open_nursery() as nursery:
        async with pool.worker() as first, pool.worker() as second:
            assert first.pid != second.pid
            with trio.move_on_after(0.05) as scope:
                await pool.run_sync(tasks.pid)
            assert scope.cancelled_caught
            nursery.start_soon(pool.run_sync, tasks.pid)
            await wait_all_tasks_blocked()
            assert pool.statistics().queued == 1
    assert pool.statistics().calls.returned == 1


async def test_a_wish_for_a_worker_waits_in_line_and_is_not_starved_by_calls(pool: Pool) -> None:
    keeps_on = True

    async def call_on_and_on() -> None:
        while keeps_on:
            await pool.run_sync(tasks.add, 1)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(call_on_and_on)
        for _ in range(10):
            async with pool.worker() as worker:
                assert await worker.run_sync(tasks.pid) == worker.pid
        keeps_on = False


async def test_giving_up_a_wish_lets_the_next_in_line_go_on(pool: Pool) -> None:
    async with pool.worker(), pool.worker(), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            async with pool.worker():
                pytest.fail("there is no third worker")
        assert scope.cancelled_caught
    assert await pool.run_sync(tasks.add, 1) == 2


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_dead_worker_set_aside_fails_its_calls_and_every_later_one(pool: Pool) -> None:
    async with pool.worker() as worker:
        dead = worker.pid
        deaths: list[WorkerDied] = []

        async def call() -> None:
            with pytest.raises(WorkerDied) as caught:
                await worker.options(retries=3).run_sync(tasks.kill_self)
            deaths.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call)
        assert [death.pid for death in deaths] == [dead] * 3
        assert len(set(map(id, deaths))) == 3
        with pytest.raises(
            WorkerDied, match=r"was killed by SIGKILL while running .*kill_self \(this call came later;"
        ):
            await worker.run_sync(tasks.add, 1)
        assert worker.pid is None
        # The others have two workers again.
        async with pool.worker() as another:
            assert await another.run_sync(tasks.pid) == another.pid != dead
    assert await pool.run_sync(tasks.add, 1) == 2


async def test_a_worker_that_was_given_back_takes_no_calls_from_its_former_holder(pool: Pool) -> None:
    async with pool.worker() as worker:
        pass
    with pytest.raises(trio.ClosedResourceError, match="given back"):
        await worker.run_sync(tasks.add, 1)


async def test_a_call_that_outlives_the_block_ends_where_it_runs(pool: Pool) -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        go_on = EventFd()
        async with pool.worker() as worker:
            nursery.start_soon(worker.run_sync, tasks.ring_and_stay, bell._event, go_on)
            await bell.wait()
        assert await pool.run_sync(tasks.add, 1) == 2
        go_on.write()
    go_on.close()
    assert pool.statistics().calls.returned == 2


async def test_cancelling_the_block_stops_its_calls_and_gives_the_worker_back(pool: Pool) -> None:
    async with Doorbell() as bell:
        with trio.CancelScope() as scope:
            async with pool.worker() as worker, trio.open_nursery() as nursery:
                nursery.start_soon(worker.run_sync, tasks.ring_and_hang, bell._event)
                await bell.wait()
                scope.cancel()
        assert scope.cancelled_caught
    pids = set()
    async with pool.worker() as first, pool.worker() as second:
        pids = {first.pid, second.pid}
        assert None not in pids


async def test_closing_the_pool_ends_the_wait_for_a_worker_and_the_use_of_one() -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with open_pool(1) as pool:
                held = await nursery.start(_hold, pool)
                nursery.start_soon(_wish_in_vain, pool)
                await wait_all_tasks_blocked()
            with pytest.raises(trio.ClosedResourceError):
                await held.run_sync(tasks.add, 1)
            with pytest.raises(trio.ClosedResourceError):
                async with pool.worker():
                    pytest.fail("there is none")
            nursery.cancel_scope.cancel()


async def _hold(pool: Pool, task_status: trio.TaskStatus[Worker] = trio.TASK_STATUS_IGNORED) -> None:
    async with pool.worker() as worker:
        task_status.started(worker)
        await trio.sleep_forever()


async def _wish_in_vain(pool: Pool) -> None:
    with pytest.raises(trio.ClosedResourceError):
        async with pool.worker():
            pytest.fail("there is none")


async def test_a_worker_that_dies_before_its_holder_wakes_is_replaced_by_the_next() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            await pool.run_sync(tasks.pid)
            first, second = pool._dispatcher.reserve(), pool._dispatcher.reserve()
            granted = first.worker
            assert granted is not None
            granted.send_signal(signal.SIGKILL)
            while first.worker is granted:
                await trio.lowlevel.checkpoint()
            await first.granted.wait()
            assert first.worker is not None
            assert not second.granted.is_set()
            for reservation in (first, second):
                pool._dispatcher.give_back(reservation)


async def test_many_holders_take_turns() -> None:
    turns: list[int | None] = []

    async def hold(pool: Pool) -> None:
        async with pool.worker() as worker:
            turns.append(await worker.run_sync(tasks.pid))
            assert turns[-1] == worker.pid

    with trio.fail_after(60):
        async with open_pool(3) as pool, trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(hold, pool)
    assert len(turns) == 100


# Order.


async def test_calls_are_sent_in_the_order_in_which_they_were_made(pool: Pool) -> None:
    with pool.events() as events:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(pool.run_sync, tasks.add, number)
    told = [event async for event in events]
    queued = [event.call for event in told if event.name == "call.queued"]
    first_sent = list(dict.fromkeys(event.call for event in told if event.name == "call.sent"))
    assert first_sent == queued


async def test_an_endless_map_keeps_another_task_waiting_for_its_own_few_calls_only(pool: Pool) -> None:
    async with pool.map_sync(tasks.add, itertools.count(), chunksize=1, buffer=6) as results:
        for _ in range(20):
            await anext(results)
        # It has as many calls under way as it may, and goes on as soon as it is read.
        with pool.events() as events:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_on, results, nursery.cancel_scope)
                for _ in range(50):
                    assert await pool.run_sync(tasks.pid)
                nursery.cancel_scope.cancel()
    sent: set[int | None] = set()
    before: list[int] = []
    async for event in events:
        is_own = event.function == "tests.support.tasks.pid"
        if event.name == "call.queued" and is_own:
            sent.clear()
        elif event.name == "call.sent":
            # One that was taken back out of a queue is sent again, and is not counted again.
            if is_own and event.call not in sent:
                before.append(len(sent))
            sent.add(event.call)
    assert len(before) >= 50
    assert max(before) <= 6


async def _read_on(results: Results[int], scope: trio.CancelScope) -> None:
    async for _ in results:
        if scope.cancel_called:
            return


# Calls sent ahead.


async def test_nothing_is_sent_ahead_to_a_worker_whose_call_takes_long(pool: Pool) -> None:
    while pool.statistics().states != {"ready": 2}:
        await wait_all_tasks_blocked(0.01)
    for _ in range(50):
        # Short calls, as the average goes, so that sending ahead would pay.
        await pool.run_sync(tasks.add, 1)
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await pool.run_sync(tasks.add, number))

    with EventFd() as go_on:
        async with Doorbell() as bell, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, tasks.ring_and_stay, bell._event, go_on)
            await bell.wait()
            await trio.sleep(2 * OVERDUE_SECONDS)
            with pool.events() as events:
                async with trio.open_nursery() as calls:
                    for number in range(100):
                        calls.start_soon(one, number)
            go_on.write()
        assert sorted(results) == list(range(1, 101))
        sent = [event.call async for event in events if event.name == "call.sent"]
        assert len(sent) == len(set(sent)) == 100


@asynccontextmanager
async def stopped_worker(pool: Pool) -> AsyncIterator[int]:
    """Keep the one worker from receiving anything while the block runs; calls count as short ones, however long."""
    pid = await pool.run_sync(tasks.pid)
    os.kill(pid, signal.SIGSTOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fdpool.dispatch.OVERDUE_SECONDS", 1000.0)
        pool._dispatcher._average_seconds = 0.0
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGCONT)


async def wait_sent_ahead(pool: Pool) -> None:
    while not pool.statistics().workers[0].sent_ahead:
        await trio.lowlevel.checkpoint()


async def test_two_calls_cancelled_before_they_were_received_cost_no_grace_and_no_worker() -> None:
    with trio.fail_after(60):
        async with open_pool(1, grace_period=30) as pool:
            worker = await pool.run_sync(tasks.pid)
            with trio.fail_after(20):
                async with stopped_worker(pool) as pid:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(pool.run_sync, tasks.add, 1)
                        nursery.start_soon(pool.run_sync, tasks.add, 2)
                        await wait_sent_ahead(pool)
                        nursery.cancel_scope.cancel()
                        os.kill(pid, signal.SIGCONT)
                assert await pool.run_sync(tasks.pid) == worker


async def test_a_call_taken_back_from_a_worker_that_was_given_back_ends() -> None:
    refused = []

    async def call(worker: Worker) -> None:
        with pytest.raises(trio.ClosedResourceError, match="given back to its pool"):
            await worker.run_sync(tasks.add, 1)
        refused.append(True)

    with trio.fail_after(60):
        async with open_pool(1) as pool, stopped_worker(pool), trio.open_nursery() as nursery:
            async with pool.worker() as worker:
                nursery.start_soon(call, worker)
                await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as others:
                    others.start_soon(pool.run_sync, tasks.add, 1)
                    await wait_sent_ahead(pool)
                    scope.cancel()
    assert refused


# Those behind in the line.


@pytest.mark.parametrize("head", ["wish", "stream", "stream of a worker"])
async def test_what_stands_behind_a_cancelled_call_begins_if_it_can(head: str) -> None:
    async def wish(caller: Any) -> None:
        async with caller.worker():
            raise AssertionError("there was none")

    async def stream(caller: Pool | Worker) -> None:
        async with caller.stream(range, 3) as items:
            await anext(items)

    async def check(caller: Pool | Worker) -> None:
        async with Doorbell() as bell, trio.open_nursery() as nursery:
            with EventFd() as go_on:
                nursery.start_soon(caller.run, tasks.async_ring_and_stay, bell._event, go_on)
                await bell.wait()
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as behind:
                        if head == "wish":
                            behind.start_soon(wish, caller)
                        else:
                            behind.start_soon(stream, caller)
                        await wait_all_tasks_blocked()
                        nursery.start_soon(ring, caller, bell)
                        await wait_all_tasks_blocked()
                        scope.cancel()
                await bell.wait()
                go_on.write()

    async def ring(caller: Pool | Worker, bell: Doorbell) -> None:
        await caller.run(tasks.async_ring, bell._event)

    with trio.fail_after(30):
        async with open_pool(1) as pool:
            if head == "stream of a worker":
                async with pool.worker() as worker:
                    await check(worker)
            else:
                await check(pool)


async def test_thousands_of_calls_that_cannot_be_sent_fail_one_after_the_other() -> None:
    failed = []

    left, right = socket.socketpair()
    with trio.fail_after(60), right:
        async with open_pool(1) as pool, Doorbell() as bell, trio.open_nursery() as nursery:

            async def one() -> None:
                with pytest.raises(ValueError, match="closed"):
                    await pool.run_sync(tasks.take, left)
                failed.append(True)

            with EventFd() as go_on:
                nursery.start_soon(pool.run_sync, tasks.ring_and_stay, bell._event, go_on)
                await bell.wait()
                for _ in range(2000):
                    nursery.start_soon(one)
                await wait_all_tasks_blocked()
                left.close()
                go_on.write()
    assert len(failed) == 2000


async def test_async_calls_that_were_never_sent_run_elsewhere_when_their_worker_dies() -> None:
    results = []

    with trio.fail_after(60):
        async with open_pool(1) as pool:

            async def one(number: int) -> None:
                results.append(len(await pool.run(tasks.async_add, bytes(30_000), bytes(number))))

            assert await pool.run(tasks.async_add, 1) == 2
            async with trio.open_nursery() as nursery:
                worker = await pool.run_sync(tasks.pid)
                os.kill(worker, signal.SIGSTOP)
                for number in range(60):
                    nursery.start_soon(one, number)
                await wait_all_tasks_blocked()
                os.kill(worker, signal.SIGKILL)
    assert sorted(results) == list(range(30_000, 30_060))


async def test_two_tasks_may_wait_for_the_same_events(pool: Pool) -> None:
    with pool.events() as events:

        async def read() -> None:
            async for _ in events:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            events.close()


# How long workers stay.


async def test_retiring_a_worker_lets_its_async_calls_finish() -> None:
    with trio.fail_after(60):
        async with open_pool(1, max_tasks_per_worker=1) as pool, Doorbell() as bell:
            with EventFd() as go_on:
                pids: list[int] = []

                async def wait() -> None:
                    pids.append(await pool.run(tasks.async_ring_and_stay, bell._event, go_on))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await bell.wait()
                    # It has done its share with this one, while the other still runs.
                    assert await pool.run(tasks.async_add, 1) == 2
                    go_on.write()
                assert await pool.run_sync(tasks.pid) not in pids


async def test_a_pool_that_closes_lets_async_calls_finish() -> None:
    results: list[int] = []

    async def wait(pool: Pool, bell: Doorbell, go_on: EventFd) -> None:
        results.append(await pool.run(tasks.async_ring_and_stay, bell._event, go_on))

    with trio.fail_after(60), EventFd() as go_on:
        async with Doorbell() as bell, trio.open_nursery() as nursery:
            async with open_pool(1, grace_period=30) as pool:
                nursery.start_soon(wait, pool, bell, go_on)
                await bell.wait()
                nursery.start_soon(_write_when_blocked, go_on)
    assert len(results) == 1


async def _write_when_blocked(event: EventFd) -> None:
    await wait_all_tasks_blocked(0.05)
    event.write()


async def test_a_worker_with_too_much_memory_of_its_own_is_replaced_after_its_call() -> None:
    with trio.fail_after(60):
        async with open_pool(1, max_rss=150 * 2**20) as pool:
            first = await pool.run_sync(tasks.pid)
            assert await pool.run_sync(tasks.pid) == first
            assert await pool.run_sync(tasks.keep_memory, 200 * 2**20) == first
            second = await pool.run_sync(tasks.pid)
            assert second != first
            # Memory that others have lent it does not count.
            assert await pool.run_sync(tasks.touch, allocate(200 * 2**20)) == 0
            assert await pool.run_sync(tasks.pid) == second
            assert pool.statistics().crashed == 0


async def test_idle_workers_are_let_go_and_come_back_when_there_is_something_to_do() -> None:
    with trio.fail_after(60):
        async with open_pool(3, idle_timeout=0.05) as pool:
            with pool.events() as events:
                gone = 0
                async for event in events:
                    gone += event.name == "worker.exited"
                    if gone == 3:
                        break
            await wait_all_tasks_blocked()
            statistics = pool.statistics()
            assert (statistics.size, statistics.states, statistics.workers) == (3, {"resting": 3}, ())
            assert await pool.run_sync(tasks.add, 1) == 2
            assert sum(pool.statistics().states.values()) == 3
            results = []

            async def one(number: int) -> None:
                results.append(await pool.run_sync(tasks.add, number))

            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(one, number)
            assert sorted(results) == list(range(1, 51))
            assert pool.statistics().crashed == 0


async def test_one_call_wakes_one_resting_place_and_no_more() -> None:
    with trio.fail_after(60):
        async with open_pool(3, idle_timeout=0.05) as pool, Doorbell() as bell:
            while pool.statistics().states != {"resting": 3}:
                await _next_exit(pool)
            with EventFd() as go_on:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pool.run_sync, tasks.ring_and_stay, bell._event, go_on)
                    await bell.wait()
                    assert pool.statistics().states == {"ready": 1, "resting": 2}
                    go_on.write()


async def _next_exit(pool: Pool) -> None:
    with pool.events() as events, trio.move_on_after(0.2):
        async for event in events:
            if event.name == "worker.exited":
                await wait_all_tasks_blocked()
                return


async def test_a_worker_that_is_set_aside_is_not_idle() -> None:
    with trio.fail_after(60):
        async with open_pool(2, idle_timeout=0.05) as pool, pool.worker() as worker:
            with pool.events() as events:
                async for event in events:
                    if event.name == "worker.exited":
                        assert event.pid != worker.pid
                        break
            assert await worker.run_sync(tasks.pid) == worker.pid


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"idle_timeout": 0}, "idle_timeout is 0 seconds: it must be more than 0"),
        ({"max_rss": 0}, "max_rss is 0 bytes"),
        ({"max_tasks_per_worker": 0}, "max_tasks_per_worker is 0"),
    ],
)
async def test_impossible_tenures_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        async with open_pool(1, **options):
            pytest.fail("it opened")


# The account.


async def test_statistics_say_how_calls_ended_and_who_does_what(pool: Pool) -> None:
    await pool.run_sync(tasks.add, 1)
    with pytest.raises(ValueError, match="of the worker"):
        await pool.run_sync(tasks.raise_error, "value")
    with pytest.raises(WorkerDied):
        await pool.run_sync(tasks.kill_self)
    with pytest.raises(WorkerDied):
        await pool.options(retries=2).run_sync(tasks.kill_self)
    async with Doorbell() as bell, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pool.run_sync, tasks.ring_and_hang, bell._event)
        rung = 0
        while rung < 2:
            rung += await bell.wait()
        statistics = pool.statistics()
        assert (statistics.size, statistics.states) == (2, {"ready": 2})
        assert (statistics.queued, statistics.running, statistics.done) == (1, 2, 2)
        assert [worker.running for worker in statistics.workers] == [("tests.support.tasks.ring_and_hang",)] * 2
        assert all(worker.idle_seconds == 0 for worker in statistics.workers)
        assert "memory" not in repr(statistics)
        nursery.cancel_scope.cancel()
    calls = pool.statistics().calls
    assert (calls.returned, calls.raised, calls.died, calls.cancelled, calls.failed, calls.retried) == (
        1,
        1,
        2,
        3,
        0,
        2,
    )
    assert pool.statistics().crashed == 4
    assert pool.statistics().queued == pool.statistics().running == 0


async def test_every_call_is_in_one_count_in_the_end(pool: Pool) -> None:
    numbers = range(1, 201)

    async def one(number: int) -> None:
        with trio.move_on_after(number / 20_000 if number % 3 == 0 else 60):
            if number % 7 == 0:
                with pytest.raises(WorkerDied):
                    await pool.run_sync(tasks.kill_self)
            else:
                await pool.run_sync(tasks.add, number)

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(one, number)
    calls = pool.statistics().calls
    assert calls.returned + calls.raised + calls.cancelled + calls.died + calls.failed == len(numbers)


# Events.


async def test_events_tell_the_story_of_a_call(pool: Pool) -> None:
    with pool.events() as events:
        await pool.run_sync(tasks.add, 1)
        with pytest.raises(WorkerDied):
            await pool.run_sync(tasks.kill_self)
    told = [event async for event in events]
    of_calls = [(event.name, event.function) for event in told if event.call is not None]
    add, kill = "tests.support.tasks.add", "tests.support.tasks.kill_self"
    assert of_calls == [
        ("call.queued", add),
        ("call.sent", add),
        ("call.returned", add),
        ("call.queued", kill),
        ("call.sent", kill),
        ("call.died", kill),
    ]
    (died,) = [event for event in told if event.name == "call.died"]
    (exited,) = [event for event in told if event.name == "worker.exited"]
    assert died.pid == exited.pid
    assert "SIGKILL" in died.detail
    assert [event.time for event in told] == sorted(event.time for event in told)


async def test_events_tell_the_lives_of_the_workers() -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            events = pool.events()
            pid = await pool.run_sync(tasks.pid)
            os.kill(pid, signal.SIGKILL)
            assert await pool.run_sync(tasks.pid) != pid
        names = [(event.name, event.pid == pid) async for event in events if event.name.startswith("worker.")]
    assert [name for name, is_first in names if is_first][-1] == "worker.exited"
    assert names[-1][0] == "worker.exited"
    assert ("worker.backoff", False) in names
    assert ("worker.draining", False) in names


async def test_events_end_with_the_pool_or_when_closed_and_wake_who_waits(pool: Pool) -> None:
    events = pool.events()
    ended = False

    async def read() -> None:
        nonlocal ended
        async for _ in events:
            pass
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        events.close()
    assert ended
    with assert_checkpoints(), pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_reader_that_does_not_keep_up_is_told_what_it_missed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    while pool.statistics().states != {"ready": 2}:
        await wait_all_tasks_blocked(0.01)
    monkeypatch.setattr("fdpool.events.MOST_UNREAD", 6)
    with pool.events() as events:
        for _ in range(5):
            await pool.run_sync(tasks.add, 1)
    names = [(event.name, event.detail) async for event in events]
    assert names[0] == ("events.lost", "9 were dropped unread")
    assert [name for name, _ in names[1:]] == ["call.queued", "call.sent", "call.returned"] * 2


async def test_a_reader_that_is_forgotten_costs_nothing(pool: Pool) -> None:
    pool.events()
    assert not pool._events.is_heard


async def test_a_worker_set_aside_shows_in_the_statistics(pool: Pool) -> None:
    async def holds(worker: Worker) -> list[bool]:
        assert worker.pid is not None
        return [each.is_reserved for each in pool.statistics().workers if each.pid == worker.pid]

    async with pool.worker() as worker:
        assert await holds(worker) == [True]
    assert not any(each.is_reserved for each in pool.statistics().workers)
