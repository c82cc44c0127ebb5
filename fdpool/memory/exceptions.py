"""Exceptions as they travel: as words, and as themselves where that is possible."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import RemoteError, RemoteTraceback
from fdpool.memory.pickling import pack_in_band, unpack_in_band

if TYPE_CHECKING:
    from types import TracebackType

LAST_FRAMES: Final = 1000
"""A longer traceback is cut: that of a runaway recursion takes seconds to format, and more memory than it met."""

Told = tuple[str, str, str, bytes]
"""An exception taken apart: its class's name, its text, its formatted traceback, and its pickle or nothing."""


def tell(error: BaseException) -> Told:
    """Take an exception apart. Never raises, whatever the exception's own methods do."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    # The first frame is the one that caught it here, and nobody's business there.
    frames = error.__traceback__ and error.__traceback__.tb_next
    if isinstance(error, MemoryError):
        # Telling takes some, and what holds it are the variables of these frames.
        traceback.clear_frames(frames)
    try:
        trace = _format(error, frames)
    except Exception as exc:
        trace = f"{name} (its traceback cannot be formatted: {type(exc).__name__})\n"
    try:
        pickled = pack_in_band(error)
    except BaseException:  # the words tell it instead, also where its __reduce__ exits
        pickled = b""
    try:
        text = str(error)
    except BaseException as exc:
        text = f"<its __str__ raised {type(exc).__name__}>"
    return name, text, trace, pickled


def rebuild(told: Told) -> Exception:
    """Return the exception as itself, its remote traceback as its cause; or in words, as a `RemoteError`."""
    name, text, trace, pickled = told
    try:
        error: Any = unpack_in_band(pickled) if pickled else None
    except (Exception, SystemExit):  # its own __init__ or __setstate__ may raise anything
        error = None
    # What is no Exception (SystemExit, KeyboardInterrupt) is meant for the process it was raised in, not for this one.
    if not isinstance(error, Exception):
        return RemoteError(name, text, trace)
    error.__cause__ = RemoteTraceback(trace)
    return error


def _format(error: BaseException, frames: TracebackType | None) -> str:
    """Format an exception with its causes, as Python prints it, and at most `LAST_FRAMES` of each one's frames."""
    lines = traceback.format_exception(type(error), error, frames, limit=-LAST_FRAMES)
    depth = sum(1 for _ in traceback.walk_tb(frames))
    cut = [f"({depth - LAST_FRAMES} calls before these are left out)\n"] if depth > LAST_FRAMES else []
    return "".join([*cut, *lines])
