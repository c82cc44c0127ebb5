"""Where a map's arguments come from: several iterables, plain or asynchronous, drawn from together and closed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable


class Zipped:
    """Zips iterables of either kind, until the first ends.

    Generators among them are closed with it. Other iterators, such as files and channels, are their owners' to close.
    """

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

    async def aclose(self) -> None:
        """Close every generator, even if one of them raises. To be called by the task that has drawn from them.

        Raises:
          Exception: what a generator raised.
        """
        async with AsyncExitStack() as closing:
            for source in self._sources:
                if isinstance(source, AsyncGenerator):
                    closing.push_async_callback(source.aclose)
                elif isinstance(source, Generator):
                    closing.callback(source.close)


def total_of(iterables: tuple[Any, ...]) -> int | None:
    """Return how many items there will be, if all the iterables say so."""
    try:
        return min(map(len, iterables))
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        return None
