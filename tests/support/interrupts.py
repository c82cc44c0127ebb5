"""Interrupting code at a chosen bytecode, as Ctrl-C could."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from _typeshed import TraceFunction


class interrupt_at:
    """Raise KeyboardInterrupt at the given bytecode of everything called inside, except in the file *outside*."""

    def __init__(self, step: int, outside: str) -> None:
        self.left = step
        self.outside = {outside, __file__}

    def __enter__(self) -> None:
        trace_bytecodes(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        if event == "call" and (frame.f_code.co_filename in self.outside or is_in_finalizer(frame)):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            self.left -= 1
        return self._trace


def trace_bytecodes(function: TraceFunction) -> None:
    """Start tracing, with an event for each bytecode in every frame that asks for it."""
    # CPython 3.12 instruments bytecodes only if some frame had asked for it when tracing began.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(function)


def is_in_finalizer(frame: FrameType) -> bool:
    """Whether this runs on behalf of a finalizer, where an exception is reported and not raised."""
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "__del__":
            return True
        caller = caller.f_back
    return False
