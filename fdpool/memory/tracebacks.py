"""Exceptions with all that hangs on them as they travel: tracebacks, causes, contexts, members of groups.

Needs tblib on both sides (the extra `tblib`).
"""

from __future__ import annotations

from collections import deque
from functools import cache
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

Place = tuple[str, str, int, str, str]
"""Where a frame was: file, function and line, and its module's name and file."""


class Link(NamedTuple):
    """One exception of a chain, the others being told by their places in a list.

    Attributes:
      frames: Its traceback, outermost frame first.
      cause: What it was raised from, if from something.
      context: What was being handled then, if something was.
      suppresses_context: Whether only the cause is shown.
      members: Those of a group.
      notes: What was added to it, of which a class with a way of its own to be pickled knows nothing.
      told: How to make it, or nothing if it comes with the group that it is a member of.
    """

    frames: list[Place]
    cause: int | None
    context: int | None
    suppresses_context: bool
    members: list[int]
    notes: list[str]
    told: Any


# The descriptors that all exceptions have in common: a class of the user's may make anything of these names.
CAUSE: Final[Any] = vars(BaseException)["__cause__"]
CONTEXT: Final[Any] = vars(BaseException)["__context__"]
TRACEBACK: Final[Any] = vars(BaseException)["__traceback__"]
_SUPPRESSES: Final[Any] = vars(BaseException)["__suppress_context__"]
_ATTRIBUTES: Final[Any] = vars(BaseException)["__dict__"]
_MEMBERS: Final[Any] = vars(BaseExceptionGroup)["exceptions"]


@cache
def has_tblib() -> bool:
    """Whether tracebacks can be put together here."""
    try:
        import tblib  # noqa: F401
    except (ImportError, OSError):
        # Not installed; or not to be read just now, with no descriptor free, when what is told is just that.
        return False
    return True


def tell_chain(
    error: BaseException, frames: TracebackType | None, tell: Callable[[BaseException], Any], limit: int
) -> list[Link]:
    """Take *error*, which is first, and all that hangs on it apart; each once, also where they go round in a circle.

    Args:
      frames: What of its traceback is to travel.
      tell: Called with each of the others that is not a member of a group. Must not raise.
      limit: How many frames of each are to travel, the innermost.
    """
    chain: list[BaseException] = []
    places: dict[int, int] = {}
    members: set[int] = set()

    def place_of(each: BaseException | None) -> int | None:
        if each is None:
            return None
        if id(each) not in places:
            places[id(each)] = len(chain)
            chain.append(each)
        return places[id(each)]

    place_of(error)
    links = []
    # Grows while it is walked through.
    for place, each in enumerate(chain):
        inner = [place_of(member) or 0 for member in _members_of(each)]
        members.update(inner)
        links.append(
            Link(
                _places_of(TRACEBACK.__get__(each) if place else frames, limit),
                place_of(CAUSE.__get__(each)),
                place_of(CONTEXT.__get__(each)),
                _SUPPRESSES.__get__(each),
                inner,
                _notes_of(each),
                None if place == 0 or place in members else tell(each),
            )
        )
    return links


def restore_chain(error: BaseException, links: list[Link], make: Callable[[Any], BaseException]) -> None:
    """Hang on *error* what hung on the one that `tell_chain` was given.

    Args:
      make: Makes an exception of what was told of it.
    """
    chain: dict[int, BaseException] = {}
    for place, link in enumerate(links):
        if place not in chain:
            _adopt(error if place == 0 else make(link.told), place, links, chain)
    frames: dict[Place, FrameType] = {}
    for place, link in enumerate(links):
        each = chain[place]
        # Setting the cause suppresses the context, so that goes last.
        CAUSE.__set__(each, None if link.cause is None else chain[link.cause])
        CONTEXT.__set__(each, None if link.context is None else chain[link.context])
        _SUPPRESSES.__set__(each, link.suppresses_context)
        TRACEBACK.__set__(each, _traceback_of(link.frames, frames))
        if not _notes_of(each):
            for note in link.notes:
                BaseException.add_note(each, note)


def _adopt(error: BaseException, place: int, links: list[Link], chain: dict[int, BaseException]) -> None:
    """Take down what is at a place, and the members of a group with it, which came with it."""
    found = [(place, error)]
    while found:
        place, error = found.pop()
        chain.setdefault(place, error)
        found += zip(links[place].members, _members_of(error), strict=False)


def _members_of(error: BaseException) -> tuple[BaseException, ...]:
    members: tuple[BaseException, ...] = _MEMBERS.__get__(error) if isinstance(error, BaseExceptionGroup) else ()
    return members


def _notes_of(error: BaseException) -> list[str]:
    notes = _ATTRIBUTES.__get__(error).get("__notes__", ())
    return [note for note in notes if type(note) is str] if isinstance(notes, list) else []


def _places_of(traceback: TracebackType | None, limit: int) -> list[Place]:
    depth = 0
    places: deque[Place] = deque(maxlen=limit)
    while traceback is not None:
        depth += 1
        code, names = traceback.tb_frame.f_code, traceback.tb_frame.f_globals
        module, file = names.get("__name__"), names.get("__file__")
        line = traceback.tb_lineno or code.co_firstlineno
        places.append((code.co_filename, code.co_name, line, _text(module), _text(file)))
        traceback = traceback.tb_next
    # Seen in the place of a function's name.
    cut = [("<fdpool>", f"({depth - limit} calls before these are left out)", 1, "", "")] if depth > limit else []
    return [*cut, *places]


def _text(value: object) -> str:
    return value if type(value) is str else ""


def _traceback_of(places: list[Place], frames: dict[Place, FrameType]) -> TracebackType | None:
    traceback: TracebackType | None = None
    for place in reversed(places):
        if place not in frames:
            frames[place] = _frame_at(place)
        # No instruction: tblib's frames have one, whose columns would be underlined in a line of the user's.
        traceback = TracebackType(traceback, frames[place], -1, place[2])
    return traceback


def _frame_at(place: Place) -> FrameType:
    """Return a frame that ended there."""
    import tblib

    filename, name, line, module, file = place
    frame = {
        "f_globals": {"__name__": module, "__file__": file},
        "f_code": {"co_filename": filename, "co_name": name},
        "f_lineno": line,
    }
    whole = tblib.Traceback.from_dict({"tb_frame": frame, "tb_lineno": line, "tb_next": None})
    made: TracebackType = whole.as_traceback()
    return made.tb_frame
