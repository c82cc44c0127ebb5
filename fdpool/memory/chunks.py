"""Several items of a map as one call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fdpool.memory.exceptions import Told, tell

if TYPE_CHECKING:
    from collections.abc import Callable

Outcome = tuple[Any, Told | None]
"""What came of an item: its result, or the exception it raised, told."""


def run_chunk(function: Callable[..., Any], argument_lists: list[tuple[Any, ...]]) -> tuple[float, list[Outcome]]:
    """Call *function* with each of *argument_lists*; return how many seconds that took, and what came of each."""
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    for arguments in argument_lists:
        try:
            outcomes.append((function(*arguments), None))
        except Exception as exc:
            outcomes.append((None, tell(exc)))
    return time.perf_counter() - started, outcomes
