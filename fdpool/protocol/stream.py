"""Messages on a byte stream: where each begins and ends, and which bytes descriptors may ride on."""

from __future__ import annotations

import operator
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from fdpool.errors import OversizedMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

Fd = TypeVar("Fd")

MAX_BUFFERS_PER_SEND: Final = 1024  # IOV_MAX, sendmsg(2)
# What a header promises is not allocated before it is there: no single read is larger than this.
MAX_READ_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Framing:
    """How the messages of a stream are told apart, and what one may hold.

    Args:
      header_size: Bytes, at least 1.
      body_size: Told the header, returns how many bytes follow it.
      max_body_size: The most it may return.
      max_fds: How many descriptors may come with a message's first byte.
    """

    header_size: int
    body_size: Callable[[bytes], int]
    max_body_size: int
    max_fds: int

    def __post_init__(self) -> None:
        # A float would do for a comparison, and fail where bytes have been read.
        for size in (self.header_size, self.max_body_size, self.max_fds):
            operator.index(size)
        if self.header_size < 1:
            raise ValueError(f"a message begins with {self.header_size} bytes, and at least 1 is needed")
        if self.max_body_size < 0:
            raise ValueError(f"max_body_size is {self.max_body_size}, which is negative")


class MessageReader:
    """One message, put together from reads of which none crosses its end.

    The kernel hands descriptors over with some byte of a read and does not tell which. So where
    descriptors may come with the message's first byte, that byte is read alone: what arrives with it is
    the message's, and what arrives later is not.
    """

    __slots__ = ("_body_size", "_framing", "_header", "_part", "wanted", "wanted_fds")

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._header: bytes | None = None
        self._body_size = 0
        self._part = bytearray()  # of the header, then of the body
        self.wanted: int = 1 if framing.max_fds else min(framing.header_size, MAX_READ_BYTES)
        """How many bytes the next read may take at most; 0 once the message is whole."""
        self.wanted_fds: int = framing.max_fds
        """How many descriptors may come with the next read."""

    def add(self, data: Buffer) -> None:
        """Take the bytes of a read of at most `wanted`.

        Raises:
          OversizedMessage: the header promises more than is allowed.
          ValueError: *body_size* returned a negative number.
          TypeError: it returned something that is no integer.
          Others: whatever else *body_size* raises.
        """
        self._part += data
        self.wanted_fds = 0
        if self._header is not None:
            missing = self._body_size - len(self._part)
        elif not (missing := self._framing.header_size - len(self._part)):
            header = bytes(self._part)
            missing = self._body_size = self._checked_body_size(header)
            self._header = header
            self._part.clear()
        self.wanted = min(missing, MAX_READ_BYTES)

    def _checked_body_size(self, header: bytes) -> int:
        size, limit = operator.index(self._framing.body_size(header)), self._framing.max_body_size
        if size > limit:
            raise OversizedMessage(f"a header promises a body of {size} bytes, over the limit of {limit}", header)
        if size < 0:
            raise ValueError(f"body_size returned {size} for the header {header!r}")
        return size

    @property
    def has_begun(self) -> bool:
        """Whether any of it is there."""
        return self._header is not None or bool(self._part)

    @property
    def data(self) -> bytes:
        """The bytes so far, header and body alike."""
        return (self._header or b"") + self._part

    def message(self) -> tuple[bytes, bytes]:
        """Return header and body of a message that is whole."""
        assert self._header is not None
        return self._header, bytes(self._part)


def split_messages(data: bytes, framing: Framing, max_messages: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Cut the whole messages off the front of *data*; return them and how many bytes they take.

    Stops before a message that is not all there, is too large, or whose header `body_size` refuses: whoever
    reads that one by itself learns why.
    """
    header_size, body_size, max_body_size = framing.header_size, framing.body_size, framing.max_body_size
    messages: list[tuple[bytes, bytes]] = []
    position, end = 0, len(data)
    while len(messages) < max_messages and (body_at := position + header_size) <= end:
        header = data[position:body_at]
        try:
            size = operator.index(body_size(header))
        except Exception:  # raised again to whoever reads this message by itself
            break
        next_at = body_at + size
        if not 0 <= size <= max_body_size or next_at > end:
            break
        messages.append((header, data[body_at:next_at]))
        position = next_at
    return messages, position


class OutgoingMessages(Generic[Fd]):
    """Messages on their way out: which bytes are next, and which descriptors go with them.

    A message's descriptors go with its first byte, so each message that has any starts a send of its own;
    the others follow in the same one as far as they fit. Once a send took a byte, its descriptors are gone.

    Args:
      messages: For each its parts, in order, and its descriptors.

    Raises:
      ValueError: a message without a byte: nothing could carry its descriptors or show that it was sent.
    """

    __slots__ = ("_ends", "_fds", "_offset", "_parts", "_position", "sent_bytes", "total_bytes")

    def __init__(self, messages: Iterable[tuple[Sequence[Buffer], Sequence[Fd]]]) -> None:
        self._parts: list[bytes | memoryview] = []
        self._fds: deque[tuple[int, Sequence[Fd]]] = deque()  # (index of a part, what goes with its first byte)
        self._ends: set[int] = set()  # how many bytes there are up to and with each message
        self._position = 0  # the part that is next, and how much of it has left
        self._offset = 0
        self.sent_bytes = 0
        self.total_bytes = 0
        for parts, fds in messages:
            self._append(parts, fds)

    def _append(self, parts: Sequence[Buffer], fds: Sequence[Fd]) -> None:
        if fds:
            self._fds.append((len(self._parts), fds))
        before = self.total_bytes
        for part in parts:
            data = part if type(part) is bytes else _bytes_of(part)
            if data:
                self._parts.append(data)
                self.total_bytes += len(data)
        if self.total_bytes == before:
            raise ValueError("a message on a stream has at least one byte, and this one is empty")
        self._ends.add(self.total_bytes)

    def fds_by_message(self) -> list[Sequence[Fd]]:
        """Return the descriptors that have not left, of each message that has any."""
        return [fds for _, fds in self._fds]

    def __bool__(self) -> bool:
        """Whether something is still to be sent."""
        return self.sent_bytes < self.total_bytes

    @property
    def is_cut(self) -> bool:
        """Whether what has left ends inside a message."""
        return self.sent_bytes > 0 and self.sent_bytes not in self._ends

    def next_send(self) -> tuple[list[bytes | memoryview], Sequence[Fd]]:
        """Return what the next send takes: buffers, and the descriptors that go with their first byte."""
        fds: Sequence[Fd] = ()
        stop = self._position + MAX_BUFFERS_PER_SEND
        for index, carried in self._fds:
            if index > self._position:
                stop = min(stop, index)
                break
            fds = carried
        buffers = self._parts[self._position : stop]
        if self._offset:
            buffers[0] = memoryview(buffers[0])[self._offset :]
        return buffers, fds

    def advance(self, nbytes: int) -> None:
        """Note that the first *nbytes* of what `next_send` returned have left, and with them its descriptors."""
        if nbytes and self._fds and self._fds[0][0] == self._position:
            self._fds.popleft()
        self.sent_bytes += nbytes
        nbytes += self._offset
        while nbytes and nbytes >= len(self._parts[self._position]):
            nbytes -= len(self._parts[self._position])
            self._position += 1
        self._offset = nbytes


def _bytes_of(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    # A view of nothing may have a shape that cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")
