"""Where connections come from: a path in the file system, one end dialling it and the other listening there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from fdpool.connection import Connection
from fdpool.kernel.peer import is_shut_down

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEFAULT_BACKLOG: Final = 128
_FIRST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.1


@trio.lowlevel.enable_ki_protection
async def open_connection(path: str | bytes | os.PathLike[str]) -> Connection:
    """Connect to the listener at *path*, waiting while its queue is full.

    Args:
      path: At most 107 bytes. With a null byte in front, an abstract name, see unix(7).

    Raises:
      FileNotFoundError: nothing is there.
      ConnectionRefusedError: nobody listens there any more.
      OSError: whatever else connect(2) reports.

    Cancellation: always a checkpoint. After `trio.Cancelled`, the listener may see a connection that ends at once.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        pause = _FIRST_PAUSE_SECONDS
        # A full queue is EAGAIN, without a connection on its way and without an event when there is room.
        while (code := sock.connect_ex(os.fspath(path))) == errno.EAGAIN:
            await trio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        if code:
            raise OSError(code, os.strerror(code), os.fspath(path))
        await trio.lowlevel.checkpoint()
        return Connection(sock)
    except BaseException:
        sock.close()
        raise


@trio.lowlevel.enable_ki_protection
async def open_connection_listener(
    path: str | bytes | os.PathLike[str], *, mode: int = 0o600, backlog: int = DEFAULT_BACKLOG, replace: bool = False
) -> ConnectionListener:
    """Listen for connections at *path*, which exists until the listener is closed.

    Args:
      path: As for `open_connection`.
      mode: Who may connect, less the process's umask; from the moment the path exists.
      backlog: How many connections may wait to be accepted.
      replace: Whether to remove a socket that is there already. Whoever listens on it is not told.

    Raises:
      OSError: *path* is taken (EADDRINUSE), too long, or cannot be created.

    Cancellation: always a checkpoint. After `trio.Cancelled`, there is nothing at *path*.
    """
    await trio.lowlevel.checkpoint()
    address = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    is_bound = False
    try:
        # Linux gives the path the mode of the socket's own inode: there is no moment at which it is another.
        os.fchmod(sock.fileno(), mode)
        if replace and _inode(address) is not None:
            os.unlink(address)
        sock.bind(address)
        is_bound = True
        sock.listen(backlog)
        return ConnectionListener(sock, remove_path=True)
    except BaseException:
        sock.close()
        if is_bound and _inode(address) is not None:
            os.unlink(address)
        raise


class ConnectionListener(trio.abc.Listener[Connection]):
    """A listening socket, owned, that gives a `Connection` for each peer. For use from one trio thread.

    Args:
      sock: A listening AF_UNIX stream socket, for instance one that systemd passed. Owned from here on.
      remove_path: Whether the path it is bound to is removed when it is closed, if it is still its own.

    Raises:
      ValueError: *sock* is of another kind, or does not listen; it is still the caller's.
    """

    def __init__(self, sock: socket.socket, *, remove_path: bool = False) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"connections come from an AF_UNIX stream, and this is {sock.family!r}, {sock.type!r}")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("this socket does not listen")
        # accept(2) has no MSG_DONTWAIT, and between readiness and the call another process may take the connection.
        sock.setblocking(False)
        self._socket = sock
        self._path: str | bytes = sock.getsockname() if remove_path else b""
        self._inode = _inode(self._path)
        if self._inode is not None:
            # The program may be elsewhere when this is closed.
            self._path = os.path.abspath(self._path)

    @trio.lowlevel.enable_ki_protection
    async def accept(self) -> Connection:
        """Wait for the next peer.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this was closed, before or during the call.
          OSError: no descriptor or memory left for it (EMFILE, ENFILE, ENOBUFS, ENOMEM); it stays in the queue. Or
              somebody who has a duplicate of the socket shut it down (EINVAL), and nobody can come any more.

        Cancellation: always a checkpoint. After `trio.Cancelled`, nobody was accepted.
        """
        await trio.lowlevel.checkpoint()
        was_readable = False
        while True:
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                if was_readable and is_shut_down(self._socket):
                    raise OSError(errno.EINVAL, "the listener was shut down: nobody can connect to it") from None
                was_readable = True
                await trio.lowlevel.wait_readable(self._socket)
            except OSError:
                if self._socket.fileno() < 0:
                    raise trio.ClosedResourceError("this listener was closed") from None
                raise
            else:
                return Connection(sock)

    def close(self) -> None:
        """Close at once; a task waiting on it gets `trio.ClosedResourceError`. May be called twice."""
        if self._socket.fileno() < 0:
            return
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        # Somebody may have put another socket there meanwhile.
        if self._inode is not None and _inode(self._path) == self._inode:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    async def aclose(self) -> None:
        """Close, and let other tasks run.

        Cancellation: always a checkpoint. After `trio.Cancelled` it is closed all the same.
        """
        self.close()
        await trio.lowlevel.checkpoint()


async def serve_connections(
    handler: Callable[[Connection], Awaitable[object]],
    listener: ConnectionListener,
    *,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[ConnectionListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept for ever, and run *handler* in a task of its own for each peer; closes its connection behind it.

    This is `trio.serve_listeners`: where no descriptor is left for a peer, it says so in the log and tries
    again; an exception from *handler* ends everything, so catch there what a peer can cause.

    Args:
      handler: Called with each connection.
      listener: Owned from here on, and closed in the end.
      handler_nursery: Where handlers run, by default a nursery of this call's own.
      task_status: For `nursery.start`.

    Cancellation: the only way to end it, and with it the handlers in a nursery of its own.
    """
    await trio.serve_listeners(handler, [listener], handler_nursery=handler_nursery, task_status=task_status)


def _inode(path: str | bytes) -> tuple[int, int] | None:
    """Return what identifies the socket at *path*, or None if there is none."""
    # An unbound socket has an empty name, an abstract one begins with a null byte: neither is in the file system.
    if path[:1] in ("", b"", "\0", b"\0"):
        return None
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None
