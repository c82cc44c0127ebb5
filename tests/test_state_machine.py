"""End-to-end: a pool of real workers is led through random histories, and has to keep its word in each of them.

Whatever is called, cancelled, killed, stopped, shared, handed over or resized, in whatever order: every call ends once,
in a way that its marks in shared memory agree with, and nothing is left.

Some ten histories by default; FDPOOL_RACE_SECONDS makes it more, about eight for each second.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import fdpool
from fdpool import Backoff, EventFd, MemFd, Restart, WorkerDied, open_pool
from fdpool.memory.arena import arena
from tests.support import marks, tasks
from tests.support.leaks import children, open_descriptors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fdpool import Pool
    from fdpool.calls import OnCancel
    from fdpool.process.worker_process import WorkerProcess

HISTORIES = max(10, int(8 * float(os.environ.get("FDPOOL_RACE_SECONDS", "1"))))
STEPS = 30
MOST_CALLS = 10_000
SETTLE_SECONDS = 30.0

# Which of so many running things is meant: the machine takes it modulo how many there are.
which = st.integers(0, 1000)


class Sought:
    """A call that was made: what may come of it, and what did."""

    def __init__(self, number: int, expected: Any, retries: int = 0) -> None:
        self.number = number
        self.expected = expected
        self.retries = retries
        self.on_cancel: OnCancel = "interrupt"
        self.scope = trio.CancelScope()
        self.outcomes: list[Any] = []
        self.over = trio.Event()

    def end(self, outcome: Any) -> None:
        self.outcomes.append(outcome)
        self.over.set()

    def check(self, begun: int, may_have_died: bool) -> None:
        """Compare how it ended with how often it was begun."""
        (outcome,) = self.outcomes
        assert begun <= 1 + self.retries, f"{self} was begun {begun} times"
        if outcome == "cancelled":
            assert self.scope.cancel_called
            assert self.on_cancel != "wait" or begun == 0
        elif isinstance(outcome, WorkerDied):
            assert may_have_died
            assert outcome.signal == signal.SIGKILL
        else:
            assert begun >= 1, f"{self} was answered and not begun"
            if isinstance(self.expected, Exception):
                assert (type(outcome), outcome.args) == (type(self.expected), self.expected.args)
            else:
                assert outcome == self.expected

    def __repr__(self) -> str:
        return f"<call {self.number}, {self.retries} retries: {self.outcomes}>"


class Loop:
    """A thread that runs trio with a pool in it, and what is done there."""

    def __init__(self, workers: int, marks_path: str) -> None:
        self._ready = threading.Event()
        self._workers = workers
        self._marks_path = marks_path
        self.pool: Pool
        self.nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken
        self._finish: trio.Event
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="the pool's")
        self._thread.start()
        self._ready.wait()

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a plain function in the loop, and return what it returns."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def wait_for(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await an async function in the loop."""
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def close(self) -> None:
        """Close the pool, and end the thread."""
        with suppress(trio.RunFinishedError):
            self.do(self._finish.set)
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as exc:
            self.failure = exc
        finally:
            self._ready.set()

    async def _main(self) -> None:
        # Workers killed while they start or idle are no reason to give up here.
        restart = Restart(intensity=10**6, backoff=Backoff(first=0, cap=0))
        self._token = trio.lowlevel.current_trio_token()
        self._finish = trio.Event()
        async with (
            open_pool(
                self._workers,
                initializer=tasks.open_marks,
                initargs=(self._marks_path,),
                restart=restart,
                grace_period=10,
            ) as self.pool,
            trio.open_nursery() as self.nursery,
        ):
            self._ready.set()
            await self._finish.wait()


