"""Which worker runs which call, and when.

Callers wait in one line. A free worker takes the first of them; while calls are short, a busy worker is sent one
more, so that it need not wait for this process between two. A call sent ahead like that never waits longer for
it: as soon as another worker has nothing to do, the call is taken back out of the busy one's queue. Taking it out and
beginning it are both a receive on the same socket, so that the kernel decides which of them happens, once.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from fdpool.errors import FdLimitError, PoolBroken, RemoteProtocolError, WorkerDied
from fdpool.memory.handles import close_given
from fdpool.protocol.tasks import REPORT_BEGUN, TO_WORKER, Operation, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.calls import Call
    from fdpool.kernel import ExitStatus
    from fdpool.memory.exchange import Wrapped
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message
    from fdpool.warehouse import Warehouse

SHORT_SECONDS: Final = 0.002
"""Calls that take less on average are sent ahead: waiting for this process costs them a tenth of that or more."""

OVERDUE_SECONDS: Final = 0.01
"""A call sent ahead of which the worker's present call has run for longer is taken back before newer ones are begun."""


ASYNC_CALLS_PER_WORKER: Final = 100
"""How many async calls one worker has under way at most."""


class Seat:
    """A worker and the calls it was sent.

    Attributes:
      calls: Plain calls: the first of them it runs, the others lie in its socket's queue.
      hosted: Async calls, which run side by side, by number.
    """

    __slots__ = ("calls", "done", "hosted", "since", "worker")

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.calls: deque[Call] = deque()
        self.hosted: dict[int, Call] = {}
        self.since = 0.0
        self.done = 0

    def __contains__(self, call: Call) -> bool:
        return call in self.calls or call.number in self.hosted

    @property
    def is_free(self) -> bool:
        """Whether the worker has nothing to do."""
        return not self.calls and not self.hosted


