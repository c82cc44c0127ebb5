"""Several items of a map as one call."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any, Final

from fdpool.memory.exceptions import Told, tell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Outcome = tuple[Any, Told | None]
"""What came of an item: its result, or the exception it raised, told."""

_OF_AN_ITEM: Final = (Exception, SystemExit, KeyboardInterrupt)
"""What an item is to blame for alone. What else there is, a cancellation most of all, ends the whole chunk."""


def run_chunk(function: Callable[..., Any], argument_lists: list[tuple[Any, ...]]) -> tuple[float, list[Outcome]]:
    """Call *function* with each of *argument_lists*; return how many seconds that took, and what came of each."""
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    for arguments in argument_lists:
        try:
            outcomes.append((function(*arguments), None))
        except _OF_AN_ITEM as exc:
            outcomes.append((None, tell(exc)))
    return time.perf_counter() - started, outcomes


async def run_async_chunk(
    function: Callable[..., Awaitable[Any]], argument_lists: list[tuple[Any, ...]]
) -> tuple[float, list[Outcome]]:
    """Call and await *function* with each of *argument_lists*, all side by side, and return as `run_chunk` does."""
    import trio

    async def run_one(index: int, arguments: tuple[Any, ...]) -> None:
        try:
            awaitable = function(*arguments)
            if not inspect.isawaitable(awaitable):
                raise TypeError(
                    f"{function!r} returned a {type(awaitable).__name__}, not an awaitable: call it with map_sync"
                )
            outcomes[index] = await awaitable, None
        except _OF_AN_ITEM as exc:
            outcomes[index] = None, tell(exc)

    started = time.perf_counter()
    outcomes: list[Outcome] = [(None, None)] * len(argument_lists)
    async with trio.open_nursery() as nursery:
        for index, arguments in enumerate(argument_lists):
            nursery.start_soon(run_one, index, arguments)
    return time.perf_counter() - started, outcomes
