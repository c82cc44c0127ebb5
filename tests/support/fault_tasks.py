"""Functions for workers to run, that no worker should have to run."""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import sys
import threading
from typing import Any, NoReturn


def recurse(level: int = 0) -> int:
    return recurse(level + 1)


def overflow_the_c_stack() -> NoReturn:
    faulthandler._stack_overflow()  # type: ignore[attr-defined]
    raise AssertionError("there was no end to it")


def use_all_memory() -> NoReturn:
    """Take memory in small pieces, until there is not even enough to tell of it."""
    pieces: list[Any] = []
    while True:
        pieces.append([None] * 100)


def nested(levels: int) -> list[Any]:
    innermost: list[Any] = []
    for _ in range(levels):
        innermost = [innermost]
    return innermost


class CannotBeReduced(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not to be pickled")


def raise_what_cannot_be_reduced() -> NoReturn:
    raise CannotBeReduced("the text")


def close_everything() -> None:
    os.closerange(3, 1000)


def begin_session() -> None:
    os.setsid()


def stop_self() -> NoReturn:
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def leave_thread_behind() -> None:
    threading.Thread(target=threading.Event().wait).start()


def change_everything(directory: str) -> None:
    """Change what belongs to the process, and not to the call."""
    os.chdir(directory)
    os.environ["FDPOOL_TEST_LEFT"] = "by an earlier call"
    os.umask(0o077)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.stdout = io.StringIO()


def see_everything() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    return {
        "directory": os.getcwd(),
        "variable": os.environ.get("FDPOOL_TEST_LEFT"),
        "umask": umask,
        "handler": signal.getsignal(signal.SIGUSR1),
        "stdout": sys.stdout is sys.__stdout__,
    }


def spoil_output(how: str) -> None:
    if how == "none":
        sys.stdout = sys.stderr = None
    elif how == "closed":
        sys.stdout.close()
        sys.stderr.close()
    elif how == "descriptors closed":
        print("still in the buffer", end="")
        os.close(1)
        os.close(2)
    elif how == "raises":
        sys.stdout = sys.stderr = Raises()


class Raises(io.StringIO):
    def flush(self) -> None:
        raise OSError("cannot be flushed")
