"""Connection: a stream of messages with handles, for protocols such as vhost-user."""

from __future__ import annotations

import enum
import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

import trio

from fdpool.kernel import MAX_FDS_PER_MESSAGE, send_with_fds
from fdpool.kernel.descriptor import fd_number
from fdpool.protocol.stream import Framing, OutgoingMessages
from fdpool.stream import CALLS_PER_TURN, EndOfStream, OneMessage, OneRead, SeveralMessages, StreamMessage, StreamSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Buffer

    from fdpool.kernel import HasFileno, OwnedFd

__all__ = ["Connection", "Disconnected", "PartialMessage", "StreamMessage"]

DEFAULT_MAX_BODY_SIZE: Final = 1 << 20
DEFAULT_MAX_FDS: Final = 32  # crosvm's MAX_ATTACHED_FD_ENTRIES
DEFAULT_MAX_MESSAGES: Final = 256

# What passes by itself and no poll event announces: memory, and descriptors in flight (per user, unix(7)).
_SHORT_OF_ROOM: Final = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_PEER_IS_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE})
_FIRST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.1
_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result", covariant=True)


class Disconnected(trio.EndOfChannel):
    """The peer closed its end, between two messages."""


class PartialMessage(trio.BrokenResourceError):
    """The peer closed its end inside a message, or is gone.

    Attributes:
      data: The bytes of the message that did arrive. Its descriptors are closed.
    """

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


