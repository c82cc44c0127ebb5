"""Limits: what the kernel lets a worker use, and the words for having met a limit."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """What each worker of a pool may use. A task that meets a limit gets an error that names it.

    Args:
      nofile: Descriptors open at once (`RLIMIT_NOFILE`); then `OSError` with `EMFILE`.
      data: Bytes of private writable memory, what the interpreter and its modules use included (`RLIMIT_DATA`); then
          `MemoryError`. Shared memory, such as received arrays lie in, does not count.
      fsize: Bytes that a file or a memfd may be long (`RLIMIT_FSIZE`); then `OSError` with `EFBIG`.
      cpu: Seconds of processor time in the worker's whole life (`RLIMIT_CPU`); then `WorkerDied` by `SIGXCPU`.

    Raises:
      ValueError: a limit is less than 1.
    """

    nofile: int | None = None
    data: int | None = None
    fsize: int | None = None
    cpu: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.items():
            if value < 1:
                raise ValueError(f"the limit {name} is {value}: it must be at least 1, or None for no limit")

    def items(self) -> list[tuple[str, int]]:
        """Return name and value of each limit that is set."""
        values = [(each.name, getattr(self, each.name)) for each in fields(self)]
        return [(name, value) for name, value in values if value is not None]

    def explain_error(self, error: BaseException) -> str | None:
        """Say which limit *error* comes from, if from one of these."""
        if isinstance(error, MemoryError):
            return _words("data", self.data, "bytes of memory")
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.EMFILE:
            return _words("nofile", self.nofile, "open descriptors")
        if code == errno.EFBIG:
            return _words("fsize", self.fsize, "bytes in a file")
        return None

    def explain_signal(self, number: int | None) -> str | None:
        """Say which limit the kernel enforced by killing with signal *number*, if one of these."""
        if number == signal.SIGXCPU:
            return _words("cpu", self.cpu, "seconds of processor time")
        return None


def _words(name: str, value: int | None, what: str) -> str | None:
    return None if value is None else f"this worker may use {value} {what}: Limits({name}={value})"
