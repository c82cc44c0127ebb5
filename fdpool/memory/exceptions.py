"""Exceptions as they travel: as words, and as themselves where that is possible."""

from __future__ import annotations

import copy
import traceback
from typing import TYPE_CHECKING, Final, TypeVar

from fdpool.errors import RemoteError, RemoteTraceback, TaskCancelled
from fdpool.memory.pickling import pack_in_band, unpack_in_band
from fdpool.memory.tracebacks import CAUSE, CONTEXT, TRACEBACK, Link, has_tblib, restore_chain, tell_chain

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")

LAST_FRAMES: Final = 1000
"""A longer traceback is cut: that of a runaway recursion takes seconds to format, and more memory than it met."""

Words = tuple[str, str, bytes]
"""An exception by itself: its class's name, its text, and its pickle or nothing."""

Told = tuple[str, str, str, bytes, list[Link] | None]
"""An exception taken apart: its class's name, its text, its formatted traceback, its pickle or nothing, and the chain
that begins with it, if tblib can put that together again."""


def tell(error: BaseException) -> Told:
    """Take an exception apart. Never raises, whatever the exception's own methods do.

    Raises:
      TaskCancelled: but for this, if it is called within a call that is cancelled meanwhile.
    """
    # The first frame is the one that caught it here, and nobody's business there.
    caught: TracebackType | None = TRACEBACK.__get__(error)
    frames = caught and caught.tb_next
    if isinstance(error, MemoryError):
        # Telling takes some, and what holds it are the variables of these frames.
        traceback.clear_frames(frames)
    name, text, pickled = _tell_alone(error)
    try:
        trace = _format(error, frames)
    except TaskCancelled:
        raise
    except BaseException as exc:
        trace = f"{name} (its traceback cannot be formatted: {type(exc).__name__})\n"
    chain = None
    if has_tblib():
        chain = _attempt(lambda: tell_chain(error, frames, _tell_alone, LAST_FRAMES), None)
    return name, text, trace, pickled, chain


def rebuild(told: Told) -> Exception:
    """Return the exception as itself; or in words, as a `RemoteError`.

    With tblib on both sides it has the traceback that it had over there, and so has all that hangs on it. Otherwise the
    text of that is its cause.
    """
    name, text, trace, pickled, chain = told
    error = _load(pickled)
    # What is no Exception (SystemExit, KeyboardInterrupt) is meant for the process it was raised in, not for this one.
    if not isinstance(error, Exception):
        return RemoteError(name, text, trace)
    if chain is None or not has_tblib() or not _restore(error, chain):
        CAUSE.__set__(error, RemoteTraceback(trace))
    return error


class OwnContext:
    """Keeps the context that an exception brought along when it is raised in a `with` block of this.

    Python puts what is being handled just then in its place. That belongs behind it, as it would be in one process.
    """

    __slots__ = ("_context", "_error")

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._context: BaseException | None = CONTEXT.__get__(error)

    def __enter__(self) -> None:
        """Begin; the context is known already."""

    def __exit__(self, *_: object) -> None:
        handled = CONTEXT.__get__(self._error)
        if self._context is None or handled is self._context:
            return
        CONTEXT.__set__(self._error, self._context)
        last = self._context
        seen = {id(handled), id(self._error)}
        while id(last) not in seen:
            seen.add(id(last))
            further = CONTEXT.__get__(last)
            if further is None:
                CONTEXT.__set__(last, handled)
                return
            last = further


def _tell_alone(error: BaseException) -> Words:
    return _name_of(error), _text_of(error), _pickle_of(error)


def _make_alone(words: Words) -> BaseException:
    name, text, pickled = words
    error = _load(pickled)
    return error if isinstance(error, BaseException) else RemoteError(name, text, "")


def _restore(error: Exception, chain: list[Link]) -> bool:
    """Hang on *error* what it had over there; return False if that is not possible."""
    try:
        restore_chain(error, chain, _make_alone)
    except Exception:  # methods of the user's are at work here; the text tells it instead
        return False
    return True


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return _attempt(lambda: f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."), "an exception")


def _text_of(error: BaseException) -> str:
    try:
        # Exactly a string, which is loaded without anybody's code.
        return str.__str__(str(error))
    except TaskCancelled:
        raise
    except BaseException as exc:
        return f"<its __str__ raised {type(exc).__name__}>"


def _pickle_of(error: BaseException) -> bytes:
    return _attempt(lambda: pack_in_band(error), b"")


def _load(pickled: bytes) -> object:
    try:
        return unpack_in_band(pickled) if pickled else None
    except (Exception, SystemExit):  # its own __init__ or __setstate__ may raise anything
        return None


def _attempt(make: Callable[[], T], instead: T) -> T:
    """Return what *make* returns, or *instead* if it raises, whatever that is."""
    try:
        return make()
    except TaskCancelled:
        # Of the call that is running: what an item of a map has raised is told while others are still to come.
        raise
    except BaseException:
        return instead


def another(error: Exception) -> Exception:
    """Return a second exception like *error*: two tasks must not raise the same one."""
    try:
        return copy.copy(error)
    except Exception:  # an exception that cannot be copied is still better shared than lost
        return error


def _format(error: BaseException, frames: TracebackType | None) -> str:
    """Format an exception with its causes, as Python prints it, and at most `LAST_FRAMES` of each one's frames."""
    lines = traceback.format_exception(type(error), error, frames, limit=-LAST_FRAMES)
    depth = sum(1 for _ in traceback.walk_tb(frames))
    cut = [f"({depth - LAST_FRAMES} calls before these are left out)\n"] if depth > LAST_FRAMES else []
    return "".join([*cut, *lines])