class Connection(trio.abc.AsyncResource):
    """One end of a stream of messages with handles, for use from one trio thread.

    A message is a header, from which the length of its body follows, and a body; its descriptors travel
    with its first byte. Nothing is read ahead: what was not returned is still in the kernel's queue, or,
    of a message whose receiver was cancelled, kept here for the next receive.

    One task may send while another receives. What is wrong with a message that was received whole
    (`UnexpectedFds`, `FdLimitError`) leaves the connection usable, and the next receive gets the next
    message. What ends a direction says so on every later use of it.

    Args:
      sock: A connected AF_UNIX stream socket. Owned from here on; its `O_NONBLOCK` flag, which other
          processes may share, is neither relied on nor changed.

    Raises:
      ValueError: *sock* is of another kind; it is still the caller's.
    """

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"a connection is an AF_UNIX stream, and this is {sock.family!r}, {sock.type!r}")
        if sock.gettimeout():
            # Python would wait for that long by itself. The descriptor of such a socket is non-blocking already.
            sock.settimeout(0)
        self._socket = sock
        self._sending = _OneTask("another task is sending on this connection")
        self._receiving = _OneTask("another task is receiving from this connection")
        self._send_failure: str | None = None
        self._receive_failure: str | None = None
        self._source = StreamSource(sock)

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return two connections, each the other's peer."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(left), cls(right)

    async def send_message(
        self, header: Buffer, body: Buffer = b"", payload: Buffer = b"", fds: Sequence[HasFileno] = ()
    ) -> None:
        """Send *header*, *body* and *payload* in this order, and a duplicate of each descriptor in *fds*.

        Waits for room as often as it takes. The descriptors leave once, with the first byte.

        Args:
          header: With the other two at least one byte. None of them may change before this returns.
          body: May be empty.
          payload: May be empty.
          fds: At most 253 open descriptors, delivered in this order. Lent: the caller closes its own.

        Raises:
          ValueError: no byte to send, too many descriptors, or a closed one; nothing was sent.
          trio.BusyResourceError: another task is sending on this connection.
          trio.ClosedResourceError: this side was closed, before or during the call.
          trio.BrokenResourceError: the peer is gone, `__cause__` being the OSError; or an earlier message
              was left half sent, and no other can follow it.
          OSError: a number in *fds* is not open (EBADF); nothing was sent.

        Cancellation: always a checkpoint. After `trio.Cancelled` either nothing was sent, and the connection
        is as before. Or a part was, and then it sends nothing any more: this direction is shut down, so that
        the peer sees the end inside the message, and every later send raises `trio.BrokenResourceError`.
        Receiving goes on as before.
        """
        await self._send(OutgoingMessages((((header, body, payload), fds),)))

    async def send_messages(self, messages: Iterable[StreamMessage]) -> None:
        """Send *messages* in order, as many as fit in each system call, with one checkpoint for all.

        Args:
          messages: Each as for `send_message`. Their descriptors are lent.

        Raises:
          ValueError: as for `send_message`, because of any of them; nothing was sent.
          Others: as for `send_message`. Messages before the one that failed may have been sent.

        Cancellation: always a checkpoint. After `trio.Cancelled` some of the messages were sent, from the
        first on. If that ends inside one, this direction is shut down as for `send_message`.
        """
        await self._send(OutgoingMessages(((header, body), fds) for header, body, fds in messages))

    @trio.lowlevel.enable_ki_protection
    async def receive_into(self, buffers: Sequence[Buffer], *, allow_fds: bool = False) -> tuple[int, list[OwnedFd]]:
        """Read what is there into *buffers*, once; return how many bytes, and the descriptors that came.

        Waits until there is a byte. The descriptors came with one of the bytes read: only a caller that
        never asks for more than the rest of a message knows which message is theirs.

        Args:
          buffers: Writable, with room for at least one byte; filled in order.
          allow_fds: Whether descriptors may come.

        Returns:
          At least 1, and the descriptors in the order they were sent, owned by the caller.

        Raises:
          ValueError: there is no room in *buffers*.
          trio.BusyResourceError: another task is receiving from this connection.
          trio.ClosedResourceError: this side was closed, before or during the call.
          Disconnected: the peer closed its end.
          trio.BrokenResourceError: the peer is gone (`__cause__` is the OSError), or an earlier header's body
              was not read.
          UnexpectedFds: descriptors came and none are allowed. They are closed; `data` has the bytes.
          FdLimitError: this process has no room for the descriptors; otherwise the same.

        Cancellation: always a checkpoint. After `trio.Cancelled`, nothing was read.
        """
        if not any(memoryview(buffer).nbytes for buffer in buffers):
            raise ValueError("there is no room in the buffers: reading nothing would lose descriptors")
        return await self._receive(OneRead(buffers, MAX_FDS_PER_MESSAGE if allow_fds else 0))

    @trio.lowlevel.enable_ki_protection
    async def receive_exactly(self, nbytes: int, *, allow_fds: bool = False) -> tuple[bytes, list[OwnedFd]]:
        """Receive *nbytes* bytes, and the descriptors that came with the first of them.

        Args:
          nbytes: At least 1.
          allow_fds: Whether descriptors may come with the first byte. With others they never may.

        Raises:
          ValueError: *nbytes* is less than 1.
          Others: as for `receive_message`.

        Cancellation: as for `receive_message`.
        """
        max_fds = MAX_FDS_PER_MESSAGE if allow_fds else 0
        framing = Framing(nbytes, lambda _: 0, max_body_size=0, max_fds=max_fds)
        message = await self._receive(OneMessage(framing))
        return message.header, list(message.fds)

    @trio.lowlevel.enable_ki_protection
    async def receive_message(
        self,
        header_size: int,
        body_size: Callable[[bytes], int],
        *,
        max_body_size: int = DEFAULT_MAX_BODY_SIZE,
        max_fds: int = DEFAULT_MAX_FDS,
    ) -> StreamMessage:
        """Receive one message.

        Args:
          header_size: Bytes, at least 1.
          body_size: Told the header, returns how many bytes follow it. May be called again for the same
              header. What it raises passes through and ends this direction, since it is not known where
              the next message begins.
          max_body_size: The most *body_size* may return. Memory is taken as the bytes arrive.
          max_fds: How many descriptors may come with the message's first byte, 0 to 253. With 0 a message
              takes one system call less. With other bytes none may ever come.

        Returns:
          Header, body, and the descriptors in the order they were sent, owned by the caller.

        Raises:
          ValueError: a size or limit is out of range.
          trio.BusyResourceError: another task is receiving from this connection.
          trio.ClosedResourceError: this side was closed, before or during the call.
          Disconnected: the peer closed its end, between messages.
          PartialMessage: the peer closed its end inside a message, or is gone; `data` has what arrived.
          trio.BrokenResourceError: the peer is gone (`__cause__` is the OSError), or an earlier header's body
              was not read.
          UnexpectedFds: more descriptors than *max_fds*, or with another byte than the first. All of the
              message's are closed, `data` has its bytes, and the next message can be received.
          FdLimitError: this process has no room for the descriptors; otherwise the same.
          OversizedMessage: the header promises more than *max_body_size*. Nothing more can be received.

        Cancellation: always a checkpoint. After `trio.Cancelled` nothing is lost: what had arrived of the
        message is what the next receive begins with.
        """
        framing = Framing(header_size, body_size, max_body_size, _checked_max_fds(max_fds))
        return await self._receive(OneMessage(framing))

    @trio.lowlevel.enable_ki_protection
    async def receive_messages(
        self,
        header_size: int,
        body_size: Callable[[bytes], int],
        *,
        max_body_size: int = DEFAULT_MAX_BODY_SIZE,
        max_fds: int = DEFAULT_MAX_FDS,
        max_messages: int = DEFAULT_MAX_MESSAGES,
    ) -> list[StreamMessage]:
        """Wait for one message, and return it with those that are whole behind it, with one checkpoint for all.

        The kernel's queue is looked at first, without taking anything. Where no descriptor is among the
        messages seen there, they are taken together; otherwise each by itself, as `receive_message` does.

        Args:
          header_size: As for `receive_message`, and so *body_size*, *max_body_size* and *max_fds*.
          body_size: See there.
          max_body_size: See there.
          max_fds: See there.
          max_messages: The most to return, at least 1.

        Returns:
          At least one message.

        Raises:
          ValueError: a size or limit is out of range.
          Others: as for `receive_message`. What is wrong with a later message than the first, the next
              receive raises.

        Cancellation: as for `receive_message`.
        """
        framing = Framing(header_size, body_size, max_body_size, _checked_max_fds(max_fds))
        if max_messages < 1:
            raise ValueError(f"max_messages is {max_messages}, not at least 1")
        return await self._receive(SeveralMessages(framing, max_messages))

    def close(self) -> None:
        """Close at once. Tasks waiting on it get `trio.ClosedResourceError`. May be called twice."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._source.close()

    async def aclose(self) -> None:
        """Close, and let other tasks run.

        Cancellation: always a checkpoint. After `trio.Cancelled` it is closed all the same.
        """
        self.close()
        await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    def into_socket(self) -> socket.socket:
        """Give up the socket: the caller owns it now, and the connection is closed.

        Raises:
          ValueError: it is closed; or something was received that no receive has returned yet, which would be lost.
          trio.BusyResourceError: a task is sending or receiving.
        """
        if self._socket.fileno() < 0:
            raise ValueError("this connection is closed, or was given up")
        if self._source.holds_something:
            raise ValueError("what was received, and no receive has returned yet, would be lost")
        with self._sending, self._receiving:
            trio.lowlevel.notify_closing(self._socket)
            return socket.socket(fileno=self._socket.detach())

    @trio.lowlevel.enable_ki_protection
    async def _send(self, outgoing: OutgoingMessages[HasFileno]) -> None:
        for fds in outgoing.fds_by_message():
            _check_lent(fds)
        with self._sending:
            self._check_usable(self._send_failure)
            await trio.lowlevel.checkpoint_if_cancelled()
            pace = _Pace(trio.lowlevel.wait_writable, self._socket)
            try:
                while (outcome := self._attempt(self._push, outgoing)) is not _Outcome.DONE:
                    await pace.wait(outcome)
            except BaseException:
                self._note_unsent(outgoing)
                raise
            await pace.finish()

    def _push(self, outgoing: OutgoingMessages[HasFileno]) -> bool:
        for _ in range(CALLS_PER_TURN):
            buffers, fds = outgoing.next_send()
            outgoing.advance(send_with_fds(self._socket, buffers, fds, socket.MSG_DONTWAIT))
            if not outgoing:
                return True
        return False

    def _note_unsent(self, outgoing: OutgoingMessages[HasFileno]) -> None:
        if outgoing.is_cut:
            self._send_failure = (
                f"a message was left half sent: {outgoing.sent_bytes} of {outgoing.total_bytes} bytes had gone"
            )
            # The peer would wait for the rest for ever.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    async def _receive(self, reception: _Reception[_Result]) -> _Result:
        with self._receiving:
            self._check_usable(self._receive_failure)
            await trio.lowlevel.checkpoint_if_cancelled()
            pace = _Pace(trio.lowlevel.wait_readable, self._socket)
            while (outcome := self._advance(reception)) is not _Outcome.DONE:
                try:
                    await pace.wait(outcome)
                except BaseException:
                    self._give_back(reception)
                    raise
            if reception.was_refused:
                self._receive_failure = "a body was not read, because of its header: the next message cannot be found"
            await pace.finish()
        return reception.result()

    def _advance(self, reception: _Reception[object]) -> _Outcome:
        try:
            return self._attempt(reception.advance, self._source)
        except (trio.BrokenResourceError, EndOfStream) as exc:
            raise _end_of_stream(exc, reception.discard()) from exc.__cause__
        except OSError:
            self._give_back(reception)
            raise
        except trio.ClosedResourceError:
            reception.discard()
            raise

    def _give_back(self, reception: _Reception[object]) -> None:
        if self._socket.fileno() < 0:
            reception.discard()
        else:
            reception.give_back(self._source)

    def _attempt(self, function: Callable[[_Argument], bool], argument: _Argument) -> _Outcome:
        """Call what does not wait, and tell what there is to wait for, or raise in trio's terms."""
        try:
            return _Outcome.DONE if function(argument) else _Outcome.TURN_IS_OVER
        except BlockingIOError:
            return _Outcome.NOT_READY
        except OSError as exc:
            if exc.errno in _SHORT_OF_ROOM:
                return _Outcome.SHORT_OF_ROOM
            if exc.errno in _PEER_IS_GONE:
                raise trio.BrokenResourceError(f"the peer is gone: {exc.strerror}") from exc
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError("another task closed this connection") from None
            raise

    def _check_usable(self, failure: str | None) -> None:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("this connection was closed")
        if failure is not None:
            raise trio.BrokenResourceError(failure)


