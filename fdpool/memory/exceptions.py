"""Exceptions as they travel: as words, and as themselves where that is possible."""

from __future__ import annotations

import traceback
from typing import Any

from fdpool.errors import RemoteError, RemoteTraceback
from fdpool.memory.pickling import pack_in_band, unpack_in_band

Told = tuple[str, str, str, bytes]
"""An exception taken apart: its class's name, its text, its formatted traceback, and its pickle or nothing."""


def tell(error: BaseException) -> Told:
    """Take an exception apart. Never raises, whatever the exception's own methods do."""
    kind = type(error)
    # The first frame is the one that caught it here, and nobody's business there.
    frames = error.__traceback__ and error.__traceback__.tb_next
    trace = "".join(traceback.format_exception(kind, error, frames))
    try:
        pickled = pack_in_band(error)
    except Exception:  # the words tell it instead
        pickled = b""
    try:
        text = str(error)
    except Exception as exc:
        text = f"<its __str__ raised {type(exc).__name__}>"
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return name, text, trace, pickled


def rebuild(told: Told) -> Exception:
    """Return the exception as itself, its remote traceback as its cause; or in words, as a `RemoteError`."""
    name, text, trace, pickled = told
    try:
        error: Any = unpack_in_band(pickled) if pickled else None
    except Exception:  # its own __init__ or __setstate__ may raise anything
        error = None
    # What is no Exception (SystemExit, KeyboardInterrupt) is meant for the process it was raised in, not for this one.
    if not isinstance(error, Exception):
        return RemoteError(name, text, trace)
    error.__cause__ = RemoteTraceback(trace)
    return error
