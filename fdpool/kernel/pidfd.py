"""PidFd: a process by descriptor, so that no signal or wait can ever hit a stranger that reused its number."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdpool.errors import describe_exit
from fdpool.kernel.descriptor import OwnedFd

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended. Both fields are None where the status went to somebody else."""

    pid: int
    exitcode: int | None = None
    signal: int | None = None

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
        result = os.waitid(os.P_PIDFD, self._fd, options)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return ExitStatus(result.si_pid, exitcode=result.si_status)
        return ExitStatus(result.si_pid, signal=result.si_status)
