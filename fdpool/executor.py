"""The pool as a `concurrent.futures.Executor`: for asyncio, for libraries that take one, for plain synchronous code."""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Executor as StandardExecutor
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from fdpool.errors import PoolBroken
from fdpool.memory.context import run_apart
from fdpool.memory.exceptions import another
from fdpool.pool import Pool, open_pool
from fdpool.process.cpus import default_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")

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
        # None before the call's task has begun, which looks first whether it was cancelled, and after it has ended.
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


class Executor(StandardExecutor):
    """Worker processes behind the standard interface. Its methods may be called from any thread.

    Unlike `concurrent.futures.ProcessPoolExecutor`, a worker that dies fails only the call it was running
    (with `WorkerDied`); `BrokenProcessPool` is raised only if workers keep dying without running anything.
    Arguments and results travel as with `Pool.run_sync`: arrays in shared memory, handles as handles.

    Args:
      max_workers: How many processes; as many as this one has processors to run on by default.
      initializer: Called in each worker before its first call, with *initargs*.
      initargs: Arguments for *initializer*.
      max_tasks_per_child: After how many calls a worker is replaced; never by default.
      options: Whatever else `open_pool` takes.

    Raises:
      ValueError: *max_workers* or *max_tasks_per_child* is less than 1.
      TypeError: *initializer* cannot be called.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        **options: Any,
    ) -> None:
        self._max_workers = default_workers() if max_workers is None else max_workers
        if self._max_workers < 1:
            raise ValueError(f"max_workers must be greater than 0, and is {max_workers}")
        if max_tasks_per_child is not None and max_tasks_per_child < 1:
            raise ValueError(f"max_tasks_per_child is {max_tasks_per_child}: a worker runs at least 1 call")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        open_it = partial(
            open_pool,
            self._max_workers,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_worker=max_tasks_per_child,
            **options,
        )
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._background: _Background | None = None
        self._open = open_it
        self._takes_context = bool(options.get("context"))
        self._is_shut_down = False
        self._finalizer: weakref.finalize[Any, Executor] | None = None

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> CallFuture[T]:
        """Have `function(*args, **kwargs)` called in a worker; return a future for what it returns.

        Raises:
          RuntimeError: the executor was shut down, the interpreter is ending, or this process was forked off the one
              that made the executor.
          BrokenProcessPool: workers kept dying without running anything.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("this executor belongs to the process that this one was forked from: make another")
        with self._lock:
            if self._background is not None and self._background.broken is not None:
                raise self._background.broken()
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _interpreter_is_ending:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self._background is None:
                self._background = _Background(self._open)
                self._finalizer = weakref.finalize(self, self._background.finish)
                # At the end of the interpreter _finish_all does it, before threads are waited for.
                self._finalizer.atexit = False
            future: CallFuture[T] = CallFuture()
            self._background.start(future, function, args, kwargs)
            return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call *fn* with the items of *iterables*, as `map` does; see `concurrent.futures.Executor.map`.

        Args:
          timeout: Seconds from now on after which the iteration raises `TimeoutError`.
          chunksize: How many items make one call.
          buffersize: How many calls may be under way or waiting to be fetched; the items of further ones are drawn
              as results are. By default all are drawn at once. In the standard library since Python 3.14.

        Raises:
          TypeError: *buffersize* is no integer.
          ValueError: *chunksize* or *buffersize* is less than 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        arguments = zip(*iterables, strict=False)
        if chunksize == 1:
            return _results((self.submit(fn, *items) for items in arguments), buffersize, deadline)
        # Each item sees the context of the caller, and not what another one has made of it.
        each = partial(run_apart, fn) if self._takes_context else fn
        calls = (self.submit(_call_each, each, chunk) for chunk in _chunks(arguments, chunksize))
        return _items(_results(calls, buffersize, deadline))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the workers once those there are have ended.

        Args:
          wait: Whether to return only then.
          cancel_futures: Whether calls that have not begun are cancelled.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._is_shut_down = True
            background = self._background
        if background is None:
            return
        if cancel_futures:
            background.cancel_pending()
        background.finish()
        if wait:
            background.join()


