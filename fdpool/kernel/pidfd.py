"""PidFd: a process by descriptor, so that no signal or wait can ever hit a stranger that reused its number."""

from __future__ import annotations

import errno
import os
import select
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdpool.errors import describe_exit
from fdpool.kernel.descriptor import OwnedFd

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended. All but *pid* are None where the status went to somebody else.

    Attributes:
      peak_rss_bytes: The most memory it had resident at once; if it was made by exec, of that and of what its starter
          had until then, the larger. See docs/kernel-notes.md, "A peak of memory survives exec".
    """

    pid: int
    exitcode: int | None = None
    signal: int | None = None
    # What it used is not how it ended.
    peak_rss_bytes: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"process {self.pid} {describe_exit(self.exitcode, self.signal)}"


class PidFd(OwnedFd):
    """A process, owned as a handle: readable once the process has ended. See pidfd_open(2).

    Args:
      pid: A process that exists now, for instance a child that was not waited for.

    Raises:
      ProcessLookupError: there is no such process.
    """

    __slots__ = ()

    def __init__(self, pid: int) -> None:
        super().__init__(os.pidfd_open(pid))

    @classmethod
    def current(cls) -> Self:
        """Return a handle on the calling process."""
        return cls(os.getpid())

    @property
    def pid(self) -> int:
        """The process id as seen from here; -1 once the process is gone and was waited for."""
        self._check_open()
        with open(f"/proc/self/fdinfo/{self._fd}", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))

    def has_exited(self) -> bool:
        """Whether the process has ended, waited for or not. Needs no right over the process."""
        self._check_open()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def send_signal(self, number: int) -> None:
        """Send a signal to this very process.

        Raises:
          ProcessLookupError: it has ended and was waited for.
          PermissionError: it belongs to somebody else.
        """
        self._check_open()
        signal.pidfd_send_signal(self._fd, number)

    def wait_exit(self) -> ExitStatus:
        """Wait for this child to end, blocking the thread, and collect its exit status.

        Raises:
          ChildProcessError: it is not a child of this process, or its status was collected already.
        """
        status = self._collect(os.WEXITED)
        assert status is not None
        return status

    def wait_exit_nowait(self) -> ExitStatus | None:
        """Collect this child's exit status if it has ended, else return None at once.

        Raises:
          ChildProcessError: it is not a child of this process, or its status was collected already.
        """
        return self._collect(os.WEXITED | os.WNOHANG)

    def _collect(self, options: int) -> ExitStatus | None:
        self._check_open()
        # Only a look: what the child used is told by wait4, which takes a number, the child's own until then.
        found = os.waitid(os.P_PIDFD, self._fd, options | os.WNOWAIT)
        if found is None:
            return None
        pid, status, used = os.wait4(found.si_pid, os.WNOHANG)
        if pid == 0:
            # Another thread waits for any child there is, and the number is by now that of one that lives.
            raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
        code = os.waitstatus_to_exitcode(status)
        peak = used.ru_maxrss * 1024  # KiB: getrusage(2)
        if code < 0:
            return ExitStatus(pid, signal=-code, peak_rss_bytes=peak)
        return ExitStatus(pid, exitcode=code, peak_rss_bytes=peak)
