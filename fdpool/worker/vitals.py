"""Signs of life: a beat on the control page, and the Python stacks when somebody asks, or at the very end."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

from fdpool.protocol.page import PAGE_BYTES

if TYPE_CHECKING:
    from fdpool.kernel import MemFd
    from fdpool.protocol.page import ControlPage

DUMP_SIGNAL: Final = signal.SIGUSR2
_STDERR: Final = 2
_was_asked_to_report = False


def answer_dump_signal(memory: MemFd) -> None:
    """Have `SIGUSR2` write the stacks of all threads behind the control page, whatever holds the GIL.

    Args:
      memory: The control page's. Lent, and to be kept open.
    """
    os.lseek(memory.fileno(), PAGE_BYTES, os.SEEK_SET)
    faulthandler.register(DUMP_SIGNAL, file=memory.fileno(), all_threads=True)


def report_crashes() -> None:
    """Have a fatal signal (SIGSEGV, SIGABRT and their like) write the stacks of all threads to stderr before the end.

    Does nothing if somebody has arranged for that already, nor in the fork of a process that was asked before: what
    was loaded there may have decided otherwise.
    """
    global _was_asked_to_report
    if not _was_asked_to_report and not faulthandler.is_enabled():
        faulthandler.enable(file=_STDERR)
    _was_asked_to_report = True


def start_beating(page: ControlPage, interval: float) -> None:
    """Count on the control page, every *interval* seconds, for as long as this process runs Python code."""
    threading.Thread(target=_beat, args=(page, interval), name="fdpool-beat", daemon=True).start()


def _beat(page: ControlPage, interval: float) -> None:
    while True:
        page.beat += 1
        time.sleep(interval)
