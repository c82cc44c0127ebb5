"""Showing how far a map has come."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def open_progress(
    progress: bool | str | Callable[[int, int | None], None] | None, total: int | None
) -> Iterator[Callable[[int], None]]:
    """Give something to be called with the number of items that were done just now.

    Args:
      progress: A callable of (items done, items in all or None); or True or a title for a bar on the terminal.
      total: How many items there will be, if that is known.

    Raises:
      ImportError: a bar was asked for, and rich is not installed.
    """
    if not progress:
        yield lambda _count: None
    elif callable(progress):
        finished = 0

        def report(count: int) -> None:
            nonlocal finished
            finished += count
            progress(finished, total)

        yield report
    else:
        try:
            from rich.progress import Progress
        except ImportError as exc:
            raise ImportError("a progress bar is drawn by rich: pip install 'fdpool[demo]'") from exc
        with Progress() as bars:
            bar = bars.add_task(progress if isinstance(progress, str) else "", total=total)
            yield lambda count: bars.advance(bar, count)
