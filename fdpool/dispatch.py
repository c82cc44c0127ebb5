"""Which worker runs which call, and when.

Callers wait in one line. A free worker takes the first of them; while calls are short, a busy worker is sent one
more, so that it need not wait for this process between two. A call sent ahead like that never waits longer for
it: as soon as another worker has nothing to do, the call is taken back out of the busy one's queue. Taking it out and
beginning it are both a receive on the same socket, so that the kernel decides which of them happens, once.

Who wants a worker for itself waits in the same line; its calls then have a line of their own.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdpool.calls import Reservation
from fdpool.delivery import Delivery
from fdpool.errors import FdLimitError, PoolBroken, RemoteProtocolError, WorkerDied
from fdpool.memory.handles import close_given
from fdpool.process.vitals import own_memory
from fdpool.protocol.tasks import AT_NEXT_ITEM, BEGINS, FROM_WORKER, TO_WORKER, Operation, decode, encode
from fdpool.seat import Seat
from fdpool.statistics import CallCounts, WorkerStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.calls import Call
    from fdpool.events import Broadcast
    from fdpool.kernel import ExitStatus
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message
    from fdpool.warehouse import Warehouse

SHORT_SECONDS: Final = 0.002
"""Calls that take less on average are sent ahead: waiting for this process costs them a tenth of that or more."""

OVERDUE_SECONDS: Final = 0.01
"""A call sent ahead of which the worker's present call has run for longer is taken back before newer ones are begun."""

ASYNC_CALLS_PER_WORKER: Final = 100
"""How many async calls one worker has under way at most."""


class Staff(Protocol):
    """Who sees to it that there are workers."""

    @property
    def size(self) -> int:
        """How many there should be."""

    def retire(self, worker: WorkerProcess, *, rests: bool = False) -> None:
        """Have a worker that is idle end; unless its place *rests* then, another one takes it."""

    def need(self, count: int) -> None:
        """See to it that *count* workers are on their way, if so many places rest."""


class Tenure:
    """How long a worker may stay.

    Args:
      max_tasks: After how many calls it is retired, or None.
      max_rss: With how many bytes of memory of its own it is retired, or None.
      idle_timeout: After how many idle seconds it is let go, or None.
    """

    def __init__(
        self, max_tasks: int | None = None, max_rss: int | None = None, idle_timeout: float | None = None
    ) -> None:
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks_per_worker is {max_tasks}: a worker runs at least 1 call")
        if max_rss is not None and max_rss < 1:
            raise ValueError(f"max_rss is {max_rss} bytes: no worker can do with that")
        if idle_timeout is not None and idle_timeout <= 0:
            raise ValueError(f"idle_timeout is {idle_timeout} seconds: it must be more than 0, or None")
        self.max_tasks = max_tasks
        self.max_rss = max_rss
        self.idle_timeout = idle_timeout

    def has_ended(self, seat: Seat) -> bool:
        """Whether a worker that has just answered has done its share."""
        if self.max_tasks is not None and seat.done >= self.max_tasks:
            return True
        return self.max_rss is not None and own_memory(seat.worker) > self.max_rss


