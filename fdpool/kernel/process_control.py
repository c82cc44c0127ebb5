"""prctl(2) and fcntl(2): what the kernel is asked to do to a process, whatever that is doing at the time."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

    from fdpool.kernel.pidfd import PidFd

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15

_F_SETSIG: Final = 10  # asm-generic/fcntl.h


def die_with_parent(parent: PidFd) -> None:
    """Have the kernel kill this process when the thread that started it ends, however deep in C it is then.

    Args:
      parent: The process that started this one. If it has ended already, this process exits at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"PR_SET_PDEATHSIG: {os.strerror(code)}")
    # The signal is not sent for a parent that ended before it was asked for.
    if parent.has_exited():
        os._exit(0)


def kill_group_on_close(lifeline: socket.socket, group: int) -> None:
    """Have the kernel kill a whole process group once the other end of *lifeline* is closed.

    Args:
      lifeline: One end of a stream socketpair on which nothing is ever sent. Lent; it works for as long as somebody
          holds it, in whichever process.
      group: The group's number. It is the group that the kernel keeps, not the number, which others may get later.

    Raises:
      ProcessLookupError: there is no such group.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -group)
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def name_process(name: str) -> None:
    """Set what `ps -o comm` and `top` show for this process: at most 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(os.fsencode(name)), 0, 0, 0)
