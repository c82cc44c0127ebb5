"""fork_sibling: a fork whose parent is the caller's own parent. See clone(2), CLONE_PARENT.

The supervisor starts the zygote, the zygote forks, and the worker is the *supervisor's* child: it can be waited
for, and dies with it (PR_SET_PDEATHSIG), whatever becomes of the zygote. docs/kernel-notes.md, "A fork for the
parent", says what the C library's fork does beside the system call, and how that is made good here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from typing import Final

from fdpool.kernel.pidfd import PidFd

# linux/sched.h
_CLONE_PIDFD: Final = 0x1000
_CLONE_PARENT: Final = 0x8000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000

_PR_GET_TID_ADDRESS: Final = 40  # linux/prctl.h

# The number of clone(2), of set_robust_list(2) and get_robust_list(2), and whether its last two arguments are swapped.
_NUMBERS: Final = {"x86_64": (56, 273, 274, False), "aarch64": (220, 99, 100, True), "riscv64": (220, 99, 100, True)}


def can_fork_sibling() -> bool:
    """Whether `fork_sibling` knows this machine and this kernel."""
    return platform.machine() in _NUMBERS and ctypes.sizeof(ctypes.c_long) == 8 and _thread_id_address() is not None


def fork_sibling() -> PidFd | None:
    """Fork; return the child's pidfd here, and None in the child, whose parent is this process's parent.

    The process must have one thread and no more. Python's own fork hooks run as for `os.fork`; those that C
    libraries registered with pthread_atfork(3) do not.

    Raises:
      OSError: no processes, memory or descriptors left. Nothing was started.
    """
    clone, set_robust_list, get_robust_list, is_swapped = _NUMBERS[platform.machine()]
    # PyDLL keeps the GIL, as os.fork does: no Python code runs between the hooks and the system call.
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    thread_id = _thread_id_address()
    robust_list, length = ctypes.c_void_p(), ctypes.c_size_t()
    libc.syscall(_long(get_robust_list), _long(0), ctypes.byref(robust_list), ctypes.byref(length))
    pidfd = ctypes.c_int(-1)
    flags = _CLONE_PARENT | _CLONE_PIDFD | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    tail = (_long(0), thread_id) if is_swapped else (thread_id, _long(0))
    arguments = (_long(clone), _long(flags), _long(0), ctypes.byref(pidfd), *tail)
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid = libc.syscall(*arguments)
    if pid == 0:
        api.PyOS_AfterFork_Child()
        libc.syscall(_long(set_robust_list), robust_list, length)
        return None
    code = ctypes.get_errno()
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return PidFd.adopt(pidfd.value)


def _thread_id_address() -> ctypes.c_void_p | None:
    """Return where the C library keeps this thread's id, which the kernel must write anew in a child."""
    address = ctypes.c_void_p()
    libc = ctypes.CDLL(None)
    # Without CONFIG_CHECKPOINT_RESTORE the kernel does not tell.
    return address if libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) == 0 else None


_long = ctypes.c_long
