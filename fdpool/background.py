"""A nursery for tasks that the user of a library does not see."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@asynccontextmanager
async def open_background(end: Callable[[], object] | None = None) -> AsyncIterator[trio.Nursery]:
    """Open a nursery whose tasks are ended at the end of the block, and waited for: by *end*, or by being cancelled.

    An exception of the block leaves it as it is, not in a group: whoever writes the block started no task.
    A task that crashes cancels the block, and leaves it in an exception group.
    """
    failure: BaseException | None = None
    crash: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
            (nursery.cancel_scope.cancel if end is None else end)()
    except BaseException as exc:
        crash = exc
    if failure is None:
        if crash is not None:
            raise crash
        return
    # If a scope around all of this was cancelled, the tasks' ends come out as well; they must not hide the failure.
    remainder = _without_cancelled(crash)
    if remainder is None:
        raise failure
    # Nor must that which the crash itself brought upon the block come out of it: its scope is in here.
    own = _without_cancelled(failure)
    if own is None:
        raise remainder
    raise BaseExceptionGroup("the block failed, and so did tasks beside it", [own, remainder])


def _without_cancelled(crash: BaseException | None) -> BaseException | None:
    if isinstance(crash, BaseExceptionGroup):
        return crash.split(trio.Cancelled)[1]
    return None if isinstance(crash, trio.Cancelled) else crash
