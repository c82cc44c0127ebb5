"""The pool: functions run in worker processes, called like functions."""

from __future__ import annotations

import inspect
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import trio

from fdpool.background import open_background
from fdpool.caller import Caller, check_callable
from fdpool.calls import CallOptions, name_of
from fdpool.dispatch import ASYNC_CALLS_PER_WORKER, Dispatcher, Tenure
from fdpool.events import Broadcast, PoolEvents
from fdpool.life import Terms
from fdpool.mapping import BUFFER_BYTES, MapOptions, Results, open_results
from fdpool.memory import functions
from fdpool.memory.chunks import run_async_chunk, run_chunk
from fdpool.memory.context import find_variables, run_apart
from fdpool.memory.pickling import pack_in_band, share
from fdpool.process.cpus import default_workers
from fdpool.process.launch import ExecLauncher
from fdpool.process.settings import encode_settings, worker_settings
from fdpool.process.stderr import StderrPipes
from fdpool.process.vitals import CHECKS_PER_LIVENESS, dump_stacks
from fdpool.process.zygote import Zygote, encode_setup
from fdpool.protocol.ladder import Ladder
from fdpool.protocol.limits import Limits
from fdpool.protocol.restart import Restart
from fdpool.statistics import PoolStatistics
from fdpool.streaming import Items, open_stream
from fdpool.supervisor import Supervisor
from fdpool.warehouse import MemoryStatistics, Warehouse

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from fdpool.calls import OnCancel, Reservation
    from fdpool.memory.received import MappingMode
    from fdpool.memory.shared import Shared
    from fdpool.process.launch import Launcher
    from fdpool.process.stderr import StderrMode
    from fdpool.process.worker_process import WorkerProcess

T = TypeVar("T")
Start = Literal["zygote", "exec"]


