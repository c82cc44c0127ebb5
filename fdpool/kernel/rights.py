"""The core: bytes and descriptors, together, through an AF_UNIX socket. Senders lend, receivers own."""

from __future__ import annotations

import os
from itertools import starmap
from typing import TYPE_CHECKING

from fdpool.errors import RemoteProtocolError
from fdpool.kernel.constants import MSG_CMSG_CLOEXEC, MSG_CTRUNC
from fdpool.kernel.control_unix import ScmRights
from fdpool.kernel.descriptor import close_all
from fdpool.kernel.message import CONTROL_BYTES, MAX_FDS_PER_MESSAGE, sendmsg
from fdpool.kernel.received import Received, gather, received_from

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from fdpool.kernel.descriptor import HasFileno, OwnedFd


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
    return sendmsg(sock, buffers, [ScmRights(fds)] if fds else (), flags)


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
      PermissionError: a security policy withheld a descriptor, on a socket with SO_RIGHTS_NOTRUNC.
      OSError: whatever else recvmsg(2) reports; nothing was received.
    """
    if not 0 <= max_fds <= MAX_FDS_PER_MESSAGE:
        raise ValueError(f"max_fds is {max_fds}, not 0 to {MAX_FDS_PER_MESSAGE}")
    call = (buffers, CONTROL_BYTES, flags | MSG_CMSG_CLOEXEC)
    received = received_from(starmap(sock.recvmsg_into, (call,)), buffers)
    # With MSG_TRUNC in *flags* the caller asked for the whole length.
    length, items, answered, _ = received.raw[0]
    if answered & MSG_CTRUNC:
        received.raise_truncation(CONTROL_BYTES)
    if not items:
        return length, []
    # Whatever else came is closed, the sender's process among it.
    with received:
        return length, take_wanted(received, buffers, max_fds)


def take_wanted(received: Received, buffers: Sequence[Buffer], max_fds: int = MAX_FDS_PER_MESSAGE) -> list[OwnedFd]:
    """Return the descriptors of *received*, which the caller owns from here on, if they are all there and wanted.

    Args:
      received: What was received into *buffers*.
      buffers: As given to the receive.
      max_fds: How many the caller is prepared to take.

    Raises:
      RemoteProtocolError, PermissionError: as for `recv_with_fds`. All the descriptors are closed.
    """
    fds = received.take_fds()
    if len(fds) > max_fds or received.denied:
        close_all(fds)
        raise _refusal(received, max_fds, buffers)
    return fds


def recv_with_fd(sock: socket.socket, buffer: Buffer, flags: int = 0) -> tuple[int, OwnedFd | None]:
    """Receive one message and at most one descriptor; as `recv_with_fds` with room for one."""
    nbytes, fds = recv_with_fds(sock, (buffer,), 1, flags)
    return nbytes, fds[0] if fds else None


def _refusal(received: Received, max_fds: int, buffers: Sequence[Buffer]) -> Exception:
    for position, number in received.denied:
        return PermissionError(
            number, f"descriptor {position} was withheld, and the others closed: {os.strerror(number)}"
        )
    return RemoteProtocolError(
        f"the peer sent {len(received.fds)} descriptors where at most {max_fds} are wanted; they were closed",
        gather(buffers, received.nbytes),
    )
