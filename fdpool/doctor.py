"""What this kernel and this interpreter offer, found out by asking them, and what fdpool does without it."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fdpool.kernel import MemFd, PidFd, Seal
from fdpool.kernel.clone import can_fork_sibling

# asm-generic/socket.h, unistd.h, fcntl.h and linux/landlock.h
_SO_PASSPIDFD: Final = 76
_SO_PASSRIGHTS: Final = 83
_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_SYS_CLOSE_RANGE: Final = 436
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_F_SETSIG: Final = 10

ENOUGH_DESCRIPTORS: Final = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      name: What it is.
      is_there: Whether this machine has it.
      detail: What was found, in a few words.
      without: What fdpool does where it is missing.
      is_required: Whether fdpool does not work without it.
    """

    name: str
    is_there: bool
    detail: str
    without: str
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    name: str
    ask: Callable[[], str]
    """Returns what was found; raises OSError or AttributeError if it is not there."""
    without: str
    is_required: bool = False

    def answer(self) -> Finding:
        try:
            detail, is_there = self.ask(), True
        except (OSError, AttributeError) as exc:
            detail, is_there = str(exc) or type(exc).__name__, False
        return Finding(self.name, is_there, detail, self.without, self.is_required)


def examine() -> list[Finding]:
    """Look at everything; nothing is changed by it."""
    return [question.answer() for question in _QUESTIONS]


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def _kernel() -> str:
    numbers = platform.release().replace("-", ".").split(".")
    if sys.platform != "linux" or [int(number) for number in numbers[:2]] < [5, 10]:
        raise OSError(f"this is {platform.system()} {platform.release()}")
    return f"Linux {platform.release()} on {platform.machine()}"


def _pidfd() -> str:
    with PidFd.current() as me:
        me.send_signal(0)
    return "open, signal, wait"


def _memfd() -> str:
    with MemFd("fdpool-doctor", mmap.PAGESIZE) as memfd:
        memfd.seal(Seal.SHRINK | Seal.GROW)
    return "memfd_create, sealed"


def _future_write() -> str:
    with MemFd("fdpool-doctor", mmap.PAGESIZE) as memfd:
        memfd.seal(Seal.FUTURE_WRITE)
    return "F_SEAL_FUTURE_WRITE"


def _no_exec() -> str:
    with MemFd("fdpool-doctor") as memfd:
        if not memfd.seals & Seal.EXEC:
            raise OSError("memfds can be made executable")
    return "MFD_NOEXEC_SEAL"


def _sibling() -> str:
    if not can_fork_sibling():
        raise OSError(f"not known on {platform.machine()}, or PR_GET_TID_ADDRESS is missing")
    return "CLONE_PARENT"


def _signal_on_close() -> str:
    left, right = socket.socketpair()
    with left, right:
        fcntl.fcntl(left, _F_SETSIG, signal.SIGKILL)
    return "F_SETSIG"


def _close_range() -> str:
    _system_call(_SYS_CLOSE_RANGE, 0x7FFFFFFE, 0x7FFFFFFF, 0)
    return "close_range"


def _socket_option(option: int, name: str) -> str:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, option, 1)
    return name


def _landlock() -> str:
    return f"ABI {_system_call(_SYS_LANDLOCK_CREATE_RULESET, 0, 0, _LANDLOCK_CREATE_RULESET_VERSION)}"


def _seccomp() -> str:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    return f"{len(actions)} actions"


def _cgroup_kill() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        raise OSError("no unified cgroup hierarchy")
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        directory = Path(mount + own)
        if (directory / "cgroup.procs").exists():
            if not os.access(directory, os.W_OK):
                raise OSError(f"{directory} is not writable")
            return f"{directory}"
    raise OSError("the unified hierarchy is not mounted")


def _descriptors() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"{soft} descriptors, up to {hard} on request"
    if soft < ENOUGH_DESCRIPTORS:
        raise OSError(words)
    return words


def _system_call(number: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(*map(ctypes.c_long, (number, *arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_NOT_USED: Final = "nothing changes: fdpool does not use it yet"

_QUESTIONS: Final = (
    _Question("Python", _python, "cannot be installed: 3.11 is needed", is_required=True),
    _Question("kernel", _kernel, "does not run: Linux 5.10 is needed", is_required=True),
    _Question("pidfd", _pidfd, "does not run: every death is learnt from one", is_required=True),
    _Question("sealed memory", _memfd, "does not run: buffers travel in it", is_required=True),
    _Question("memory only its owner writes", _future_write, "buffers are sealed once they are written"),
    _Question("memory that is never executable", _no_exec, "memfds are made without that seal"),
    _Question("forking siblings", _sibling, "start='zygote' is refused; use start='exec'"),
    _Question("signal when a socket is closed", _signal_on_close, "does not start workers", is_required=True),
    _Question("close_range", _close_range, "the interpreter closes descriptors one by one when it starts programs"),
    _Question("refusing handles", lambda: _socket_option(_SO_PASSRIGHTS, "SO_PASSRIGHTS"), _NOT_USED),
    _Question("pidfd with messages", lambda: _socket_option(_SO_PASSPIDFD, "SO_PASSPIDFD"), _NOT_USED),
    _Question("Landlock", _landlock, _NOT_USED),
    _Question("seccomp", _seccomp, _NOT_USED),
    _Question("cgroup.kill", _cgroup_kill, "process groups are killed; what has left its group stays"),
    _Question(
        "descriptor limit",
        _descriptors,
        f"each worker takes 6 descriptors here: fewer than {ENOUGH_DESCRIPTORS} do for a pool, not for many sockets",
    ),
)