class _Background:
    """The thread that runs trio and the pool. It ends when it was told to finish and no call is left."""

    def __init__(self, open_it: Callable[[], AbstractAsyncContextManager[Pool]]) -> None:
        self.broken: Callable[[], Exception] | None = None
        self._pid = os.getpid()
        self._open = open_it
        self._futures: set[CallFuture[Any]] = set()
        # Held while a call is begun, so that none comes after the end. An executor may be collected, and finish this,
        # in a thread that holds it.
        self._lock = threading.RLock()
        self._is_finishing = False
        self._has_started = threading.Event()
        # Made in the thread before it says that it has started, and used only there after that.
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._pool: Pool
        self._finishing: trio.Event
        self._thread = threading.Thread(target=self._run, name="fdpool.Executor")
        _running.add(self)
        self._thread.start()
        self._has_started.wait()

    def start(self, future: CallFuture[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Begin a call, from any thread.

        Raises:
          RuntimeError: this is ending.
        """
        with self._lock:
            if self._is_finishing:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self.broken is None:
                self._futures.add(future)
                # In a copy of the caller's context, whose variables the call may be asked to take along.
                context = contextvars.copy_context()
                self._soon(context.run, partial(self._nursery.start_soon, self._call, future, function, args, kwargs))
                return
        _settle(future, future.set_exception, self.broken())

    def cancel_pending(self) -> None:
        """Cancel every call that has not begun, from any thread."""
        with self._lock:
            futures = [future for future in self._futures if not future.running()]
        for future in futures:
            future.cancel()

    def finish(self) -> None:
        """Have the thread end once no call is left, from any thread. May be called twice."""
        if os.getpid() != self._pid:
            # A forked process has the thread's lock, perhaps taken, and not the thread.
            return
        with self._lock:
            self._is_finishing = True
            if self._thread.is_alive() and hasattr(self, "_token"):
                self._soon(lambda: self._finishing.set())

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _soon(self, function: Callable[..., object], *args: Any) -> None:
        # Once the run is over there is nothing left to begin, to cancel or to finish.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)

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
                _settle(future, future.set_exception, self.broken())
            _running.discard(self)
            self._has_started.set()

    async def _main(self) -> None:
        async with self._open() as self._pool, trio.open_nursery() as self._nursery:
            self._finishing = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._has_started.set()
            await self._finishing.wait()

    async def _call(self, future: CallFuture[Any], function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Run one call, and put what comes of it into its future."""
        with trio.CancelScope() as scope:
            future._stop = partial(self._soon, scope.cancel)
            if future.cancelled():
                scope.cancel()
            try:
                result = await self._pool.call_when(future.set_running_or_notify_cancel, function, args, kwargs)
            except PoolBroken as exc:
                message, exits = exc.args
                self.broken = lambda: BrokenPool(message, exits)
                _settle(future, future.set_exception, self.broken())
            except (Exception, SystemExit, KeyboardInterrupt) as exc:
                # Pickling the arguments runs code of theirs, here, where an exit would leave everybody else waiting.
                _settle(future, future.set_exception, exc)
            else:
                _settle(future, future.set_result, result)
        future._stop = None
        if future._state == _CANCELLED:
            # Cancelled before it began; those who wait for it have not been told yet.
            future.set_running_or_notify_cancel()
        with self._lock:
            self._futures.discard(future)


def _settle(future: CallFuture[Any], settle: Callable[[Any], None], outcome: Any) -> None:
    """Set a future's outcome, unless it was cancelled a moment ago."""
    with suppress(InvalidStateError):
        settle(outcome)


def _chunks(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _results(calls: Iterator[CallFuture[T]], buffersize: int | None, deadline: float | None) -> Iterator[T]:
    """Begin the first *calls* at once; return an iterator over their results, which begins the others as it goes on."""
    begun = deque(itertools.islice(calls, buffersize))
    return _fetch(begun, calls, deadline)


def _fetch(begun: deque[CallFuture[T]], further: Iterator[CallFuture[T]], deadline: float | None) -> Iterator[T]:
    try:
        while begun:
            # Nothing here refers to the result once it was handed over.
            yield _result_of(begun.popleft(), deadline)
            begun.extend(itertools.islice(further, 1))
    finally:
        for future in begun:
            future.cancel()


def _result_of(future: CallFuture[T], deadline: float | None) -> T:
    """Wait for a result; cancel its call if it does not come in time."""
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        # An exception has a traceback, and this frame in it.
        del future


def _items(chunks: Iterator[list[T]]) -> Iterator[T]:
    """Take chunks apart, keeping no item that was handed over."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _call_each(function: Callable[..., T], chunk: Iterable[tuple[Any, ...]]) -> list[T]:
    """Call *function* with each of several argument lists; runs in a worker."""
    return [function(*arguments) for arguments in chunk]


_running: set[_Background] = set()
_interpreter_is_ending = False


def _finish_all() -> None:
    """End every executor's thread at the end of the interpreter, which waits for threads and would wait for ever."""
    global _interpreter_is_ending
    _interpreter_is_ending = True
    for background in list(_running):
        background.finish()
        background.join()


# atexit comes too late: threads are waited for before its functions run. The standard executors use the same hook.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
