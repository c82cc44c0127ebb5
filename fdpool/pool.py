"""The pool: functions run in worker processes, called like functions."""

from __future__ import annotations

import os
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from fdpool.background import open_background
from fdpool.errors import (
    FdLimitError,
    PoolBroken,
    RemoteError,
    RemoteProtocolError,
    RemoteTraceback,
    WorkerDied,
)
from fdpool.mapping import Results, open_results
from fdpool.memory import functions
from fdpool.memory.handles import close_given
from fdpool.memory.parcel import MODES
from fdpool.memory.pickling import gather, share, unpack, unpack_in_band
from fdpool.process.settings import encode_settings
from fdpool.protocol.restart import Restart
from fdpool.protocol.tasks import REPORT_BEGUN, Operation, encode
from fdpool.supervisor import Supervisor
from fdpool.warehouse import MemoryStatistics, Warehouse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from fdpool.kernel import ExitStatus
    from fdpool.memory.exchange import Wrapped
    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.memory.pickling import Gathered
    from fdpool.memory.received import MappingMode
    from fdpool.memory.shared import Shared
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message

T = TypeVar("T")


class _Call:
    """One call, from its arguments packed to its outcome known."""

    __slots__ = (
        "error",
        "is_abandoned",
        "message",
        "name",
        "number",
        "operation",
        "packed",
        "parcel",
        "task",
        "worker",
        "wrapped",
    )

    def __init__(self, number: int, name: str, packed: Packed) -> None:
        self.number = number
        self.name = name
        self.packed = packed
        self.worker: WorkerProcess | None = None
        self.task: trio.lowlevel.Task | None = None
        self.operation = Operation.RESULT
        self.message: Message | None = None
        self.parcel: Parcel | None = None
        self.wrapped: Wrapped | None = None
        self.error: Exception | None = None
        self.is_abandoned = False

    @property
    def is_done(self) -> bool:
        return self.message is not None or self.error is not None

    def finish(self, operation: Operation, message: Message, parcel: Parcel | None) -> None:
        """Take in the answer, and wake the caller."""
        self.operation, self.message, self.parcel = operation, message, parcel
        self._wake()

    def fail(self, error: Exception) -> None:
        """Take in why there is no answer, and wake the caller."""
        self.error = error
        self._wake()

    def stop_waiting(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Let the caller be cancelled: an answer that comes before its task runs must not wake it a second time."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None


class Pool:
    """Worker processes that run functions; made by `open_pool`. To be used from the trio thread that opened it."""

    def __init__(
        self, size: int, restart: Restart, nursery: trio.Nursery, memory: Warehouse, mapping: MappingMode = "private"
    ) -> None:
        self._memory = memory
        self._mapping = mapping
        self._supervisor = Supervisor(size, encode_settings(functions.main_origin()), restart, self)
        self._size = size
        self._numbers = count(1)
        self._running: dict[int, _Call] = {}
        self._idle: list[WorkerProcess] = []
        self._waiting: deque[_Call] = deque()
        self._nursery = nursery
        self._unavailable: Callable[[], Exception] | None = None

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
          Exception: whatever else the function raised, as itself, with its traceback over there as `__cause__`.

        Cancellation: always a checkpoint. A call still waiting is forgotten. A call that runs is stopped by killing
            its worker, which is dead before `trio.Cancelled` leaves; another one takes its place.
        """
        if not callable(function):
            raise TypeError(
                f"a {type(function).__name__} cannot be called: run_sync takes the function, then its arguments"
            )
        name = _name_of(function)
        call = await self._perform_within_budget(name, gather((function, args, kwargs), self._mapping))
        message, parcel = call.message, call.parcel
        assert message is not None
        assert parcel is not None
        with message:
            try:
                if call.operation is Operation.RESULT:
                    value: T = unpack(parcel, message.handles)
                    return value
                type_name, text, trace, pickled = unpack(parcel, message.handles)
            except RemoteProtocolError:
                if call.worker is not None:
                    call.worker.kill()
                raise
        error = _rebuild(type_name, text, trace, pickled)
        raise error from (None if isinstance(error, RemoteError) else RemoteTraceback(trace))

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
        return share(value, self._mapping)

    def memory_statistics(self) -> MemoryStatistics:
        """Return what of this process's memory is in use, and what each worker has been lent."""
        return self._memory.statistics()

    def map_sync(
        self, function: Callable[..., T], *iterables: Iterable[Any], ordered: bool = True, buffer: int | None = None
    ) -> AbstractAsyncContextManager[Results[T]]:
        """Call *function* with the items of *iterables*, as `map` does, several at a time; iterate over the results.

        For use as `async with pool.map_sync(f, items) as results: async for result in results: …`. Items are drawn
        only as workers and the consumer keep up, so an endless iterable is fine. Leaving the block cancels the rest.

        Args:
          iterables: One for each parameter of *function*; the shortest ends it.
          ordered: Whether results come in the order of the items, or as they are ready.
          buffer: How many calls may be under way or waiting to be fetched at once; twice the workers by default.

        Raises:
          ValueError: *buffer* is less than 1.
          Exception: from the iteration, what a call raised, where its result would have been. The iteration can go on.
        """
        limit = 2 * self._size if buffer is None else buffer
        if limit < 1:
            raise ValueError(f"buffer is {limit}: at least 1 call must be allowed under way")
        if not iterables:
            raise TypeError("map_sync needs at least one iterable to draw arguments from")
        call = partial(self.run_sync, function)
        return open_results(call, zip(*iterables, strict=False), ordered=ordered, limit=limit)

    async def _perform_within_budget(self, name: str, gathered: Gathered) -> _Call:
        """Copy what has to be copied when there is room for it, and have the call run."""
        nbytes = gathered.nbytes
        if nbytes:
            await self._memory.budget.acquire(nbytes)
        try:
            packed = gathered.pack()
            try:
                return await self._perform(name, packed)
            finally:
                packed.close()
        finally:
            if nbytes:
                self._memory.budget.release(nbytes)

    @trio.lowlevel.enable_ki_protection
    async def _perform(self, name: str, packed: Packed) -> _Call:
        """Have a call run; return it with its answer."""
        await trio.lowlevel.checkpoint_if_cancelled()
        call = _Call(next(self._numbers), name, packed)
        self._submit(call)
        try:
            if not call.is_done:
                call.task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(call.stop_waiting)
        except BaseException:
            call.task = None
            await self._abandon(call)
            raise
        if call.error is not None:
            raise call.error
        return call

    async def _abandon(self, call: _Call) -> None:
        """Stop a call nobody waits for any more; it is stopped when this returns."""
        call.is_abandoned = True
        worker = call.worker
        if worker is None:
            if call in self._waiting:
                self._waiting.remove(call)
        elif not call.is_done:
            worker.kill()
            with trio.CancelScope(shield=True):
                await worker.exited.wait()
        if call.message is not None:
            call.message.close()
            call.parcel = None

    def _submit(self, call: _Call) -> None:
        if self._unavailable is not None:
            call.fail(self._unavailable())
        elif self._idle:
            self._dispatch(call, self._idle.pop())
        else:
            self._waiting.append(call)

    def _dispatch(self, call: _Call, worker: WorkerProcess) -> None:
        """Send a call to an idle worker."""
        call.worker = worker
        self._running[call.number] = call
        flags = REPORT_BEGUN if call.packed.given else 0
        call.wrapped = wrapped = self._memory.wrap(worker, call.packed)
        payload = encode(Operation.RUN, call.number, wrapped.body, flags)
        try:
            worker.channel.send_nowait(payload, wrapped.handles)
        except trio.WouldBlock:
            self._nursery.start_soon(self._send_patiently, call, worker, payload, wrapped)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # It is dead and the supervisor is about to say so; the call goes to another worker then.
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._unsendable(call, worker, exc)

    async def _send_patiently(self, call: _Call, worker: WorkerProcess, payload: bytes, wrapped: Wrapped) -> None:
        """Send a call that takes several datagrams, or has to wait for descriptors in flight to land."""
        try:
            await worker.channel.send(payload, wrapped.handles)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._unsendable(call, worker, exc)

    def _unsendable(self, call: _Call, worker: WorkerProcess, error: Exception) -> None:
        del self._running[call.number]
        if call.wrapped is not None:
            self._memory.take_back(worker, call.wrapped)
        call.fail(error)
        self._next_for(worker)

    def _next_for(self, worker: WorkerProcess) -> None:
        """Give *worker* the call that waits longest, or let it be idle."""
        if worker.is_condemned:
            return
        if self._waiting:
            self._dispatch(self._waiting.popleft(), worker)
        else:
            self._idle.append(worker)

    def _refuse(self, reason: Callable[[], Exception]) -> None:
        """Fail every call that waits, and every one to come."""
        self._unavailable = reason
        while self._waiting:
            self._waiting.popleft().fail(reason())

    # What the supervisor tells.

    def worker_ready(self, worker: WorkerProcess) -> None:
        """Take a new worker into service."""
        self._next_for(worker)

    def worker_said(self, worker: WorkerProcess, operation: Operation, number: int, message: Message) -> None:
        """Take in an answer, or the news that a call's handles have arrived."""
        if operation is Operation.MEMORY:
            with message:
                self._memory.take_in(worker, operation, message)
            return
        call = self._running.get(number)
        if call is None or call.worker is not worker:
            message.close()
            raise RemoteProtocolError(f"worker {worker.pid} speaks of call {number}, which it was not given")
        close_given(call.packed.given)
        if operation is Operation.BEGUN:
            message.close()
            return
        try:
            parcel = self._memory.take_in(worker, operation, message)
        except BaseException as exc:
            message.close()
            if not isinstance(exc, OSError):
                raise
            self._failed_to_arrive(worker, call, exc)
            return
        del self._running[number]
        worker.answered_call = number
        call.finish(operation, message, parcel)
        self._next_for(worker)

    def worker_lost_handles(self, worker: WorkerProcess, number: int, error: FdLimitError) -> None:
        """Fail the call whose answer came without its handles."""
        call = self._running.get(number)
        if call is not None and call.worker is worker:
            self._memory.decline(worker, error.data)
            self._failed_to_arrive(worker, call, error)

    def _failed_to_arrive(self, worker: WorkerProcess, call: _Call, error: OSError) -> None:
        """Fail a call whose answer there is no room for; its worker is free again."""
        del self._running[call.number]
        worker.answered_call = call.number
        call.fail(error)
        self._next_for(worker)

    def worker_misbehaved(self, worker: WorkerProcess, error: RemoteProtocolError) -> None:
        """Fail the call that runs on a worker which is not believed any more."""
        for call in self._calls_on(worker):
            del self._running[call.number]
            call.fail(error)

    def worker_exited(self, worker: WorkerProcess, status: ExitStatus) -> bool:
        """Fail the call that had begun on a dead worker; one that had not runs elsewhere."""
        if worker in self._idle:
            self._idle.remove(worker)
        self._memory.worker_exited(worker)
        begun = worker.page.begun_call
        for call in self._calls_on(worker):
            del self._running[call.number]
            if call.is_abandoned:
                continue
            if self._unavailable is not None:
                call.fail(self._unavailable())
            elif call.number == begun:
                close_given(call.packed.given)
                call.fail(WorkerDied(status.pid, status.exitcode, status.signal, call.name))
            elif self._idle:
                self._dispatch(call, self._idle.pop())
            else:
                call.worker = None
                self._waiting.appendleft(call)
        return begun != worker.answered_call

    def supervisor_gave_up(self, message: str, exits: list[str]) -> None:
        """Fail every call there is and every one to come."""
        self._refuse(lambda: PoolBroken(message, exits))

    def _calls_on(self, worker: WorkerProcess) -> list[_Call]:
        return [call for call in self._running.values() if call.worker is worker]


@asynccontextmanager
async def open_pool(
    workers: int | None = None,
    *,
    restart: Restart | None = None,
    grace_period: float = 1.0,
    mapping: MappingMode = "private",
    memory_budget: int | None = None,
) -> AsyncIterator[Pool]:
    """Open a pool of worker processes.

    The workers start at once and side by side; calls wait until one is ready. At the end of the block calls
    that still wait fail, those that run may finish within *grace_period*, and no process is left.

    Args:
      workers: How many processes; as many as this one has processors to run on by default.
      restart: When a worker that dies outside of any call is replaced, and when the pool gives up.
      grace_period: Seconds that running calls have to finish once the block has ended.
      mapping: How big buffers among the arguments and results arrive: "private", writable without having been
          copied, and nobody else sees the writes; "readonly"; or "copy", in ordinary memory.
      memory_budget: How many bytes calls under way may have copied for their workers; further calls wait, in order.
          No limit by default. What lies in memory of `fdpool.allocate` and its like is not copied, nor counted.

    Raises:
      ValueError: *workers* is less than 1, *grace_period* negative, *memory_budget* less than 1, or *mapping* unknown.
      RuntimeError: a worker is loading the script that opens this pool: it lacks its main guard.
    """
    size = len(os.sched_getaffinity(0)) if workers is None else workers
    if size < 1:
        raise ValueError(f"workers is {workers}: a pool needs at least 1")
    if grace_period < 0:
        raise ValueError(f"grace_period is {grace_period} seconds: it cannot be negative")
    if memory_budget is not None and memory_budget < 1:
        raise ValueError(f"memory_budget is {memory_budget} bytes: nothing fits into that")
    if mapping not in MODES:
        raise ValueError(f"mapping is {mapping!r}, and not one of {', '.join(MODES)}")
    if functions.is_loading_main:
        raise RuntimeError(
            "this pool is opened while a worker loads the script, to find a function in it: put the part that "
            "opens pools behind `if __name__ == '__main__':`"
        )
    async with open_background() as nursery:
        memory = Warehouse(memory_budget)
        pool = Pool(size, Restart() if restart is None else restart, nursery, memory, mapping)
        nursery.start_soon(pool._supervisor.run)
        nursery.start_soon(memory.run)
        try:
            yield pool
        finally:
            pool._refuse(lambda: trio.ClosedResourceError("the pool was closed"))
            try:
                await pool._supervisor.stop(grace_period)
            finally:
                memory.close()


def _rebuild(type_name: str, text: str, trace: str, pickled: bytes) -> Exception:
    """Return the exception of a worker as itself, or told in words."""
    try:
        error = unpack_in_band(pickled) if pickled else None
    except Exception:  # its own __init__ or __setstate__ may raise anything
        error = None
    # What is no Exception (SystemExit, KeyboardInterrupt) is meant for the process it was raised in, not for this one.
    return error if isinstance(error, Exception) else RemoteError(type_name, text, trace)


def _name_of(function: Any) -> str:
    name = getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{function.__module__}.{name}"
