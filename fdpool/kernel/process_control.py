"""prctl(2): what a process asks the kernel to do to itself."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fdpool.kernel.pidfd import PidFd

_PR_SET_PDEATHSIG: Final = 1


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
