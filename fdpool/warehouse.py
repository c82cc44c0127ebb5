"""A pool's memory: what each worker has been lent, room for new calls, and news that go out when nothing else does."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from fdpool.errors import RemoteProtocolError
from fdpool.memory.arena import IDLE_SECONDS, arena
from fdpool.memory.exchange import Exchange, Wrapped
from fdpool.memory.received import stop_watching_pages, watch_pages
from fdpool.protocol.tasks import HEADER_BYTES, TRIM, Operation, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.memory.pickling import Gathered
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message

NEWS_DELAY: Final = 0.02
"""Seconds that news wait for a message to ride on, before they are sent by themselves."""


class Budget:
    """Room for the bytes that calls under way have copied, given out in the order it was asked for.

    Args:
      limit: Bytes, or None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.in_flight = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    async def acquire(self, nbytes: int) -> None:
        """Take room for *nbytes*, to be given back with `release`.

        Waits until there is room, behind everybody who waits already.

        Raises:
          ValueError: it is more than all of the budget.

        Cancellation: nothing was taken.
        """
        if self.acquire_nowait(nbytes):
            return
        waiter = (nbytes, trio.Event())
        self._waiting.append(waiter)
        try:
            await waiter[1].wait()
        except BaseException:
            if waiter[1].is_set():
                self.release(nbytes)
            else:
                self._waiting.remove(waiter)
                self._admit()
            raise

    def acquire_nowait(self, nbytes: int) -> bool:
        """Take room if there is some, and nobody waits for any; return whether it was taken. Raises as `acquire`."""
        if self.limit is not None and nbytes > self.limit:
            raise ValueError(f"the call has {nbytes} bytes to copy, and the memory_budget is {self.limit} bytes")
        if self._waiting or not self._fits(nbytes):
            return False
        self.in_flight += nbytes
        return True

    def release(self, nbytes: int) -> None:
        """Give room back."""
        self.in_flight -= nbytes
        self._admit()

    def _fits(self, nbytes: int) -> bool:
        return self.limit is None or self.in_flight + nbytes <= self.limit

    def _admit(self) -> None:
        """Let in those who wait longest, as far as there is room."""
        while self._waiting and self._fits(self._waiting[0][0]):
            nbytes, admitted = self._waiting.popleft()
            self.in_flight += nbytes
            admitted.set()


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """What one worker and the pool have lent each other.

    Attributes:
      pid: The worker's process id.
      leased_bytes: What the worker may still look at.
      mapped_bytes: The worker's own segments, mapped here for its results.
    """

    pid: int
    leased_bytes: int
    mapped_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """A pool's memory at one moment.

    Attributes:
      in_flight_bytes: What calls under way have copied; bounded by `memory_budget`.
      budget_bytes: That bound, or None.
      used_bytes: In this process's arena, in use here or in a worker, all pools together.
      idle_bytes: In segments of the arena that nobody uses; given back after a while.
      workers: What each worker has.
    """

    in_flight_bytes: int
    budget_bytes: int | None
    used_bytes: int
    idle_bytes: int
    workers: tuple[WorkerMemory, ...]


