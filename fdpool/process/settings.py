"""How a worker is made like the process that starts it: where it imports from, and what its script is."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from typing import TYPE_CHECKING

from fdpool.process.records import record_settings
from fdpool.protocol.tasks import Operation, encode
from fdpool.protocol.warning_filters import tell_filters

if TYPE_CHECKING:
    from fdpool.protocol.limits import Limits


def worker_settings(
    main: tuple[str | None, str | None],
    initializer: bytes | None,
    limits: Limits,
    beat_interval: float | None,
    *,
    reports_crashes: bool,
    forward_logging: bool,
) -> dict[str, object]:
    """Return what `encode_settings` lays out, but for what is looked at anew for each worker.

    Args:
      main: How the running script is loaded again: by module name, by path, or not at all.
      initializer: A pickled (function, arguments) to be called before the worker is ready, or None.
      limits: What the kernel is to enforce on it.
      beat_interval: How many seconds may pass between its signs of life; None if nobody looks for them.
      reports_crashes: Whether a fatal signal is to leave its stacks on its stderr.
      forward_logging: Whether it is to send its log records.
    """
    module, path = main
    return {
        "sys_path": [os.getcwd() if entry == "" else entry for entry in sys.path],
        "argv": sys.argv,
        "main_module": module,
        "main_path": None if path is None else os.path.abspath(path),
        "initializer": initializer,
        "limits": limits,
        "beat_interval": beat_interval,
        "reports_crashes": reports_crashes,
        "forwards_logging": forward_logging,
        "python_path": os.environ.get("PYTHONPATH"),
    }


def encode_settings(settings: dict[str, object]) -> bytes:
    """Lay out the message that a worker which starts now gets first."""
    return encode(Operation.SETTINGS, body=pickle.dumps(settings | current_settings(settings)))


def current_settings(settings: dict[str, object]) -> dict[str, object]:
    """Return what is added to *settings*: how things stand here at this moment."""
    return {
        "records": record_settings() if settings["forwards_logging"] else None,
        "warning_filters": tell_filters(warnings.filters),
    }
