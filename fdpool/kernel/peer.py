"""Who is at the other end of an AF_UNIX socket, and keeping descriptors out of this one. See unix(7), socket(7)."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Final

from fdpool.kernel import constants as k
from fdpool.kernel.control_unix import INT_BYTES, ScmCredentials, close_numbers, own_pidfd

if TYPE_CHECKING:
    import socket

    from fdpool.kernel.descriptor import OwnedFd
    from fdpool.kernel.pidfd import PidFd

_NOBODY: Final = ScmCredentials(0, 2**32 - 1, 2**32 - 1)


def peer_credentials(sock: socket.socket) -> ScmCredentials:
    """Return who connected to this socket, or listened: their credentials at that moment (SO_PEERCRED).

    On a socketpair that is who called socketpair(), for instance the supervisor, and never the worker that was
    given one end. Who sent a message is told by the message: `enable(sock, ScmCredentials)`.

    Raises:
      ValueError: it is no AF_UNIX socket.
      OSError: it has no peer (ENOTCONN).
    """
    _check_unix(sock)
    size = ScmCredentials.WIRE.size
    credentials = ScmCredentials.decode(sock.getsockopt(k.SOL_SOCKET, k.SO_PEERCRED, size))
    if credentials == _NOBODY:
        raise OSError(errno.ENOTCONN, "the socket has no peer whose credentials the kernel recorded")
    return credentials


def peer_pidfd(sock: socket.socket) -> PidFd:
    """Return a handle on the process that `peer_credentials` names, which the caller owns (SO_PEERPIDFD, Linux 6.5).

    Raises:
      ValueError: it is no AF_UNIX socket.
      OSError: it has no peer (ENODATA), the process is gone (ESRCH, EINVAL), this process is out of descriptors
          (EMFILE), or the kernel is too old (ENOPROTOOPT).
    """
    _check_unix(sock)
    results: list[bytes] = []
    owners: list[OwnedFd] = []
    try:
        # One C call from syscall to list, as in receiving: an interrupt must not lose the number.
        results += map(sock.getsockopt, (k.SOL_SOCKET,), (k.SO_PEERPIDFD,), (INT_BYTES,))
        return own_pidfd(results[0], owners)
    except BaseException:
        close_numbers([(k.SOL_SOCKET, k.SCM_PIDFD, data) for data in results], owners)
        raise


def deny_handles(sock: socket.socket, *, denied: bool = True) -> bool:
    """Have the kernel refuse messages with descriptors to this socket: their senders get EPERM (SO_PASSRIGHTS).

    Messages without any pass as before, and so do descriptors that were sent already.

    Returns:
      Whether it does. False before Linux 6.16, where whoever receives has to close what came.

    Raises:
      ValueError: it is no AF_UNIX socket, so no descriptor can come.
    """
    _check_unix(sock)
    try:
        sock.setsockopt(k.SOL_SOCKET, k.SO_PASSRIGHTS, not denied)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False
    return True


def is_shut_down(sock: socket.socket) -> bool:
    """Whether nothing will ever be received on this socket, because it was shut down. See shutdown(2).

    Anybody who holds a duplicate can do that. A listener, or a datagram socket, is then always readable, and says at
    every attempt that there is nothing yet.
    """
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _check_unix(sock: socket.socket) -> None:
    if sock.family != k.AF_UNIX:
        raise ValueError(f"only AF_UNIX sockets have a process for a peer, and this one is {sock.family!r}")
