"""The core: bytes and descriptors, together, through an AF_UNIX socket. Senders lend, receivers own."""

from __future__ import annotations

import array
import os
import socket
from itertools import starmap, zip_longest
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import RemoteProtocolError, fd_limit_error
from fdpool.kernel.descriptor import HasFileno, OwnedFd, fd_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

MAX_FDS_PER_MESSAGE: Final = 253  # SCM_MAX_FD, unix(7): per message, over all its SCM_RIGHTS together
_INT_BYTES: Final = array.array("i").itemsize

# Room for every control message the kernel can add beside 253 descriptors: timestamps, credentials, a security
# label, a pidfd. Then MSG_CTRUNC has one meaning left: this process is out of descriptors.
CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS_PER_MESSAGE * _INT_BYTES) + 512


def send_with_fds(
    sock: socket.socket, buffers: Sequence[Buffer], fds: Sequence[HasFileno | int], flags: int = 0
) -> int:
    """Send *buffers* as one message, with duplicates of *fds*; return how many bytes left.

    On a stream socket fewer bytes may leave than were given; the descriptors have left with the first
    of them and must not be sent again. See unix(7), SCM_RIGHTS.

    Args:
      sock: An AF_UNIX socket.
      buffers: The bytes, in order. On a stream at least one byte, which is what carries the descriptors.
      fds: At most `MAX_FDS_PER_MESSAGE` open descriptors, delivered in this order. Lent: the caller
          still has to close its own, and may do so as soon as this returns.
      flags: Further flags for sendmsg(2), such as `MSG_DONTWAIT`.

    Raises:
      ValueError: too many descriptors, one that is closed, a socket that cannot carry any, or a stream
          message without a byte. Nothing was sent.
      BlockingIOError: the socket is not blocking and the peer's queue is full. Nothing was sent.
      OSError: a number in *fds* is not open (EBADF); the peer is gone (EPIPE, ECONNREFUSED); too many
          descriptors are in flight (ETOOMANYREFS, see getrlimit(2), RLIMIT_NOFILE). Nothing was sent.
    """
    if not fds:
        return sock.sendmsg(buffers, (), flags | socket.MSG_NOSIGNAL)
    numbers = array.array("i", map(fd_number, fds))
    _check_can_carry(sock, buffers, len(numbers))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)
    return sock.sendmsg(buffers, (rights,), flags | socket.MSG_NOSIGNAL)


def send_with_fd(sock: socket.socket, buffer: Buffer, fd: HasFileno | int, flags: int = 0) -> int:
    """Send *buffer* with a duplicate of *fd*; as `send_with_fds` with one of each."""
    return send_with_fds(sock, (buffer,), (fd,), flags)


def recv_with_fds(
    sock: socket.socket, buffers: Sequence[Buffer], max_fds: int = MAX_FDS_PER_MESSAGE, flags: int = 0
) -> tuple[int, list[OwnedFd]]:
    """Receive one message into *buffers*; return its length and its descriptors, owned and close-on-exec.

    All or nothing: if not every descriptor of the message arrived, or more came than are wanted, those
    that did are closed and an error carries the bytes. There is no asking again: the message is consumed.

    Args:
      sock: Any socket; only AF_UNIX ones carry descriptors.
      buffers: Writable buffers, filled in order. With none, or empty ones, a datagram's bytes are lost.
      max_fds: How many descriptors the caller is prepared to take, 0 to 253.
      flags: Further flags for recvmsg(2), such as `MSG_DONTWAIT`.

    Returns:
      The number of bytes received, 0 at the end of a stream or for an empty datagram, and the
      descriptors in the order they were sent.

    Raises:
      BlockingIOError: the socket is not blocking and nothing is there.
      FdLimitError: this process has no room for the descriptors.
      RemoteProtocolError: more than *max_fds* descriptors came.
      OSError: whatever else recvmsg(2) reports; nothing was received.
    """
    if not 0 <= max_fds <= MAX_FDS_PER_MESSAGE:
        raise ValueError(f"max_fds is {max_fds}, not 0 to {MAX_FDS_PER_MESSAGE}")
    results: list[tuple[int, list[tuple[int, int, bytes]], int, Any]] = []
    fds: list[OwnedFd] = []
    try:
        # One C call from syscall to list: a signal handler that raises (Ctrl-C) runs between bytecodes, and
        # between a returning recvmsg and an assignment it would lose the numbers.
        results.extend(starmap(sock.recvmsg_into, ((buffers, CONTROL_BYTES, flags | socket.MSG_CMSG_CLOEXEC),)))
        nbytes, control, message_flags, _ = results[0]
        if control:
            numbers = list(_descriptors_in(control))
            # Owners first, numbers second: no owner can be lost between the two, so none is closed twice.
            fds = [OwnedFd.__new__(OwnedFd) for _ in numbers]
            for fd, number in zip(fds, numbers, strict=True):
                fd._fd = number
        if message_flags & socket.MSG_CTRUNC:
            raise fd_limit_error(
                "descriptors sent with this message did not arrive, and those that did were closed",
                _gather(buffers, nbytes),
            )
        if len(fds) > max_fds:
            raise RemoteProtocolError(
                f"the peer sent {len(fds)} descriptors where at most {max_fds} are wanted; they were closed",
                _gather(buffers, nbytes),
            )
        return nbytes, fds
    except BaseException:
        _close_all(fds, results)
        raise


def recv_with_fd(sock: socket.socket, buffer: Buffer, flags: int = 0) -> tuple[int, OwnedFd | None]:
    """Receive one message and at most one descriptor; as `recv_with_fds` with room for one."""
    nbytes, fds = recv_with_fds(sock, (buffer,), 1, flags)
    return nbytes, fds[0] if fds else None


def _check_can_carry(sock: socket.socket, buffers: Sequence[Buffer], count: int) -> None:
    if count > MAX_FDS_PER_MESSAGE:
        raise ValueError(f"{count} descriptors in one message: the kernel takes at most {MAX_FDS_PER_MESSAGE}")
    # The kernel would send the bytes and drop the descriptors without a word, in both of these cases.
    if sock.family != socket.AF_UNIX:
        raise ValueError(f"only AF_UNIX sockets carry descriptors, and this one is {sock.family!r}")
    if sock.type == socket.SOCK_STREAM and not any(map(_nbytes, buffers)):
        raise ValueError("on a stream, descriptors travel with a byte: the payload is empty")


def _nbytes(buffer: Buffer) -> int:
    return memoryview(buffer).nbytes


def _descriptors_in(control: Iterable[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i", data[: len(data) - len(data) % _INT_BYTES])
            # A slot that was denied to us is a negative errno, not a descriptor.
            yield from (number for number in numbers if number >= 0)


def _close_all(fds: list[OwnedFd], results: list[tuple[int, list[tuple[int, int, bytes]], int, Any]]) -> None:
    for _, control, _, _ in results:
        for number, fd in zip_longest(_descriptors_in(control), fds):
            if fd is None or getattr(fd, "_fd", -1) != number:
                os.close(number)
            else:
                fd.close()


def _gather(buffers: Sequence[Buffer], nbytes: int) -> bytes:
    return b"".join(memoryview(buffer).cast("B") for buffer in buffers)[:nbytes]
