"""Restarting places that belong together: whom a death concerns, in which order, and when it is too much.

Erlang's strategies over `Restart`. Pure: it is told of exits and of wishes, and says what is to be done.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdpool.protocol.restart import Restart, RestartHistory

if TYPE_CHECKING:
    from collections.abc import Sequence


class Strategy(enum.Enum):
    """Whom the death of one place concerns. Places count in the order in which they were started."""

    ONE_FOR_ONE = "one_for_one"
    """Only itself."""
    REST_FOR_ONE = "rest_for_one"
    """Itself and those started after it, which may have relied on it."""
    ONE_FOR_ALL = "one_for_all"
    """All of them."""


class Keep(enum.Enum):
    """Whether a place is started again after an exit of its own."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Only after a failure: a signal, or an exit code other than 0."""
    TEMPORARY = "temporary"
    """Never, also not because of somebody else's death."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Stop *stop* one after the other, wait *wait* seconds, then start *start* one after the other."""

    stop: tuple[int, ...]
    start: tuple[int, ...]
    wait: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """More deaths than the policy allows: stop *stop* one after the other, and start nothing."""

    stop: tuple[int, ...]


Verdict = Leave | Replace | GiveUp


@dataclass(slots=True)
class RestartGroup:
    """Places that share one restart policy: the deaths of all count together, as in an Erlang supervisor.

    Args:
      keeps: For each place, in the order they are started, when it is started again.
    """

    policy: Restart
    strategy: Strategy
    keeps: Sequence[Keep]
    _running: set[int] = field(init=False)
    _held: set[int] = field(init=False, default_factory=set)
    _history: RestartHistory = field(init=False)

    def __post_init__(self) -> None:
        self._running = set(range(len(self.keeps)))
        self._history = RestartHistory(self.policy)

    @property
    def running(self) -> frozenset[int]:
        """The places that have a process, as far as this was told."""
        return frozenset(self._running)

    def hold(self, place: int) -> None:
        """Somebody stops *place* on purpose: whatever dies from now on, it stays down until it is released."""
        self._held.add(place)

    def release(self, place: int) -> None:
        """Somebody has started *place* again."""
        self._held.discard(place)
        self._running.add(place)

    def record_exit(
        self, place: int, now: float, *, clean: bool, ready_for: float = 0.0, chance: float | None = None
    ) -> Verdict:
        """Take in that *place* ended by itself, or because it is held; say what is to be done.

        Args:
          now: When it ended, in seconds of any clock that only goes forward.
          clean: Whether it exited with code 0.
          ready_for: For how long it had been ready.
          chance: From 0 to 1, the place within the backoff's jitter; random by default.
        """
        self._running.discard(place)
        if place in self._held or not self._comes_back(place, clean):
            return Leave()
        wait = self._history.record_death(now, ready_for=ready_for, chance=chance)
        concerned = self._concerned_by(place)
        stop = tuple(sorted(concerned & self._running, reverse=True))
        if wait is None:
            stop = tuple(sorted(self._running, reverse=True))
            self._running.clear()
            return GiveUp(stop)
        start = tuple(sorted(other for other in {place, *stop} if self.keeps[other] is not Keep.TEMPORARY))
        self._running.difference_update(stop)
        self._running.update(start)
        return Replace(stop, start, wait)

    def _comes_back(self, place: int, clean: bool) -> bool:
        keep = self.keeps[place]
        return keep is Keep.PERMANENT or (keep is Keep.TRANSIENT and not clean)

    def _concerned_by(self, place: int) -> set[int]:
        if self.strategy is Strategy.ONE_FOR_ONE:
            return {place}
        first = place if self.strategy is Strategy.REST_FOR_ONE else 0
        return {other for other in range(first, len(self.keeps)) if other not in self._held}
