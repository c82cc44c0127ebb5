"""Messages with handles on one stream socket, as far as they are there now: never waiting."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from fdpool.errors import FdLimitError, RemoteProtocolError, UnexpectedFds
from fdpool.kernel import OwnedFd, recv_with_fds
from fdpool.protocol.stream import Framing, MessageReader, split_messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer


# After so many system calls in a row that found the socket ready, other tasks get their turn.
CALLS_PER_TURN: Final = 16
_PEEK_BYTES: Final = 1 << 15

Fault = UnexpectedFds | FdLimitError


class StreamMessage(NamedTuple):
    """One message, as received, or as `Connection.send_messages` sends it.

    A received one's descriptors belong to whoever received it; those of one that is sent are lent.
    """

    header: bytes
    body: bytes = b""
    fds: Sequence[OwnedFd] = ()


class EndOfStream(Exception):  # noqa: N818 - an event, told to the layer above in its own words
    """Nothing will follow what was received."""


class _Held(NamedTuple):
    """Bytes that were received and given back, what came with the first of them, and what was wrong there."""

    data: memoryview
    fds: list[OwnedFd]
    fault: Fault | None


class StreamSource:
    """The receiving end of a stream socket: what was given back, then the kernel's queue.

    Args:
      sock: Lent, for as long as this is used.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._held: _Held | None = None
        self._late_error: OSError | None = None
        self._scratch: memoryview | None = None

    def read(self, buffers: Sequence[Buffer], max_fds: int) -> tuple[int, list[OwnedFd], Fault | None]:
        """Fill *buffers*, once; return how many bytes, the descriptors, and what was wrong with those.

        Where something was, all of the read's descriptors are closed.

        Raises:
          BlockingIOError: nothing is there yet.
          OSError: whatever else recvmsg(2) reports; nothing was received.
        """
        if self._held is not None:
            return self._read_held(self._held, buffers, max_fds)
        if self._late_error is not None:
            error, self._late_error = self._late_error, None
            raise error
        try:
            nbytes, fds = recv_with_fds(self._socket, buffers, max_fds, socket.MSG_DONTWAIT)
        except FdLimitError as fault:
            return len(fault.data), [], fault
        except RemoteProtocolError as exc:
            return len(exc.data), [], UnexpectedFds(str(exc), exc.data)
        return nbytes, fds, None

    def _read_held(
        self, held: _Held, buffers: Sequence[Buffer], max_fds: int
    ) -> tuple[int, list[OwnedFd], Fault | None]:
        data, fds, fault = held
        nbytes = _fill(buffers, data)
        self._held = _Held(data[nbytes:], [], None) if nbytes < len(data) else None
        if len(fds) > max_fds:
            fault = UnexpectedFds(f"the peer sent {len(fds)} descriptors where at most {max_fds} are wanted")
        if fault is not None:
            close_all(fds)
            fds = []
        return nbytes, fds, fault

    def peek(self) -> tuple[bytes, bool]:
        """Return the first bytes of the kernel's queue, which stay there, and whether descriptors may be among them.

        Raises:
          BlockingIOError: nothing is there yet.
          OSError: whatever else recvmsg(2) reports. Nothing was received, but it will not report it again.
        """
        if self._scratch is None:
            self._scratch = memoryview(bytearray(_PEEK_BYTES))
        # Without room for them the kernel duplicates no descriptors, and says by MSG_CTRUNC that it saw some. It
        # says so too when they are on the byte right after, or when every message carries credentials.
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        nbytes, _, message_flags, _ = self._socket.recvmsg_into((self._scratch,), 0, flags)
        return bytes(self._scratch[:nbytes]), bool(message_flags & socket.MSG_CTRUNC)

    def skip(self, nbytes: int) -> None:
        """Take *nbytes* bytes off the front of the queue, which a look showed to carry no descriptors."""
        recv_with_fds(self._socket, (bytearray(nbytes),), 0, socket.MSG_DONTWAIT)

    @property
    def holds_something(self) -> bool:
        """Whether the next read gets something else than the front of the kernel's queue."""
        return self._held is not None or self._late_error is not None

    def give_back(self, data: bytes, fds: list[OwnedFd], fault: Fault | None) -> None:
        """Put what was read back in front of everything that was not."""
        rest = b"" if self._held is None else self._held.data
        if data:
            self._held = _Held(memoryview(data + rest), fds, fault)

    def note_late_error(self, error: OSError) -> None:
        """Have the next read of the queue report *error*, which the kernel reports only once."""
        self._late_error = error

    def close(self) -> None:
        """Close the descriptors that were given back."""
        if self._held is not None:
            close_all(self._held.fds)
            self._held = None


class OneRead:
    """A single read.

    Args:
      buffers: Writable, with room for at least one byte.
      max_fds: How many descriptors may come.
    """

    def __init__(self, buffers: Sequence[Buffer], max_fds: int) -> None:
        self._buffers = buffers
        self._max_fds = max_fds
        self._nbytes = 0
        self._fds: list[OwnedFd] = []
        self._fault: Fault | None = None

    @property
    def was_refused(self) -> bool:
        """Whether it cannot be told where the next message begins: never because of a read."""
        return False

    def advance(self, source: StreamSource) -> bool:
        """Read.

        Raises:
          EndOfStream: nothing will follow.
          OSError: as for `StreamSource.read`.
        """
        self._nbytes, self._fds, self._fault = source.read(self._buffers, self._max_fds)
        if not self._nbytes:
            raise EndOfStream
        return True

    def result(self) -> tuple[int, list[OwnedFd]]:
        """Return how many bytes came, and the descriptors; or raise what was wrong with them."""
        if self._fault is not None:
            self._fault.data = _gather(self._buffers, self._nbytes)
            raise self._fault
        return self._nbytes, self._fds

    def give_back(self, source: StreamSource) -> None:
        """Nothing was read."""

    def discard(self) -> bytes:
        """Nothing was read."""
        return b""


