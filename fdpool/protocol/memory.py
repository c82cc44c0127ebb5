"""What two processes say to each other about memory, ahead of whatever else their messages carry.

A message's body is the news (segments to map, leases that ended), then a parcel (what the message is about).
The descriptors of announced segments are the first ones of the message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fdpool.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NEWS: Final = struct.Struct("<6I")
_SHARE: Final = struct.Struct("<QI")
NO_NEWS: Final = _NEWS.pack(0, 0, 0, 0, 0, 0)
"""The beginning of most bodies."""

_WORD_BYTES: Final = 8
_WORDS_PER_SEGMENT: Final = 3
_EXTENT: Final = struct.Struct("<5Q")
_TRIPLE: Final = struct.Struct("<3Q")

MAX_ENDED_PER_MESSAGE: Final = 256
"""The rest goes with the next message, so that the news fit into a datagram beside a parcel."""

FORWARD: Final = 0
"""Kind of extent: in a segment that the sender announced."""
BACK: Final = 1
"""Kind of extent: inside memory that the receiver has lent to the sender."""


@dataclass(slots=True)
class News:
    """What has happened since the last message.

    Attributes:
      segments: Number, size and whether everybody may write it, of each segment to be mapped.
      mapped: Numbers of the receiver's segments and shared objects that the sender has by now.
      ended: Leases that the receiver gave and the sender needs no longer.
      retired: Numbers of the sender's segments that are to be unmapped.
      dropped: Numbers of the sender's shared objects that are to be forgotten.
      shares: Number and parcel of each shared object that the message may speak of.
    """

    segments: list[tuple[int, int, int]] = field(default_factory=list)
    mapped: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    shares: list[tuple[int, bytes]] = field(default_factory=list)

    def encode(self) -> bytes:
        """Lay the news out as the beginning of a message's body."""
        lists: tuple[list[Any], ...] = (self.segments, self.mapped, self.ended, self.retired, self.dropped, self.shares)
        words = [*chain.from_iterable(self.segments), *self.mapped, *self.ended, *self.retired, *self.dropped]
        body = _NEWS.pack(*map(len, lists)) + struct.pack(f"<{len(words)}Q", *words)
        for number, parcel in self.shares:
            body += _SHARE.pack(number, len(parcel)) + parcel
        return body


def without_news(body: memoryview) -> memoryview | None:
    """Return what is behind the news if there are none, which is so most often; else None."""
    return body[_NEWS.size :] if body[: _NEWS.size] == NO_NEWS else None


class Extent(NamedTuple):
    """Memory that a parcel refers to.

    Attributes:
      kind: `FORWARD` or `BACK`.
      reference: The number of the segment, or of the lease that the receiver gave.
      offset: Where it begins, in the segment or in what was lent.
      length: Bytes.
      lease: What the receiver says when it needs it no longer; 0 for what is its own.
    """

    kind: int
    reference: int
    offset: int
    length: int
    lease: int


def decode_news(body: memoryview) -> tuple[News, memoryview]:
    """Take the news off a message's body; return them and the rest.

    Raises:
      RemoteProtocolError: the body is shorter than it says.
    """
    if body.nbytes < _NEWS.size:
        raise RemoteProtocolError(f"a body of {body.nbytes} bytes is shorter than its header", bytes(body))
    counts = _NEWS.unpack_from(body)
    segment_count, mapped_count, ended_count, retired_count, dropped_count, share_count = counts
    in_segments = segment_count * _WORDS_PER_SEGMENT
    count = in_segments + mapped_count + ended_count + retired_count + dropped_count
    table, rest = _split(body[_NEWS.size :], count, _WORD_BYTES)
    words = list(struct.unpack(f"<{count}Q", table))
    if ended_count == count and not share_count:
        # Mostly.
        return News([], [], words, [], [], []), rest
    triples = list(zip(words[0:in_segments:3], words[1:in_segments:3], words[2:in_segments:3], strict=True))
    mapped = words[in_segments : (end := in_segments + mapped_count)]
    ended = words[end : (end := end + ended_count)]
    retired = words[end : (end := end + retired_count)]
    dropped = words[end:]
    shares = []
    for _ in range(share_count):
        number, length = _SHARE.unpack_from(rest) if rest.nbytes >= _SHARE.size else (0, rest.nbytes + 1)
        rest = rest[_SHARE.size :]
        if length > rest.nbytes:
            raise RemoteProtocolError(f"a shared object of {length} bytes does not fit into {rest.nbytes}", bytes(body))
        shares.append((number, bytes(rest[:length])))
        rest = rest[length:]
    return News(triples, mapped, ended, retired, dropped, shares), rest


def encode_extents(extents: Iterable[Extent]) -> bytes:
    """Lay *extents* out."""
    return b"".join([_EXTENT.pack(*extent) for extent in extents])


def decode_extents(data: memoryview, count: int) -> tuple[list[Extent], memoryview]:
    """Take *count* extents off *data*; return them and the rest.

    Raises:
      RemoteProtocolError: there are not so many.
    """
    table, rest = _split(data, count, _EXTENT.size)
    return list(map(Extent._make, _EXTENT.iter_unpack(table))), rest


def decode_triples(data: memoryview, count: int) -> tuple[Iterator[tuple[int, int, int]], memoryview]:
    """Take *count* triples of numbers off *data*; return them and the rest.

    Raises:
      RemoteProtocolError: there are not so many.
    """
    table, rest = _split(data, count, _TRIPLE.size)
    return _TRIPLE.iter_unpack(table), rest


def _split(data: memoryview, count: int, size: int) -> tuple[memoryview, memoryview]:
    if count * size > data.nbytes:
        raise RemoteProtocolError(f"a table of {count} times {size} bytes does not fit into {data.nbytes}", bytes(data))
    return data[: count * size], data[count * size :]
