"""This process's own stderr, for passing things on to: written to without blocking the thread, and never failing."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from fdpool.kernel import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Iterator

STDERR: Final = 2


class OwnStderr:
    """What descriptor 2 was when this was made, whatever becomes of that number. Owns one descriptor.

    It belongs to all who hold it; when the last one lets go of it, it is closed. Who makes it holds it.

    Attributes:
      turn: To be held from the first write of something that is to stay in one piece until its last.

    Raises:
      OSError: no descriptors left.
    """

    def __init__(self) -> None:
        self._looks = _looks_of(STDERR)
        self._fd, self._may_block = _open_again(STDERR, self._looks[0])
        self._holders = 1
        self.turn = trio.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether nobody holds it any more."""
        return self._holders == 0

    def hold(self) -> OwnStderr:
        """Count one holder more."""
        self._holders += 1
        return self

    def release(self) -> None:
        """Count one holder less."""
        self._holders -= 1
        if self._holders == 0:
            self._fd.close()

    def is_current(self) -> bool:
        """Whether descriptor 2 is still the same, or just like it."""
        if not is_inherited(STDERR) or _looks_of(STDERR) != self._looks:
            return False
        # Two descriptions of one file are alike only where they stand in the same place.
        return not stat.S_ISREG(self._looks[0]) or _place_of(STDERR) == _place_of(self._fd.fileno())

    def write(self, data: bytes | bytearray) -> int:
        """Write as much of *data* as there is room for; return how many bytes that was.

        What can never be written, because the disk is full or nobody reads any more, counts as written.
        """
        try:
            with _pipe_signal_held():
                if not self._may_block:
                    return os.write(self._fd.fileno(), data)
                # This much does not block where there is room at all, unless somebody else is faster: pipe(7).
                return os.write(self._fd.fileno(), data[: select.PIPE_BUF]) if self._has_room() else 0
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    async def wait_writable(self) -> None:
        """Wait until there is room. For the one who has the `turn`."""
        await trio.lowlevel.wait_writable(self._fd)

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0))


def is_inherited(number: int) -> bool:
    """Whether *number* is open, and a program that is started now gets it."""
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


def _looks_of(number: int) -> tuple[int, int, int, int, int]:
    found = os.fstat(number)
    return found.st_mode, found.st_dev, found.st_ino, found.st_rdev, fcntl.fcntl(number, fcntl.F_GETFL)


def _place_of(number: int) -> int:
    return os.lseek(number, 0, os.SEEK_CUR)


def _open_again(number: int, mode: int) -> tuple[OwnedFd, bool]:
    """Return another descriptor for what *number* is, and whether writing to it may block.

    O_NONBLOCK belongs to everybody who has the same description of a file, so it is set only on one of our own, which
    pipes and terminals give to whoever opens them again.
    """
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # Not if it belongs to another user, from whom it was inherited, nor if nobody reads from it any more.
        with suppress(OSError):
            return OwnedFd(os.open(f"/proc/self/fd/{number}", flags)), False
    return OwnedFd(os.dup(number)), not stat.S_ISREG(mode)


@contextmanager
def _pipe_signal_held() -> Iterator[None]:
    """Have a write that nobody will read fail, where SIGPIPE would end this process."""
    if signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL:
        yield
        return
    was_pending = signal.SIGPIPE in signal.sigpending()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if not was_pending:
            signal.sigtimedwait({signal.SIGPIPE}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
