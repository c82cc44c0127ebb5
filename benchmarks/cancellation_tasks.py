"""What is cancelled in `benchmarks.cancellation`: a module of its own, so that workers load nothing else."""

from __future__ import annotations

import collections
import itertools
import os


def say_pid(path: str) -> None:
    """Write this process's pid into the named pipe at *path*: the task runs now."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, os.getpid().to_bytes(8, "little"))
    os.close(fd)


def loop_in_python(path: str) -> None:
    say_pid(path)
    total = 0
    for number in itertools.count():
        total += number


def loop_in_c(path: str) -> None:
    """Hold the GIL for longer than any benchmark takes, and look at no signal."""
    say_pid(path)
    collections.deque(itertools.repeat(None, 10**14), maxlen=0)


def pid() -> int:
    return os.getpid()
