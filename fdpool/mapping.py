"""Results of many calls, drawn as they are consumed."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeVar

import trio

from fdpool.background import open_background
from fdpool.memory.chunks import run_chunk
from fdpool.memory.exceptions import rebuild
from fdpool.progress import open_progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T = TypeVar("T")

CHUNK_SECONDS: Final = 0.01
"""How long a chunk should take: fifty times what a call costs, and still short beside a crash or a cancellation."""

LONGEST_CHUNK: Final = 1000


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How a map is done; see `Pool.map_sync`."""

    workers: int
    ordered: bool = True
    chunksize: int | None = None
    buffer: int | None = None
    return_exceptions: bool = False
    progress: bool | str | Callable[[int, int | None], None] | None = None

    def __post_init__(self) -> None:
        if self.chunksize is not None and self.chunksize < 1:
            raise ValueError(f"chunksize is {self.chunksize}: a call takes at least 1 item")
        if self.buffer is not None and self.buffer < 1:
            raise ValueError(f"buffer is {self.buffer}: at least 1 item must be allowed under way")


class Results(Generic[T]):
    """An async iterator over the results of many calls. For one task at a time.

    A call that raised raises from the iteration where its result would have been, and the iteration can go on.
    """

    def __init__(self, options: MapOptions, call: Callable[..., Awaitable[Any]], function: Callable[..., T]) -> None:
        self._options = options
        self._call = call
        self._function = function
        self._ready: dict[int, Callable[[], T]] = {}
        self._next = 0
        self._drawn = 0
        self._is_drawn_out = False
        self._news = trio.Event()
        self._room = trio.Event()
        self._chunk_size = options.chunksize or 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next result.

        Cancellation: nothing is taken; the calls under way go on until the block is left.
        """
        await trio.lowlevel.checkpoint()
        while (index := self._ready_index()) is None:
            if self._is_drawn_out and self._next == self._drawn:
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()
        self._next += 1
        self._room.set()
        return self._ready.pop(index)()

    def _ready_index(self) -> int | None:
        """Return which outcome is to be fetched now, if it is there."""
        if self._options.ordered:
            return self._next if self._next in self._ready else None
        return next(iter(self._ready), None)

    async def feed(self, arguments: AsyncIterator[tuple[Any, ...]], done: Callable[[int], None]) -> None:
        """Draw items and call, never having more under way than there is room for."""
        chunk: list[tuple[Any, ...]] = []
        async with trio.open_nursery() as nursery:

            def start() -> None:
                if chunk:
                    nursery.start_soon(self._run, self._drawn - len(chunk), chunk.copy(), done)
                    chunk.clear()

            while True:
                if not self._has_room():
                    start()
                    await self._wait_for_room()
                try:
                    chunk.append(await anext(arguments))
                except StopAsyncIteration:
                    start()
                    break
                except Exception as exc:
                    # Reported where the item's result would have been; nothing can be drawn after it.
                    start()
                    self._put(self._drawn, None, exc)
                    self._drawn += 1
                    break
                self._drawn += 1
                if len(chunk) >= self._chunk_size:
                    start()
            self._is_drawn_out = True
            self._news.set()

    def _has_room(self) -> bool:
        limit = self._options.buffer or 2 * self._options.workers * self._chunk_size
        return self._drawn - self._next < limit

    async def _wait_for_room(self) -> None:
        while not self._has_room():
            self._room = trio.Event()
            await self._room.wait()

    async def _run(self, first: int, chunk: list[tuple[Any, ...]], done: Callable[[int], None]) -> None:
        """Make one call of a chunk, and put down what came of each item."""
        try:
            seconds, outcomes = await self._call(run_chunk, self._function, chunk)
        except Exception as exc:
            # The call itself failed: its worker died, or something in it cannot be pickled.
            for index in range(first, first + len(chunk)):
                self._put(index, None, exc if index == first else _another(exc))
        else:
            self._adapt(seconds / len(chunk))
            for index, (value, told) in enumerate(outcomes, first):
                self._put(index, value, None if told is None else rebuild(told))
        done(len(chunk))

    def _adapt(self, seconds: float) -> None:
        """Choose how many items make a call, from how long one of them took."""
        if self._options.chunksize is None:
            fitting = int(CHUNK_SECONDS / max(seconds, CHUNK_SECONDS / LONGEST_CHUNK))
            # Grown step by step: one quick item says little about the next ones.
            self._chunk_size = max(1, min(fitting, 2 * self._chunk_size))

    def _put(self, index: int, value: Any, error: Exception | None) -> None:
        if error is None or self._options.return_exceptions:
            outcome: Any = value if error is None else error
            self._ready[index] = lambda: outcome
        else:
            self._ready[index] = partial(_raise, error)
        self._news.set()


@asynccontextmanager
async def open_results(
    options: MapOptions, call: Callable[..., Awaitable[Any]], function: Callable[..., T], iterables: tuple[Any, ...]
) -> AsyncIterator[Results[T]]:
    """Make the calls while the block runs, and cancel at its end those that are not done."""
    if options.chunksize is None and any(isinstance(iterable, AsyncIterable) for iterable in iterables):
        # An item that is there must not wait for the next one, which may be long in coming.
        options = replace(options, chunksize=1)
    results: Results[T] = Results(options, call, function)
    with open_progress(options.progress, total_of(iterables)) as done:
        async with open_background() as nursery:
            nursery.start_soon(results.feed, Zipped(iterables), done)
            yield results


def total_of(iterables: tuple[Any, ...]) -> int | None:
    """Return how many items there will be, if all the iterables know."""
    try:
        return min(map(len, iterables))
    except TypeError:
        return None


class Zipped:
    """Zips iterables of either kind, until the first ends."""

    def __init__(self, iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...]) -> None:
        self._sources = [
            aiter(iterable) if isinstance(iterable, AsyncIterable) else iter(iterable) for iterable in iterables
        ]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Any, ...]:
        items = []
        for source in self._sources:
            try:
                items.append(await anext(source) if isinstance(source, AsyncIterator) else next(source))
            except StopIteration:
                raise StopAsyncIteration from None
        return tuple(items)


def _raise(error: Exception) -> NoReturn:
    raise error


def _another(error: Exception) -> Exception:
    """Return a second exception like *error*: two tasks must not raise the same one."""
    try:
        return copy.copy(error)
    except Exception:  # an exception that cannot be copied is still better shared than lost
        return error
