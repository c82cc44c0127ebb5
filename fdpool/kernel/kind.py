"""What a descriptor is, as the kernel sees it; checked whenever a handle arrives."""

from __future__ import annotations

import enum
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from fdpool.kernel.descriptor import OwnedFd
from fdpool.kernel.eventfd import EventFd
from fdpool.kernel.memfd import MemFd
from fdpool.kernel.pidfd import PidFd

if TYPE_CHECKING:
    import socket

_F_GET_SEALS: Final = 1034


class HandleKind(enum.IntEnum):
    """The kinds of handle a message header tells apart. The numbers travel: never reuse one."""

    OTHER = 0
    """Anything else with a descriptor: epoll, timerfd, signalfd, io_uring, …"""
    FILE = 1
    """A regular file, a directory, a pipe or a device."""
    SOCKET = 2
    MEMFD = 3
    EVENTFD = 4
    PIDFD = 5


def handle_kind(fd: int) -> HandleKind:
    """Return what the open descriptor *fd* is.

    Raises:
      OSError: it is not open (EBADF).
    """
    status = os.fstat(fd)
    file_type = stat.S_IFMT(status.st_mode)
    if file_type == stat.S_IFSOCK:
        # One opened with O_PATH is a place in the file system, and no socket can be made of it.
        is_place = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
        return HandleKind.FILE if is_place else HandleKind.SOCKET
    if file_type == stat.S_IFREG and status.st_nlink == 0 and _can_be_sealed(fd):
        return HandleKind.MEMFD
    if file_type:
        return HandleKind.FILE
    # Anonymous inodes have no file type; only the link's text tells one from another.
    return _ANONYMOUS.get(os.readlink(f"/proc/self/fd/{fd}"), HandleKind.OTHER)


def into_typed(fd: OwnedFd, kind: HandleKind) -> OwnedFd | socket.socket:
    """Give *fd* up to an object of the class for *kind*, which then owns it."""
    if kind is HandleKind.SOCKET:
        return fd.into_socket()
    return _CLASSES.get(kind, OwnedFd).adopt(fd.detach())


def _can_be_sealed(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return False
    return True


_ANONYMOUS: Final = {"anon_inode:[eventfd]": HandleKind.EVENTFD, "anon_inode:[pidfd]": HandleKind.PIDFD}
_CLASSES: Final[dict[HandleKind, type[OwnedFd]]] = {
    HandleKind.MEMFD: MemFd,
    HandleKind.EVENTFD: EventFd,
    HandleKind.PIDFD: PidFd,
}
