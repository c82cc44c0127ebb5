"""Log records of workers, as they arrive at the loggers of this process."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from typing import Any, Final

from fdpool.protocol.records import Fields, decode_record

_ANY: Final = logging.LogRecord("", 0, "", 0, "", None, None)
_STARTED: Final = _ANY.created - _ANY.relativeCreated / 1000
"""When logging was loaded here, which is what `relativeCreated` counts from, in milliseconds."""


def record_settings() -> dict[str, Any]:
    """Return what a worker has to know to send no record that would be dropped here: all levels as they are now."""
    root = logging.getLogger()
    # A copy made in one step: another thread may be making loggers.
    loggers = dict(root.manager.loggerDict)
    # As plain numbers: an enum of the program's own could not be loaded there yet.
    levels = {name: int(one.level) for name, one in loggers.items() if isinstance(one, logging.Logger) and one.level}
    return {
        "levels": {root.name: int(root.level), **levels},
        "disabled": int(root.manager.disable),
        "captures_warnings": warnings.showwarning is getattr(logging, "_showwarning", None),
    }


def take_in_record(body: memoryview) -> None:
    """Hand a worker's log record to the logger of the same name, as if it had been made here.

    What a filter, a handler or the record factory raises is reported as logging does it (`logging.raiseExceptions`).

    Raises:
      RemoteProtocolError: it is no record.
    """
    fields = decode_record(body)
    try:
        logger = logging.getLogger(fields["name"])
        if logger.isEnabledFor(fields["levelno"]):
            record = logging.makeLogRecord(fields)
            record.relativeCreated = (record.created - _STARTED) * 1000
            logger.handle(record)
    except Exception:
        # Where sys.stderr is closed, there is nobody to tell.
        with suppress(Exception):
            logging.NullHandler().handleError(_without_factory(fields))


def _without_factory(fields: Fields) -> logging.LogRecord:
    record = logging.LogRecord("", 0, "", 0, "", None, None)
    record.__dict__.update(fields)
    return record
