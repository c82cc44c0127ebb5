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
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message

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

    def remove(self, number: int) -> Call | None:
        """Take the call of that number off, if it is here."""
        if number in self.hosted:
            return self.hosted.pop(number)
        for call in self.calls:
            if call.number == number:
                self.calls.remove(call)
                return call
        return None


class Dispatcher:
    """Gives calls to workers; the `Employer` of their supervisor.

    Args:
      nursery: Where it can run tasks as long as the pool is open.
      grace_period: Seconds that a retired worker has to end.
      max_tasks: After how many calls a worker is retired, or None.
    """

    def __init__(self, nursery: trio.Nursery, grace_period: float, max_tasks: int | None = None) -> None:
        self.waiting: deque[Call] = deque()
        self.numbers = count(1)
        self._seats: dict[WorkerProcess, Seat] = {}
        self._idle: list[Seat] = []
        self._nursery = nursery
        self._grace_period = grace_period
        self._max_tasks = max_tasks
        self._average_seconds = 1.0
        self._unavailable: Callable[[], Exception] | None = None

    def submit(self, call: Call) -> None:
        """Have *call* run as soon as a worker can."""
        if self._unavailable is not None:
            call.fail(self._unavailable())
        elif (seat := self._seat_for(call)) is not None:
            if call.may_begin():
                self._post(call, seat)
        else:
            self.waiting.append(call)
            self._send_ahead()

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
        if seat is not None and seat.calls and seat.calls[0] is not call:
            self._take_back(seat)
            self._send_ahead()
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

    async def _cancel_async(self, call: Call, seat: Seat) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with seat.worker.sending:
                await seat.worker.channel.send(encode(Operation.CANCEL, call.number))

    def _seat_for(self, call: Call) -> Seat | None:
        """Return the worker that should run *call* now, if there is one; no longer idle if it was."""
        hosts = [seat for seat in self._seats.values() if self._may_join(call, seat)]
        # Async calls leave at least one worker to plain ones, if there are two.
        if hosts and not (call.is_async and self._idle and len(hosts) < len(self._seats) - 1):
            return min(hosts, key=lambda seat: len(seat.hosted))
        # The one that was busy last: its caches are warm, and the others may go idle for good.
        return self._idle.pop() if self._idle else None

    def _post(self, call: Call, seat: Seat) -> None:
        """Send *call* to a worker that can begin it now."""
        if call.is_async:
            seat.hosted[call.number] = call
        else:
            seat.calls.append(call)
        seat.since = trio.current_time()
        payload = self._payload(call)
        try:
            seat.worker.channel.send_nowait(payload, call.packed.handles)
        except (trio.WouldBlock, trio.BusyResourceError):
            self._nursery.start_soon(self._send_patiently, call, seat, payload)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The worker is dead, and the supervisor is about to say so; the call goes to another one then.
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._unsendable(call, seat, exc)

    async def _send_patiently(self, call: Call, seat: Seat, payload: bytes) -> None:
        """Send a call that takes several datagrams, or has to wait for descriptors in flight to land."""
        try:
            async with seat.worker.sending:
                await seat.worker.channel.send(payload, call.packed.handles)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._unsendable(call, seat, exc)

    def _unsendable(self, call: Call, seat: Seat, error: Exception) -> None:
        if seat.remove(call.number) is not None:
            call.fail(error)
            self._occupy(seat)

    def _payload(self, call: Call) -> bytes:
        flags = REPORT_BEGUN if call.packed.given else 0
        operation = Operation.RUN_ASYNC if call.is_async else Operation.RUN
        return encode(operation, call.number, call.packed.data, flags)

    def _occupy(self, seat: Seat) -> None:
        """Find work for a worker that may have none, and something to do next for one that has."""
        if seat.worker.is_condemned or seat.worker not in self._seats:
            return
        self._take_back_overdue()
        if seat.calls:
            seat.since = trio.current_time()
        elif seat.hosted:
            self._fill_host(seat)
        elif (call := self._next_waiting()) is not None:
            self._post(call, seat)
            self._fill_host(seat)
        elif (laden := self._most_laden()) is not None and self._take_back(laden):
            self._post(self.waiting.popleft(), seat)
        else:
            self._idle.append(seat)
            return
        self._send_ahead()

    def _fill_host(self, seat: Seat) -> None:
        """Give a worker that hosts async calls those that are first in line, as far as it may have them."""
        while self.waiting and self._may_join(self.waiting[0], seat):
            call = self.waiting.popleft()
            if call.may_begin():
                self._post(call, seat)

    def _may_join(self, call: Call, seat: Seat) -> bool:
        """Whether *call* may run beside the async calls on *seat*: a plain one only if there is no other worker."""
        if not seat.hosted or seat.worker.is_condemned:
            return False
        if call.is_async:
            return len(seat.hosted) < ASYNC_CALLS_PER_WORKER
        return len(self._seats) == 1 and not seat.calls

    def _next_waiting(self) -> Call | None:
        """Take the first in line that still wants to run."""
        while self.waiting:
            call = self.waiting.popleft()
            if call.may_begin():
                return call
        return None

    def _send_ahead(self) -> None:
        """Put waiting calls into the queues of busy workers, as long as calls are short."""
        if self._average_seconds > SHORT_SECONDS or not self.waiting:
            return
        for seat in self._seats.values():
            if len(seat.calls) == 1 and self._may_take_more(seat) and self.waiting:
                call = self.waiting[0]
                if call.is_async:
                    return
                if not call.may_begin():
                    self.waiting.popleft()
                    continue
                try:
                    seat.worker.channel.send_nowait(self._payload(call), call.packed.handles)
                except trio.WouldBlock:
                    # It takes several datagrams, and those cannot be taken back one by one.
                    return
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                    continue
                except (OSError, TypeError, ValueError) as exc:
                    self.waiting.popleft().fail(exc)
                    continue
                seat.calls.append(self.waiting.popleft())

    def _most_laden(self) -> Seat | None:
        """Return the worker whose call sent ahead has waited longest."""
        laden = [seat for seat in self._seats.values() if len(seat.calls) > 1]
        return min(laden, key=lambda seat: seat.calls[1].number, default=None)

    def _take_back_overdue(self) -> None:
        deadline = trio.current_time() - OVERDUE_SECONDS
        for seat in self._seats.values():
            if len(seat.calls) > 1 and seat.since < deadline:
                self._take_back(seat)

    def _take_back(self, seat: Seat) -> bool:
        """Take the calls that a worker has not received back to the head of the line; return whether there were any."""
        taken = []
        for payload in seat.worker.take_back():
            _, _, number, _ = decode(payload, TO_WORKER)
            call = seat.remove(number)
            if call is not None and not call.is_abandoned:
                taken.append(call)
        self.waiting.extendleft(reversed(taken))
        return bool(taken)

    # What the supervisor tells.

    def worker_ready(self, worker: WorkerProcess) -> None:
        """Take a new worker into service."""
        seat = self._seats[worker] = Seat(worker)
        self._occupy(seat)

    def worker_said(self, worker: WorkerProcess, operation: Operation, number: int, message: Message) -> None:
        """Take in an answer, or the news that a call's handles have arrived."""
        seat = self._seats.get(worker)
        call = self._running_on(seat, number)
        if seat is None or call is None:
            message.close()
            raise RemoteProtocolError(f"worker {worker.pid} speaks of call {number}, which it was not given")
        close_given(call.packed.given)
        if operation is Operation.BEGUN:
            message.close()
            return
        self._answered(seat, call)
        call.finish(operation, message)
        self._occupy(seat)

    def worker_lost_handles(self, worker: WorkerProcess, number: int, error: FdLimitError) -> None:
        """Fail the call whose answer came without its handles."""
        seat = self._seats.get(worker)
        call = self._running_on(seat, number)
        if seat is not None and call is not None:
            self._answered(seat, call)
            call.fail(error)
            self._occupy(seat)

    def worker_misbehaved(self, worker: WorkerProcess, error: RemoteProtocolError) -> None:
        """Fail the call that runs on a worker which is not believed any more."""
        seat = self._seats.get(worker)
        if seat is not None and (seat.calls or seat.hosted):
            call = seat.calls.popleft() if seat.calls else seat.hosted.pop(next(iter(seat.hosted)))
            call.fail(error)

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
        begun = worker.page.begun_call
        if seat is None:
            return False
        if seat in self._idle:
            self._idle.remove(seat)
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
        while self._idle and self.waiting:
            self._occupy(self._idle.pop())
        return worker.is_retired or in_call

    def supervisor_gave_up(self, message: str, exits: list[str]) -> None:
        """Fail every call there is and every one to come."""
        self.refuse(lambda: PoolBroken(message, exits))

    def _answered(self, seat: Seat, call: Call) -> None:
        now = trio.current_time()
        if call.is_async:
            del seat.hosted[call.number]
        else:
            self._average_seconds += (now - seat.since - self._average_seconds) / 8
            seat.calls.popleft()
            seat.worker.answered_call = call.number
        seat.since = now
        seat.done += 1
        if self._max_tasks is not None and seat.done >= self._max_tasks:
            self._retire(seat)

    def _may_take_more(self, seat: Seat) -> bool:
        room = self._max_tasks is None or seat.done + len(seat.calls) < self._max_tasks
        return room and not seat.worker.is_condemned

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
        unreceived = {decode(payload, TO_WORKER)[2] for payload in seat.worker.take_back()}
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
        return WorkerDied(status.pid, status.exitcode, status.signal, call.name, ran_for=ran_for)
