"""A process that a task forked is not the worker: it answers no call, takes none, and ends where its task ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from fdpool.worker.ending import end_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.worker.channel import BlockingChannel

EXIT_ASTRAY: Final = 70  # EX_SOFTWARE, sysexits.h

_worker_pid = os.getpid()


def part_with_forks(channel: BlockingChannel, forget_interrupts: Callable[[], None]) -> None:
    """Declare this process the worker: what it forks from now on has no *channel*, and ends by `leave_if_forked`.

    The lifeline stays open there: with it such a process dies with the supervisor, also if the worker died first.
    """
    global _worker_pid
    _worker_pid = os.getpid()
    os.register_at_fork(after_in_child=channel.close)
    os.register_at_fork(after_in_child=forget_interrupts)


def is_forked() -> bool:
    """Whether this process was forked off the worker by a task."""
    # Asked of the kernel: a fork by a C library runs none of Python's hooks.
    return os.getpid() != _worker_pid


def leave_if_forked(error: BaseException | None = None) -> None:
    """End this process, if a task forked it, as a program ends that has come to its end, or to *error*.

    Its parent sees the exit code: 0, what `SystemExit` says, or 1 behind a traceback. As with processes that
    multiprocessing forks, handlers of `atexit` do not run.
    """
    if is_forked():
        end_process(0 if error is None else _report(error))


def end_astray() -> NoReturn:
    """End a process that a task forked, and that went on in the worker's event loop."""
    with suppress(Exception):
        print(
            f"fdpool worker {_worker_pid}: an async task forked process {os.getpid()}, which then waited in the event "
            "loop that it shares with the worker, and was ended",
            file=sys.stderr,
        )
    end_process(EXIT_ASTRAY)


def _report(error: BaseException) -> int:
    """Print what an interpreter prints at an *error* that nobody catches; return the exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        with suppress(Exception):
            print(error.code, file=sys.stderr)
    else:
        # The first frame is the one that caught it here, and nobody's business there.
        trace = error.__traceback__ and error.__traceback__.tb_next
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
    return 1
