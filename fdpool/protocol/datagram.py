"""The datagrams that carry a message: a fixed header, the kind of each handle, the payload.

A message with more handles than one datagram takes is sent as several chunks. All its payload is in the
first; a receiver that sees chunks out of order, or a new message before the last one is whole, knows that
the rest will not come: datagrams of a socketpair arrive in order or not at all. Only a message that is marked as
interjected may come in between: it is one datagram without handles, and whoever sends it need not know of the other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from fdpool.errors import RemoteProtocolError

VERSION: Final = 1
SPILLED: Final = 0x1
"""Flag: the payload is the content of the first handle, a memfd, and not in the datagram."""
INTERJECTED: Final = 0x2
"""Flag: a whole message without handles, which may stand between the chunks of another one."""

MAX_INLINE_BYTES: Final = 64 * 1024
"""The longest payload a datagram carries itself. A datagram must fit into the sender's SO_SNDBUF, 208 KiB by
default; from 64 KiB on, copying through a memfd costs no more than copying through the socket (docs/performance.md)."""

MAX_HANDLES_PER_DATAGRAM: Final = 253  # SCM_MAX_FD, unix(7)
MAX_HANDLES: Final = 1 << 20
MAX_CHUNKS: Final = -(-MAX_HANDLES // MAX_HANDLES_PER_DATAGRAM)

_HEADER: Final = struct.Struct("<BBHIIQ")
MAX_DATAGRAM_BYTES: Final = _HEADER.size + MAX_HANDLES_PER_DATAGRAM + MAX_INLINE_BYTES

# All of the header but for the message id, which is last.
_BARE: Final = _HEADER.pack(VERSION, 0, 0, 0, 1, 0)[:-8]
_BARE_BYTES: Final = len(_BARE)

INTERJECTED_HEADER: Final = _HEADER.pack(VERSION, INTERJECTED, 0, 0, 1, 0)
"""What goes before the payload of a message that may be sent while another one is only half sent."""

H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class Datagram(Generic[H]):
    """One datagram to send: its bytes in pieces, and the handles that ride on it."""

    pieces: tuple[bytes | memoryview, ...]
    handles: list[H]


def datagrams_for(
    message_id: int, payload: bytes | memoryview, handles: list[H], kinds: bytes, *, spilled: bool = False
) -> list[Datagram[H]]:
    """Lay a message out as datagrams, in the order they must be sent.

    Args:
      message_id: Different from that of the message before it on the same socket.
      payload: At most `MAX_INLINE_BYTES`; empty if *spilled*.
      handles: What rides along; the memfd with the payload first, if *spilled*.
      kinds: One byte for each handle: what it is.
      spilled: Whether the payload is in the first handle.

    Raises:
      ValueError: too many handles, or a payload too long to be inline.
    """
    if len(handles) > MAX_HANDLES:
        raise ValueError(f"{len(handles)} handles in one message: at most {MAX_HANDLES} can travel")
    if len(payload) > MAX_INLINE_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes: at most {MAX_INLINE_BYTES} travel inline")
    flags = SPILLED if spilled else 0
    count = max(1, -(-len(handles) // MAX_HANDLES_PER_DATAGRAM))
    datagrams = []
    for index in range(count):
        part = slice(index * MAX_HANDLES_PER_DATAGRAM, (index + 1) * MAX_HANDLES_PER_DATAGRAM)
        header = _HEADER.pack(VERSION, flags, len(kinds[part]), index, count, message_id)
        pieces = (header, kinds[part]) if index else (header, kinds[part], payload)
        datagrams.append(Datagram(pieces, handles[part]))
    return datagrams


def bare_header(message_id: int) -> bytes:
    """Return what goes before the payload of a message without handles, which is most messages."""
    return _HEADER.pack(VERSION, 0, 0, 0, 1, message_id)


def is_interjected(data: bytes) -> bool:
    """Whether *data* claims to be a message that may stand between the chunks of another."""
    return len(data) >= _HEADER.size and bool(data[1] & INTERJECTED)


def bare_payload(data: bytes) -> bytes | None:
    """Return the payload if *data* is a whole message without handles, else None: it takes a closer look then."""
    return data[_HEADER.size :] if data[:_BARE_BYTES] == _BARE and len(data) >= _HEADER.size else None


@dataclass(slots=True)
class Parts(Generic[H]):
    """What has arrived of a message."""

    message_id: int
    chunks: int
    payload: bytes
    """Empty if the payload is in `spill`."""
    spill: H | None = None
    """What holds the payload, if it is not inline; None as well if it got lost, and then the message is damaged."""
    kinds: bytearray = field(default_factory=bytearray)
    handles: list[H] = field(default_factory=list)
    arrived: int = 0
    is_damaged: bool = False
    """Whether handles were lost. The others are given back at once: half of them are of no use."""


class Assembler(Generic[H]):
    """Puts the chunks of messages together again. It holds handles, and gives them all back one way or another."""

    def __init__(self) -> None:
        self._partial: Parts[H] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held."""
        return self._partial is None

    def is_continued_by(self, data: bytes) -> bool:
        """Whether *data* claims to be a chunk, not the first, of a message of which some chunks are held."""
        if self.is_idle or len(data) < _HEADER.size:
            return False
        _, _, _, place, _, _ = _HEADER.unpack_from(data)
        return bool(place)

    def feed(self, data: bytes, handles: list[H], *, damaged: bool = False) -> tuple[Parts[H] | None, list[H]]:
        """Take in one datagram with its handles.

        Args:
          data: The whole datagram.
          handles: What came with it; given up to the assembler.
          damaged: Whether handles that belong to it were lost, and so none are in *handles*.

        Returns:
          The message if this was its last chunk, else None; and the handles that nobody will ever get, for the
          caller to close: those of a damaged message, or of an earlier one that will never be whole.

        Raises:
          RemoteProtocolError: the datagram is malformed or out of order. *handles* stay the caller's.
        """
        chunk = _parse(data)
        count = len(chunk.kinds)
        if not damaged and len(handles) != count:
            raise RemoteProtocolError(f"the header declares {count} handles and {len(handles)} arrived", data)
        if chunk.is_interjected:
            return Parts(chunk.message_id, 1, chunk.payload), []
        if chunk.place:
            partial, stale = self._continued_by(chunk, data), []
        else:
            partial, stale = Parts(chunk.message_id, chunk.chunks, chunk.payload), self.clear()
        kinds = chunk.kinds
        if chunk.is_spilled and not chunk.place:
            kinds = kinds[1:]
            if not damaged:
                partial.spill, *handles = handles
        partial.kinds += kinds
        partial.handles += handles
        partial.arrived += 1
        partial.is_damaged |= damaged
        if partial.is_damaged:
            stale += partial.handles
            partial.handles = []
        is_whole = partial.arrived == partial.chunks
        self._partial = None if is_whole else partial
        return (partial if is_whole else None), stale

    def clear(self) -> list[H]:
        """Forget a message of which only some chunks arrived; return its handles for the caller to close."""
        partial, self._partial = self._partial, None
        if partial is None:
            return []
        return partial.handles if partial.spill is None else [partial.spill, *partial.handles]

    def _continued_by(self, chunk: _Chunk, data: bytes) -> Parts[H]:
        partial = self._partial
        this = (chunk.message_id, chunk.chunks, chunk.place)
        if partial is None or (partial.message_id, partial.chunks, partial.arrived) != this:
            message_id, chunks, index = this
            raise RemoteProtocolError(f"chunk {index} of {chunks} of message {message_id} is out of order", data)
        return partial


