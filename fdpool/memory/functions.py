"""Which functions and classes another process can find again by name, and where the running script's live."""

from __future__ import annotations

import pickle
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

is_loading_main = False
"""Whether the supervisor's script is being loaded in this worker: a pool it opens then would open pools for ever."""

_load_main: Callable[[], None] | None = None


class Unimportable(pickle.PicklingError):
    """A function or class that no other process can import."""


def check_importable(value: Any) -> None:
    """Check, if *value* is a function or a class, that another process can import it.

    Whether its module has it under its name is for pickle to find out; this asks if there is such a module.

    Raises:
      Unimportable: its module is a script without a file, or was made up at run time.
    """
    if not isinstance(value, FunctionType | type):
        return
    name = value.__module__
    module = sys.modules.get(name)
    if module is None:
        return
    if name == "__main__":
        if main_origin() == (None, None):
            raise Unimportable(
                f"{value.__qualname__} is defined in a __main__ without a file (a prompt, or a script on standard "
                "input), which a worker cannot import"
            )
    elif getattr(module, "__spec__", None) is None and not hasattr(module, "__file__"):
        raise Unimportable(f"{value.__qualname__} is defined in {name}, a module made at run time that has no file")


def main_origin() -> tuple[str | None, str | None]:
    """Return how another process can load this one's `__main__`: by module name, by path, or not at all."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name, None
    path = getattr(main, "__file__", None)
    # A prompt or standard input may still have a name in angle brackets.
    return None, None if path is None or path.startswith("<") else path


def main_module() -> str:
    """Return the name under which this process has the running script, loading it first in a worker."""
    global is_loading_main
    if _load_main is not None:
        is_loading_main = True
        try:
            _load_main()
        finally:
            is_loading_main = False
    return "__main__"


def set_main_loader(load: Callable[[], None]) -> None:
    """Say what makes `__main__` the script of the process that started this one; called before each use."""
    global _load_main
    _load_main = load
