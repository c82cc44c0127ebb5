"""When to start a worker again, and when to give up: Erlang's rule and exponential backoff together.

Pure: time comes in as an argument, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before each further start, in seconds.

    Args:
      first: The wait after the first failure in a row.
      factor: What each further wait is multiplied by.
      cap: The longest wait, before it is varied.
      jitter: By which share of itself a wait is varied at random, so that many workers do not start at once.
    """

    first: float = 0.1
    factor: float = 2.0
    cap: float = 30.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.first < 0 or self.cap < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(f"{self} makes no sense: first and cap >= 0, factor >= 1, jitter from 0 to 1")

    def seconds_after(self, failures: int, chance: float) -> float:
        """Return the wait after *failures* in a row; *chance*, from 0 to 1, picks within the jitter."""
        try:
            wait = min(self.cap, self.first * float(self.factor) ** (failures - 1))
        except OverflowError:
            wait = self.cap if self.first else 0.0
        return wait * (1 + self.jitter * (2 * chance - 1))


@dataclass(frozen=True, slots=True)
class Restart:
    """The restart policy of a worker: at most *intensity* deaths within *period* seconds, with *backoff* between.

    Only deaths outside a call count. A worker that stayed up for *period* seconds starts with a clean slate.
    """

    intensity: int = 5
    period: float = 10.0
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        if self.intensity < 0 or self.period <= 0:
            raise ValueError(f"intensity is {self.intensity} and period {self.period}: at least 0, and more than 0")


@dataclass(slots=True)
class RestartHistory:
    """The deaths of one worker's place, and what the policy makes of them."""

    policy: Restart
    _deaths: deque[float] = field(default_factory=deque)
    _in_a_row: int = 0

    def record_death(self, now: float, *, ready_for: float = 0.0, chance: float | None = None) -> float | None:
        """Take in a death; return how many seconds to wait before the next start, or None to give up.

        Args:
          now: When it died.
          ready_for: For how long it had been ready.
          chance: From 0 to 1, the place within the jitter; random by default.
        """
        if ready_for >= self.policy.period:
            self._in_a_row = 0
            self._deaths.clear()
        self._deaths.append(now)
        while now - self._deaths[0] >= self.policy.period:
            self._deaths.popleft()
        if len(self._deaths) > self.policy.intensity:
            return None
        self._in_a_row += 1
        if chance is None:
            chance = random.random()  # noqa: S311 - spreads starts in time, guards nothing
        return self.policy.backoff.seconds_after(self._in_a_row, chance)
