"""What can go wrong, as types that somebody catches separately.

Where one of trio's or Python's own exceptions says it already (`trio.ClosedResourceError`,
`trio.BrokenResourceError`, `ValueError`, a plain `OSError`), that one is raised instead.
"""

from __future__ import annotations

import errno
import os
import signal as signals
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class ProtocolError(Exception):
    """A rule of an fdpool protocol was broken; the subclasses say by whom."""


class LocalProtocolError(ProtocolError):
    """This side tried something that the current state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow.

    Attributes:
      data: The bytes of the offending message, as far as they arrived. Its descriptors are closed.
    """

    def __init__(self, message: str, data: bytes = b"") -> None:
        super().__init__(message)
        self.data = data


class UnexpectedFds(RemoteProtocolError):  # noqa: N818 - the name of the original, and what the user looks for
    """Descriptors came where none are allowed, or more than are; they were closed.

    Attributes:
      data: The bytes of the message they came with. It was taken whole: the next one can be received.
    """


class OversizedMessage(RemoteProtocolError):  # noqa: N818 - as above
    """A header promises a larger body than is allowed. Nothing after the header was read.

    Attributes:
      data: The header.
    """


class FdLimitError(OSError):
    """Descriptors were lost on arrival because this process may not open any more (`EMFILE`).

    The kernel delivers the bytes, installs as many descriptors as fit, and discards the rest; what did
    arrive has been closed, since half a message's handles are of no use. Raise the limit (`ulimit -n`,
    `resource.setrlimit`) or hold fewer descriptors open.

    Attributes:
      data: The bytes that came with them.
      limit: This process's soft `RLIMIT_NOFILE`.
      in_use: How many descriptors it had open.
      control: The control messages that did arrive; empty once it was pickled.
    """

    def __init__(
        self, message: str, data: bytes = b"", limit: int = 0, in_use: int = 0, control: Sequence[object] = ()
    ) -> None:
        super().__init__(errno.EMFILE, message)
        self.data = data
        self.limit = limit
        self.in_use = in_use
        self.control = tuple(control)

    def __str__(self) -> str:
        return f"{self.strerror}: {self.in_use} of at most {self.limit} descriptors (RLIMIT_NOFILE) were open"

    def __reduce__(self) -> tuple[type[FdLimitError], tuple[str, bytes, int, int]]:
        return type(self), (self.strerror or "", self.data, self.limit, self.in_use)


class ControlTruncatedError(OSError):
    """Control messages were lost on arrival because the caller gave too little room for them (`ENOBUFS`).

    The kernel delivers the bytes and as much of the control messages as fits. Descriptors among those are
    closed by now, unless they were received into a `ControlBuffer`, which then still owns them.

    Attributes:
      capacity: How many bytes of room there were.
      needed: How many it would have taken at least; the kernel does not say how many exactly.
      data: The bytes that came with them.
      control: The control messages that did arrive; empty once it was pickled.
    """

    def __init__(self, capacity: int, needed: int, data: bytes = b"", control: Sequence[object] = ()) -> None:
        super().__init__(errno.ENOBUFS, "control messages were cut off on arrival")
        self.capacity = capacity
        self.needed = needed
        self.data = data
        self.control = tuple(control)

    def __str__(self) -> str:
        return f"{self.strerror}: there was room for {self.capacity} bytes, and at least {self.needed} were needed"

    def __reduce__(self) -> tuple[type[ControlTruncatedError], tuple[int, int, bytes]]:
        return type(self), (self.capacity, self.needed, self.data)


