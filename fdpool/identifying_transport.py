"""Messages that say who sent them: the transport of a channel that identifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel.message import recvmsg
from fdpool.kernel.rights import take_wanted
from fdpool.kernel.sender import SenderIdentity, identify_senders, identity_of, sender_ids, take_sender
from fdpool.protocol.datagram import is_interjected
from fdpool.transport import Message, Transport, close_all

if TYPE_CHECKING:
    import socket

    from fdpool.kernel import OwnedFd


class IdentifyingTransport(Transport):
    """A transport whose messages say who sent them, each by itself.

    The peer's end may be held by several processes, and a process that was given an end is not the one that made
    the pair: only what the kernel notes on each datagram tells. It notes nothing on those sent before this is made.
    """

    __slots__ = ("_first",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        identify_senders(sock)
        self._first: SenderIdentity | None = None

    def receive_next(self, flags: int = 0) -> Message | None:
        """Receive one datagram, as `Transport.receive_next`.

        Raises:
          RemoteProtocolError: also if this chunk is not of the process that sent the first one of its message.
        """
        try:
            with recvmsg(self.socket, (self._buffer,), flags=flags) as received:
                fds = take_wanted(received, (self._buffer,))
                sender = take_sender(received)
        except FdLimitError as exc:
            self._check_sender(exc.data, SenderIdentity(sender_ids(exc.control), None), [])
            return self._assemble(len(exc.data), exc.data, [], damaged=True)
        data = bytes(self._view[: received.nbytes])
        message = None
        try:
            self._check_sender(data, identity_of(sender), fds)
            message = self._assemble(received.length, data, fds, damaged=False)
        finally:
            if message is None:
                # Nobody needs it: the last chunk brings one as well, and all are of the same process.
                sender.close()
        if message is not None:
            message.sender = sender
        return message

    def _check_sender(self, data: bytes, identity: SenderIdentity, fds: list[OwnedFd]) -> None:
        """Check that a chunk is of whoever began the message. Closes *fds*, which came with it, if it is not."""
        if is_interjected(data):
            # A message of its own: whoever sent it has no part in the one that is half here.
            return
        if self._first is None or not self._assembler.is_continued_by(data):
            self._first = identity
        elif not self._first.may_be(identity):
            close_all(fds)
            raise RemoteProtocolError("a chunk of a message comes from another process than its first one", data)
