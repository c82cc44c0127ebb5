"""How a pool stands: its workers, its calls, its memory, at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fdpool.warehouse import MemoryStatistics


@dataclass(slots=True)
class CallCounts:
    """How calls have ended so far. Every call that was begun or had to wait is in exactly one of them in the end.

    Attributes:
      returned: The function returned.
      raised: It raised.
      cancelled: Its caller was cancelled.
      died: The worker died over it, and it was not to be retried.
      failed: It was never begun: it could not be sent, or the pool was closed or broken.
      retried: Not an end: how often a call was begun again after a worker died over it.
    """

    returned: int = 0
    raised: int = 0
    cancelled: int = 0
    died: int = 0
    failed: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """One worker that takes calls.

    Attributes:
      pid: Its process id.
      running: The names of the functions that it runs.
      sent_ahead: How many calls lie in its queue.
      done: How many calls it has answered.
      idle_seconds: For how long it has had nothing to do; 0.0 if it has.
      is_reserved: Whether it is set aside by `Pool.worker`.
    """

    pid: int
    running: tuple[str, ...]
    sent_ahead: int
    done: int
    idle_seconds: float
    is_reserved: bool


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at one moment.

    Attributes:
      size: How many workers there should be.
      states: How many places of workers are in each state of docs/lifecycle.md, by its name; "resting" are those
          whose worker was let go because it was idle.
      queued: How many calls wait for a worker.
      running: How many calls are with a worker.
      calls: How those before them ended.
      crashed: How many workers died that nobody had asked to.
      workers: Those that take calls.
      memory: See `Pool.memory_statistics`.
    """

    size: int
    states: Mapping[str, int]
    queued: int
    running: int
    calls: CallCounts
    crashed: int
    workers: tuple[WorkerStatistics, ...]
    memory: MemoryStatistics = field(repr=False)

    @property
    def done(self) -> int:
        """How many calls a worker has answered."""
        return self.calls.returned + self.calls.raised
