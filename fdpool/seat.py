"""Seats: a worker, and the calls it was sent."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from fdpool.calls import Call, Reservation
    from fdpool.process.worker_process import WorkerProcess


class Seat:
    """A worker and the calls it was sent.

    Attributes:
      calls: Plain calls: the first of them it runs, the others lie in its socket's queue.
      hosted: Async calls, which run side by side, by number.
      since: When it last began or ended a call, on trio's clock.
      done: How many calls it has answered.
      reservation: Whose calls alone it runs, if it is set aside.
      is_leaving: Whether it is to be retired as soon as it has nothing to do.
    """

    __slots__ = ("calls", "done", "hosted", "is_leaving", "reservation", "since", "worker")

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.calls: deque[Call] = deque()
        self.hosted: dict[int, Call] = {}
        self.since = trio.current_time()
        self.done = 0
        self.reservation: Reservation | None = None
        self.is_leaving = False

    def __contains__(self, call: Call) -> bool:
        return call in self.calls or call.number in self.hosted

    @property
    def is_free(self) -> bool:
        """Whether the worker has nothing to do."""
        return not self.calls and not self.hosted

    @property
    def is_open(self) -> bool:
        """Whether it may be sent calls of anybody's."""
        return not (self.worker.is_condemned or self.is_leaving or self.reservation is not None)

    @property
    def burden(self) -> int:
        """How much is lost or delayed if it leaves."""
        return len(self.calls) + len(self.hosted) + (0 if self.reservation is None else 1_000_000)

    def allows(self, call: Call) -> bool:
        """Whether *call* could be here beside what is, no matter how much there is."""
        return self.is_free or not (call.is_exclusive or any(other.is_exclusive for other in self.calls))

    def running(self, number: int) -> Call | None:
        """Return the call of that number, if it is one that the worker can speak of."""
        if self.calls and self.calls[0].number == number:
            return self.calls[0]
        return self.hosted.get(number)

    def add(self, call: Call) -> None:
        """Note a call that is being sent."""
        if call.is_async:
            self.hosted[call.number] = call
        else:
            self.calls.append(call)

    def remove(self, number: int) -> Call | None:
        """Take the call of that number off, and return it if it was there."""
        call = self.hosted.pop(number, None)
        if call is None:
            call = next((call for call in self.calls if call.number == number), None)
            if call is not None:
                self.calls.remove(call)
        return call
