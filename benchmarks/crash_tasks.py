"""What the workers of `benchmarks.crashes` run: a module of its own, so that they load nothing else."""

from __future__ import annotations

import mmap
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdpool import EventFd

_ledger: mmap.mmap | None = None
_calls = 0


def open_ledger(path: str, calls: int) -> None:
    """Prepare a worker: map the memory in which every call notes its beginning and its end."""
    global _ledger, _calls
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    _ledger, _calls = mmap.mmap(fd, 2 * calls), calls
    os.close(fd)


def note(number: int, seconds: float) -> int:
    """Note that the call was begun, take *seconds*, note that it is done."""
    assert _ledger is not None
    _ledger[number] += 1
    if seconds:
        select.select([], [], [], seconds)
    _ledger[_calls + number] += 1
    return number


def note_and_read(number: int, event: EventFd) -> int:
    """Do the same with a handle, which is used up; return what it held."""
    with event:
        note(number, 0)
        held: int = event.read()
        return held
