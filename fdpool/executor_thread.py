"""The thread of an executor, in which trio and the pool run, and the futures that it fulfils.

Calls come in through one queue and leave through another, and each is emptied at once, so that many calls cost trio one
pass of its loop. A call has no task of its own, unless it must wait for room or be stopped.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from fdpool.calls import name_of
from fdpool.errors import PoolBroken
from fdpool.memory.exceptions import another
from fdpool.pool import caller_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from fdpool.caller import Caller
    from fdpool.calls import Call
    from fdpool.memory.pickling import Gathered
    from fdpool.pool import Pool

T = TypeVar("T")

CALLS_AT_ONCE: Final = 64
"""How many calls are begun before others have their turn: answers, above all."""

# The states of a future in concurrent.futures have no public names.
_RUNNING: Final = "RUNNING"
_CANCELLED: Final = "CANCELLED"


class BrokenPool(PoolBroken, BrokenProcessPool):
    """Workers kept dying outside of any call; what users of the standard library catch as `BrokenProcessPool`."""


class CallFuture(Future[T]):
    """A future whose call can be cancelled while it runs, as `Pool.options(on_cancel=…)` says."""

    _stop: Callable[[], None] | None = None

    def cancel(self) -> bool:
        """Cancel the call, also if it runs; return whether it is cancelled now.

        One that runs is interrupted, and killed after the grace period; the future does not wait for that.
        """
        is_cancelled = super().cancel() or self._cancel_running()
        # None once the call has ended.
        stop = self._stop
        if is_cancelled and stop is not None:
            stop()
        return is_cancelled

    def _cancel_running(self) -> bool:
        with self._condition:
            if self._state != _RUNNING:
                return False
            # As set_running_or_notify_cancel would have done, had the cancellation come before the call began.
            self._state = "CANCELLED_AND_NOTIFIED"
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True


class ExecutorThread:
    """Begins calls and fulfils their futures. It ends when it was told to finish and no call is left."""

    def __init__(self, open_it: Callable[[], AbstractAsyncContextManager[Pool]]) -> None:
        self.broken: Callable[[], Exception] | None = None
        self._pid = os.getpid()
        self._open = open_it
        # Held while a call is begun, so that none comes after the end. An executor may be collected, and finish this,
        # in a thread that holds it.
        self._lock = threading.RLock()
        self._is_finishing = False
        self._has_started = threading.Event()
        # What stops each call, once there is something to be stopped.
        self._futures: dict[CallFuture[Any], Callable[[], object] | None] = {}
        self._submitted: deque[Callable[[], None]] = deque()
        self._is_told = False
        # What follows is used in the thread alone; the first three are made there before it says that it has started.
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._caller: Caller
        self._done: deque[tuple[CallFuture[Any], Call]] = deque()
        self._news = trio.Event()
        self._has_ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name="fdpool.Executor")
        _running.add(self)
        self._thread.start()
        self._has_started.wait()

    # To be called from any thread.

    def start(self, future: CallFuture[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Begin a call.

        Raises:
          RuntimeError: this is ending.
        """
        with self._lock:
            if self._is_finishing:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self.broken is None:
                future._stop = partial(self._soon, self._stop, future)
                # In a copy of the caller's context, whose variables the call may be asked to take along.
                context = contextvars.copy_context()
                begin = partial(context.run, self._begin, future, function, args, kwargs)
                try:
                    self._futures[future] = None
                    self._submitted.append(begin)
                    if not self._is_told:
                        self._is_told = True
                        self._soon(self._begin_submitted)
                except BaseException:
                    # Ctrl-C: nobody gets this future, so nobody waits for it. The next call tells the thread again.
                    self._is_told = False
                    self._futures.pop(future, None)
                    raise
                return
        _settle(future.set_exception, self.broken())

    def cancel_pending(self) -> None:
        """Cancel every call that has not begun."""
        with self._lock:
            futures = [future for future in self._futures if not future.running()]
        for future in futures:
            future.cancel()

    def finish(self) -> None:
        """Have the thread end once no call is left. May be called twice."""
        if os.getpid() != self._pid:
            # A forked process has the thread's lock, perhaps taken, and not the thread.
            return
        with self._lock:
            self._is_finishing = True
            if self._thread.is_alive() and hasattr(self, "_token"):
                self._soon(self._end_if_idle)

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _soon(self, function: Callable[..., object], *args: Any) -> None:
        # Once the run is over there is nothing left to begin, to cancel or to finish.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)

    # The thread.

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except Exception as exc:
            # Opening the pool failed, and what raised says why; every call is told the same.
            with self._lock:
                self.broken = self.broken or partial(another, exc)
        finally:
            with self._lock:
                futures = list(self._futures)
            for future in futures:
                assert self.broken is not None
                _settle(future.set_exception, self.broken())
            _running.discard(self)
            self._has_started.set()

    async def _main(self) -> None:
        async with self._open() as pool, trio.open_nursery() as self._nursery:
            self._caller = caller_of(pool)
            self._token = trio.lowlevel.current_trio_token()
            self._nursery.start_soon(self._fulfil)
            self._has_started.set()
            # It may have been told to finish before there was a loop to tell.
            self._end_if_idle()
            await self._has_ended.wait()
            self._nursery.cancel_scope.cancel()

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._is_finishing and not self._futures:
                self._has_ended.set()

    def _begin_submitted(self) -> None:
        self._is_told = False
        for _ in range(min(len(self._submitted), CALLS_AT_ONCE)):
            self._submitted.popleft()()
        if self._submitted:
            self._soon(self._begin_submitted)

    def _begin(self, future: CallFuture[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Begin a call: at once if there is room for what it has to copy, or else in a task that waits for room."""
        if future.cancelled():
            self._forget(future)
            return
        try:
            gathered = self._caller.gather(function, args, kwargs)
            name = name_of(function)
            has_room = not gathered.nbytes or self._caller.memory.budget.acquire_nowait(gathered.nbytes)
        except BaseException as exc:
            # Pickling runs code of theirs, here, where an exit would leave everybody else waiting.
            self._refuse(future, exc)
            return
        if has_room:
            self._submit(future, name, gathered)
        else:
            scope = trio.CancelScope()
            self._futures[future] = scope.cancel
            self._nursery.start_soon(self._begin_with_room, future, name, gathered, scope)

    async def _begin_with_room(
        self, future: CallFuture[Any], name: str, gathered: Gathered, scope: trio.CancelScope
    ) -> None:
        with scope:
            await self._caller.memory.budget.acquire(gathered.nbytes)
            if not future.cancelled():
                self._submit(future, name, gathered)
                return
            # Cancelled in the moment when there was room.
            self._caller.memory.budget.release(gathered.nbytes)
        self._forget(future)

    def _submit(self, future: CallFuture[Any], name: str, gathered: Gathered) -> None:
        """Have a call run for which there is room in the budget."""
        try:
            call = self._caller.make(name, gathered)
        except BaseException as exc:
            self._refuse(future, exc)
            return
        call.begins = future.set_running_or_notify_cancel
        call.on_done = partial(self._note_done, future, call)
        self._futures[future] = partial(self._nursery.start_soon, self._stop_call, future, call)
        self._caller.dispatcher.submit(call)

    def _note_done(self, future: CallFuture[Any], call: Call) -> None:
        # This comes in the middle of what the dispatcher does; what comes of the call is unpickled afterwards.
        self._done.append((future, call))
        self._news.set()

    async def _fulfil(self) -> None:
        while True:
            while self._done:
                self._take_outcome(*self._done.popleft())
            self._news = trio.Event()
            await self._news.wait()

    def _take_outcome(self, future: CallFuture[Any], call: Call) -> None:
        self._caller.let_go(call)
        if isinstance(call.error, PoolBroken):
            # This pool, and not one that a task has of its own.
            message, exits = call.error.args
            self.broken = lambda: BrokenPool(message, exits)
            self._refuse(future, self.broken())
            return
        try:
            result = call.outcome()
        except BaseException as exc:
            self._refuse(future, exc)
        else:
            _settle(future.set_result, result)
            self._forget(future)
        finally:
            # An exception has a traceback, and this frame in it.
            del future, call

    def _stop(self, future: CallFuture[Any]) -> None:
        """Stop the call of a future that was cancelled."""
        stop = self._futures.get(future)
        if stop is not None:
            self._futures[future] = None
            stop()

    async def _stop_call(self, future: CallFuture[Any], call: Call) -> None:
        if call.is_done or (call.options.on_cancel == "wait" and call.worker is not None):
            # Its outcome is about to be taken, or will be: what was sent to a worker is to finish then.
            return
        call.on_done = None
        await self._caller.dispatcher.stop_call(call)
        self._caller.let_go(call)
        self._forget(future)

    def _refuse(self, future: CallFuture[Any], error: BaseException) -> None:
        _settle(future.set_exception, error)
        self._forget(future)

    def _forget(self, future: CallFuture[Any]) -> None:
        """Take a future off the list whose call has ended."""
        future._stop = None
        if future._state == _CANCELLED:
            # Cancelled before it began; those who wait for it have not been told yet.
            future.set_running_or_notify_cancel()
        with self._lock:
            self._futures.pop(future, None)
            self._end_if_idle()


def _settle(settle: Callable[[Any], None], outcome: Any) -> None:
    """Set a future's outcome, unless it was cancelled a moment ago."""
    try:
        settle(outcome)
    except InvalidStateError:
        pass
    except BaseException:
        # The standard library logs what callbacks raise, but for exits; these would leave everybody else waiting.
        getLogger("concurrent.futures").exception("a callback of a future raised")


def check_interpreter() -> None:
    """Raise a `RuntimeError` if the interpreter is ending."""
    if _interpreter_is_ending:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")


_running: set[ExecutorThread] = set()
_interpreter_is_ending = False


def _finish_all() -> None:
    """End every executor's thread at the end of the interpreter, which waits for threads and would wait for ever."""
    global _interpreter_is_ending
    _interpreter_is_ending = True
    for thread in list(_running):
        thread.finish()
        thread.join()


# atexit comes too late: threads are waited for before its functions run. The standard executors use the same hook.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
