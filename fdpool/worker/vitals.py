"""Signs of life: a beat on the control page, and the Python stacks when somebody asks."""

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


def answer_dump_signal(memory: MemFd) -> None:
    """Have `SIGUSR2` write the stacks of all threads behind the control page, whatever holds the GIL.

    Args:
      memory: The control page's. Lent, and to be kept open.
    """
    os.lseek(memory.fileno(), PAGE_BYTES, os.SEEK_SET)
    faulthandler.register(DUMP_SIGNAL, file=memory.fileno(), all_threads=True)


def start_beating(page: ControlPage, interval: float) -> None:
    """Count on the control page, every *interval* seconds, for as long as this process runs Python code."""
    threading.Thread(target=_beat, args=(page, interval), name="fdpool-beat", daemon=True).start()


def _beat(page: ControlPage, interval: float) -> None:
    while True:
        page.beat += 1
        time.sleep(interval)
