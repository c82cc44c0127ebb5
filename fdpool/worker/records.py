"""Log records on their way from a worker to the loggers of its supervisor."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from fdpool.protocol.records import encode_record
from fdpool.protocol.tasks import Operation, encode
from fdpool.worker.channel import SideChannel, SupervisorGone

if TYPE_CHECKING:
    from fdpool.worker.channel import BlockingChannel

_FORMATTER: Final = logging.Formatter()

_LEFT_OUT: Final = frozenset({"args", "exc_info", "message", "asctime", "relativeCreated"})
"""What is made into something else, or is only the traces of formatters that have seen the record."""


class RecordSender(logging.Handler):
    """Sends what it handles over *channel*, which it owns, each record as one message. Waits for the supervisor.

    It has no lock, unlike other handlers: `TaskCancelled` may be raised anywhere in a log call, also right after a lock
    was taken, and nobody would ever give that one back. Sending a record changes nothing in this process.
    """

    def __init__(self, channel: SideChannel) -> None:
        super().__init__()
        self._channel: SideChannel | None = channel

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Have none."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Send *record* unless a filter is against it."""
        kept: Any = self.filter(record)
        if kept:
            # From Python 3.12 on, a filter may put another record in its place.
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*. One that cannot be formatted is reported as logging does, on standard error."""
        channel = self._channel
        if channel is None:
            return
        try:
            channel.send(encode(Operation.LOG, body=encode_record(_fields_of(record))))
        except SupervisorGone:
            # Nobody is left who would want to know.
            pass
        except Exception:
            if self._channel is not None:
                self.handleError(record)

    def stop(self) -> None:
        """Send nothing any more."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def forward_records(channel: BlockingChannel, settings: dict[str, Any]) -> RecordSender:
    """Have what is logged here sent beside *channel*, also by processes that tasks fork, as far as it is wanted.

    Args:
      settings: What `record_settings` made.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        # Of modules that the zygote loaded. In a fresh interpreter these would have found the root logger taken as
        # well, and the supervisor's handlers are those that count.
        root.removeHandler(handler)
    for name, level in settings["levels"].items():
        logging.getLogger(name).setLevel(level)
    logging.disable(settings["disabled"])
    if settings["captures_warnings"]:
        logging.captureWarnings(True)
    sender = RecordSender(SideChannel(channel))
    root.addHandler(sender)
    return sender


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is to be known of *record* elsewhere, the message and the traceback as text.

    Raises:
      Exception: whatever formatting the message raises.
    """
    # Other handlers get the record as well: it stays as it is.
    fields = {name: value for name, value in record.__dict__.items() if name not in _LEFT_OUT}
    fields["msg"] = record.getMessage()
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _FORMATTER.formatException(record.exc_info)
    if record.processName == "MainProcess":
        # What multiprocessing calls a process that it has not started.
        fields["processName"] = "fdpool-worker"
    return fields
