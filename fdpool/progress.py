"""Showing how far a map has come."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Progress:
    """What there is to show; this one shows nothing.

    Args:
      total: How many items there will be, as far as anybody knows.
    """

    def __init__(self, total: int | None) -> None:
        self.finished = 0
        self.total = total

    def advance(self, count: int) -> None:
        """Count items that were done just now."""
        self.finished += count
        if self.total is not None and self.finished > self.total:
            # Whoever said so was wrong.
            self.total = None
        self.show()

    def settle(self, total: int) -> None:
        """Take note of how many items there really are, now that none is left to be drawn."""
        if total != self.total:
            self.total = total
            if self.finished == total:
                self.show()

    def show(self) -> None:
        """Show how things stand."""


class _Report(Progress):
    """Calls a function with the number of items done, and in all."""

    def __init__(self, report: Callable[[int, int | None], object], total: int | None) -> None:
        super().__init__(total)
        self._report = report

    def show(self) -> None:
        self._report(self.finished, self.total)


class _Bar(Progress):
    """Draws a bar on the terminal."""

    def __init__(self, bars: Any, title: str, total: int | None) -> None:
        super().__init__(total)
        self._bars = bars
        self._bar = bars.add_task(title, total=total)

    def show(self) -> None:
        self._bars.update(self._bar, completed=self.finished, total=self.total)


@contextmanager
def open_progress(
    progress: bool | str | Callable[[int, int | None], object] | None, total_of: Callable[[], int | None]
) -> Iterator[Progress]:
    """Give something to be told how many items are done.

    Args:
      progress: A callable of (items done, items in all or None); or True or a title for a bar on the terminal.
      total_of: Says how many items there will be, if that is known; asked only if somebody wants to see it.

    Raises:
      ImportError: a bar was asked for, and rich is not installed.
    """
    if not progress:
        yield Progress(None)
    elif callable(progress):
        yield _Report(progress, total_of())
    else:
        try:
            from rich.progress import MofNCompleteColumn
            from rich.progress import Progress as Bars
        except ImportError as exc:
            raise ImportError("a progress bar is drawn by rich: pip install 'fdpool[demo]'") from exc
        with Bars(*Bars.get_default_columns(), MofNCompleteColumn()) as bars:
            yield _Bar(bars, progress if isinstance(progress, str) else "", total_of())
