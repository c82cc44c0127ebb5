"""Interrupting the call that is meant, and no other."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from fdpool.errors import TaskCancelled
from fdpool.worker.task_loops import cancel_task_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from fdpool.protocol.page import ControlPage


class Interruptible:
    """Runs calls that SIGINT can end, if the control page names the one that runs just then.

    The supervisor writes the number first and sends the signal then. A signal that comes too late, or that a
    terminal sent to the whole process group, finds another number or none, and is ignored.

    Attributes:
      has_loop: Whether calls are made from within a trio loop of the worker's own, which is not the call's to end.
    """

    def __init__(self, page: ControlPage) -> None:
        self._page = page
        self._running = 0
        self.has_loop = False
        # A handler instead of SIG_IGN: that one would be inherited by every program a task executes.
        self._handler = self._on_interrupt
        signal.signal(signal.SIGINT, self._handler)

    def call(self, number: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call *function* as call *number*.

        Raises:
          TaskCancelled: the call was cancelled, before it began or since, unless *function* made something else of it.
        """
        if signal.getsignal(signal.SIGINT) is not self._handler:
            # What an earlier call made of it was meant for that call.
            signal.signal(signal.SIGINT, self._handler)
        self._running = number
        try:
            if self._page.cancelled_call == number:
                raise TaskCancelled
            return function(*args, **kwargs)
        finally:
            self._running = 0

    def forget(self) -> None:
        """Leave SIGINT to what it means elsewhere: this process was forked by a task, and nobody cancels it."""
        if signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_interrupt(self, _number: int, frame: FrameType | None) -> None:
        if self._running and self._page.cancelled_call == self._running:
            # Once for each call: what cleans up after the first one is left alone.
            self._running = 0
            # A handler that raises leaves those of other signals, SIGTERM for one, waiting for the next signal: be it.
            signal.raise_signal(signal.SIGINT)
            if self.has_loop or not cancel_task_loop(frame):
                raise TaskCancelled
