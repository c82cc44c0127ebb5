"""Functions for workers to run that print and warn."""

from __future__ import annotations

import os
import select
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdpool.kernel import EventFd


class CarelessWarning(UserWarning):
    """A warning of the test's own."""


def print_some(text: str) -> int:
    print(text, end="")
    return os.getpid()


def print_and_wait(text: str, event: EventFd, go_on: EventFd) -> None:
    with event, go_on:
        print(text, end="")
        event.write()
        select.select([go_on], [], [])


def print_and_die(text: str, how: str) -> None:
    print(text, end="")
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def print_pairs(name: str, count: int) -> None:
    for number in range(count):
        print(f"{name} first {number}\n{name} second {number}")


def warn(category: type[Warning], message: str, times: int = 1) -> int:
    """Warn; return in which line."""
    for _ in range(times):
        warnings.warn(message, category, stacklevel=1)
    return sys._getframe().f_lineno - 1


def filters() -> list[Any]:
    return list(warnings.filters)
