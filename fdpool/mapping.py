"""Results of many calls, drawn as they are consumed."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, Self, TypeVar

import trio

from fdpool.background import open_background
from fdpool.memory.exceptions import OwnContext, another, rebuild
from fdpool.progress import Progress, open_progress
from fdpool.sources import Zipped, total_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fdpool.memory.chunks import Outcome

    Chunk = list[tuple[Any, ...]]
    CallChunk = Callable[[Chunk], Awaitable[tuple[tuple[float, list[Outcome]], int]]]
    """Makes one call for several lists of arguments. Returns the seconds that took and what came of each; and how many
    bytes all that is."""

T = TypeVar("T")

CHUNK_SECONDS: Final = 0.01
"""How long a chunk should take: fifty times what a call costs, and still short beside a crash or a cancellation."""

LONGEST_CHUNK: Final = 1000

BUFFER_BYTES: Final = 256 << 20
"""From how many bytes of results on nothing is added to what waits to be fetched, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How a map is done; see `Pool.map_sync`.

    Args:
      workers: How many workers there are.
      at_once: How many calls they take at a time.
    """

    workers: int
    at_once: int
    ordered: bool = True
    chunksize: int | None = None
    buffer: int | None = None
    buffer_bytes: int = BUFFER_BYTES
    return_exceptions: bool = False
    progress: bool | str | Callable[[int, int | None], object] | None = None

    def __post_init__(self) -> None:
        if self.chunksize is not None and self.chunksize < 1:
            raise ValueError(f"chunksize is {self.chunksize}: a call takes at least 1 item")
        if self.buffer is not None and self.buffer < 1:
            raise ValueError(f"buffer is {self.buffer}: at least 1 item must be allowed under way")
        if self.buffer_bytes < 1:
            raise ValueError(f"buffer_bytes is {self.buffer_bytes}: at least 1 byte must be allowed to wait")


class _Ready(NamedTuple):
    """What came of an item, and waits to be fetched."""

    take: Callable[[], Any]
    nbytes: int


class Results(Generic[T]):
    """An async iterator over the results of many calls. For one task at a time.

    A call that raised raises from the iteration where its result would have been, and the iteration can go on.
    """

    def __init__(self, options: MapOptions, call: CallChunk) -> None:
        self._options = options
        self._call = call
        self._ready: dict[int, _Ready] = {}
        self._ready_bytes = 0
        self._average_bytes: float | None = None
        self._next = 0
        self._drawn = 0
        self._is_drawn_out = False
        self._is_over = False
        self._is_closed = False
        self._is_taken = False
        self._failure: Exception | None = None
        self._calls: trio.Nursery | None = None
        self._drawing = trio.CancelScope()
        self._is_drawing = False
        self._news = trio.Event()
        self._room = trio.Event()
        self._chunk: Chunk = []
        self._chunk_size = options.chunksize or 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next result.

        Raises:
          StopAsyncIteration: there are no more, however often it is asked for them.
          Exception: as `Pool.map_sync` says.
          trio.BusyResourceError: another task waits for a result.
          trio.ClosedResourceError: the block of the map was left.

        Cancellation: always a checkpoint. Nothing is taken; the calls under way go on until the block is left.
        """
        if self._is_taken:
            raise trio.BusyResourceError("another task is iterating over these results")
        self._is_taken = True
        try:
            await trio.lowlevel.checkpoint()
            while (index := self._ready_index()) is None:
                if self._is_closed:
                    raise trio.ClosedResourceError("the block of this map was left")
                if self._is_over or (self._is_drawn_out and self._next == self._drawn):
                    self.raise_failure()
                    raise StopAsyncIteration
                self._news = trio.Event()
                await self._news.wait()
        finally:
            self._is_taken = False
        self._next += 1
        ready = self._ready.pop(index)
        self._ready_bytes -= ready.nbytes
        self._room.set()
        value: T = ready.take()
        return value

    def _ready_index(self) -> int | None:
        """Return which outcome is to be fetched now, if it is there."""
        if self._is_over:
            return None
        if self._options.ordered:
            return self._next if self._next in self._ready else None
        return next(iter(self._ready), None)

    async def host_calls(self, task_status: trio.TaskStatus[None]) -> None:
        """Be where calls run, until `stop`: not in the task that draws, whose sources may have scopes of their own."""
        async with trio.open_nursery() as self._calls:
            task_status.started()
            await trio.sleep_forever()

    async def feed(self, sources: Zipped, progress: Progress) -> None:
        """Draw items and start calls, until there are no more or `stop`; then close generators among the sources."""
        with self._drawing:
            try:
                try:
                    await self._draw(sources, progress)
                finally:
                    await sources.aclose()
            except Exception as exc:
                self._fail(exc)
        self._is_drawn_out = True
        self._news.set()

    def stop(self) -> None:
        """End everything: nobody wants the results any more."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        """Cancel the calls; end the drawing where it waits for room, and then unhurt, or else at once."""
        self._is_over = True
        if self._calls is not None:
            self._calls.cancel_scope.cancel()
        if self._is_drawing:
            self._drawing.cancel()
        self._room.set()
        self._news.set()

    def drop(self) -> None:
        """Let go of the results that nobody fetched. Handles in them are closed, as whoever left them may expect."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self._ready.clear()

    def raise_failure(self) -> None:
        """Raise, once, what an iterable or the progress raised that is no item's."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def note_failure(self, error: BaseException) -> None:
        """Note on *error* what would have been raised in its stead."""
        if self._failure is not None:
            error.add_note(f"raised as well as the map was ended: {self._failure!r}")

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        else:
            self._failure.add_note(f"raised as well: {error!r}")

    async def _draw(self, sources: Zipped, progress: Progress) -> None:
        """Draw items and start calls, never having more under way than there is room for."""
        errors = 0
        while True:
            await self._wait_for_room(progress)
            if self._is_over:
                return
            try:
                self._is_drawing = True
                try:
                    self._chunk.append(await anext(sources))
                finally:
                    self._is_drawing = False
            except StopAsyncIteration:
                break
            except Exception as exc:
                # Reported where the item's result would have been; nothing can be drawn after it.
                self._start(progress)
                self._put(self._drawn, None, exc, 0)
                self._drawn += 1
                errors = 1
                break
            self._drawn += 1
            if len(self._chunk) >= self._chunk_size:
                self._start(progress)
        self._start(progress)
        self._report(progress.settle, self._drawn - errors)

    def _start(self, progress: Progress) -> None:
        """Have the items that were drawn last make a call."""
        if self._chunk and not self._is_over and self._calls is not None:
            chunk, self._chunk = self._chunk, []
            self._calls.start_soon(self._run, self._drawn - len(chunk), chunk, progress)

    def _has_room(self) -> bool:
        options = self._options
        pending = self._drawn - self._next
        if pending >= (options.buffer or 2 * options.at_once * self._chunk_size):
            return False
        if self._ready_bytes >= options.buffer_bytes:
            return False
        under_way = pending - len(self._ready)
        if self._average_bytes is None:
            return under_way < options.at_once * self._chunk_size
        # Each worker has something to do, whatever will come of it. So a consumer that waits never waits in vain.
        is_idle = under_way < options.workers * self._chunk_size
        return is_idle or self._ready_bytes + under_way * self._average_bytes < options.buffer_bytes

    async def _wait_for_room(self, progress: Progress) -> None:
        while not (self._is_over or self._has_room()):
            if self._drawn - self._next == len(self._chunk):
                # Nothing else is left to be fetched that would make room, and let this grow to its size.
                self._start(progress)
            self._room = trio.Event()
            await self._room.wait()

    async def _run(self, first: int, chunk: Chunk, progress: Progress) -> None:
        """Make one call of a chunk, and put down what came of each item."""
        try:
            (seconds, outcomes), nbytes = await self._call(chunk)
        except Exception as exc:
            # The call itself failed: its worker died, or something in it cannot be pickled.
            for index in range(first, first + len(chunk)):
                self._put(index, None, exc if index == first else another(exc), 0)
        else:
            self._adapt(seconds / len(chunk), nbytes / len(chunk))
            for index, (value, told) in enumerate(outcomes, first):
                self._put(index, value, None if told is None else rebuild(told), nbytes // len(chunk))
            # The frames of a traceback that was rebuilt refer to this one, and must not keep what other items returned.
            outcomes.clear()
            value = told = None
        self._room.set()
        self._report(progress.advance, len(chunk))
        chunk.clear()

    def _adapt(self, seconds: float, nbytes: float) -> None:
        """Take in how long an item took and how big its result was; choose how many of the next ones make a call."""
        before = nbytes if self._average_bytes is None else self._average_bytes
        self._average_bytes = before + (nbytes - before) / 8
        options = self._options
        if options.chunksize is None:
            fitting = CHUNK_SECONDS / max(seconds, CHUNK_SECONDS / LONGEST_CHUNK)
            # What may wait is to be several chunks for each worker, or they would wait for each other.
            fitting = min(fitting, options.buffer_bytes / max(self._average_bytes, 1) / (2 * options.workers))
            if options.buffer is not None:
                fitting = min(fitting, options.buffer / (2 * options.workers))
            # Grown step by step: one quick item says little about the next ones.
            self._chunk_size = max(1, min(int(fitting), 2 * self._chunk_size))

    def _put(self, index: int, value: Any, error: Exception | None, nbytes: int) -> None:
        if error is None or self._options.return_exceptions:
            outcome: Any = value if error is None else error
            self._ready[index] = _Ready(lambda: outcome, nbytes)
        else:
            self._ready[index] = _Ready(partial(_raise, error), nbytes)
        self._ready_bytes += nbytes
        self._news.set()

    def _report(self, show: Callable[[int], None], count: int) -> None:
        """Show progress; if that raises, the map is over."""
        try:
            show(count)
        except Exception as exc:
            self._fail(exc)
            self._end()


@asynccontextmanager
async def open_results(options: MapOptions, call: CallChunk, iterables: tuple[Any, ...]) -> AsyncIterator[Results[Any]]:
    """Make the calls while the block runs, and cancel at its end those that are not done."""
    if options.chunksize is None and any(isinstance(iterable, AsyncIterable) for iterable in iterables):
        # An item that is there must not wait for the next one, which may be long in coming.
        options = replace(options, chunksize=1)
    results: Results[Any] = Results(options, call)
    with open_progress(options.progress, partial(total_of, iterables)) as progress:
        try:
            async with open_background(results.stop) as nursery:
                await nursery.start(results.host_calls)
                nursery.start_soon(results.feed, Zipped(iterables), progress)
                yield results
        except BaseException as exc:
            results.note_failure(exc)
            raise
        finally:
            results.drop()
        results.raise_failure()


def _raise(error: Exception) -> NoReturn:
    with OwnContext(error):
        raise error