class Warehouse:
    """The memory of one pool. To be used from the trio thread that made it; closed after all workers have exited."""

    def __init__(self, budget: int | None) -> None:
        self.budget = Budget(budget)
        self._exchanges: dict[WorkerProcess, Exchange] = {}
        self._unanswered: dict[WorkerProcess, int] = {}
        self._token = trio.lowlevel.current_trio_token()
        self._news = trio.Event()
        self._is_rung = False
        self._looks_for_idle = False
        arena().retain()
        watch_pages()

    def close(self) -> None:
        """End every lease, and give back what is idle."""
        for worker in list(self._exchanges):
            self.worker_exited(worker)
        stop_watching_pages()
        arena().let_go()

    @asynccontextmanager
    async def pack(self, gathered: Gathered) -> AsyncIterator[Packed]:
        """Copy what has to be copied, once there is room for it in the budget, for as long as the block runs.

        Raises:
          ValueError: it is more than all of the budget.
          OSError: as `Gathered.pack`.

        Cancellation: nothing was copied.
        """
        nbytes = gathered.nbytes
        if nbytes:
            await self.budget.acquire(nbytes)
        try:
            packed = gathered.pack()
            try:
                yield packed
            finally:
                packed.close()
        finally:
            if nbytes:
                self.budget.release(nbytes)

    def wrap(self, worker: WorkerProcess, packed: Packed) -> Wrapped:
        """Make the body of a call to *worker*."""
        self._unanswered[worker] = self._unanswered.get(worker, 0) + 1
        return self._exchange(worker).wrap(packed)

    def take_back(self, worker: WorkerProcess, wrapped: Wrapped) -> None:
        """Undo `wrap`: the call could not be sent."""
        if worker in self._exchanges:
            self._unanswered[worker] -= 1
            self._exchanges[worker].take_back(wrapped)

    def take_in(self, worker: WorkerProcess, operation: Operation, message: Message) -> Parcel | None:
        """Take in what a message of *worker* says about memory; return what else it holds.

        Raises:
          RemoteProtocolError: it refers to memory that it has no business with.
          OSError: there is no memory or address space to map what came.
        """
        body = memoryview(message.payload)[HEADER_BYTES:]
        exchange = self._exchange(worker)
        has_parcel = operation is not Operation.MEMORY
        if has_parcel and operation is not Operation.ITEM:
            self._answered(worker, exchange)
        try:
            parcel = exchange.take_in(body, message.handles)
        except OSError as exc:
            if has_parcel:
                raise
            raise RemoteProtocolError(
                "a segment was announced where nothing refers to it, and cannot be mapped"
            ) from exc
        if (parcel is not None) != has_parcel:
            raise RemoteProtocolError(f"a message {operation.name} {'without' if has_parcel else 'with'} a parcel")
        return parcel

    def decline(self, worker: WorkerProcess, operation: Operation, payload: bytes) -> None:
        """Take in an answer, or an item, that lost its handles.

        Raises:
          RemoteProtocolError: it is malformed.
        """
        exchange = self._exchange(worker)
        if operation is not Operation.ITEM:
            self._answered(worker, exchange)
        exchange.decline(memoryview(payload)[HEADER_BYTES:])

    def news_for(self, worker: WorkerProcess) -> Wrapped | None:
        """Make a body of news alone, to ride on a message that is no call; None if the worker has exited."""
        exchange = self._exchanges.get(worker)
        return None if exchange is None else exchange.wrap()

    def take_back_news(self, worker: WorkerProcess, wrapped: Wrapped) -> None:
        """Undo `news_for`: the message could not be sent."""
        if worker in self._exchanges:
            self._exchanges[worker].take_back(wrapped)

    def worker_exited(self, worker: WorkerProcess) -> None:
        """End every lease of a dead worker."""
        self._unanswered.pop(worker, None)
        exchange = self._exchanges.pop(worker, None)
        if exchange is not None:
            exchange.close()

    def statistics(self) -> MemoryStatistics:
        """Return what there is now."""
        held = arena().statistics()
        workers = (WorkerMemory(w.pid, e.lent_bytes, e.mapped_bytes) for w, e in self._exchanges.items())
        return MemoryStatistics(
            self.budget.in_flight, self.budget.limit, held.used_bytes, held.idle_bytes, tuple(workers)
        )

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Send news that nothing takes along, and give back idle memory, until cancelled."""
        while True:
            self._looks_for_idle = self._may_shrink()
            patience = IDLE_SECONDS if self._looks_for_idle else float("inf")
            with trio.move_on_after(patience) as scope:
                await self._news.wait()
                await trio.sleep(NEWS_DELAY)
            if scope.cancelled_caught:
                arena().trim(IDLE_SECONDS)
            self._news, self._is_rung = trio.Event(), False
            for worker, exchange in list(self._exchanges.items()):
                if not self._unanswered.get(worker):
                    self._send_news(worker, exchange, trim=scope.cancelled_caught and exchange.mapped_bytes > 0)

    def _send_news(self, worker: WorkerProcess, exchange: Exchange, *, trim: bool) -> None:
        wrapped = exchange.wrap() if trim else exchange.news()
        if wrapped is None or worker.is_condemned:
            return
        try:
            worker.channel.send_nowait(encode(Operation.MEMORY, 0, wrapped.body, TRIM if trim else 0))
        except (trio.WouldBlock, trio.BusyResourceError):
            # Its queue is full of other messages; what answers those brings this up again.
            exchange.take_back(wrapped)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            exchange.take_back(wrapped)

    def _answered(self, worker: WorkerProcess, exchange: Exchange) -> None:
        self._unanswered[worker] = max(self._unanswered.get(worker, 0) - 1, 0)
        if exchange.has_news or (not self._looks_for_idle and self._may_shrink()):
            self._ring()

    def _may_shrink(self) -> bool:
        return arena().has_segments or any(e.has_mapped for e in self._exchanges.values())

    def _exchange(self, worker: WorkerProcess) -> Exchange:
        if worker not in self._exchanges:
            self._exchanges[worker] = Exchange(keeps_fds=True, on_news=self._ring_soon)
        return self._exchanges[worker]

    def _ring_soon(self) -> None:
        """Have news sent. From any thread and at any moment: a view may end in a garbage collection."""
        if not self._is_rung:
            self._is_rung = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ring, idempotent=True)

    def _ring(self) -> None:
        self._news.set()
