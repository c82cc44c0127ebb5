"""Another stderr for this process."""

from __future__ import annotations

import fcntl
import os
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from fdpool.kernel import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdpool.kernel import HasFileno


@contextmanager
def stderr_is(handle: HasFileno) -> Iterator[None]:
    """Have descriptor 2 be a duplicate of *handle* in the block."""
    with OwnedFd(os.dup(2)) as before:
        os.dup2(handle.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before.fileno(), 2)


@contextmanager
def open_pipe() -> Iterator[tuple[OwnedFd, OwnedFd]]:
    """Make a pipe: the end to read from, and the one to write to."""
    reader, writer = os.pipe()
    with OwnedFd(reader) as ours, OwnedFd(writer) as theirs:
        yield ours, theirs


def fill(writer: HasFileno) -> int:
    """Write to a pipe until it is full; return how many bytes that took."""
    os.set_blocking(writer.fileno(), False)
    size = 0
    try:
        while True:
            size += os.write(writer.fileno(), bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer.fileno(), True)
        return size


async def read_exactly(reader: HasFileno, size: int) -> bytes:
    """Read that much from a pipe; the descriptor is made non-blocking."""
    os.set_blocking(reader.fileno(), False)
    data = bytearray()
    while len(data) < size:
        await trio.lowlevel.wait_readable(reader)
        data += os.read(reader.fileno(), size - len(data))
    return bytes(data)


def bytes_in(reader: HasFileno) -> int:
    """Return how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), "little")
