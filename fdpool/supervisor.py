"""Which workers there are: started, watched, replaced by rule, and gone when their supervisor is."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from fdpool.errors import WorkerStartError, ZygoteError
from fdpool.life import Employer, Life, Terms
from fdpool.protocol.lifecycle import Event, Lifecycle, State
from fdpool.protocol.restart import RestartHistory

if TYPE_CHECKING:
    from fdpool.process.launch import Launcher
    from fdpool.process.worker_process import WorkerProcess


class Supervisor:
    """Keeps a number of workers running, each in a place of its own. Learns every death from a pidfd.

    Args:
      size: How many workers there should be.
      settings: What each is told first; see `encode_settings`.
      terms: What they are held to.
      employer: Who gives them work.
      launcher: What starts one; the seam for tests.
    """

    def __init__(self, size: int, settings: bytes, terms: Terms, employer: Employer, launcher: Launcher) -> None:
        self._places = [_Place(terms) for _ in range(size)]
        self._settings = settings
        self._terms = terms
        self._employer = employer
        self._launcher = launcher
        self._stopping = trio.Event()

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers that have a process."""
        return [life.worker for life in self._lives()]

    @property
    def states(self) -> list[State]:
        """Where each place stands."""
        return [place.lifecycle.state for place in self._places]

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the workers running until `stop`, or until cancelled, which kills them. None is left afterwards."""
        async with trio.open_nursery() as background:
            background.start_soon(self._launcher.run)
            async with trio.open_nursery() as nursery:
                for place in self._places:
                    nursery.start_soon(self._fill, place)
            background.cancel_scope.cancel()

    async def stop(self) -> None:
        """Take all workers down side by side, step by step as the terms say; wait until none is left.

        Cancellation: kills what is left at once, and still waits until it is gone.
        """
        self._stopping.set()
        async with trio.open_nursery() as nursery:
            for life in self._lives():
                nursery.start_soon(life.end, self._terms.ladder)

    def _lives(self) -> list[Life]:
        return [place.life for place in self._places if place.life is not None]

    async def _fill(self, place: _Place) -> None:
        """Keep one worker running, one after the other."""
        while not self._stopping.is_set():
            try:
                ready_for, in_call = await self._live_once(place)
            except ZygoteError as exc:
                place.lifecycle.on(Event.GIVE_UP)
                self._give_up(f"no worker can be started: {exc.args[0]}", list(exc.exits))
                return
            if in_call or self._stopping.is_set():
                continue
            wait = place.history.record_death(trio.current_time(), ready_for=ready_for)
            if wait is None:
                place.lifecycle.on(Event.GIVE_UP)
                self._give_up(place.story(), list(place.exits))
                return
            place.lifecycle.on(Event.PAUSE)
            with trio.move_on_after(wait):
                await self._stopping.wait()
                place.lifecycle.on(Event.DRAIN)

    async def _live_once(self, place: _Place) -> tuple[float, bool]:
        """Start a worker and see it through; return how long it was ready, and whether it ended in a call."""
        place.lifecycle.on(Event.START)
        try:
            worker = await self._launcher.launch(self._settings)
        except BaseException as exc:
            place.lifecycle.on(Event.EXIT)
            if isinstance(exc, ZygoteError) or not isinstance(exc, OSError | WorkerStartError):
                raise
            place.exits.append(f"could not be started: {exc}")
            return 0.0, False
        life = place.life = Life(worker, self._employer, self._terms, place.lifecycle)
        try:
            in_call = await life.attend()
        finally:
            place.life = None
        place.exits.append(life.last_words())
        return life.ready_for(), in_call

    def _give_up(self, message: str, exits: list[str]) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        for life in self._lives():
            life.kill()
        self._employer.supervisor_gave_up(message, exits)


class _Place:
    """Where one worker lives after another."""

    __slots__ = ("exits", "history", "life", "lifecycle")

    def __init__(self, terms: Terms) -> None:
        self.lifecycle = Lifecycle()
        self.history = RestartHistory(terms.restart)
        self.exits: deque[str] = deque(maxlen=terms.restart.intensity + 1)
        self.life: Life | None = None

    def story(self) -> str:
        """Say what was too much."""
        policy = self.history.policy
        return (
            f"a worker died {len(self.exits)} times within {policy.period:g} seconds outside of any call, and the "
            f"restart policy allows {policy.intensity}; the last times, it"
        )
