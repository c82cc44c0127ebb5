"""Context variables, and functions for workers to run that look at them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from fdpool.kernel import EventFd

request: ContextVar[Any] = ContextVar("request", default="nobody's")
other: ContextVar[Any] = ContextVar("other")
not_a_variable = "request"
NAME = f"{__name__}:request"


class Holder:
    variable: ContextVar[Any] = ContextVar("held")


def look(_number: int = 0) -> Any:
    return request.get()


def look_and_change(number: int = 0) -> Any:
    """Return what is there, and leave something else."""
    found = request.get()
    request.set(("changed", number))
    return found


def look_at_other() -> Any:
    return other.get("unset")


def look_again_and_again(count: int) -> Iterator[Any]:
    """Yield what is there, and leave something else each time; leave a last thing when this is closed."""
    try:
        for number in range(count):
            yield request.get()
            request.set((request.get(), number))
    finally:
        closed.append(request.get())


async def look_again_and_again_async(count: int) -> AsyncIterator[Any]:
    try:
        for number in range(count):
            yield request.get()
            request.set((request.get(), number))
    finally:
        closed.append(request.get())


closed: list[Any] = []


def found_when_closed() -> list[Any]:
    return closed


async def look_async_at(_number: int) -> Any:
    return look_and_change(_number)


def look_at_held() -> Any:
    return Holder.variable.get()


def set_for_good(value: Any) -> None:
    """What an initializer may do: the value is there for all calls of the worker."""
    request.set(value)


async def look_async(bell: EventFd | None, next_bell: EventFd | None) -> list[Any]:
    """Return what is there before and after others have run, changing it in between."""
    import trio

    found = [request.get()]
    request.set(f"changed by {found[0]}")
    if next_bell is not None:
        next_bell.write()
    if bell is not None:
        await trio.lowlevel.wait_readable(bell)
    found.append(request.get())
    async with trio.open_nursery() as nursery:
        # A task of the call's own has its context as well.
        nursery.start_soon(look_into, found.append)
    return found


async def look_into(take: Callable[[Any], None]) -> None:
    take(request.get())


async def look_in_a_pool() -> Any:
    import fdpool

    async with fdpool.open_pool(1, context=[NAME]) as pool:
        return await pool.run_sync(look)


def read_event() -> int:
    with request.get() as event:
        value: int = event.read()
        return value