class Pool:
    """Worker processes that run functions; made by `open_pool`. To be used from the trio thread that opened it."""

    def __init__(self, supervisor: Supervisor, events: Broadcast, caller: Caller) -> None:
        self._supervisor = supervisor
        self._events = events
        self._caller = caller
        self._dispatcher = caller.dispatcher
        self._memory = caller.memory

    def options(
        self,
        *,
        on_cancel: OnCancel | None = None,
        grace_period: float | None = None,
        retries: int | None = None,
        mapping: MappingMode | None = None,
        stream_items: int | None = None,
        stream_bytes: int | None = None,
        context: Iterable[str] | None = None,
    ) -> Pool:
        """Return the same pool, its calls treated otherwise; what is not given stays as it is.

        Args:
          on_cancel: What cancelling does to a call that runs. `"interrupt"` raises `TaskCancelled` in it, so that its
              `finally` blocks run and the worker stays warm, and kills the worker after *grace_period*. `"kill"` kills
              it at once. `"wait"` lets the call finish: it cannot be cancelled, and returns its result.
          grace_period: Seconds an interrupted call has to end.
          retries: How often a call is run again if its worker dies. Say so only of a call that may run twice. Does not
              count for streams.
          mapping: How big buffers arrive, there and back; see `open_pool`.
          stream_items: How many items of a stream may wait for their consumer; 16 by default.
          stream_bytes: From how many bytes on no further item of a stream is made; 64 MiB by default. One larger item
              is always allowed.
          context: The names of context variables whose values travel with calls; see `open_pool`.

        Raises:
          ValueError: an option has no such value, or a context variable is not found.
          TypeError: what a name in *context* stands for is no context variable.
        """
        given = {
            "on_cancel": on_cancel,
            "grace_period": grace_period,
            "retries": retries,
            "mapping": mapping,
            "stream_items": stream_items,
            "stream_bytes": stream_bytes,
            "context": None if context is None else find_variables(context),
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return self._with(replace(self._caller.options, **changes), self._caller.reservation)

    def _with(self, options: CallOptions, reservation: Reservation | None) -> Pool:
        return Pool(self._supervisor, self._events, Caller(self._dispatcher, self._memory, options, reservation))

    async def run_sync(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call `function(*args, **kwargs)` in a worker, and return what it returns.

        Arguments and results are pickled. Big buffers among them (arrays, `bytes`, `bytearray`, `memoryview`) are
        copied once; or not at all, if they lie in memory of `fdpool.allocate` and its like, or arrived that way and
        were not written. They arrive as the pool's `mapping` says. Sockets, files, eventfds, memfds, pidfds and trio's
        sockets, streams and listeners travel as duplicates, at any depth, or are handed over with `give`.

        Waits for a free worker, in the order of the calls.

        Args:
          function: Of any module a worker can import, or of the running script itself if its main part stands
              behind `if __name__ == "__main__"`. Lambdas and closures need the extra `cloudpickle`.

        Raises:
          TypeError, AttributeError, pickle.PicklingError: something cannot be pickled; nothing was sent.
          ValueError: a handle among the arguments is closed, or they are larger than `memory_budget`; nothing was sent.
          OSError: there is no memory to copy them to (ENOMEM, ENOSPC, EFBIG); nothing was sent.
          WorkerDied: the worker ended while it ran this call. Other calls are not affected.
          PoolBroken: workers keep dying without having run anything.
          trio.ClosedResourceError: the pool was closed, before or during the call.
          RemoteError: the function raised something that cannot be rebuilt here, or tried to exit.
          Exception: whatever else the function raised, as itself, with its traceback over there if tblib is installed
              (the extra `tblib`), or else with the text of that as `__cause__`.

        Cancellation: always a checkpoint. A call still waiting is forgotten; what happens to one that runs is up to
            `options(on_cancel=…)`. It has ended before `trio.Cancelled` leaves.
        """
        value: T = await self._caller.run(function, args, kwargs)
        return value

    async def run(self, async_function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """Call and await `async_function(*args, **kwargs)` in the trio loop of a worker; return what it returns.

        Many such calls run side by side in one worker. While there are two workers or more, one is left to
        `run_sync`; with a single worker a plain function holds up the async calls beside it.

        Everything else is as for `run_sync`; but cancelling cancels the call's own scope over there, so that the
        function sees `trio.Cancelled`. If it does not end within `grace_period`, or with `on_cancel="kill"`, its
        worker is killed, and with it the other async calls that run there.

        Raises:
          TypeError: *async_function* returned something that cannot be awaited.
        """
        value: T = await self._caller.run(async_function, args, kwargs, is_async=True)
        return value

    def stream(
        self, function: Callable[..., Iterable[T] | AsyncIterable[T]], /, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[Items[T]]:
        """Have a generator run in a worker, and iterate over what it yields.

        For use as `async with pool.stream(f, x) as items: async for item in items: …`. The generator runs ahead of its
        consumer as far as `options(stream_items=…, stream_bytes=…)` allow, and waits at a `yield` then. Leaving the
        block ends it: where it runs it is interrupted, where it waits it is closed, and its `finally` blocks run.
        What an item holds travels as in `run_sync`; `yield give(socket)` closes the worker's copy at once.

        A plain generator has its worker to itself until the block is left: whoever calls the pool for each item needs a
        second worker. An async generator runs in a worker's trio loop, beside the async functions of `run`.

        Args:
          function: A generator function, any other function that returns an iterable, or an async generator function.

        Raises:
          TypeError: *function* is a coroutine function, or cannot be called.
          Exception: from entering the block, as from `run_sync`, where the arguments cannot be sent; from the
              iteration, what the generator raised, after its items; from leaving the block, what it raised while it
              was closed.
          WorkerDied: from the iteration, the worker ended, after the items that it had sent. Retries do not apply: an
              item may have been seen.

        Cancellation: entering, iterating and leaving are checkpoints. The generator has ended before the block is left,
            as `options(on_cancel=…)` say: with `"wait"` it is not interrupted, but closed where it yields next.
        """
        check_callable(function)
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{name_of(function)} is an async function that yields nothing: call it with run")
        return open_stream(self._caller, function, args, kwargs, is_async=_is_async_generator(function))

    def map_sync(
        self,
        function: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int | None = None,
        buffer: int | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        return_exceptions: bool = False,
        progress: bool | str | Callable[[int, int | None], object] | None = None,
    ) -> AbstractAsyncContextManager[Results[T]]:
        """Call *function* with the items of *iterables*, as `map` does, several at a time; iterate over the results.

        For use as `async with pool.map_sync(f, items) as results: async for result in results: …`. Items are drawn
        only as workers and the consumer keep up, so an endless iterable is fine. Leaving the block cancels the rest,
        drops the results that were not fetched, and closes those of *iterables* that are generators.

        Args:
          iterables: One for each parameter of *function*, synchronous or not; the shortest ends it.
          ordered: Whether results come in the order of the items, or as they are ready.
          chunksize: How many items make one call. By default as many as take about 10 ms, judged by those before;
              always 1 if an iterable is asynchronous. A worker that dies takes the items of its call with it.
          buffer: How many items may be under way or waiting to be fetched at once; by default twice as many as
              the workers take at a time.
          buffer_bytes: From how many bytes of results on, waiting to be fetched, no further item is drawn; 256 MiB by
              default. Items under way are reckoned with as large as those before; but each worker always has one.
          return_exceptions: Whether what an item raised is yielded, instead of raised from the iteration.
          progress: True or a title for a progress bar (needs the extra `demo`), or a callable that is called with how
              many items are done and how many there are in all, or None where that is not known.

        Raises:
          TypeError: *function* is an async function: for `map`.
          ValueError: *chunksize*, *buffer* or *buffer_bytes* is less than 1.
          Exception: from the iteration, what an item raised, where its result would have been: it can go on. Or what an
              iterable or *progress* raised: it is over then. From leaving the block, what closing a generator raised.
        """
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{name_of(function)} is an async function: call it with map, not with map_sync")
        workers = self._supervisor.size
        options = MapOptions(workers, workers, ordered, chunksize, buffer, buffer_bytes, return_exceptions, progress)
        return self._open_results(options, function, iterables, is_async=False)

    def map(
        self,
        async_function: Callable[..., Awaitable[T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        chunksize: int = 1,
        buffer: int | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        return_exceptions: bool = False,
        progress: bool | str | Callable[[int, int | None], object] | None = None,
    ) -> AbstractAsyncContextManager[Results[T]]:
        """Call and await *async_function* with the items of *iterables*, many at a time; iterate over the results.

        They run side by side in the trio loops of the workers, as by `run`. Everything else is as for `map_sync`.

        Args:
          chunksize: How many items make one call, and run side by side in one worker. More than 1 saves messages.
          buffer: As for `map_sync`; by default twice as many as the workers take at a time, which is 100 calls each.
        """
        workers = self._supervisor.size
        # While there are two workers, one is left to plain functions.
        at_once = ASYNC_CALLS_PER_WORKER * max(workers - 1, 1)
        options = MapOptions(workers, at_once, ordered, chunksize, buffer, buffer_bytes, return_exceptions, progress)
        return self._open_results(options, async_function, iterables, is_async=True)

    def _open_results(
        self, options: MapOptions, function: Callable[..., Any], iterables: tuple[Any, ...], *, is_async: bool
    ) -> AbstractAsyncContextManager[Results[Any]]:
        check_callable(function)
        if not iterables:
            raise TypeError(f"{'map' if is_async else 'map_sync'} needs at least one iterable to draw arguments from")
        chunk = run_async_chunk if is_async else run_chunk
        # Each item by itself, whether or not it shares its call with others; async ones are tasks of their own anyway.
        each = partial(run_apart, function) if self._caller.options.context and not is_async else function
        call = partial(self._caller.run_chunk, name_of(function), is_async, chunk, each)
        return open_results(options, call, iterables)

    async def share(self, value: T) -> Shared[T]:
        """Pickle *value* once, for any number of calls: pass the returned object to them, at any depth.

        The task gets *value* as it was loaded in its worker the first time it was used there. It is not pickled
        again, and its big buffers are mapped and not copied; see `Shared` for how long it lives.

        Raises:
          TypeError, AttributeError, pickle.PicklingError: something cannot be pickled, or is a handle.
          OSError: no memory for it.

        Cancellation: a checkpoint, before anything is done.
        """
        await trio.lowlevel.checkpoint()
        return share(value, self._caller.options.mapping)

    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def worker(self) -> AsyncIterator[Worker]:
        """Set one worker aside: for use as `async with pool.worker() as worker: await worker.run_sync(…)`.

        What its calls leave in its globals the next ones find there, and no call but those of this block runs on it.
        Waits in line with the calls until there is a worker that has nothing to do. With all workers set aside,
        everybody else waits.

        Raises:
          PoolBroken, trio.ClosedResourceError: there will be none.

        Cancellation: nothing was set aside.
        """
        reservation = self._dispatcher.reserve()
        try:
            while reservation.worker is None:
                await reservation.granted.wait()
                if reservation.refusal is not None:
                    raise reservation.refusal()
            reservation.is_held = True
            yield Worker(self._with(self._caller.options, reservation), reservation)
        finally:
            self._dispatcher.give_back(reservation)

    async def resize(self, workers: int) -> None:
        """Have *workers* workers from now on.

        New ones start at once. Surplus ones, those with least to do, get no more calls; this waits until they have
        ended, which is when their calls have.

        Raises:
          ValueError: *workers* is less than 1.
          PoolBroken, trio.ClosedResourceError: there are none any more.

        Cancellation: always a checkpoint. The new size stays.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}: a pool needs at least 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._dispatcher.check_available()
        surplus = self._supervisor.resize(workers, self._dispatcher.burden_of)
        self._events.tell("pool.resized", detail=f"{workers} workers")
        for worker in surplus:
            self._dispatcher.dismiss(worker)
        self._dispatcher.rematch()
        await self._supervisor.wait_closed()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def statistics(self) -> PoolStatistics:
        """Return how the pool stands: its workers, its calls, its memory."""
        dispatcher = self._dispatcher
        states = Counter(state.value for state in self._supervisor.states)
        if resting := self._supervisor.resting:
            states["exited"] -= resting
            states["resting"] = resting
        return PoolStatistics(
            size=self._supervisor.size,
            states={state: number for state, number in states.items() if number},
            queued=dispatcher.queued,
            running=dispatcher.running,
            calls=replace(dispatcher.counts),
            crashed=dispatcher.crashed,
            workers=dispatcher.worker_statistics(),
            memory=self._memory.statistics(),
        )

    def events(self) -> PoolEvents:
        """Return an async iterator over what happens in the pool from now on, which ends when the pool is closed.

        Also a context manager that ends it before. Up to 10 000 events are kept until they are read; "events.lost"
        stands for more. docs/pool.md lists the names.
        """
        return self._events.open_reader()

    def memory_statistics(self) -> MemoryStatistics:
        """Return what of this process's memory is in use, and what each worker has been lent."""
        return self._memory.statistics()

    async def dump_stacks(self) -> dict[int, str]:
        """Return what each worker is doing, as the Python stacks of its threads, by pid.

        Works while they run C code with the GIL held. The stacks are empty where a worker did not write them down
        within a second: it is stopped, or a task has taken `SIGUSR2` for itself.

        Cancellation: nothing happens to the workers.
        """
        await trio.lowlevel.checkpoint()
        stacks: dict[int, str] = {}

        async def dump(worker: WorkerProcess) -> None:
            stacks[worker.pid] = await dump_stacks(worker)

        async with trio.open_nursery() as nursery:
            for worker in self._supervisor.workers:
                nursery.start_soon(dump, worker)
        return stacks


class Worker:
    """One worker, set aside by `Pool.worker` for the calls made here.

    If it dies, the calls that run on it raise `WorkerDied`, whether they had begun or not, and so does every later one:
    what they may have left there is gone. They are never retried.
    """

    def __init__(self, pool: Pool, reservation: Reservation) -> None:
        self._pool = pool
        self._reservation = reservation

    @property
    def pid(self) -> int | None:
        """Its process id, or None if it has died or was given back."""
        return None if self._reservation.worker is None else self._reservation.worker.pid

    def options(self, **options: Any) -> Worker:
        """Return the same worker, its calls treated otherwise; see `Pool.options`."""
        return Worker(self._pool.options(**options), self._reservation)

    async def run_sync(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function in this worker, once those called here before have ended; see `Pool.run_sync`.

        Raises:
          WorkerDied: the worker ended, during this call or before it.
          trio.ClosedResourceError: the block has ended, or the pool was closed.
        """
        return await self._pool.run_sync(function, *args, **kwargs)

    async def run(self, async_function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """Call and await an async function in this worker, beside others called here; see `Pool.run`.

        Raises:
          WorkerDied: the worker ended, during this call or before it.
          trio.ClosedResourceError: the block has ended, or the pool was closed.
        """
        return await self._pool.run(async_function, *args, **kwargs)

    def stream(
        self, function: Callable[..., Iterable[T] | AsyncIterable[T]], /, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[Items[T]]:
        """Have a generator run in this worker; see `Pool.stream`. Beside a plain one it runs nothing else.

        Raises:
          WorkerDied: from the iteration, the worker ended, during the stream or before it.
          trio.ClosedResourceError: from the iteration, the block has ended, or the pool was closed.
        """
        return self._pool.stream(function, *args, **kwargs)


@asynccontextmanager
async def open_pool(
    workers: int | None = None,
    *,
    start: Start = "zygote",
    preload: Iterable[str] = (),
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    max_tasks_per_worker: int | None = None,
    max_rss: int | None = None,
    idle_timeout: float | None = None,
    restart: Restart | None = None,
    ready_timeout: float = 60.0,
    liveness: float | None = None,
    limits: Limits | None = None,
    stderr: StderrMode = "tail",
    on_cancel: OnCancel = "interrupt",
    grace_period: float = 1.0,
    mapping: MappingMode = "private",
    memory_budget: int | None = None,
    forward_logging: bool = True,
    context: Iterable[str] = (),
) -> AsyncIterator[Pool]:
    """Open a pool of worker processes.

    The workers start at once and side by side; calls wait until one is ready. At the end of the block calls
    that still wait fail, those that run may finish within *grace_period*, and no process is left.

    Args:
      workers: How many processes; as many as this one has processors to run on by default.
      start: How a worker is made. "zygote": by fork from a process that has loaded everything, which takes
          milliseconds. "exec": as a fresh interpreter.
      preload: The names of modules that the zygote loads, in this order, for all workers together.
      initializer: Called in each worker before its first call, with *initargs*. If it raises, the worker counts as
          one that died before it was ready.
      initargs: Arguments for *initializer*.
      max_tasks_per_worker: After how many calls a worker is replaced by a new one; never by default.
      max_rss: With how many bytes of memory of its own a worker is replaced, once its call has ended. What it has
          mapped of files, or of the memory of others, does not count.
      idle_timeout: After how many seconds without anything to do a worker is let go. When there is something to do
          again, another one is started. By default they all stay.
      restart: When a worker that dies outside of any call is replaced, and when the pool gives up.
      ready_timeout: Seconds that a worker, or the zygote with all it preloads, may take to be ready.
      liveness: Seconds after which a worker that gives no sign of life is killed, with its stacks in the error. A
          sign is that it runs any Python code, waiting in C with the GIL released included, or keeps a processor
          busy, as long C calls do. Costs a thread in each worker. None: nobody looks.
      limits: What the kernel lets each worker use.
      stderr: What becomes of what workers write to their stderr, C code included. "tail": it is passed on to this
          process's, as that was when the worker started, and the last 4 KiB of each worker are remembered for
          `WorkerDied.stderr_tail`. "capture": it is remembered, and not passed on. Either way a fatal signal leaves the
          Python stacks there (`faulthandler`). "inherit": workers have this process's own, and nothing is remembered.
      on_cancel: What cancelling a call that runs does to it; see `Pool.options`.
      grace_period: Seconds that a call has to end when it is interrupted, or when the pool is closed. Workers that
          still run then get SIGINT, SIGTERM and SIGKILL, fractions of a second apart.
      mapping: How big buffers among the arguments and results arrive: "private", writable without having been
          copied, and nobody else sees the writes; "readonly"; or "copy", in ordinary memory.
      memory_budget: How many bytes calls under way may have copied for their workers; further calls wait, in order.
          No limit by default. What lies in memory of `fdpool.allocate` and its like is not copied, nor counted.
      forward_logging: Whether what is logged in workers reaches the loggers of the same names here, whose handlers then
          run in this thread. If not, workers log as their own modules set it up.
      context: The names of context variables, `"package.module:variable"`. The values that they have where a call is
          made travel with its arguments, and the function sees them, for as long as it runs.

    Raises:
      ValueError: *workers*, *max_tasks_per_worker*, *max_rss* or *memory_budget* is less than 1, *grace_period*
          negative, *idle_timeout*, *ready_timeout* or *liveness* not positive, *on_cancel*, *start*, *stderr*
          or *mapping* unknown, something is to be preloaded without a zygote, or a context variable is not found.
      TypeError: *preload* or *context* is one string, or what a name in *context* stands for is no context variable.
      Exception: whatever pickling *initializer* and *initargs* raises.
      RuntimeError: a worker is loading the script that opens this pool: it lacks its main guard.
    """
    size = default_workers() if workers is None else workers
    if size < 1:
        raise ValueError(f"workers is {workers}: a pool needs at least 1")
    tenure = Tenure(max_tasks_per_worker, max_rss, idle_timeout)
    if memory_budget is not None and memory_budget < 1:
        raise ValueError(f"memory_budget is {memory_budget} bytes: nothing fits into that")
    options = CallOptions(on_cancel, grace_period, mapping=mapping, context=find_variables(context))
    if start not in ("zygote", "exec"):
        raise ValueError(f"start is {start!r}, not 'zygote' or 'exec'")
    if isinstance(preload, str):
        raise TypeError(f"preload is the string {preload!r}: it takes a list of module names")
    modules = list(preload)
    if modules and start == "exec":
        raise ValueError("start='exec' has no process that could preload anything: preload needs start='zygote'")
    terms = Terms(
        restart=Restart() if restart is None else restart,
        ready_timeout=ready_timeout,
        liveness=liveness,
        limits=Limits() if limits is None else limits,
        ladder=Ladder(drain=grace_period),
    )
    if functions.is_loading_main:
        raise RuntimeError(
            "this pool is opened while a worker loads the script, to find a function in it: put the part that "
            "opens pools behind `if __name__ == '__main__':`"
        )
    pipes = StderrPipes(stderr)
    async with open_background() as nursery:
        memory = Warehouse(memory_budget)
        events = Broadcast()
        dispatcher = Dispatcher(nursery, memory, tenure, events)
        prepared = None if initializer is None else pack_in_band((initializer, initargs))
        beat_interval = None if liveness is None else liveness / (2 * CHECKS_PER_LIVENESS)
        settings = worker_settings(
            functions.main_origin(),
            prepared,
            terms.limits,
            beat_interval,
            reports_crashes=pipes.is_remembered,
            forward_logging=forward_logging,
        )
        launcher: Launcher = ExecLauncher(pipes)
        if start == "zygote":
            launcher = Zygote(encode_setup(settings, modules), terms.restart, ready_timeout, pipes)
        make_settings = partial(encode_settings, settings)
        supervisor = Supervisor(size, make_settings, terms, dispatcher, launcher, events.tell)
        dispatcher.staff = supervisor
        nursery.start_soon(supervisor.run)
        nursery.start_soon(dispatcher.let_idle_go)
        nursery.start_soon(memory.run)
        try:
            yield Pool(supervisor, events, Caller(dispatcher, memory, options))
        finally:
            dispatcher.refuse(lambda: trio.ClosedResourceError("the pool was closed"))
            try:
                await supervisor.stop()
            finally:
                memory.close()
                events.close()


def caller_of(pool: Pool) -> Caller:
    """Return what makes the calls of *pool*, for who makes them without a task that waits for each."""
    return pool._caller


def _is_async_generator(function: Any) -> bool:
    """Whether calling *function* gives an async generator, as far as can be seen without calling it."""
    return inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(type(function).__call__)