class Dispatcher:
    """Gives calls to workers; the `Employer` of their supervisor.

    Args:
      nursery: Where it can run tasks as long as the pool is open.
      memory: What the workers are lent, and lend.
      tenure: How long workers stay.
      events: Where to say what happens.

    Attributes:
      staff: The supervisor; to be set before the first call.
    """

    staff: Staff

    def __init__(self, nursery: trio.Nursery, memory: Warehouse, tenure: Tenure, events: Broadcast) -> None:
        self._memory = memory
        self.waiting: deque[Call] = deque()
        self.numbers = count(1)
        self.counts = CallCounts()
        self.crashed = 0
        self._delivery = Delivery(nursery, memory, self._unsendable)
        self._tenure = tenure
        self._events = events
        self._seats: dict[WorkerProcess, Seat] = {}
        self._idle: list[Seat] = []
        self._laden: set[Seat] = set()
        self._hosts: set[Seat] = set()
        self._wishes: deque[Reservation] = deque()
        self._reserved: set[Reservation] = set()
        self._average_seconds = 1.0
        self._unavailable: Callable[[], Exception] | None = None
        self._is_matching = False

    def submit(self, call: Call) -> None:
        """Have *call* run as soon as a worker can."""
        reservation = call.reservation
        self._events.tell("call.queued", call=call.number, function=call.name)
        if self._unavailable is not None:
            self._fail(call, self._unavailable())
        elif reservation is None:
            self.waiting.append(call)
            self._match()
        elif reservation.refusal is not None:
            self._fail(call, reservation.refusal())
        else:
            reservation.waiting.append(call)
            assert reservation.worker is not None
            self._serve(reservation, self._seats[reservation.worker])

    def refuse(self, reason: Callable[[], Exception]) -> None:
        """Fail every call that waits, and every one to come."""
        self._unavailable = reason
        while self.waiting:
            self._fail(self.waiting.popleft(), reason())
        for reservation in (*self._wishes, *self._reserved):
            self._refuse_line(reservation, reason)
        self._wishes.clear()

    def check_available(self) -> None:
        """Raise why no call can run any more, if that is so."""
        if self._unavailable is not None:
            raise self._unavailable()

    @trio.lowlevel.enable_ki_protection
    async def stop_call(self, call: Call) -> None:
        """Stop a call that nobody wants any more, as its options say; it has ended when this returns."""
        call.abandon()
        line = self.waiting if call.reservation is None else call.reservation.waiting
        if call in line:
            line.remove(call)
            self._cancelled(call, None)
            self._go_on(call.reservation)
            return
        seat = next((seat for seat in self._seats.values() if call in seat), None)
        if seat is not None and seat.calls and call is not seat.calls[0] and not call.is_async:
            self._take_back(seat)
            self._match()
        if seat is None or call not in seat:
            return
        worker = seat.worker
        with trio.CancelScope(shield=True):
            # A stream that may not be interrupted is closed at its next item, however long that takes.
            is_gentle = call.is_stream and call.options.on_cancel == "wait"
            try:
                if is_gentle or call.options.on_cancel == "interrupt":
                    self._ask_to_end(call, seat, AT_NEXT_ITEM if is_gentle else 0)
                    with trio.move_on_after(math.inf if is_gentle else call.options.grace_period):
                        await call.wait_done()
            finally:
                # Also when a second Ctrl-C ends the wait, which no shield keeps out.
                if not call.is_done:
                    worker.kill()
                    await worker.exited.wait()

    def _go_on(self, reservation: Reservation | None) -> None:
        """Look at a line again whose first may have left it: what stood behind may be able to begin."""
        if reservation is None:
            self._match()
        elif reservation.worker is not None:
            self._serve(reservation, self._seats[reservation.worker])

    def _ask_to_end(self, call: Call, seat: Seat, flags: int) -> None:
        if call.is_async or call.is_stream:
            # A plain stream may be waiting for its consumer, where no signal is looked at.
            self._delivery.say(seat, encode(Operation.CANCEL, call.number, flags=flags))
        if not (call.is_async or flags):
            seat.worker.interrupt(call.number)

    # Workers set aside.

    def reserve(self) -> Reservation:
        """Wish for a worker, in line with the calls; to be waited for, and given back with `give_back`."""
        wish = Reservation(next(self.numbers))
        if self._unavailable is not None:
            self._refuse_line(wish, self._unavailable)
        else:
            self._wishes.append(wish)
            self._match()
        return wish

    def give_back(self, reservation: Reservation) -> None:
        """Have the worker serve everybody again, once it has done what it runs; or withdraw the wish for one."""
        if reservation in self._wishes:
            self._wishes.remove(reservation)
        self._reserved.discard(reservation)
        seat = None if reservation.worker is None else self._seats.get(reservation.worker)
        reservation.worker = None
        self._refuse_line(reservation, lambda: trio.ClosedResourceError("this worker was given back to its pool"))
        if seat is not None:
            seat.reservation = None
            if seat.hosted:
                self._hosts.add(seat)
            self._release(seat)
        else:
            self._go_on(None)

    def _grant(self, wish: Reservation, seat: Seat) -> None:
        wish.worker, seat.reservation = seat.worker, wish
        self._reserved.add(wish)
        wish.granted.set()

    def _refuse_line(self, reservation: Reservation, reason: Callable[[], Exception]) -> None:
        """Fail what waits for a worker set aside, or for being given one, and what will ask for it."""
        reservation.refusal = reason
        reservation.granted.set()
        while reservation.waiting:
            self._fail(reservation.waiting.popleft(), reason())

    def _serve(self, reservation: Reservation, seat: Seat) -> None:
        """Send what waits for a worker that was set aside, as far as it can begin it now."""
        if reservation.is_being_served:
            # A call could not be sent, and the loop below goes on to the next.
            return
        reservation.is_being_served = True
        try:
            while reservation.waiting and not seat.worker.is_condemned:
                call = reservation.waiting[0]
                is_full = len(seat.hosted) >= ASYNC_CALLS_PER_WORKER if call.is_async else seat.calls
                if is_full or not seat.allows(call):
                    return
                self._post(reservation.waiting.popleft(), seat)
        finally:
            reservation.is_being_served = False

    # Calls and workers, brought together.

    def _match(self) -> None:
        """Bring waiting calls and workers together, the calls in their order."""
        if self._is_matching:
            # A call could not be sent, and the loop below goes on to the next.
            return
        self._is_matching = True
        try:
            self._match_all()
        finally:
            self._is_matching = False

    def _match_all(self) -> None:
        if self._idle and self._laden and not (self.waiting or self._wishes):
            # A call must not lie in the queue of a busy worker while another one has nothing to do.
            self._take_back(min(self._laden, key=lambda seat: seat.calls[1].number))
        while self._wishes or self.waiting:
            if self._is_wish_next():
                if not self._idle:
                    break
                self._grant(self._wishes.popleft(), self._idle.pop())
            elif (seat := self._seat_for(self.waiting[0])) is None:
                break
            else:
                call = self.waiting.popleft()
                if call.may_begin():
                    self._post(call, seat)
                elif seat.is_free:
                    self._idle.append(seat)
        if self._wishes or self.waiting:
            self._send_ahead()
            if self._tenure.idle_timeout is not None:
                self.staff.need(len(self.waiting) + len(self._wishes))

    def _is_wish_next(self) -> bool:
        """Whether the first in line wants a worker for itself, and not only for a call."""
        return bool(self._wishes) and not (self.waiting and self.waiting[0].number < self._wishes[0].number)

    def _seat_for(self, call: Call) -> Seat | None:
        """Return the worker that should run *call* now, if there is one; no longer idle if it was."""
        hosts = [seat for seat in self._hosts if self._may_join(call, seat)]
        # Async calls leave at least one worker to plain ones, if there are two.
        if hosts and not (call.is_async and self._idle and len(self._hosts) < self._open_places - 1):
            return min(hosts, key=lambda seat: len(seat.hosted))
        # The one that was busy last: its caches are warm, and the others may go idle for good.
        return self._idle.pop() if self._idle else None

    def _may_join(self, call: Call, seat: Seat) -> bool:
        """Whether *call* may run beside the async calls on *seat*: a plain one only if there is no other worker."""
        if not seat.is_open:
            return False
        if call.is_async:
            return len(seat.hosted) < ASYNC_CALLS_PER_WORKER
        return self._open_places == 1 and not seat.calls and seat.allows(call)

    @property
    def _open_places(self) -> int:
        """How many workers there should be that are not set aside."""
        return self.staff.size - len(self._reserved)

    def _post(self, call: Call, seat: Seat) -> None:
        """Send *call* to a worker that can begin it now."""
        if call.is_async and seat.reservation is None:
            self._hosts.add(seat)
        self._delivery.send(call, seat)
        self._events.tell("call.sent", pid=seat.worker.pid, call=call.number, function=call.name)

    def _unsendable(self, call: Call, seat: Seat, error: Exception) -> None:
        self._tidy(seat)
        self._fail(call, error)
        self._release(seat)

    def _release(self, seat: Seat) -> None:
        """Find something to do for a worker that has done something, or let it go."""
        if not seat.worker.is_condemned and seat.worker in self._seats:
            if seat.reservation is not None:
                self._serve(seat.reservation, seat)
            elif seat.is_leaving:
                if seat.is_free:
                    self.staff.retire(seat.worker)
            else:
                self._take_back_overdue()
                if seat.is_free and seat not in self._idle:
                    self._idle.append(seat)
        self._match()

    def _send_ahead(self) -> None:
        """Put waiting calls into the queues of busy workers, as long as calls are short."""
        if self._average_seconds > SHORT_SECONDS:
            return
        overdue_since = trio.current_time() - OVERDUE_SECONDS
        for seat in self._seats.values():
            if self._is_wish_next() or not self.waiting or self.waiting[0].is_async:
                return
            if self._may_take_one_ahead(seat, overdue_since):
                self._send_one_ahead(seat)

    def _may_take_one_ahead(self, seat: Seat, overdue_since: float) -> bool:
        # A call of several datagrams, or one that waits to be sent, could not be taken back in one piece.
        return (
            len(seat.calls) == 1
            and seat.since >= overdue_since
            and seat.is_open
            and not (seat.calls[0].is_long or seat.calls[0].is_exclusive or seat.hosted)
            and (self._tenure.max_tasks is None or seat.done + 1 < self._tenure.max_tasks)
        )

    def _send_one_ahead(self, seat: Seat) -> None:
        call = self.waiting.popleft()
        if not call.may_begin():
            return
        try:
            if self._delivery.send_ahead(call, seat):
                self._laden.add(seat)
                self._events.tell("call.sent", pid=seat.worker.pid, call=call.number, function=call.name)
            else:
                self.waiting.appendleft(call)
        except (OSError, TypeError, ValueError) as exc:
            self._fail(call, exc)

    def _take_back_overdue(self) -> None:
        deadline = trio.current_time() - OVERDUE_SECONDS
        for seat in [seat for seat in self._laden if seat.since < deadline]:
            self._take_back(seat)

    def _take_back(self, seat: Seat) -> None:
        """Take what a worker has not received back to the head of the line: the call sent ahead, or all it has."""
        for call in reversed(self._delivery.take_back(seat)):
            if call.is_abandoned:
                # Whoever stops it waits for its end.
                call.fail(trio.ClosedResourceError("it was cancelled before it had begun"))
                self._cancelled(call, None)
            elif call.reservation is not None and call.reservation.refusal is not None:
                self._fail(call, call.reservation.refusal())
            else:
                self._line_of(call).appendleft(call)
        self._tidy(seat)
        if seat.is_free and seat.is_open and seat not in self._idle:
            self._idle.append(seat)

    def _line_of(self, call: Call) -> deque[Call]:
        return self.waiting if call.reservation is None else call.reservation.waiting

    def _tidy(self, seat: Seat) -> None:
        """Note what a worker is, now that a call less is on its list."""
        if len(seat.calls) < 2:
            self._laden.discard(seat)
        if not seat.hosted:
            self._hosts.discard(seat)

    # Workers that go.

    def dismiss(self, worker: WorkerProcess) -> None:
        """Have a worker end as soon as it has nothing to do; until then it is given nothing."""
        seat = self._seats.get(worker)
        if seat is None:
            self.staff.retire(worker)
            return
        seat.is_leaving = True
        if seat in self._idle:
            self._idle.remove(seat)
        if len(seat.calls) > 1:
            self._take_back(seat)
        self._release(seat)

    def rematch(self) -> None:
        """Look again who can run what, since there are more or fewer workers to come."""
        self._match()

    def burden_of(self, worker: WorkerProcess) -> int:
        """Return how much would be delayed if *worker* left."""
        seat = self._seats.get(worker)
        return 0 if seat is None else seat.burden

    @trio.lowlevel.enable_ki_protection
    async def let_idle_go(self) -> None:
        """Let workers go that have been idle for too long, until cancelled."""
        timeout = self._tenure.idle_timeout
        if timeout is None:
            return
        while True:
            now = trio.current_time()
            for seat in [seat for seat in self._idle if now - seat.since >= timeout]:
                self._idle.remove(seat)
                seat.is_leaving = True
                self.staff.retire(seat.worker, rests=True)
            oldest = min((seat.since for seat in self._idle), default=now)
            await trio.sleep_until(oldest + timeout)

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
        call = None if seat is None else seat.running(number)
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
            self._lose(seat, call, operation, exc)
            return
        assert parcel is not None
        if operation is Operation.ITEM:
            call.take_item(message, parcel)
            return
        self._answered(seat, call)
        if call.is_abandoned:
            self._cancelled(call, worker)
            call.finish(operation, message, parcel)
        elif self._unavailable is not None and (
            worker.page.cancelled_call == number or (worker.is_interrupted and operation is Operation.ERROR)
        ):
            # It was interrupted because the pool is closing, and not on its caller's behalf.
            message.close()
            self._fail(call, self._unavailable())
        else:
            self._count_answer(call, operation, worker)
            call.finish(operation, message, parcel)
        self._release(seat)

    def worker_lost_handles(self, worker: WorkerProcess, number: int, error: FdLimitError) -> None:
        """Fail the call whose answer, or the item of a stream, that came without its handles."""
        seat = self._seats.get(worker)
        call = None if seat is None else seat.running(number)
        if seat is not None and call is not None:
            operation, *_ = decode(error.data, FROM_WORKER)
            self._memory.decline(worker, operation, error.data)
            self._lose(seat, call, operation, error)

    def _lose(self, seat: Seat, call: Call, operation: Operation, error: OSError) -> None:
        """Fail what there is no room for here: an item of a stream; or an answer, whose worker is free again."""
        if operation is Operation.ITEM:
            call.lose_item(error)
            return
        self._answered(seat, call)
        self._fail(call, error)
        self._release(seat)

    def worker_misbehaved(self, worker: WorkerProcess, error: RemoteProtocolError) -> None:
        """Fail the call that runs on a worker which is not believed any more."""
        seat = self._seats.get(worker)
        if seat is not None and not seat.is_free:
            suspect = seat.calls[0] if seat.calls else next(iter(seat.hosted.values()))
            seat.remove(suspect.number)
            self._tidy(seat)
            self._fail(suspect, error)

    def worker_exited(self, worker: WorkerProcess, status: ExitStatus) -> bool:
        """Fail the call that had begun on a dead worker; those that had not run elsewhere."""
        seat = self._seats.pop(worker, None)
        self.crashed += not worker.is_condemned
        unreceived = self._unreceived(worker) if seat is not None and seat.hosted else frozenset()
        self._memory.worker_exited(worker)
        if seat is None:
            return worker.is_retired
        if seat in self._idle:
            self._idle.remove(seat)
        self._laden.discard(seat)
        self._hosts.discard(seat)
        begun = worker.page.begun_call
        in_call = begun != worker.answered_call
        # From the last one on, so that they end up in their order at the head of the line.
        for call in [*reversed(seat.calls), *sorted(seat.hosted.values(), key=lambda call: -call.number)]:
            has_begun = call.is_sent and call.number not in unreceived if call.is_async else call.number == begun
            in_call |= has_begun
            self._bereave(call, seat, status, has_begun=has_begun)
        if seat.reservation is not None:
            self._bereave_reservation(seat.reservation, seat, status)
        if self._unavailable is not None:
            self.refuse(self._unavailable)
        self._match()
        return worker.is_retired or in_call

    def _bereave(self, call: Call, seat: Seat, status: ExitStatus, *, has_begun: bool) -> None:
        """Have a call whose worker has died run elsewhere, or fail if it may not."""
        if call.is_abandoned:
            close_given(call.packed.given)
            call.fail(self._death_of(call, seat, status))
            self._cancelled(call, seat.worker)
        elif (has_begun and call.retries == 0) or call.reservation is not None:
            close_given(call.packed.given)
            self.counts.died += 1
            self._tell("call.died", call, seat.worker, detail=str(status))
            call.fail(self._death_of(call, seat, status))
        else:
            call.retries -= has_begun
            self.counts.retried += has_begun
            if has_begun:
                self._tell("call.retried", call, seat.worker, detail=str(status))
            self.waiting.appendleft(call)

    def _bereave_reservation(self, reservation: Reservation, seat: Seat, status: ExitStatus) -> None:
        """End the reservation of a worker that has died, or have another worker take its place."""
        self._reserved.discard(reservation)
        reservation.worker = None
        if not reservation.is_held and reservation.refusal is None:
            # It died before who waits for it has learnt of it: there is nothing that could be lost with it.
            reservation.granted = trio.Event()
            insort(self._wishes, reservation, key=lambda wish: wish.number)
            return
        note = "; ".join(filter(None, ("this call came later", seat.worker.complaint)))
        running = next((call.name for call in (*seat.calls, *seat.hosted.values())), "nothing")
        facts = status.pid, status.exitcode, status.signal, running, seat.worker.stderr.tail
        peak = status.peak_rss_bytes
        self._refuse_line(reservation, lambda: WorkerDied(*facts, note=note, peak_rss_bytes=peak))

    def _unreceived(self, worker: WorkerProcess) -> frozenset[int]:
        """Return the numbers of the async calls that lie in a dead worker's queue."""
        messages = [decode(payload, TO_WORKER) for payload in worker.take_back()]
        return frozenset(number for operation, _, number, _ in messages if operation in BEGINS)

    def supervisor_gave_up(self, message: str, exits: list[str]) -> None:
        """Fail every call there is and every one to come."""
        self._events.tell("pool.broken", detail=message)
        self.refuse(lambda: PoolBroken(message, exits))

    def _answered(self, seat: Seat, call: Call) -> None:
        now = trio.current_time()
        seat.remove(call.number)
        self._tidy(seat)
        if not call.is_async:
            if not call.is_stream:
                self._average_seconds += (now - seat.since - self._average_seconds) / 8
            seat.worker.answered_call = call.number
        seat.since = now
        seat.done += 1
        if self._tenure.has_ended(seat):
            seat.is_leaving = True

    def _death_of(self, call: Call, seat: Seat, status: ExitStatus) -> Exception:
        if self._unavailable is not None:
            return self._unavailable()
        worker = seat.worker
        return WorkerDied(
            status.pid,
            status.exitcode,
            status.signal,
            call.name,
            stderr_tail=worker.stderr.tail,
            ran_for=trio.current_time() - seat.since,
            note=worker.complaint,
            peak_rss_bytes=status.peak_rss_bytes,
        )

    # The account of all this.

    def _fail(self, call: Call, error: Exception) -> None:
        """End a call that could not be begun, or whose answer cannot be had."""
        self.counts.failed += 1
        self._tell("call.failed", call, None, detail=type(error).__name__)
        call.fail(error)

    def _cancelled(self, call: Call, worker: WorkerProcess | None) -> None:
        self.counts.cancelled += 1
        self._tell("call.cancelled", call, worker)

    def _count_answer(self, call: Call, operation: Operation, worker: WorkerProcess) -> None:
        if operation is Operation.RESULT:
            self.counts.returned += 1
            self._tell("call.returned", call, worker)
        else:
            self.counts.raised += 1
            self._tell("call.raised", call, worker)

    def _tell(self, name: str, call: Call, worker: WorkerProcess | None, detail: str = "") -> None:
        pid = None if worker is None else worker.pid
        self._events.tell(name, pid=pid, call=call.number, function=call.name, detail=detail)

    @property
    def queued(self) -> int:
        """How many calls wait for a worker."""
        return len(self.waiting) + sum(len(reservation.waiting) for reservation in self._reserved)

    @property
    def running(self) -> int:
        """How many calls are with a worker."""
        return sum(len(seat.calls) + len(seat.hosted) for seat in self._seats.values())

    def worker_statistics(self) -> tuple[WorkerStatistics, ...]:
        """Return how each worker that takes calls stands."""
        now = trio.current_time()
        return tuple(
            WorkerStatistics(
                pid=seat.worker.pid,
                running=tuple(call.name for call in [*list(seat.calls)[:1], *seat.hosted.values()]),
                sent_ahead=max(len(seat.calls) - 1, 0),
                done=seat.done,
                idle_seconds=now - seat.since if seat.is_free else 0.0,
                is_reserved=seat.reservation is not None,
            )
            for seat in self._seats.values()
        )