class _Chunk(NamedTuple):
    """A datagram taken apart."""

    message_id: int
    place: int
    chunks: int
    is_spilled: bool
    is_interjected: bool
    kinds: bytes
    payload: bytes


def _parse(data: bytes) -> _Chunk:
    if len(data) < _HEADER.size:
        raise RemoteProtocolError(f"a datagram of {len(data)} bytes is shorter than the header's {_HEADER.size}", data)
    version, flags, count, index, chunks, message_id = _HEADER.unpack_from(data)
    body = _HEADER.size + count
    if version != VERSION:
        raise RemoteProtocolError(f"a datagram of version {version}; this side speaks version {VERSION}", data)
    if flags & ~(SPILLED | INTERJECTED):
        known = SPILLED | INTERJECTED
        raise RemoteProtocolError(f"a datagram with flags {flags:#x}, of which {known:#x} are known", data)
    if not index < chunks <= MAX_CHUNKS:
        raise RemoteProtocolError(f"a datagram that claims to be chunk {index} of {chunks}", data)
    is_interjected = bool(flags & INTERJECTED)
    if is_interjected and (flags & SPILLED or count or chunks > 1):
        raise RemoteProtocolError("a message between the chunks of another has handles or chunks of its own", data)
    if len(data) < body:
        raise RemoteProtocolError(f"a datagram of {len(data)} bytes cannot name the kinds of {count} handles", data)
    is_spilled = bool(flags & SPILLED)
    if len(data) > body and (index or is_spilled):
        raise RemoteProtocolError(f"a datagram with {len(data) - body} bytes of payload that do not belong there", data)
    if is_spilled and not count:
        raise RemoteProtocolError("the payload should be in a handle, and the datagram has none", data)
    return _Chunk(message_id, index, chunks, is_spilled, is_interjected, data[_HEADER.size : body], data[body:])