class OneMessage:
    """A message being received."""

    def __init__(self, framing: Framing) -> None:
        self._reader = MessageReader(framing)
        self._fds: list[OwnedFd] = []
        self._refusal: BaseException | None = None
        self.fault: Fault | None = None

    def advance(self, source: StreamSource) -> bool:
        """Read what is there of the message; return whether that is all. It may stop early, for others' sake.

        Raises:
          EndOfStream: nothing will follow.
          OSError: as for `StreamSource.read`.
        """
        reader = self._reader
        for _ in range(CALLS_PER_TURN):
            buffer = bytearray(reader.wanted)
            nbytes, fds, fault = source.read((buffer,), reader.wanted_fds)
            if nbytes < len(buffer):
                if not nbytes:
                    raise EndOfStream
                del buffer[nbytes:]
            self._fds += fds
            self.fault = self.fault or fault
            try:
                reader.add(buffer)
            except BaseException as exc:
                # Kept for the caller: what a function of its own raises says nothing about the socket.
                self._refusal = exc
                return True
            if not reader.wanted:
                return True
        return False

    @property
    def was_refused(self) -> bool:
        """Whether its header was, so that it cannot be told where the next message begins."""
        return self._refusal is not None

    @property
    def has_begun(self) -> bool:
        """Whether any of it was read."""
        return self._reader.has_begun

    def result(self) -> StreamMessage:
        """Return the whole message; or raise what was wrong with it, with its descriptors closed."""
        if self._refusal is not None:
            self.discard()
            raise self._refusal
        if self.fault is not None:
            self.fault.data = self.discard()
            raise self.fault
        return StreamMessage(*self._reader.message(), self._fds)

    def give_back(self, source: StreamSource) -> None:
        """Put what was read back into *source*."""
        source.give_back(self._reader.data, self._fds, self.fault)

    def discard(self) -> bytes:
        """Close the descriptors; return the bytes."""
        close_all(self._fds)
        return self._reader.data


class SeveralMessages:
    """A message being received, and those that are whole behind it."""

    def __init__(self, framing: Framing, max_messages: int) -> None:
        self._framing = framing
        self._first = OneMessage(framing)
        self._max_messages = max_messages
        self._messages: list[StreamMessage] = []

    def advance(self, source: StreamSource) -> bool:
        """Take what is whole, else read what is there of the first; return whether there is a message.

        Raises:
          EndOfStream: nothing will follow.
          OSError: as for `StreamSource.read`.
        """
        if not self._first.has_begun:
            self._take_more(source)
            if self._messages:
                return True
        if not self._first.advance(source):
            return False
        if self._first.fault is None and not self._first.was_refused:
            self._messages.append(self._first.result())
            self._take_more(source)
        return True

    @property
    def was_refused(self) -> bool:
        """Whether the first message was."""
        return self._first.was_refused

    def result(self) -> list[StreamMessage]:
        """Return the messages; or raise what was wrong with the first one."""
        return self._messages or [self._first.result()]

    def give_back(self, source: StreamSource) -> None:
        """Put what was read of the first message back into *source*."""
        self._first.give_back(source)

    def discard(self) -> bytes:
        """Close all descriptors; return the bytes of the message that was not whole."""
        for message in self._messages:
            close_all(message.fds)
        return self._first.discard()

    def _take_more(self, source: StreamSource) -> None:
        try:
            while self._take_whole(source):
                pass
        except BlockingIOError:
            return
        except OSError as exc:
            source.note_late_error(exc)

    def _take_whole(self, source: StreamSource) -> bool:
        """Take the messages that a look at the queue shows whole; return whether another look may show more."""
        room = self._max_messages - len(self._messages)
        if not room or source.holds_something:
            return False
        data, may_have_fds = source.peek()
        parts, nbytes = split_messages(data, self._framing, room)
        if not parts:
            return False
        if may_have_fds:
            return all(self._take_one(source, header, body) for header, body in parts)
        source.skip(nbytes)
        self._messages += [StreamMessage(header, body) for header, body in parts]
        return len(data) == _PEEK_BYTES

    def _take_one(self, source: StreamSource, header: bytes, body: bytes) -> bool:
        """Take a message that is known to be there, with its descriptors; return whether nothing was wrong."""
        as_one = Framing(len(header) + len(body), lambda _: 0, 0, self._framing.max_fds)
        message = OneMessage(as_one)
        try:
            is_whole = message.advance(source)
        except OSError:
            message.give_back(source)
            raise
        if is_whole and message.fault is None:
            self._messages.append(StreamMessage(header, body, message.result().fds))
            return True
        # It becomes the first message of the next receive.
        message.give_back(source)
        return False


def close_all(fds: Iterable[OwnedFd]) -> None:
    """Close each of *fds*."""
    for fd in fds:
        fd.close()


def _fill(buffers: Sequence[Buffer], data: memoryview) -> int:
    """Copy as much of *data* into *buffers*, in order, as fits; return how much that was."""
    nbytes = 0
    for buffer in buffers:
        view = memoryview(buffer)
        part = data[nbytes : nbytes + view.nbytes]
        if part.nbytes:
            view.cast("B")[: part.nbytes] = part
            nbytes += part.nbytes
    return nbytes


def _gather(buffers: Sequence[Buffer], nbytes: int) -> bytes:
    return b"".join(memoryview(buffer) for buffer in buffers)[:nbytes]
