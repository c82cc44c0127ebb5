"""Stopping an operation at every point where it can be stopped: by cancelling, or by Ctrl-C."""

from __future__ import annotations

import signal
import sys
from itertools import count
from typing import TYPE_CHECKING, Self

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

    from _typeshed import TraceFunction


class CancellationPoint(trio.abc.Instrument):
    """A cancel scope, for one `with` block, that is cancelled at the n-th step of the task inside.

    Steps are counted before the task goes on and after it has stopped to wait; the 0th is before it begins.
    """

    def __init__(self, step: int) -> None:
        self._scope = trio.CancelScope()
        self._left = step

    @property
    def was_reached(self) -> bool:
        """Whether the scope was cancelled before its block was at its end."""
        return self._scope.cancel_called

    @property
    def cancelled_caught(self) -> bool:
        """Whether the block was left by `trio.Cancelled`."""
        return self._scope.cancelled_caught

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            if self._left == 0:
                self._scope.cancel()
            self._left -= 1

    after_task_step = before_task_step

    def __enter__(self) -> Self:
        self._task = trio.lowlevel.current_task()
        self._scope.__enter__()
        self.before_task_step(self._task)
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        trio.lowlevel.remove_instrument(self)
        return bool(self._scope.__exit__(kind, error, traceback))


def cancellation_points() -> Iterator[CancellationPoint]:
    """Yield a scope for each point of an operation, until one is not reached: run the operation once in each."""
    for step in count():
        point = CancellationPoint(step)
        yield point
        if not point.was_reached:
            return


class SigintAt:
    """Sends this process a SIGINT when the n-th line of fdpool is about to run, of the functions called inside.

    Between two lines is where a signal handler can run. What it raises comes out of that line, as after a real Ctrl-C.
    """

    def __init__(self, step: int) -> None:
        self._left = step
        self.was_sent = False

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        if "/fdpool/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        if event in ("line", "return"):
            if self._left == 0:
                sys.settrace(None)
                self.was_sent = True
                signal.raise_signal(signal.SIGINT)
            self._left -= 1
        return self._trace