class WorkerDied(Exception):  # noqa: N818 - the name users know it by
    """The worker running a call ended before it answered. Only that call is affected.

    Attributes:
      pid: The worker's process id.
      exitcode: What it exited with, or None if a signal ended it.
      signal: The signal that ended it, or None if it exited.
      task: The qualified name of the function it was running.
      stderr_tail: The last lines it wrote to its stderr, 4 KiB at most; empty with `open_pool(stderr="inherit")`.
      ran_for: For how many seconds the call had been on that worker.
      note: If it was killed from here, what was wrong with it before, with its stacks; if SIGKILL came from elsewhere,
          what speaks for a lack of memory and what does not; which of its limits it met.
      peak_rss_bytes: The most memory it had resident in its whole life; None if that is not known, as of a worker made
          by exec that never had more than its supervisor.
    """

    def __init__(
        self,
        pid: int,
        exitcode: int | None,
        signal: int | None,
        task: str,
        stderr_tail: str = "",
        ran_for: float | None = None,
        note: str = "",
        peak_rss_bytes: int | None = None,
    ) -> None:
        super().__init__(pid, exitcode, signal, task, stderr_tail, ran_for, note, peak_rss_bytes)
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal
        self.task = task
        self.stderr_tail = stderr_tail
        self.ran_for = ran_for
        self.note = note
        self.peak_rss_bytes = peak_rss_bytes

    def __str__(self) -> str:
        how = describe_exit(self.exitcode, self.signal)
        when = f", after {self.ran_for:.3g} seconds" if self.ran_for is not None else ""
        peak = "" if self.peak_rss_bytes is None else describe_size(self.peak_rss_bytes)
        # Where the note weighs it, once is enough.
        memory = f", with {peak} of memory at its peak" if peak and peak not in self.note else ""
        note = f" ({self.note})" if self.note else ""
        tail = f"; its stderr ended with:\n{self.stderr_tail}" if self.stderr_tail else ""
        return f"worker {self.pid} {how} while running {self.task}{when}{memory}{note}{tail}"


class TaskCancelled(BaseException):
    """Raised inside a task, in the worker, when the call it runs for was cancelled.

    Not an `Exception`, so that `except Exception` does not keep a task going. Clean up in `finally` blocks and let it
    pass; after the call's grace period the worker is killed.
    """


class WorkerStartError(Exception):
    """A worker could not be started, or ended before it was ready."""


class ZygoteError(WorkerStartError):
    """No worker can be started any more: preloading failed or started threads, or the zygote kept dying.

    Attributes:
      exits: What ended the last zygotes, oldest first.
    """

    def __init__(self, message: str, exits: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(exits))
        self.exits = tuple(exits)

    def __str__(self) -> str:
        return "\n  ".join((self.args[0], *self.exits))


class PoolBroken(Exception):  # noqa: N818 - the name users know it by
    """Workers kept dying outside of any call, more often than the restart policy allows.

    Attributes:
      exits: What ended the last workers, oldest first.
    """

    def __init__(self, message: str, exits: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(exits))
        self.exits = tuple(exits)

    def __str__(self) -> str:
        lines = "".join(f"\n  {line}" for line in self.exits)
        return f"{self.args[0]}{lines}"


class RemoteError(Exception):
    """An exception from a worker that cannot be rebuilt here, told in words.

    Attributes:
      type_name: The qualified name of the exception's class.
      text: What `str()` said of it over there.
      traceback: The formatted traceback from the worker; empty for the cause of another exception that has its own.
    """

    def __init__(self, type_name: str, text: str, traceback: str) -> None:
        super().__init__(type_name, text, traceback)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (f"{self.type_name}: {self.text}", self.traceback)))


class RemoteTraceback(Exception):  # noqa: N818 - a traceback in an exception's clothes, for the chain of causes
    """The traceback of an exception as the worker saw it; without tblib the `__cause__` of what is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def describe_exit(exitcode: int | None, signal: int | None) -> str:
    """Say how a process ended, in words: 'was killed by SIGKILL', 'exited with code 3'."""
    if signal is not None:
        return f"was killed by {signal_name(signal)}"
    if exitcode is None:
        return "ended, and somebody else collected its exit status"
    return f"exited with code {exitcode}"


def describe_size(size_bytes: int) -> str:
    """Say how much memory that is: '48.3 MiB', '1.5 GiB'."""
    mebibytes = size_bytes / (1 << 20)
    return f"{mebibytes:.1f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def signal_name(number: int) -> str:
    """Return a signal's name; realtime signals have none, so they are named by their distance from the first."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signals.SIGRTMIN}"


def fd_limit_error(message: str, data: bytes = b"", control: Sequence[object] = ()) -> FdLimitError:
    """Build the error for descriptors that did not arrive, with this process's figures in it."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # The directory being listed is itself one of the entries.
        in_use = len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        # With no descriptor free even the listing fails; and then every one is in use.
        in_use = limit
    return FdLimitError(message, data, limit, in_use, control)
