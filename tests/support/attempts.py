"""Cancelling an operation at every point, where each attempt brings its own setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.support.sweep import CancellationPoint, cancellation_points

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def cancel_at_every_step(attempt: Callable[[CancellationPoint], Awaitable[None]]) -> int:
    """Await *attempt* once for each point at which the block under its scope can be cancelled, and once without.

    Returns:
      How many of the blocks were left by `trio.Cancelled`.
    """
    cancelled = 0
    for point in cancellation_points():
        with trio.fail_after(10):
            await attempt(point)
        cancelled += point.cancelled_caught
    return cancelled
