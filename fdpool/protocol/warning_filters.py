"""Warning filters as they travel: classes by name, patterns as text."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Text = str | tuple[str, int] | None
"""What a message or module has to be: exactly this, or a pattern with its flags, or anything."""

Filter = tuple[str, str | re.Pattern[str] | None, type, str | re.Pattern[str] | None, int]
"""An entry of `warnings.filters`: action, message, category, module, line."""

Told = tuple[str, Text, tuple[str, str], Text, int]
"""A filter taken apart, its category being told by module and qualified name."""

_MAIN: Final[tuple[Text, ...]] = ("__main__", ("__main__", re.UNICODE.value), (r"__main__\Z", re.UNICODE.value))
"""The script: as the interpreter says it itself, as `warnings.filterwarnings` does, and as `-W` does."""


def tell_filters(filters: Iterable[Any]) -> list[Told]:
    """Take filters apart, in order; leave out those whose category another process could not find by name."""
    told: list[Told] = []
    for action, message, category, module, line in filters:
        home = _home_of(category)
        if home is not None:
            told.append((action, _text(message), home, _text(module), line))
    return told


def rebuild_filters(told: Iterable[Told]) -> list[Filter]:
    """Put filters together again, in order. No module is imported for it."""
    return list(dict.fromkeys(_rebuild(told)))


def _rebuild(told: Iterable[Told]) -> Iterator[Filter]:
    for action, message, home, module, line in told:
        category = _find(home) or _not_loaded(*home)
        yield action, _pattern(message), category, _pattern(module), line
        if module in _MAIN:
            # As which the script is loaded here.
            yield action, _pattern(message), category, "__mp_main__", line


class NotLoaded(type):
    """The class of a category whose module is not loaded here. No warning can be of that category until it is."""

    home: tuple[str, str]

    def __subclasscheck__(cls, subclass: type) -> bool:
        category = _find(cls.home)
        return category is not None and issubclass(subclass, category)


@cache
def _not_loaded(module: str, name: str) -> NotLoaded:
    return NotLoaded(name, (Warning,), {"home": (module, name), "__module__": module})


def _find(home: tuple[str, str]) -> type | None:
    """Return the class of that module and name, if the module is loaded."""
    module, name = home
    # In a worker the script is loaded when something of it is first needed, and warnings are no reason to.
    loaded = sys.modules.get("__main__" if module == "__mp_main__" else module)
    first, *rest = name.split(".")
    found: Any = None if loaded is None else vars(loaded).get(first)
    for part in rest:
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _home_of(category: type) -> tuple[str, str] | None:
    if isinstance(category, NotLoaded):
        return category.home
    home = (category.__module__, category.__qualname__)
    return home if _find(home) is category else None


def _text(condition: str | re.Pattern[str] | None) -> Text:
    return (condition.pattern, condition.flags) if isinstance(condition, re.Pattern) else condition


def _pattern(text: Text) -> str | re.Pattern[str] | None:
    return re.compile(*text) if isinstance(text, tuple) else text
