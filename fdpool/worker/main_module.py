"""The supervisor's running script, loaded in a worker the first time something of it is needed."""

from __future__ import annotations

import runpy
import sys
from types import ModuleType
from typing import Any

from fdpool.memory.functions import main_module


class MainStandIn(ModuleType):
    """What `__main__` is until somebody asks it for something: then it is the supervisor's script.

    Pickles of other libraries, nested in arguments, look for functions of the script there.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(sys.modules[main_module()], name)


def stand_in_for_main() -> None:
    """Put a stand-in in the place of `__main__`, which so far is this worker's own entrypoint."""
    sys.modules["__main__"] = MainStandIn("__main__")


def load_main(module_name: str | None, path: str | None) -> None:
    """Make `__main__` the supervisor's script, run under the name `__mp_main__` so that its main guard holds.

    Does nothing the second time. The name is the one multiprocessing uses, which other libraries know.

    Raises:
      ImportError: the supervisor has no script, only a prompt or standard input.
      Exception: whatever the script raises when it is loaded.
    """
    # Not asked of `__mp_main__`: importing multiprocessing makes one of whatever `__main__` is just then.
    if not isinstance(sys.modules["__main__"], MainStandIn):
        return
    if module_name is None and path is None:
        raise ImportError("the supervisor's __main__ has no file that a worker could load")
    if module_name is not None:
        names = runpy.run_module(module_name, run_name="__mp_main__", alter_sys=True)
    else:
        assert path is not None
        names = runpy.run_path(path, run_name="__mp_main__")
    main = ModuleType("__mp_main__")
    main.__dict__.update(names)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
