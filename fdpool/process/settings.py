"""How a worker is made like the process that starts it: where it imports from, and what its script is."""

from __future__ import annotations

import os
import pickle
import sys

from fdpool.protocol.tasks import Operation, encode


def worker_settings(main: tuple[str | None, str | None]) -> dict[str, object]:
    """Return what `encode_settings` lays out.

    Args:
      main: How the running script is loaded again: by module name, by path, or not at all.
    """
    module, path = main
    return {
        "sys_path": [os.getcwd() if entry == "" else entry for entry in sys.path],
        "argv": sys.argv,
        "main_module": module,
        "main_path": None if path is None else os.path.abspath(path),
        "python_path": os.environ.get("PYTHONPATH"),
    }


def encode_settings(settings: dict[str, object]) -> bytes:
    """Lay out the message that every worker gets first."""
    return encode(Operation.SETTINGS, body=pickle.dumps(settings))
