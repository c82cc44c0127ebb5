"""What the workers of `benchmarks.start` run: a module of its own, so that they load nothing else."""

from __future__ import annotations

import importlib
import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    import fdpool

PRELOAD = "numpy"
_barrier: Barrier | None = None


def arrive(arrived: fdpool.EventFd, leave: fdpool.OwnedFd) -> int:
    """Be a worker with NumPy: say so, wait for the others."""
    importlib.import_module(PRELOAD)
    with arrived, leave:
        arrived.write()
        select.select([leave], [], [])
    return os.getpid()


def take_barrier(barrier: Barrier) -> None:
    """Prepare a worker of an executor."""
    global _barrier
    importlib.import_module(PRELOAD)
    _barrier = barrier


def arrive_at_barrier() -> int:
    assert _barrier is not None
    _barrier.wait()
    return os.getpid()


def hang(event: fdpool.EventFd) -> None:
    """Say who this is, and wait to be killed."""
    with event:
        event.write(os.getpid())
    signal.pause()
