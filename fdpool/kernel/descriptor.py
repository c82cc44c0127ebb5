"""OwnedFd: a file descriptor with exactly one owner, who closes it exactly once."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
from bisect import bisect_right
from collections import deque
from itertools import starmap
from typing import IO, TYPE_CHECKING, Any, NoReturn, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType


class HasFileno(Protocol):
    """Anything with a descriptor in it: a socket, a file, an `OwnedFd`. A parameter of this type is lent."""

    def fileno(self) -> int:
        """Return the descriptor's number, or a negative number once closed."""


class OwnedFd:
    """A descriptor this object owns: closed by `close()`, at the end of a `with` block, or on collection.

    Collection of one still open warns (`ResourceWarning`), then closes. Once closed or given up,
    `fileno()` is -1, so a late use is `EBADF` and never hits a descriptor that reused the number.
    It cannot be copied or pickled; `duplicate()` makes a second one, and a pool call or
    `Channel.send` takes one along to another process.

    Args:
      fd: The number of an open descriptor. Owned from here on: nobody else may close it.

    Raises:
      TypeError: *fd* is not an int.
      ValueError: *fd* is negative.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = check_fd_number(fd)

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Take ownership of an open descriptor that is known to be of this kind."""
        self = cls.__new__(cls)
        OwnedFd.__init__(self, fd)
        return self

    def fileno(self) -> int:
        """Return the number, or -1 once closed or given up."""
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether it was closed or given up."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        # Forget the number before closing: the kernel may hand it to someone else at once.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """Give up the descriptor: the caller now owns the number that is returned.

        Raises:
          ValueError: it was closed or given up already.
        """
        self._check_open()
        fd, self._fd = self._fd, -1
        return fd

    def duplicate(self) -> Self:
        """Return a second owner of the same open file description, close-on-exec.

        Offset, `O_NONBLOCK` and locks are shared between duplicates. See fcntl(2), F_DUPFD_CLOEXEC.
        """
        self._check_open()
        return type(self).adopt(fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 0))

    def into_socket(self) -> socket.socket:
        """Give the descriptor up to a `socket.socket`, whose family and type the kernel is asked for.

        Raises:
          OSError: it is not a socket (ENOTSOCK); it is still owned here.
        """
        self._check_open()
        sock = socket.socket.__new__(socket.socket)
        try:
            sock.__init__(fileno=self._fd)  # type: ignore[misc]
            self._fd = -1
        except BaseException:
            # After Ctrl-C both may have it, and only one may close it.
            if self._fd >= 0 and sock.fileno() >= 0:
                sock.detach()
            raise
        return sock

    def into_file(self, mode: str = "rb", **options: Any) -> IO[Any]:
        """Give the descriptor up to a file object. Nothing is truncated, whatever the mode.

        Args:
          mode: As for `open`; must suit the access mode the descriptor was opened with.
          options: Further keyword arguments of `open`, such as *encoding* or *buffering*.

        Raises:
          ValueError: *mode* or an option is malformed.
          OSError: the descriptor cannot be a file of that mode; it is closed.
        """
        self._check_open()
        # An opener's descriptor belongs to the file from the start, so that every failure after this closes it once.
        return open(f"<fd {self._fd}>", mode, opener=lambda _path, _flags: self.detach(), **options)

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ValueError(f"this {type(self).__name__} is closed, or was given up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        try:
            if self._fd < 0:
                return
        except AttributeError:
            # Never initialised: there was no descriptor to own.
            return
        try:
            _warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: duplicate() makes a second owner here, "
            "and a pool call or Channel.send takes it to another process"
        )


def check_fd_number(fd: int) -> int:
    """Return *fd* if it is an int that could be a descriptor.

    Raises:
      TypeError: it is not an int (a bool is not one).
      ValueError: it is negative, and so a closed handle or an error code.
    """
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise TypeError(f"a descriptor number is an int, not {type(fd).__name__}")
    if fd < 0:
        raise ValueError(f"{fd} is not a descriptor: it is negative, as in a handle that was closed")
    return fd


def fd_number(handle: HasFileno | int) -> int:
    """Return the descriptor number of *handle*, which stays lent.

    Raises:
      TypeError: *handle* is neither an int nor has `fileno()`.
      ValueError: it is closed, or negative.
    """
    if isinstance(handle, int):
        return check_fd_number(handle)
    try:
        fileno = handle.fileno
    except AttributeError:
        raise TypeError(f"{type(handle).__name__} has no fileno(): it is not a handle") from None
    number = fileno()
    if number < 0:
        raise ValueError(f"{handle!r} is closed")
    return check_fd_number(number)


def close_all(fds: Sequence[OwnedFd]) -> None:
    """Close all of *fds*, those closed already left alone."""
    # The iterator knows which are left, so that after an interrupt each is still closed, and closed once.
    closing = closings([number for fd in fds if (number := fd._fd) >= 0])
    try:
        _forget(fds)
        deque(closing, 0)
    except BaseException:
        _forget(fds)
        deque(closing, 0)
        raise


def closings(numbers: Sequence[int]) -> Iterator[object]:
    """Return an iterator that closes *numbers*, all different, as it is exhausted. Whoever holds it owns them."""
    return map(os.close, numbers) if len(numbers) < 2 else starmap(os.closerange, _runs(sorted(numbers)))


def _forget(fds: Sequence[OwnedFd]) -> None:
    for fd in fds:
        fd._fd = -1


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    # Received together, descriptors mostly have adjoining numbers, for which close_range(2) costs a sixth of close(2).
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return [(numbers[0], numbers[-1] + 1)]
    runs = []
    start = 0
    while start < len(numbers):
        # In a run of adjoining numbers, number less position stays the same; after it, the difference is larger.
        base = numbers[start] - start
        end = bisect_right(range(len(numbers)), base, lo=start, key=lambda i: numbers[i] - i)
        runs.append((numbers[start], numbers[end - 1] + 1))
        start = end
    return runs
