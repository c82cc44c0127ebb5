"""WorkerProcess: one worker as its supervisor sees it."""

from __future__ import annotations

import mmap
import os
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel import ExitStatus, PidFd
from fdpool.protocol.ladder import Step
from fdpool.protocol.page import PAGE_BYTES, ControlPage
from fdpool.protocol.tasks import WHATEVER_RUNS, Operation, encode
from fdpool.transport import DONTWAIT, Transport

if TYPE_CHECKING:
    from fdpool.channel import Channel
    from fdpool.process.stderr import StderrPipe

_UNSENT: Final = (
    trio.WouldBlock,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
    OSError,
)


class WorkerProcess:
    """A running worker: its process, its end of the channel, its control page, its lifeline. Owns all four.

    It leads a process group, in which everything is that it started and that did not detach.

    Args:
      queue: A duplicate of the worker's own end of the channel, from which messages can be taken back.
      inherited_peak_bytes: A peak of memory up to this much says nothing about it: whoever started it had as much.

    Attributes:
      pid: Its process id, for people; signals go through the pidfd.
      stderr: What it writes there. Outlives it: whoever sees the worker off reads on, and closes it.
      channel: Messages to and from it.
      page: What it says about itself even when dead.
      is_condemned: Whether it was killed or retired, and so must get no more work.
      is_retired: Whether it ends because it has done its share, and not because something went wrong.
      was_killed_here: Whether SIGKILL was sent to it from here, for whatever reason.
      is_interrupted: Whether whatever runs on it was told to end, for its own end's sake.
      answered_call: The number of the last call it answered; differs from `page.begun_call` while it runs one.
      complaint: What was wrong with it before it was killed, in words, if anything.
      sending: To be held while waiting in `channel.send`, which takes one task at a time.
      exited: Set once its exit status was collected, which is `status` then.
    """

    def __init__(
        self,
        pid: int,
        pidfd: PidFd,
        channel: Channel,
        queue: socket.socket,
        memory: mmap.mmap,
        lifeline: socket.socket,
        stderr: StderrPipe,
        inherited_peak_bytes: int,
    ) -> None:
        self.pid = pid
        self.channel = channel
        self._queue = Transport(queue)
        self._is_stopping = False
        self.page = ControlPage(memory)
        self._memory = memory
        self._lifeline = lifeline
        self.stderr = stderr
        self._inherited_peak_bytes = inherited_peak_bytes
        self.is_condemned = False
        self.is_retired = False
        self.was_killed_here = False
        self.is_interrupted = False
        self.answered_call = 0
        self.complaint = ""
        self.exited = trio.Event()
        self.sending = trio.Lock()
        self.status: ExitStatus | None = None
        self._pidfd = pidfd

    @trio.lowlevel.enable_ki_protection
    async def wait_exit(self) -> ExitStatus:
        """Wait until it has ended, and collect its exit status. For one task; others wait for `exited`.

        Cancellation: the process runs on.
        """
        if self.status is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            try:
                self._end_group()
                self.status = self._without_inherited_peak(self._pidfd.wait_exit())
            except ChildProcessError:
                # Somebody ignores SIGCHLD, or waits for any child there is, and took the status.
                self.status = ExitStatus(self.pid)
            self.exited.set()
        else:
            await trio.lowlevel.checkpoint()
        return self.status

    def kill(self) -> None:
        """Kill it now. Nothing happens if it has ended."""
        self.is_condemned = True
        self.was_killed_here = self.was_killed_here or self.status is None
        self.send_signal(signal.SIGKILL)

    def take_step(self, step: Step) -> None:
        """Do what *step* of the way to its end asks for."""
        self.is_condemned = True
        if step is Step.DRAIN:
            self.ask_to_stop()
        elif step is Step.INTERRUPT:
            self.is_interrupted = True
            self.interrupt(self.page.begun_call)
            # Neither async calls nor a stream that waits for its consumer look at signals.
            with suppress(*_UNSENT):
                self.channel.send_nowait(encode(Operation.CANCEL, WHATEVER_RUNS))
        elif step is Step.TERMINATE:
            self.send_signal(signal.SIGTERM)
            # A stopped process takes a signal only once it goes on.
            self.send_signal(signal.SIGCONT)
        else:
            self.kill()

    def interrupt(self, call: int) -> None:
        """Have `TaskCancelled` raised in the call of that number, if it is the one that runs; else nothing happens."""
        self.page.cancelled_call = call
        self.send_signal(signal.SIGINT)

    def take_back(self) -> list[bytes]:
        """Take every message out of its queue that it has not received yet; return their payloads, oldest first."""
        payloads: list[bytes] = []
        while not self._is_stopping:
            try:
                message = self._queue.receive_next(DONTWAIT)
            except BlockingIOError:
                break
            except FdLimitError as exc:
                # Their handles are only duplicates of those that the calls still have.
                payloads.append(exc.data)
            except RemoteProtocolError:
                # The rest of a message of which it has received the beginning.
                continue
            else:
                if message is not None:
                    payloads.append(message.payload)
                    message.close()
        return payloads

    def retire(self) -> None:
        """Have it get no more work, because it has done its share; it is to be ended next."""
        self.is_condemned = self.is_retired = True

    def ask_to_stop(self) -> None:
        """Ask it to exit as soon as it is idle; a worker that cannot even be asked is killed."""
        self._is_stopping = True
        try:
            self.channel.send_nowait(encode(Operation.STOP))
        except _UNSENT:
            self.kill()

    def close(self) -> None:
        """Let go of everything but its stderr. The process must have ended."""
        self.channel.close()
        self._queue.close()
        self._pidfd.close()
        self.page.close()
        self._memory.close()
        self._lifeline.close()

    def _end_group(self) -> None:
        """Kill what it started and left behind.

        Raises:
          ChildProcessError: somebody took its status, and its number may be a stranger's.
        """
        os.waitid(os.P_PIDFD, self._pidfd.fileno(), os.WEXITED | os.WNOWAIT | os.WNOHANG)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _without_inherited_peak(self, status: ExitStatus) -> ExitStatus:
        peak = status.peak_rss_bytes
        is_its_own = peak is not None and peak > self._inherited_peak_bytes
        return status if is_its_own else replace(status, peak_rss_bytes=None)

    def dumped(self) -> str:
        """Return the stacks it has written down so far."""
        text: bytes = self._memory[PAGE_BYTES:]
        return text.partition(b"\0")[0].decode("utf-8", "replace")

    def send_signal(self, number: int) -> None:
        """Send it a signal. Nothing happens if it has ended."""
        if self.status is None:
            with suppress(ProcessLookupError):
                self._pidfd.send_signal(number)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid if self.status is None else self.status}>"
