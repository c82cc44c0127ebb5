"""What two processes say to each other about memory, ahead of whatever else their messages carry.

A message's body is the news (segments to map, leases that ended), then a parcel (what the message is about).
The descriptors of announced segments are the first ones of the message.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fdpool.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NEWS: Final = struct.Struct("<6I")
_SHARE: Final = struct.Struct("<QI")
NO_NEWS: Final = _NEWS.pack(0, 0, 0, 0, 0, 0)
"""The beginning of most bodies."""

_WORD: Final = 8
_WORDS_PER_SEGMENT: Final = 3
_WORDS_PER_EXTENT: Final = 5

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

    def __bool__(self) -> bool:
        return bool(self.segments or self.shares or self.mapped or self.ended or self.retired or self.dropped)

    def encode(self) -> bytes:
        """Lay the news out as the beginning of a message's body."""
        if not self:
            return NO_NEWS
        lists = (self.mapped, self.ended, self.retired, self.dropped)
        words = array("Q", [word for segment in self.segments for word in segment])
        for numbers in lists:
            words.extend(numbers)
        shares = b"".join(_SHARE.pack(number, len(parcel)) + parcel for number, parcel in self.shares)
        return _NEWS.pack(len(self.segments), *map(len, lists), len(self.shares)) + words.tobytes() + shares


def without_news(body: memoryview) -> memoryview | None:
    """Return what is behind the news if there are none, which is so most often; else None."""
    return body[_NEWS.size :] if body[: _NEWS.size] == NO_NEWS else None


@dataclass(frozen=True, slots=True)
class Extent:
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
    segments, *others, share_count = counts
    words, rest = _words(body[_NEWS.size :], segments * _WORDS_PER_SEGMENT + sum(others))
    taken = iter(words)
    triples = [(next(taken), next(taken), next(taken)) for _ in range(segments)]
    mapped, ended, retired, dropped = ([next(taken) for _ in range(count)] for count in others)
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
    words = array("Q")
    for extent in extents:
        words.extend((extent.kind, extent.reference, extent.offset, extent.length, extent.lease))
    return words.tobytes()


def decode_extents(data: memoryview, count: int) -> tuple[list[Extent], memoryview]:
    """Take *count* extents off *data*; return them and the rest.

    Raises:
      RemoteProtocolError: there are not so many.
    """
    words, rest = _words(data, count * _WORDS_PER_EXTENT)
    return list(map(Extent, *(words[column::_WORDS_PER_EXTENT] for column in range(_WORDS_PER_EXTENT)))), rest


def decode_triples(data: memoryview, count: int) -> tuple[Iterator[tuple[int, int, int]], memoryview]:
    """Take *count* triples of numbers off *data*; return them and the rest.

    Raises:
      RemoteProtocolError: there are not so many.
    """
    words, rest = _words(data, count * 3)
    return zip(words[::3], words[1::3], words[2::3], strict=True), rest


def _words(data: memoryview, count: int) -> tuple[array[int], memoryview]:
    if count * _WORD > data.nbytes:
        raise RemoteProtocolError(f"a table of {count} numbers does not fit into {data.nbytes} bytes", bytes(data))
    return array("Q", data[: count * _WORD].tobytes()), data[count * _WORD :]
