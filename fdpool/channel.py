"""Channel: messages with typed handles between two processes, for trio."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import trio

from fdpool.identifying_transport import IdentifyingTransport
from fdpool.kernel.peer import is_shut_down
from fdpool.transport import DONTWAIT, PEER_GONE, TRY_LATER, Message, Outgoing, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from fdpool.kernel import HasFileno

_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.1


class Channel(trio.abc.AsyncResource):
    """Messages over an AF_UNIX datagram socket, each with any number of handles of any kind. Owns the socket.

    A message arrives whole or not at all, and messages arrive in order. One task may send while another
    receives; two at once on either side is `trio.BusyResourceError`.

    On `SOCK_DGRAM`, which `open_channel_pair` makes, the death of the peer is never readable: learn it from
    a `PidFd`. A send to a peer that is gone fails. On `SOCK_SEQPACKET` the end is readable too, once nobody
    else holds the peer's end. See unix(7).

    Args:
      sock: An AF_UNIX socket of type `SOCK_DGRAM` or `SOCK_SEQPACKET`, connected. Given up to the channel.
      identify: Whether each message received says who sent it (`Message.sender`), which `peer_credentials` cannot:
          that names who made the socketpair. Of messages sent before the channel is made nothing is known. Each
          message then has a pidfd to be closed (Linux 6.5), also one without handles: close every message.

    Raises:
      ValueError: *sock* is of another family or type; it stays the caller's.
    """

    def __init__(self, sock: socket.socket, *, identify: bool = False) -> None:
        self._transport = IdentifyingTransport(sock) if identify else Transport(sock)
        self._sending = _OneAtATime("another task is sending on this channel")
        self._receiving = _OneAtATime("another task is receiving on this channel")

    def fileno(self) -> int:
        """Return the socket's descriptor number, or -1 once closed."""
        return self._transport.socket.fileno()

    @trio.lowlevel.enable_ki_protection
    async def send(self, payload: Buffer, handles: Sequence[HasFileno] = ()) -> None:
        """Send *payload* and a duplicate of each handle in *handles*, as one message.

        Waits while the peer's queue is full, and while too many descriptors are in flight.

        Args:
          payload: Any number of bytes, copied before this returns. From 64 KiB on they travel in a memfd.
          handles: Anything with `fileno()`, delivered in this order. Lent for the call: the caller
              still has to close its own.

        Raises:
          TypeError, ValueError: something in *handles* is not an open handle; nothing was sent.
          trio.BusyResourceError: another task is sending on this channel.
          trio.ClosedResourceError: this side was closed, before or during the call.
          trio.BrokenResourceError: the peer closed its end; `__cause__` is the OSError.
          OSError: a descriptor is not open (EBADF), or the kernel is out of room (ENOMEM); the channel still works.

        Cancellation: always a checkpoint. After `trio.Cancelled` the peer never sees the message.
        """
        with self._sending:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            with self._transport.outgoing(payload, handles) as outgoing, _peer_errors:
                pause = _FIRST_PAUSE
                while outgoing.pending:
                    try:
                        self._send_next(outgoing)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._transport.socket)
                    except OSError as exc:
                        if exc.errno not in TRY_LATER:
                            raise
                        await trio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE)
            await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.enable_ki_protection
    def send_nowait(self, payload: Buffer, handles: Sequence[HasFileno] = ()) -> None:
        """Send like `send`, at once or not at all.

        Raises:
          trio.WouldBlock: the queue is full, or the message needs several datagrams; nothing was sent.
        """
        with self._sending:
            self._check_open()
            with _peer_errors:
                try:
                    if handles or not self._transport.send_bare(payload, DONTWAIT):
                        self._send_only(payload, handles)
                except BlockingIOError:
                    raise trio.WouldBlock from None
                except OSError as exc:
                    if exc.errno in TRY_LATER:
                        raise trio.WouldBlock from exc
                    raise

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Message:
        """Wait for the next message. Its handles are the caller's to close, and its sender's pidfd if it has one.

        Raises:
          trio.BusyResourceError: another task is receiving on this channel.
          trio.ClosedResourceError: this side was closed, before or during the call.
          trio.EndOfChannel: the peer of a `SOCK_SEQPACKET` channel closed its end.
          trio.BrokenResourceError: the peer of a `SOCK_SEQPACKET` channel closed its end with messages unread; or
              this end was shut down, by somebody who has a duplicate of it.
          FdLimitError: handles were lost because this process may open no more; its `data` is the payload. The
              channel still works. A payload over 64 KiB travels as a handle and can be among what was lost.
          RemoteProtocolError: the message was malformed, or its chunks are of several processes (on a channel that
              identifies); its handles are closed. The channel still works.

        Cancellation: always a checkpoint. After `trio.Cancelled` no message was taken.
        """
        with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            was_readable = False
            while True:
                try:
                    message = self._receive_next()
                except BlockingIOError:
                    if was_readable and is_shut_down(self._transport.socket):
                        raise trio.BrokenResourceError("this end was shut down, and nothing can arrive") from None
                    was_readable = True
                    with _peer_errors:
                        await trio.lowlevel.wait_readable(self._transport.socket)
                else:
                    if message is not None:
                        break
                    # More chunks are to come. What has come is kept, so that this may be cancelled here; a peer
                    # that never sends the last one does not keep the other tasks waiting.
                    await trio.lowlevel.checkpoint()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return message

    async def wait_readable(self) -> None:
        """Wait until `receive_nowait` may find something.

        Raises:
          trio.BusyResourceError: another task is receiving on this channel.
          trio.ClosedResourceError: this side was closed, before or during the call.

        Cancellation: nothing was taken.
        """
        with self._receiving:
            self._check_open()
            await trio.lowlevel.wait_readable(self._transport.socket)

    @trio.lowlevel.enable_ki_protection
    def receive_nowait(self) -> Message:
        """Return the next message if it is there.

        Raises:
          trio.WouldBlock: there is none, or only a part of one.
        """
        with self._receiving:
            while True:
                try:
                    message = self._receive_next()
                except BlockingIOError:
                    raise trio.WouldBlock from None
                if message is not None:
                    return message

    def refuse_more(self) -> None:
        """Have whoever sends to this end from now on be told that it is closed; what was sent can still be received.

        For all who hold this end. See shutdown(2), SHUT_RD.
        """
        self._check_open()
        self._transport.socket.shutdown(socket.SHUT_RD)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close this end at once; tasks that wait on it get `trio.ClosedResourceError`. May be called twice."""
        # Outside of trio, as in a plain function of a worker, there is nobody to wake.
        if self._transport.socket.fileno() >= 0 and trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._transport.socket)
        self._transport.close()

    async def aclose(self) -> None:
        """Close this end, as `close` does."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __reduce__(self) -> tuple[Callable[[socket.socket], Channel], tuple[socket.socket]]:
        # Only a handoff can pickle the socket inside; everywhere else this is the TypeError that a socket gives.
        identifies = isinstance(self._transport, IdentifyingTransport)
        return partial(type(self), identify=True) if identifies else type(self), (self._transport.socket,)

    def __repr__(self) -> str:
        return f"<Channel {'closed' if self.fileno() < 0 else f'fd={self.fileno()}'}>"

    def _check_open(self) -> None:
        if self._transport.socket.fileno() < 0:
            raise trio.ClosedResourceError("this channel is closed")

    def _send_only(self, payload: Buffer, handles: Sequence[HasFileno]) -> None:
        with self._transport.outgoing(payload, handles) as outgoing:
            if len(outgoing.pending) > 1:
                raise trio.WouldBlock
            self._send_next(outgoing)

    def _send_next(self, outgoing: Outgoing) -> None:
        self._check_open()
        self._transport.send_next(outgoing, DONTWAIT)

    def _receive_next(self) -> Message | None:
        self._check_open()
        with _peer_errors:
            try:
                return self._transport.receive_next(DONTWAIT)
            except EOFError:
                raise trio.EndOfChannel from None


class _PeerErrors:
    """Turns what the kernel says of a peer that is gone into trio's words."""

    def __enter__(self) -> None:
        """Begin; there is nothing to remember, so that one object serves all."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError) and error.errno in PEER_GONE:
            raise trio.BrokenResourceError(f"the peer closed its end: {error.strerror}") from error


_peer_errors: Final = _PeerErrors()


class _OneAtATime:
    """Refuses a second task where two would get in each other's way."""

    __slots__ = ("_message", "_taken")

    def __init__(self, message: str) -> None:
        self._message = message
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(self._message)
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


def open_channel_pair(*, identify: bool = False) -> tuple[Channel, Channel]:
    """Return the two ends of a new `SOCK_DGRAM` channel. Both are the caller's to close. See socketpair(2).

    Args:
      identify: Whether each message received at either end says who sent it, as for `Channel`.
    """
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return Channel(left, identify=identify), Channel(right, identify=identify)
