"""The kernel's objects, one per file: synchronous, standard library only.

Parameters lend, results own: what takes a handle accepts anything with `fileno()` and leaves it open; what
returns one returns an object that closes it. Every descriptor is close-on-exec from birth.
"""

from fdpool.kernel.descriptor import HasFileno, OwnedFd
from fdpool.kernel.eventfd import MAX_EVENTFD_VALUE, EventFd
from fdpool.kernel.kind import HandleKind, handle_kind
from fdpool.kernel.memfd import IMMUTABLE, MemFd, Seal
from fdpool.kernel.pidfd import ExitStatus, PidFd
from fdpool.kernel.rights import (
    MAX_FDS_PER_MESSAGE,
    recv_with_fd,
    recv_with_fds,
    send_with_fd,
    send_with_fds,
)

__all__ = [
    "IMMUTABLE",
    "MAX_EVENTFD_VALUE",
    "MAX_FDS_PER_MESSAGE",
    "EventFd",
    "ExitStatus",
    "HandleKind",
    "HasFileno",
    "MemFd",
    "OwnedFd",
    "PidFd",
    "Seal",
    "handle_kind",
    "recv_with_fd",
    "recv_with_fds",
    "send_with_fd",
    "send_with_fds",
]
