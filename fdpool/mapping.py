"""Results of many calls, drawn as they are consumed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

import trio

from fdpool.background import open_background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

T = TypeVar("T")


class Results(Generic[T]):
    """An async iterator over the results of many calls. For one task at a time.

    A call that raised raises from the iteration where its result would have been, and the iteration can go on.
    """

    def __init__(self, *, ordered: bool, limit: int) -> None:
        self._ordered = ordered
        self._room = trio.Semaphore(limit)
        self._outcomes: dict[int, Callable[[], T]] = {}
        self._next = 0
        self._total: int | None = None
        self._news = trio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next result.

        Cancellation: nothing is taken; the calls under way go on until the block is left.
        """
        await trio.lowlevel.checkpoint()
        while (index := self._ready_index()) is None:
            if self._next == self._total:
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()
        self._next += 1
        self._room.release()
        return self._outcomes.pop(index)()

    def _ready_index(self) -> int | None:
        """Return which outcome is to be fetched now, if it is there."""
        if self._ordered:
            return self._next if self._next in self._outcomes else None
        return next(iter(self._outcomes), None)

    async def feed(self, call: Callable[..., Awaitable[T]], argument_lists: Iterable[tuple[Any, ...]]) -> None:
        """Start `call(*arguments)` for each item, never more than there is room for."""
        drawn = iter(argument_lists)
        index = 0
        async with trio.open_nursery() as nursery:
            while True:
                await self._room.acquire()
                try:
                    arguments = next(drawn)
                except StopIteration:
                    break
                except Exception as exc:
                    # Reported where the item's result would have been; nothing can be drawn after it.
                    self._put(index, partial(_raise, exc))
                    index += 1
                    break
                nursery.start_soon(self._run_one, index, call, arguments)
                index += 1
            self._total = index
            self._news.set()

    async def _run_one(self, index: int, call: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> None:
        try:
            result = await call(*arguments)
        except Exception as exc:
            self._put(index, partial(_raise, exc))
        else:
            self._put(index, lambda: result)

    def _put(self, index: int, unwrap: Callable[[], T]) -> None:
        self._outcomes[index] = unwrap
        self._news.set()


def _raise(error: Exception) -> NoReturn:
    raise error


@asynccontextmanager
async def open_results(
    call: Callable[..., Awaitable[T]], argument_lists: Iterable[tuple[Any, ...]], *, ordered: bool, limit: int
) -> AsyncIterator[Results[T]]:
    """Make the calls while the block runs, and cancel at its end those that are not done."""
    results: Results[T] = Results(ordered=ordered, limit=limit)
    async with open_background() as nursery:
        nursery.start_soon(results.feed, call, argument_lists)
        yield results
