"""What a worker is born with: two ends of a channel, a control page, a lifeline, a stderr."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from fdpool.channel import Channel
from fdpool.kernel import MemFd, Seal
from fdpool.kernel.process_control import kill_group_on_close
from fdpool.process.worker_process import WorkerProcess
from fdpool.protocol.page import DUMP_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from fdpool.kernel import HasFileno, PidFd
    from fdpool.process.stderr import StderrPipes


class Outfit:
    """The supervisor's halves and the worker's, until there is a worker. Owns both.

    For use as a context manager: the worker's halves are closed at the end of the block in any case, the
    supervisor's unless `into_worker` has given them up.

    Args:
      pipes: Where its stderr comes from.

    Attributes:
      channel: The supervisor's end.
      handles: The worker's end of the channel, its control page, its end of the lifeline.
      stderr: Both ends of its stderr.

    Raises:
      OSError: no descriptors or no memory left. Nothing is open then.
    """

    def __init__(self, pipes: StderrPipes) -> None:
        with ExitStack() as always, ExitStack() as on_failure:
            self.stderr = pipes.open_pipe()
            on_failure.callback(self.stderr.close)
            always.callback(self.stderr.close_writer)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            # Kept in the supervisor as well: what the worker has not received can be taken back through it.
            self._worker_end = theirs
            on_failure.callback(theirs.close)
            self.channel = Channel(ours)
            on_failure.callback(self.channel.close)
            # A stream, because only there the kernel reports that the other end was closed.
            self._lifeline, self._worker_lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            on_failure.callback(self._lifeline.close)
            always.callback(self._worker_lifeline.close)
            memory = always.enter_context(MemFd("fdpool-page", PAGE_BYTES + DUMP_BYTES))
            memory.seal(Seal.SHRINK | Seal.GROW | Seal.SEAL)
            self._memory = memory.map(writable=True)
            on_failure.callback(self._memory.close)
            self.handles: tuple[HasFileno, ...] = (theirs, memory, self._worker_lifeline)
            self._theirs = always.pop_all()
            self._ours = on_failure.pop_all()

    def into_worker(self, pidfd: PidFd, pid: int, inherited_peak_bytes: int = 0) -> WorkerProcess:
        """Give the supervisor's halves up to a worker that was born with the others, and leads a process group.

        Args:
          inherited_peak_bytes: How much of its peak of memory may be that of whoever started it.
        """
        tie(self._worker_lifeline, pid)
        self._ours.pop_all()
        return WorkerProcess(
            pid, pidfd, self.channel, self._worker_end, self._memory, self._lifeline, self.stderr, inherited_peak_bytes
        )

    def __enter__(self) -> Outfit:
        return self

    def __exit__(self, *_: object) -> None:
        self._theirs.close()
        self._ours.close()


def tie(lifeline: socket.socket, pid: int) -> None:
    """Have the process group of the new child *pid* die with whoever holds the other end of *lifeline*."""
    # It may have ended already, if SIGCHLD is ignored here and nobody has to wait for it.
    with suppress(ProcessLookupError):
        kill_group_on_close(lifeline, pid)
