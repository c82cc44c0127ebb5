"""How a worker is made like the process that starts it: where it imports from, and what its script is."""

from __future__ import annotations

import os
import pickle
import sys

from fdpool.protocol.tasks import Operation, encode


def encode_settings(main: tuple[str | None, str | None], initializer: bytes | None = None) -> bytes:
    """Lay out the message that every worker gets first.

    Args:
      main: How the running script is loaded again: by module name, by path, or not at all.
      initializer: A pickled (function, arguments) to be called before the worker is ready.
    """
    module, path = main
    settings = {
        "sys_path": [os.getcwd() if entry == "" else entry for entry in sys.path],
        "argv": sys.argv,
        "main_module": module,
        "main_path": None if path is None else os.path.abspath(path),
        "initializer": initializer,
        "python_path": os.environ.get("PYTHONPATH"),
    }
    return encode(Operation.SETTINGS, body=pickle.dumps(settings))
