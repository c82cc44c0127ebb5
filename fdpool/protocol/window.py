"""Windows: how far a stream may be ahead of its consumer, kept at both ends without asking each other.

The worker knows how big the items are that it has sent, and is told now and then how many of them were taken. The
consumer says so once that is half of the window. Both count the same bytes, so one of them always knows to go on.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

from fdpool.errors import RemoteProtocolError

STREAM_ITEMS: Final = 16
"""How many items wait for their consumer at most, unless told otherwise."""

STREAM_BYTES: Final = 64 << 20
"""From how many bytes on nothing is added to what waits for its consumer, unless told otherwise."""

_TAKEN: Final = struct.Struct("<Q")


class SendingWindow:
    """The worker's end.

    Args:
      items: How many items may be under way.
      nbytes: From how many bytes on no further item is made. The first one always is, so one that is larger goes alone.
    """

    def __init__(self, items: int, nbytes: int) -> None:
        self._items = items
        self._nbytes = nbytes
        self._taken = 0
        self._sizes: deque[int] = deque()
        self._sent_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether one more item may be made."""
        return not self._sizes or (len(self._sizes) < self._items and self._sent_bytes < self._nbytes)

    def sent(self, nbytes: int) -> None:
        """Count an item that was sent."""
        self._sizes.append(nbytes)
        self._sent_bytes += nbytes

    def taken(self, total: int) -> None:
        """Take in how many items of all that were sent have been taken.

        Raises:
          RemoteProtocolError: those are more than were sent.
        """
        if total > self._taken + len(self._sizes):
            raise RemoteProtocolError(f"{total} items were taken, and only {self._taken + len(self._sizes)} were sent")
        while self._taken < total:
            self._taken += 1
            self._sent_bytes -= self._sizes.popleft()


class ReceivingWindow:
    """The consumer's end. The same *items* and *nbytes* as at the other."""

    def __init__(self, items: int, nbytes: int) -> None:
        self._items = items
        self._nbytes = nbytes
        self._arrived = 0
        self._told = 0
        self._untold_bytes = 0
        self.taken = 0

    @property
    def is_due(self) -> bool:
        """Whether the worker should be told, since it may be waiting or soon will."""
        return 2 * (self.taken - self._told) >= self._items or 2 * self._untold_bytes >= self._nbytes

    def arrived(self) -> None:
        """Count an item that came.

        Raises:
          RemoteProtocolError: the worker had no room for it.
        """
        # Measured by what was taken: the worker may have been told of that before `told` can be called.
        if self._arrived - self.taken >= self._items:
            raise RemoteProtocolError(f"an item came beyond the window of {self._items}")
        self._arrived += 1

    def took(self, nbytes: int | None) -> None:
        """Count an item that the consumer took; None where nobody knows how big it was."""
        self.taken += 1
        self._untold_bytes += self._nbytes if nbytes is None else nbytes

    def told(self) -> None:
        """Take note that the worker knows how many were taken."""
        self._told = self.taken
        self._untold_bytes = 0


def encode_taken(total: int, news: bytes) -> bytes:
    """Lay out the body of `MORE`: how many items were taken, and news of memory."""
    return _TAKEN.pack(total) + news


def decode_taken(body: memoryview) -> tuple[int, memoryview]:
    """Take the body of `MORE` apart.

    Raises:
      RemoteProtocolError: it is too short.
    """
    if body.nbytes < _TAKEN.size:
        raise RemoteProtocolError(f"{body.nbytes} bytes are too short for a count of items", bytes(body))
    (total,) = _TAKEN.unpack_from(body)
    return total, body[_TAKEN.size :]
