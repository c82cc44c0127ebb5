"""The pool as a `concurrent.futures.Executor`: for asyncio, for libraries that take one, for plain synchronous code."""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Executor as StandardExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fdpool.executor_thread import BrokenPool, CallFuture, ExecutorThread, check_interpreter
from fdpool.memory.context import run_apart
from fdpool.pool import open_pool
from fdpool.process.cpus import default_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["BrokenPool", "CallFuture", "Executor"]

T = TypeVar("T")


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
        self._thread: ExecutorThread | None = None
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
            if self._thread is not None and self._thread.broken is not None:
                raise self._thread.broken()
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            check_interpreter()
            if self._thread is None:
                self._thread = ExecutorThread(self._open)
                self._finalizer = weakref.finalize(self, self._thread.finish)
                # At the end of the interpreter _finish_all does it, before threads are waited for.
                self._finalizer.atexit = False
            future: CallFuture[T] = CallFuture()
            self._thread.start(future, function, args, kwargs)
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
            thread = self._thread
        if thread is None:
            return
        if cancel_futures:
            thread.cancel_pending()
        thread.finish()
        if wait:
            thread.join()


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
