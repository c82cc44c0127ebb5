"""Context variables that travel with a call: those that were named, and no others."""

from __future__ import annotations

import contextvars
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from fdpool.memory.functions import main_module, main_origin
from fdpool.memory.pickling import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fdpool.memory.pickling import Gathered
    from fdpool.memory.received import MappingMode

T = TypeVar("T")

Values = dict[str, Any]
"""What context variables are set to, by the names under which they are found."""

_UNSET: Final = object()


@dataclass(frozen=True, slots=True)
class Variable:
    """A context variable, and the name under which another process finds it."""

    name: str
    found: ContextVar[Any]


def find_variables(names: Iterable[str]) -> tuple[Variable, ...]:
    """Find context variables by their names, `"package.module:variable"`.

    Raises:
      TypeError: *names* is one string, or one of them is none, or what it names is no `ContextVar`.
      ValueError: one of them is not of that form, its module cannot be imported, or has no such variable.
      Exception: whatever importing a module raises that is no `ImportError`.
    """
    if isinstance(names, str):
        raise TypeError(f"context is the string {names!r}: it takes a list of names of context variables")
    found = tuple(Variable(name, _find(name)) for name in names)
    for variable in found:
        if variable.name.startswith("__main__:") and main_origin() == (None, None):
            raise ValueError(
                f"context names {variable.name!r}: this __main__ has no file (a prompt, or a script on standard "
                "input), so that a worker cannot import it"
            )
    return found


def current_values(variables: Iterable[Variable]) -> Values:
    """Return what *variables* are set to in the caller's context, as far as they are."""
    values = {each.name: each.found.get(_UNSET) for each in variables}
    return {name: value for name, value in values.items() if value is not _UNSET}


def context_with(values: Values) -> contextvars.Context:
    """Return a copy of the caller's context in which the variables have these values.

    A call runs in it with its `run`, and so does each step of something that has several.

    Raises:
      TypeError, ValueError: a variable cannot be found in this process; see `find_variables`.
    """
    context = contextvars.copy_context()
    context.run(set_values, values)
    return context


def set_values(values: Values) -> None:
    """Give the variables these values in the caller's context, which is to be its own. Raises as `context_with`."""
    for name, value in values.items():
        _find(name).set(value)


def run_apart(function: Callable[..., T], /, *args: Any) -> T:
    """Call *function* in a copy of the caller's context: what it sets there, nobody else sees."""
    return contextvars.copy_context().run(function, *args)


def gather_task(task: tuple[Any, ...], mode: MappingMode, variables: Iterable[Variable]) -> Gathered:
    """Take what a worker is to do apart, with the values of *variables* behind it if there are any.

    Raises:
      Exception: as `gather`; a note names the variable whose value it came from.
    """
    if not variables:
        return gather(task, mode)
    values = current_values(variables)
    try:
        return gather((*task, values), mode)
    except Exception as exc:
        _blame_value(exc, values)
        raise


def _blame_value(error: Exception, values: Values) -> None:
    """Note on *error*, raised when a task was pickled, which of *values* it came from, if from one of them."""
    for name, value in values.items():
        try:
            gather(value)
        except Exception:
            kind = type(value).__name__
            error.add_note(f"raised while pickling the value of the context variable {name!r}, a {kind}")


def _find(name: str) -> ContextVar[Any]:
    if not isinstance(name, str):
        raise TypeError(f"context names {name!r}, a {type(name).__name__}, not a string")
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"context names {name!r}, which is not of the form 'package.module:variable'")
    try:
        home = sys.modules[main_module()] if module == "__main__" else import_module(module)
        found: object = reduce(getattr, path.split("."), cast("Any", home))
    except ImportError as exc:
        raise ValueError(f"context names {name!r}, and its module cannot be imported: {exc}") from exc
    except AttributeError as exc:
        raise ValueError(f"context names {name!r}, and there is no such variable: {exc}") from exc
    if not isinstance(found, ContextVar):
        raise TypeError(f"context names {name!r}, a {type(found).__name__} and not a ContextVar")
    return found
