"""The worker's end of its channel: the same messages as `fdpool.Channel`, waiting by blocking the thread."""

from __future__ import annotations

import errno
import select
import socket
from typing import TYPE_CHECKING, Final

from fdpool.transport import DONTWAIT, PEER_GONE, TRY_LATER, Message, Outgoing, Transport, interject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdpool.kernel import HasFileno, PidFd

_PAUSE_MS: Final = 5


class SupervisorGone(Exception):  # noqa: N818 - an end, not an error
    """The process at the other end is dead."""


class BlockingChannel:
    """Messages to and from the supervisor. Owns the socket; *supervisor* is lent for its lifetime.

    A datagram pair says nothing of a dead peer, so every wait watches the supervisor's pidfd as well.
    """

    def __init__(self, sock: socket.socket, supervisor: PidFd) -> None:
        self._transport = Transport(sock)
        self._fd = sock.fileno()
        self.supervisor = supervisor
        self._poll = new_poll(supervisor)
        self._glance = select.poll()
        self._glance.register(sock, select.POLLIN)

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
          SupervisorGone: there will be none.
          FdLimitError, RemoteProtocolError: as `fdpool.Channel.receive`.
          OSError: the socket was closed or replaced by somebody in this process.
        """
        while True:
            try:
                message = self._transport.receive_next(DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)
            else:
                if message is not None:
                    return message

    def receive_nowait(self) -> Message | None:
        """Return the next message, or None if there is none yet."""
        try:
            return self._transport.receive_next(DONTWAIT)
        except BlockingIOError:
            return None

    @property
    def is_readable(self) -> bool:
        """Whether `receive_nowait` may find something, for a fraction of what it costs to find nothing."""
        return bool(self._glance.poll(0))

    def fileno(self) -> int:
        """Return the socket's descriptor number."""
        return self._fd

    def outgoing(self, payload: bytes, handles: Sequence[HasFileno] = ()) -> Outgoing:
        """Prepare a message; `send` it and close it. Raises as `Transport.outgoing` does, the channel unhurt."""
        return self._transport.outgoing(payload, handles)

    def send_bare(self, payload: bytes) -> bool:
        """Send a message without handles if it is short and there is room for it now; return whether it was sent.

        Raises:
          SupervisorGone, OSError: as for `send`.
        """
        try:
            return self._transport.send_bare(payload, DONTWAIT)
        except OSError as exc:
            if exc.errno in PEER_GONE:
                raise SupervisorGone from exc
            if not isinstance(exc, BlockingIOError) and exc.errno not in TRY_LATER:
                raise
        return False

    def send_bytes(self, payload: bytes) -> None:
        """Send a message without handles, as `send` does."""
        self.send(self._transport.outgoing(payload))

    def send(self, outgoing: Outgoing) -> None:
        """Send one message, waiting while the supervisor's queue is full or too many descriptors are in flight.

        Raises:
          SupervisorGone: nobody will ever read it.
          OSError: the socket was closed or replaced by somebody in this process.
        """
        with outgoing:
            while outgoing.pending:
                try:
                    self._transport.send_next(outgoing, DONTWAIT)
                except OSError as exc:
                    await_room(exc, self._poll, self._fd)

    def duplicate_socket(self) -> socket.socket:
        """Return a duplicate of the socket, the caller's to close."""
        return self._transport.socket.dup()

    def close(self) -> None:
        """Close this end."""
        self._transport.close()

    def _wait(self, event: int, timeout_ms: int | None = None) -> None:
        wait_ready(self._poll, self._fd, event, timeout_ms)


class SideChannel:
    """Sends short messages beside those of a channel: from any thread, and in the middle of one of them.

    Takes no lock and shares nothing but the socket, so that an exception out of a signal handler leaves nothing half
    done: a message was sent, or it was not. Processes that a task forks can go on using it, which have no channel.

    Owns a duplicate of the channel's socket.
    """

    def __init__(self, channel: BlockingChannel) -> None:
        self._socket = channel.duplicate_socket()
        self._supervisor = channel.supervisor

    def send(self, payload: bytes) -> None:
        """Send a message, waiting while the supervisor's queue is full.

        Args:
          payload: At most `MAX_INLINE_BYTES`.

        Raises:
          SupervisorGone: nobody will ever read it.
          OSError: the socket was closed or replaced by somebody in this process.
        """
        while True:
            try:
                interject(self._socket, payload, DONTWAIT)
                return
            except OSError as exc:
                # One for each wait: a poll object that is in use refuses a second thread.
                await_room(exc, new_poll(self._supervisor), self._socket.fileno())

    def close(self) -> None:
        """Close the duplicate."""
        self._socket.close()


def new_poll(supervisor: PidFd) -> select.poll:
    """Return a poll object that watches the supervisor."""
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    return poll


def await_room(error: OSError, poll: select.poll, fd: int) -> None:
    """Wait until a send on *fd* that failed with *error* is worth another try; raise if it never is."""
    if isinstance(error, BlockingIOError):
        wait_ready(poll, fd, select.POLLOUT)
    elif error.errno in TRY_LATER:
        # No event tells when descriptors have left flight; see docs/kernel-notes.md, ETOOMANYREFS.
        wait_ready(poll, fd, 0, _PAUSE_MS)
    elif error.errno in PEER_GONE:
        raise SupervisorGone from error
    else:
        raise error


def wait_ready(poll: select.poll, fd: int, event: int, timeout_ms: int | None = None) -> None:
    """Wait for *event* on *fd*, with a poll object that watches the supervisor.

    Raises:
      SupervisorGone: it is dead.
      OSError: the descriptor was closed.
    """
    poll.register(fd, event)
    ready = poll.poll(timeout_ms)
    if any(number != fd for number, _ in ready):
        raise SupervisorGone
    if any(events & select.POLLNVAL for _, events in ready):
        raise OSError(errno.EBADF, "a task closed the descriptor of the worker's channel")