class PoolHistory(RuleBasedStateMachine):
    """The rules. What one of them starts goes on beside those that follow; `teardown` sees to the end of it all."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Sought] = []
        self.kills = 0
        self.stopped: set[WorkerProcess] = set()
        self.gates: list[EventFd] = []
        self.descriptors = open_descriptors()
        self.memory = MemFd(size=MOST_CALLS)
        self.marks = self.memory.map()
        self.loop: Loop | None = None

    @initialize(workers=st.integers(1, 3))
    def open(self, workers: int) -> None:
        self.loop = Loop(workers, f"/proc/{os.getpid()}/fd/{self.memory.fileno()}")
        self.gates.append(EventFd())
        # Otherwise most histories would be over before there was a worker.
        self.loop.wait_for(self.loop.pool.run_sync, tasks.pid)

    # Calls.

    @rule(retries=st.integers(0, 2))
    def call_that_returns_at_once(self, retries: int) -> None:
        call = self.new_call(lambda number: number, retries)
        self.start(call, partial(mark_one, call.number))

    @rule(retries=st.integers(0, 2), on_cancel=st.sampled_from(["interrupt", "kill", "wait"]))
    def call_that_waits(self, retries: int, on_cancel: Any) -> None:
        call, gate = self.new_call(lambda number: number, retries), self.gates[-1]
        call.on_cancel = on_cancel
        self.start(call, lambda pool: pool.run_sync(marks.mark_and_wait, call.number, gate))

    @rule(how_many=st.integers(2, 30))
    def calls_in_a_row(self, how_many: int) -> None:
        for _ in range(how_many):
            self.call_that_returns_at_once(retries=0)

    @rule()
    def call_that_raises(self) -> None:
        call = self.new_call(marks.Marked)
        self.start(call, lambda pool: pool.run_sync(marks.mark_and_raise, call.number))

    @rule(waits=st.booleans(), retries=st.integers(0, 1))
    def async_call(self, waits: bool, retries: int) -> None:
        call, gate = self.new_call(lambda number: number, retries), self.gates[-1]
        function = marks.async_mark_and_wait if waits else marks.async_mark
        self.start(call, lambda pool: pool.run(function, call.number, gate))

    @rule(how_many=st.integers(1, 8), ordered=st.booleans(), is_async=st.booleans())
    def map_items(self, how_many: int, ordered: bool, is_async: bool) -> None:
        items = [self.new_call(lambda number: number) for _ in range(how_many)]

        async def consume() -> None:
            numbers = [item.number for item in items]
            options: dict[str, Any] = {"ordered": ordered, "return_exceptions": True}
            calls = (
                self.pool.map(marks.async_mark_item, numbers, **options)
                if is_async
                else self.pool.map_sync(marks.mark_item, numbers, chunksize=1, **options)
            )
            async with calls as results:
                outcomes = [result async for result in results]
            if ordered:
                for item, outcome in zip(items, outcomes, strict=True):
                    item.end(outcome)
            else:
                settle_unordered(items, outcomes)

        self.do(self.nursery.start_soon, consume)

    @rule(key=st.integers(0, 3))
    def use_a_shared_object(self, key: int) -> None:
        table = {number: bytes([number]) * 100_000 for number in range(4)}
        call = self.new_call(lambda _: table[key])

        async def look_up(pool: Pool) -> Any:
            shared = await pool.share(table)
            return await pool.run_sync(marks.mark_and_look_up, call.number, shared, key)

        self.start(call, look_up)

    @rule(is_given=st.booleans())
    def trade_handles(self, is_given: bool) -> None:
        call = self.new_call(lambda _: (7, 8, b"from the worker", b"seen"))

        async def trade(pool: Pool) -> Any:
            ours, theirs = socket.socketpair()
            with ours, theirs, EventFd(7) as event:
                handed = fdpool.give(theirs) if is_given else theirs
                count, other_event, other_socket = await pool.run_sync(marks.mark_and_trade, call.number, event, handed)
                with other_event, other_socket:
                    assert theirs.fileno() == -1 or not is_given
                    return count, other_event.read(), other_socket.recv(100), ours.recv(100)

        self.start(call, trade)

    @rule(how_many=st.integers(1, 40), reads=st.integers(1, 40), with_handles=st.booleans(), is_async=st.booleans())
    def stream_items(self, how_many: int, reads: int, with_handles: bool, is_async: bool) -> None:
        """Read a stream, or the beginning of it."""
        call = self.new_call(lambda _: list(range(min(how_many, reads))))
        function: Any = marks.async_mark_and_yield if is_async else marks.mark_and_yield

        async def read(pool: Pool) -> list[int]:
            found: list[int] = []
            async with pool.stream(function, call.number, how_many, with_handles) as items:
                async for index, event in items:
                    assert index == len(found)
                    found.append(index)
                    if event is not None:
                        with event:
                            assert event.read() == index + 1
                    if len(found) == reads:
                        break
            return found

        self.start(call, read)

    @rule(how_many=st.integers(1, 4))
    def set_a_worker_aside(self, how_many: int) -> None:
        calls = [self.new_call(lambda number: number) for _ in range(how_many)]

        async def use(pool: Pool) -> None:
            async with pool.worker() as worker:
                for call in calls:
                    await self.follow(call, partial(mark_one, call.number), worker)

        self.do(self.nursery.start_soon, use, self.pool)

    # What happens to them.

    @rule(index=which)
    def cancel_a_call(self, index: int) -> None:
        running = [call for call in self.calls if not call.over.is_set()]
        if running:
            self.do(running[index % len(running)].scope.cancel)

    @rule()
    def open_the_gate(self) -> None:
        self.gates[-1].write()
        self.gates.append(EventFd())

    @rule(index=which)
    def kill_a_worker(self, index: int) -> None:
        def kill() -> None:
            workers = self.pool._supervisor.workers
            if workers:
                workers[index % len(workers)].send_signal(signal.SIGKILL)
                self.kills += 1

        self.do(kill)

    @rule(index=which)
    def stop_a_worker(self, index: int) -> None:
        def stop() -> None:
            workers = self.pool._supervisor.workers
            if workers:
                worker = workers[index % len(workers)]
                worker.send_signal(signal.SIGSTOP)
                self.stopped.add(worker)

        self.do(stop)

    @rule()
    def continue_the_stopped(self) -> None:
        def go_on() -> None:
            while self.stopped:
                self.stopped.pop().send_signal(signal.SIGCONT)

        self.do(go_on)

    @rule(workers=st.integers(1, 4))
    def resize(self, workers: int) -> None:
        self.do(self.nursery.start_soon, self.pool.resize, workers)

    @rule(milliseconds=st.integers(1, 10))
    def let_things_happen(self, milliseconds: int) -> None:
        """Let the loop run on for a while. Not a wait for anything: the moment is what is being varied."""
        assert self.loop is not None
        self.loop.wait_for(trio.sleep, milliseconds / 1000)

    @rule(milliseconds=st.integers(1, 10))
    def let_things_happen_again(self, milliseconds: int) -> None:
        """Do the same, so that it is done more often than other things."""
        self.let_things_happen(milliseconds)

    @invariant()
    def no_call_has_ended_twice(self) -> None:
        assert all(len(call.outcomes) <= 1 for call in self.calls)
        if self.loop is not None:
            assert self.loop.failure is None

    # The end.

    def teardown(self) -> None:
        try:
            if self.loop is not None:
                try:
                    self.continue_the_stopped()
                    self.open_the_gate()
                    self.loop.wait_for(self.see_that_all_is_well)
                finally:
                    self.loop.close()
                self.check_calls()
        finally:
            for gate in self.gates:
                gate.close()
            self.marks.close()
            self.memory.close()
        self.check_leaks()

    async def see_that_all_is_well(self) -> None:
        with trio.fail_after(SETTLE_SECONDS):
            for call in self.calls:
                await call.over.wait()
            size = self.pool._supervisor.size
            assert [await self.pool.run_sync(tasks.add, number) for number in range(2 * size)] == [
                number + 1 for number in range(2 * size)
            ]

    def check_calls(self) -> None:
        were_killed = self.kills > 0 or any(
            call.on_cancel == "kill" and call.scope.cancel_called for call in self.calls
        )
        for call in self.calls:
            call.check(self.marks[call.number], were_killed)

    def check_leaks(self) -> None:
        # The tracebacks of what calls raised hold what those calls were given.
        self.calls.clear()
        gc.collect()
        left = {number: name for number, name in open_descriptors().items() if self.descriptors.get(number) != name}
        assert not left, f"descriptors left open: {left}"
        assert not children()
        assert arena().statistics().used_bytes == 0

    # How the rules do it.

    @property
    def pool(self) -> Pool:
        assert self.loop is not None
        return self.loop.pool

    @property
    def nursery(self) -> trio.Nursery:
        assert self.loop is not None
        return self.loop.nursery

    def do(self, function: Callable[..., Any], *args: Any) -> None:
        assert self.loop is not None
        self.loop.do(function, *args)

    def new_call(self, expected: Callable[[int], Any], retries: int = 0) -> Sought:
        number = len(self.calls)
        call = Sought(number, expected(number), retries)
        self.calls.append(call)
        return call

    def start(self, call: Sought, make: Callable[[Pool], Awaitable[Any]]) -> None:
        self.do(self.nursery.start_soon, self.follow, call, make, self.pool)

    async def follow(self, call: Sought, make: Callable[[Pool], Awaitable[Any]], pool: Pool) -> None:
        """Make a call, and note what comes of it."""
        outcome: Any = "cancelled"
        with call.scope:
            try:
                outcome = await make(pool.options(retries=call.retries, on_cancel=call.on_cancel))
            except (WorkerDied, marks.Marked) as exc:
                outcome = exc
        call.end(outcome)


async def mark_one(number: int, pool: Pool) -> Any:
    return await pool.run_sync(marks.mark_item, number)


def settle_unordered(items: list[Sought], outcomes: list[Any]) -> None:
    """Give each item the outcome that is its own: a number says whose it is, a death does not."""
    deaths = [outcome for outcome in outcomes if isinstance(outcome, WorkerDied)]
    for item in items:
        item.end(item.number if item.number in outcomes else deaths.pop())
    assert not deaths


def test_a_pool_keeps_its_word_through_any_history() -> None:
    run_state_machine_as_test(
        PoolHistory,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            # A history cannot be repeated exactly, real processes being what they are, so there is no point in making
            # one that failed smaller.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