class Dispatcher:
    """Gives calls to workers; the `Employer` of their supervisor.

    Args:
      nursery: Where it can run tasks as long as the pool is open.
      memory: What the workers are lent, and lend.
      grace_period: Seconds that a retired worker has to end.
      max_tasks: After how many calls a worker is retired, or None.
    """

    def __init__(
        self, nursery: trio.Nursery, memory: Warehouse, grace_period: float, max_tasks: int | None = None
    ) -> None:
        self._memory = memory
        self.waiting: deque[Call] = deque()
        self.numbers = count(1)
        self._seats: dict[WorkerProcess, Seat] = {}
        self._idle: list[Seat] = []
        self._laden: set[Seat] = set()
        self._hosts: set[Seat] = set()
        self._nursery = nursery
        self._grace_period = grace_period
        self._max_tasks = max_tasks
        self._average_seconds = 1.0
        self._unavailable: Callable[[], Exception] | None = None

    def submit(self, call: Call) -> None:
        """Have *call* run as soon as a worker can."""
        if self._unavailable is not None:
            call.fail(self._unavailable())
        else:
            self.waiting.append(call)
            self._match()

    def refuse(self, reason: Callable[[], Exception]) -> None:
        """Fail every call that waits, and every one to come."""
        self._unavailable = reason
        while self.waiting:
            self.waiting.popleft().fail(reason())

    @trio.lowlevel.enable_ki_protection
    async def stop_call(self, call: Call) -> None:
        """Stop a call that nobody wants any more, as its options say; it has ended when this returns."""
        call.is_abandoned = True
        if call in self.waiting:
            self.waiting.remove(call)
            return
        seat = next((seat for seat in self._seats.values() if call in seat), None)
        if seat is not None and seat.calls and call is not seat.calls[0] and not call.is_async:
            self._take_back(seat)
            self._match()
        if seat is None or call not in seat:
            return
        worker = seat.worker
        with trio.CancelScope(shield=True):
            if call.options.on_cancel == "interrupt":
                if call.is_async:
                    self._nursery.start_soon(self._cancel_async, call, seat)
                else:
                    worker.interrupt(call.number)
                with trio.move_on_after(call.options.grace_period):
                    await call.wait_done()
            if not call.is_done:
                worker.kill()
                await worker.exited.wait()
        if call.message is not None:
            call.message.close()
            call.parcel = None

    async def _cancel_async(self, call: Call, seat: Seat) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with seat.worker.sending:
                await seat.worker.channel.send(encode(Operation.CANCEL, call.number))

    def _match(self) -> None:
        """Bring waiting calls and workers together, the calls in their order."""
        if self._idle and not self.waiting and self._laden:
            # A call must not lie in the queue of a busy worker while another one has nothing to do.
            self._take_back(min(self._laden, key=lambda seat: seat.calls[1].number))
        while self.waiting and (seat := self._seat_for(self.waiting[0])) is not None:
            call = self.waiting.popleft()
            if call.may_begin():
                self._post(call, seat)
            elif seat.is_free:
                self._idle.append(seat)
        self._send_ahead()

    def _seat_for(self, call: Call) -> Seat | None:
        """Return the worker that should run *call* now, if there is one; no longer idle if it was."""
        hosts = [seat for seat in self._hosts if self._may_join(call, seat)]
        # Async calls leave at least one worker to plain ones, if there are two.
        if hosts and not (call.is_async and self._idle and len(self._hosts) < len(self._seats) - 1):
            return min(hosts, key=lambda seat: len(seat.hosted))
        # The one that was busy last: its caches are warm, and the others may go idle for good.
        return self._idle.pop() if self._idle else None

    def _may_join(self, call: Call, seat: Seat) -> bool:
        """Whether *call* may run beside the async calls on *seat*: a plain one only if there is no other worker."""
        if seat.worker.is_condemned:
            return False
        if call.is_async:
            return len(seat.hosted) < ASYNC_CALLS_PER_WORKER
        return len(self._seats) == 1 and not seat.calls

    def _post(self, call: Call, seat: Seat) -> None:
        """Send *call* to a worker that can begin it now."""
        if call.is_async:
            seat.hosted[call.number] = call
            self._hosts.add(seat)
        else:
            seat.calls.append(call)
        seat.since = trio.current_time()
        call.is_long = False
        call.worker = seat.worker
        try:
            call.wrapped = self._memory.wrap(seat.worker, call.packed)
            seat.worker.channel.send_nowait(self._payload(call, call.wrapped), call.wrapped.handles)
        except (trio.WouldBlock, trio.BusyResourceError):
            call.is_long = True
            self._nursery.start_soon(self._send_patiently, call, seat)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The worker is dead, and the supervisor is about to say so; the call goes to another one then.
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._unsendable(call, seat, exc)

    async def _send_patiently(self, call: Call, seat: Seat) -> None:
        """Send a call that takes several datagrams, or has to wait for descriptors in flight to land."""
        assert call.wrapped is not None
        try:
            async with seat.worker.sending:
                await seat.worker.channel.send(self._payload(call, call.wrapped), call.wrapped.handles)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._unsendable(call, seat, exc)

    def _unsendable(self, call: Call, seat: Seat, error: Exception) -> None:
        if self._remove(call.number, seat) is not None:
            self._unwrap(call)
            call.fail(error)
            self._release(seat)

    def _unwrap(self, call: Call) -> None:
        """Undo what was noted about memory for a call that was not sent, or was taken back."""
        if call.wrapped is not None and call.worker is not None:
            self._memory.take_back(call.worker, call.wrapped)
            call.wrapped = None

    def _payload(self, call: Call, wrapped: Wrapped) -> bytes:
        flags = REPORT_BEGUN if call.packed.given else 0
        operation = Operation.RUN_ASYNC if call.is_async else Operation.RUN
        return encode(operation, call.number, wrapped.body, flags)

    def _release(self, seat: Seat) -> None:
        """Find something to do for a worker that has done something."""
        if not seat.worker.is_condemned and seat.worker in self._seats:
            self._take_back_overdue()
            if seat.is_free and seat not in self._idle:
                self._idle.append(seat)
        self._match()

    def _send_ahead(self) -> None:
        """Put waiting calls into the queues of busy workers, as long as calls are short."""
        if self._average_seconds > SHORT_SECONDS or not self.waiting:
            return
        for seat in self._seats.values():
            if not self.waiting or self.waiting[0].is_async:
                return
            if self._may_take_one_ahead(seat) and not self._send_one_ahead(seat):
                return

    def _may_take_one_ahead(self, seat: Seat) -> bool:
        # A call of several datagrams, or one that waits to be sent, could not be taken back in one piece.
        return (
            len(seat.calls) == 1
            and not (seat.calls[0].is_long or seat.hosted or seat.worker.is_condemned)
            and (self._max_tasks is None or seat.done + 1 < self._max_tasks)
        )

    def _send_one_ahead(self, seat: Seat) -> bool:
        """Put the first call in line into a worker's queue; return False if it has to wait for its turn."""
        call = self.waiting[0]
        if not call.may_begin():
            self.waiting.popleft()
            return True
        call.worker = seat.worker
        call.wrapped = self._memory.wrap(seat.worker, call.packed)
        try:
            seat.worker.channel.send_nowait(self._payload(call, call.wrapped), call.wrapped.handles)
        except trio.WouldBlock:
            self._unwrap(call)
            return False
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self._unwrap(call)
            return True
        except (OSError, TypeError, ValueError) as exc:
            self._unwrap(call)
            self.waiting.popleft().fail(exc)
            return True
        seat.calls.append(self.waiting.popleft())
        self._laden.add(seat)
        return True

    def _take_back_overdue(self) -> None:
        deadline = trio.current_time() - OVERDUE_SECONDS
        for seat in [seat for seat in self._laden if seat.since < deadline]:
            self._take_back(seat)

    def _take_back(self, seat: Seat) -> None:
        """Take what a worker has not received back to the head of the line: the call sent ahead, or all it has."""
        taken = []
        for payload in seat.worker.take_back():
            operation, _, number, _ = decode(payload, TO_WORKER)
            if operation is Operation.MEMORY:
                # News of memory that lay between the calls: said again.
                self._nursery.start_soon(self._send_again, seat, payload)
                continue
            call = self._remove(number, seat)
            if call is not None:
                self._unwrap(call)
            if call is not None and not call.is_abandoned:
                taken.append(call)
        self.waiting.extendleft(reversed(taken))
        if seat.is_free and not seat.worker.is_condemned and seat not in self._idle:
            self._idle.append(seat)

    async def _send_again(self, seat: Seat, payload: bytes) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with seat.worker.sending:
                await seat.worker.channel.send(payload)

    def _remove(self, number: int, seat: Seat) -> Call | None:
        """Take the call of that number off a worker's list, if it is there."""
        call = seat.hosted.pop(number, None) or next((call for call in seat.calls if call.number == number), None)
        if call is not None and call in seat.calls:
            seat.calls.remove(call)
        if len(seat.calls) < 2:
            self._laden.discard(seat)
        if not seat.hosted:
            self._hosts.discard(seat)
        return call

    # What the supervisor tells.

    def worker_ready(self, worker: WorkerProcess) -> None:
        """Take a new worker into service."""
        seat = self._seats[worker] = Seat(worker)
        self._release(seat)

    def worker_said(self, worker: WorkerProcess, operation: Operation, number: int, message: Message) -> None:
        """Take in an answer, or the news that a call's handles have arrived."""
        if operation is Operation.MEMORY:
            with message:
                self._memory.take_in(worker, operation, message)
            return
        seat = self._seats.get(worker)
        call = self._running_on(seat, number)
        if seat is None or call is None:
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
            self._fail_answered(seat, call, exc)
            return
        assert parcel is not None
        self._answered(seat, call)
        if self._unavailable is not None and worker.page.cancelled_call == number and not call.is_abandoned:
            # It was interrupted because the pool is closing, and not on its caller's behalf.
            message.close()
            call.fail(self._unavailable())
        else:
            call.finish(operation, message, parcel)
        self._release(seat)

    def worker_lost_handles(self, worker: WorkerProcess, number: int, error: FdLimitError) -> None:
        """Fail the call whose answer came without its handles."""
        seat = self._seats.get(worker)
        call = self._running_on(seat, number)
        if seat is not None and call is not None:
            self._memory.decline(worker, error.data)
            self._fail_answered(seat, call, error)

    def _fail_answered(self, seat: Seat, call: Call, error: OSError) -> None:
        """Fail a call whose answer there is no room for; its worker is free again."""
        self._answered(seat, call)
        call.fail(error)
        self._release(seat)

    def worker_misbehaved(self, worker: WorkerProcess, error: RemoteProtocolError) -> None:
        """Fail the call that runs on a worker which is not believed any more."""
        seat = self._seats.get(worker)
        if seat is not None and (seat.calls or seat.hosted):
            suspect = seat.calls[0] if seat.calls else next(iter(seat.hosted.values()))
            self._remove(suspect.number, seat)
            suspect.fail(error)

    def _running_on(self, seat: Seat | None, number: int) -> Call | None:
        """Return the call of that number, if it is one that the worker can speak of."""
        if seat is None:
            return None
        if seat.calls and seat.calls[0].number == number:
            return seat.calls[0]
        return seat.hosted.get(number)

    def worker_exited(self, worker: WorkerProcess, status: ExitStatus) -> bool:
        """Fail the call that had begun on a dead worker; those that had not run elsewhere."""
        seat = self._seats.pop(worker, None)
        self._memory.worker_exited(worker)
        begun = worker.page.begun_call
        if seat is None:
            return False
        if seat in self._idle:
            self._idle.remove(seat)
        self._laden.discard(seat)
        self._hosts.discard(seat)
        in_call = self._end_hosted(seat, status) or begun != worker.answered_call
        while seat.calls:
            # From the last one on, so that they end up in their order at the head of the line.
            call = seat.calls.pop()
            has_begun = call.number == begun
            if has_begun:
                close_given(call.packed.given)
            if call.is_abandoned or (has_begun and call.retries == 0):
                call.fail(self._death_of(call, seat, status))
            else:
                call.retries -= has_begun
                self.waiting.appendleft(call)
        if self._unavailable is not None:
            self.refuse(self._unavailable)
        self._match()
        return worker.is_retired or in_call

    def supervisor_gave_up(self, message: str, exits: list[str]) -> None:
        """Fail every call there is and every one to come."""
        self.refuse(lambda: PoolBroken(message, exits))

    def _answered(self, seat: Seat, call: Call) -> None:
        now = trio.current_time()
        self._remove(call.number, seat)
        if not call.is_async:
            self._average_seconds += (now - seat.since - self._average_seconds) / 8
            seat.worker.answered_call = call.number
        seat.since = now
        seat.done += 1
        if self._max_tasks is not None and seat.done >= self._max_tasks:
            self._retire(seat)

    def _retire(self, seat: Seat) -> None:
        """Have a worker that has done its share end, and another one take its place."""
        seat.worker.retire()
        self._nursery.start_soon(self._see_off, seat.worker)

    async def _see_off(self, worker: WorkerProcess) -> None:
        with trio.move_on_after(self._grace_period):
            await worker.exited.wait()
        worker.kill()

    def _end_hosted(self, seat: Seat, status: ExitStatus) -> bool:
        """Fail the async calls of a dead worker that it had received; have the others run elsewhere."""
        messages = [decode(payload, TO_WORKER) for payload in seat.worker.take_back()]
        unreceived = {number for operation, _, number, _ in messages if operation is Operation.RUN_ASYNC}
        had_begun = False
        for number, call in sorted(seat.hosted.items(), reverse=True):
            has_begun = number not in unreceived
            had_begun |= has_begun
            if call.is_abandoned or (has_begun and call.retries == 0):
                close_given(call.packed.given)
                call.fail(self._death_of(call, seat, status))
            else:
                call.retries -= has_begun
                self.waiting.appendleft(call)
        seat.hosted.clear()
        return had_begun

    def _death_of(self, call: Call, seat: Seat, status: ExitStatus) -> Exception:
        if self._unavailable is not None:
            return self._unavailable()
        ran_for = trio.current_time() - seat.since
        note = seat.worker.complaint
        return WorkerDied(status.pid, status.exitcode, status.signal, call.name, ran_for=ran_for, note=note)
