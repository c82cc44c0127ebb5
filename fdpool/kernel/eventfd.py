"""EventFd: a 64-bit counter in the kernel that processes wake each other with."""

from __future__ import annotations

import errno
import os
import select
import sys
from typing import Final

from fdpool.kernel.descriptor import OwnedFd

MAX_EVENTFD_VALUE: Final = 2**64 - 2  # eventfd(2)
_EFD_CLOEXEC: Final = os.O_CLOEXEC
_EFD_NONBLOCK: Final = os.O_NONBLOCK
_EFD_SEMAPHORE: Final = 1


class EventFd(OwnedFd):
    """An eventfd, owned. Reading and writing never block, whatever a peer did to `O_NONBLOCK`.

    The flag belongs to the open file description, which every process with a duplicate shares, so a
    peer can set and clear it; this class neither trusts nor changes it. See eventfd(2).

    Args:
      initial: The counter's first value, 0 to 2**32 - 1.
      semaphore: Whether each read takes 1 instead of everything.
    """

    __slots__ = ()

    def __init__(self, initial: int = 0, *, semaphore: bool = False) -> None:
        if not 0 <= initial < 2**32:
            raise ValueError(f"the initial value is {initial}, not 0 to {2**32 - 1}; write() can add more")
        flags = _EFD_CLOEXEC | _EFD_NONBLOCK | (_EFD_SEMAPHORE if semaphore else 0)
        super().__init__(os.eventfd(initial, flags))

    def write(self, n: int = 1) -> None:
        """Add *n* to the counter, waking whoever waits for it to be readable.

        Raises:
          ValueError: *n* is not 1 to 2**64 - 2, or this is closed.
          BlockingIOError: the counter would pass 2**64 - 2; nothing was added.
        """
        if not 1 <= n <= MAX_EVENTFD_VALUE:
            raise ValueError(f"{n} cannot be added to an eventfd: only 1 to {MAX_EVENTFD_VALUE} can")
        self._check_open()
        # eventfd has no write_iter, so RWF_NOWAIT is refused for writes: look before leaping.
        if os.get_blocking(self._fd) and not self._has_room_for(n):
            raise BlockingIOError(errno.EAGAIN, f"adding {n} would pass the counter's limit of {MAX_EVENTFD_VALUE}")
        os.eventfd_write(self._fd, n)

    def read(self) -> int:
        """Return the counter and reset it to 0; in semaphore mode take 1 from it.

        Raises:
          ValueError: this is closed.
          BlockingIOError: the counter is 0.
          OSError: this is no eventfd (EINVAL).
        """
        self._check_open()
        value = bytearray(8)
        if os.preadv(self._fd, [value], -1, os.RWF_NOWAIT) != len(value):
            raise OSError(errno.EINVAL, "not an eventfd")
        return int.from_bytes(value, sys.byteorder)

    def _has_room_for(self, n: int) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):
            return False
        return n == 1 or self._peek() + n <= MAX_EVENTFD_VALUE

    def _peek(self) -> int:
        # Only fdinfo tells the count without taking it; written in hexadecimal, see proc_pid_fdinfo(5).
        with open(f"/proc/self/fdinfo/{self._fd}", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("eventfd-count:"):
                    return int(line.split()[1], 16)
        raise OSError(errno.EINVAL, "not an eventfd")