class _Outcome(enum.Enum):
    """How far a call got without waiting, and so what it waits for."""

    DONE = enum.auto()
    TURN_IS_OVER = enum.auto()
    NOT_READY = enum.auto()
    SHORT_OF_ROOM = enum.auto()


class _Pace:
    """What one call owes other tasks: a checkpoint in any case, their turn now and then, no busy loop."""

    def __init__(self, wait_ready: Callable[[socket.socket], Awaitable[None]], sock: socket.socket) -> None:
        self._wait_ready = wait_ready
        self._socket = sock
        self._has_yielded = False
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    async def wait(self, outcome: _Outcome) -> None:
        if outcome is _Outcome.NOT_READY:
            await self._wait_ready(self._socket)
        elif outcome is _Outcome.SHORT_OF_ROOM:
            await trio.sleep(self._pause_seconds)
            self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        else:
            await trio.lowlevel.checkpoint()
        self._has_yielded = True

    async def finish(self) -> None:
        # Something has happened by now that a Cancelled would deny.
        if not self._has_yielded:
            await trio.lowlevel.cancel_shielded_checkpoint()


class _OneTask:
    """Held by one task at a time; the second one is told that it is a mistake."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._is_held = False

    def __enter__(self) -> None:
        if self._is_held:
            raise trio.BusyResourceError(self._message)
        self._is_held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_held = False


class _Reception(Protocol[_Result]):
    """Something that is received: see `OneRead`, `OneMessage` and `SeveralMessages`."""

    @property
    def was_refused(self) -> bool: ...
    def advance(self, source: StreamSource) -> bool: ...
    def result(self) -> _Result: ...
    def give_back(self, source: StreamSource) -> None: ...
    def discard(self) -> bytes: ...


def _end_of_stream(found: trio.BrokenResourceError | EndOfStream, data: bytes) -> Exception:
    """Say in the user's terms what it means that nothing follows *data*, the part of a message that came."""
    if data:
        return PartialMessage(f"the peer is gone, or closed its end, after {len(data)} bytes of a message", data)
    if isinstance(found, EndOfStream):
        return Disconnected("the peer closed its end")
    return found


def _check_lent(fds: Sequence[HasFileno]) -> None:
    if len(fds) > MAX_FDS_PER_MESSAGE:
        raise ValueError(f"{len(fds)} descriptors in one message: the kernel takes at most {MAX_FDS_PER_MESSAGE}")
    for fd in fds:
        fd_number(fd)


def _checked_max_fds(max_fds: int) -> int:
    if not 0 <= max_fds <= MAX_FDS_PER_MESSAGE:
        raise ValueError(f"max_fds is {max_fds}, not 0 to {MAX_FDS_PER_MESSAGE}")
    return max_fds
