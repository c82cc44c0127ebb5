"""Which workers there are: started, watched, replaced by rule, and gone when their supervisor is."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from fdpool.errors import WorkerStartError, ZygoteError
from fdpool.life import Employer, Life, Terms
from fdpool.process.oom import OomKills
from fdpool.protocol.lifecycle import Event, Lifecycle, State
from fdpool.protocol.restart import RestartHistory

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.process.launch import Launcher
    from fdpool.process.worker_process import WorkerProcess


class Supervisor:
    """Keeps a number of workers running, each in a place of its own. Learns every death from a pidfd.

    Args:
      size: How many workers there should be.
      settings: Makes what one that starts now is told first; see `encode_settings`.
      terms: What they are held to.
      employer: Who gives them work.
      launcher: What starts one; the seam for tests.
      tell: Called as `Broadcast.tell` with each change of a worker's state.
    """

    def __init__(
        self,
        size: int,
        settings: Callable[[], bytes],
        terms: Terms,
        employer: Employer,
        launcher: Launcher,
        tell: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._terms = terms
        self._tell = tell
        self._places = [self._new_place() for _ in range(size)]
        self._settings = settings
        self._employer = employer
        self._launcher = launcher
        self._stopping = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._background: trio.Nursery
        self._oom_kills = OomKills(trio.current_time())

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return sum(not place.is_closed for place in self._places)

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers that have a process."""
        return [life.worker for life in self._lives()]

    @property
    def states(self) -> list[State]:
        """Where each place stands."""
        return [place.lifecycle.state for place in self._places]

    @property
    def resting(self) -> int:
        """How many places are empty because there was nothing to do for their workers."""
        return sum(place.rests and place.lifecycle.state is State.EXITED for place in self._places)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the workers running until `stop`, or until cancelled, which kills them. None is left afterwards."""
        async with trio.open_nursery() as background:
            self._background = background
            background.start_soon(self._launcher.run)
            async with trio.open_nursery() as self._nursery:
                for place in self._places:
                    self._nursery.start_soon(self._fill, place)
            background.cancel_scope.cancel()

    async def stop(self) -> None:
        """Take all workers down side by side, step by step as the terms say; wait until none is left.

        Cancellation: kills what is left at once, and still waits until it is gone.
        """
        self._stop_filling()
        async with trio.open_nursery() as nursery:
            for life in self._lives():
                nursery.start_soon(life.end, self._terms.ladder)

    def resize(self, size: int, burden_of: Callable[[WorkerProcess], int]) -> list[WorkerProcess]:
        """Have *size* places from now on; return the workers whose places are gone, for the caller to retire.

        Places are closed where least is lost: those without a worker first, then by *burden_of* it.
        """
        open_places = [place for place in self._places if not place.is_closed]
        for _ in range(size - len(open_places)):
            place = self._new_place()
            self._places.append(place)
            if self._nursery is not None:
                self._nursery.start_soon(self._fill, place)
        by_burden = sorted(open_places, key=lambda place: -1 if place.life is None else burden_of(place.life.worker))
        closed = by_burden[: max(len(open_places) - size, 0)]
        for place in closed:
            place.is_closed = True
            place.news.set()
        return [place.life.worker for place in closed if place.life is not None]

    async def wait_closed(self) -> None:
        """Wait until the places that are to be no more have lost their workers."""
        for place in list(self._places):
            if place.is_closed:
                await place.ended.wait()

    def retire(self, worker: WorkerProcess, *, rests: bool = False) -> None:
        """Have a worker that is idle end; unless its place *rests* then, another one takes it."""
        place = next((place for place in self._places if place.life is not None and place.life.worker is worker), None)
        if place is None or place.life is None or worker.is_retired:
            return
        worker.retire()
        place.rests = rests
        assert self._nursery is not None
        self._nursery.start_soon(place.life.end, self._terms.ladder)

    def need(self, count: int) -> None:
        """See to it that *count* workers are on their way, if so many places rest."""
        resting = [place for place in self._places if place.rests and not place.is_closed]
        if resting:
            coming = sum(place.is_awaited for place in self._places)
            for place in resting[: max(count - coming, 0)]:
                place.rests = False
                place.news.set()

    def _new_place(self) -> _Place:
        return _Place(self._terms, self._tell)

    def _lives(self) -> list[Life]:
        return [place.life for place in self._places if place.life is not None]

    @trio.lowlevel.enable_ki_protection
    async def _fill(self, place: _Place) -> None:
        """Keep one worker running, one after the other, while there is a use for it."""
        while not (self._stopping.is_set() or place.is_closed):
            place.news = trio.Event()
            if place.rests:
                await place.news.wait()
            elif not await self._fill_once(place):
                break
        if place.is_closed:
            self._places.remove(place)
        place.ended.set()

    async def _fill_once(self, place: _Place) -> bool:
        """See one worker through, and pause if the policy says so; return False if it says to give up."""
        try:
            ready_for, in_call = await self._live_once(place)
        except ZygoteError as exc:
            place.lifecycle.on(Event.GIVE_UP)
            self._give_up(f"no worker can be started: {exc.args[0]}", list(exc.exits))
            return False
        if in_call or self._stopping.is_set() or place.is_closed:
            return True
        wait = place.history.record_death(trio.current_time(), ready_for=ready_for)
        if wait is None:
            place.lifecycle.on(Event.GIVE_UP)
            self._give_up(place.story(), list(place.exits))
            return False
        place.lifecycle.on(Event.PAUSE)
        with trio.move_on_after(wait):
            await place.news.wait()
            place.lifecycle.on(Event.DRAIN)
        return True

    async def _live_once(self, place: _Place) -> tuple[float, bool]:
        """Start a worker and see it through; return how long it was ready, and whether it ended in a call."""
        place.lifecycle.on(Event.START)
        try:
            worker = await self._launcher.launch(self._settings())
        except BaseException as exc:
            place.lifecycle.on(Event.EXIT)
            if isinstance(exc, ZygoteError) or not isinstance(exc, OSError | WorkerStartError):
                raise
            place.exits.append(f"could not be started: {exc}")
            return 0.0, False
        life = place.life = Life(worker, self._employer, self._terms, place.lifecycle, self._oom_kills)
        if place.is_closed:
            self.retire(worker)
        try:
            in_call = await life.attend()
        finally:
            place.life = None
            # What it started may go on writing there, until the pool is closed.
            self._background.start_soon(worker.stderr.read_on)
        place.exits.append(life.last_words())
        return life.ready_for(), in_call

    def _give_up(self, message: str, exits: list[str]) -> None:
        if self._stopping.is_set():
            return
        self._stop_filling()
        for life in self._lives():
            life.kill()
        self._employer.supervisor_gave_up(message, exits)

    def _stop_filling(self) -> None:
        self._stopping.set()
        for place in self._places:
            place.news.set()


class _Place:
    """Where one worker lives after another.

    Attributes:
      rests: Whether it stays empty until somebody needs it.
      is_closed: Whether it stays empty for good.
      news: Set when one of those changes, or the supervisor stops.
      ended: Set once it is closed, or the supervisor stops, and no worker is left in it.
    """

    __slots__ = ("_tell", "ended", "exits", "history", "is_closed", "life", "lifecycle", "news", "rests")

    def __init__(self, terms: Terms, tell: Callable[..., None]) -> None:
        self._tell = tell
        self.lifecycle = Lifecycle(self._tell_state)
        self.rests = False
        self.is_closed = False
        self.news = trio.Event()
        self.ended = trio.Event()
        self.history = RestartHistory(terms.restart)
        self.exits: deque[str] = deque(maxlen=terms.restart.intensity + 1)
        self.life: Life | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether there will be a worker soon that is not ready yet."""
        is_ready = self.life is not None and self.lifecycle.state is State.READY
        return not (self.rests or self.is_closed or is_ready)

    def _tell_state(self, state: State) -> None:
        worker = None if self.life is None else self.life.worker
        detail = str(worker.status) if worker is not None and worker.status is not None else ""
        self._tell(f"worker.{state.value}", pid=None if worker is None else worker.pid, detail=detail)

    def story(self) -> str:
        """Say what was too much."""
        policy = self.history.policy
        return (
            f"a worker died {len(self.exits)} times within {policy.period:g} seconds outside of any call, and the "
            f"restart policy allows {policy.intensity}; the last times, it"
        )
