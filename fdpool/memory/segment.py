"""A segment: one memfd, mapped once by the process that owns it, cut into blocks and used again and again."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left, bisect_right, insort
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from fdpool.kernel import MemFd, Seal
from fdpool.kernel.mapping import PAGE_BYTES, Mapping
from fdpool.memory.addresses import add_place, remove_place

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE_PAGE_BYTES: Final = 2 << 20
_POPULATE_BYTES: Final = 256 << 10

SEALED: Final = Seal.FUTURE_WRITE | Seal.SHRINK | Seal.GROW | Seal.SEAL
"""Only mappings that exist already can write: the owner's."""

SEALED_SHARED: Final = Seal.SHRINK | Seal.GROW | Seal.SEAL
"""Everybody who has the descriptor can write; nobody can make a reader die of SIGBUS."""

segment_numbers: Final = count(1)
"""Numbers for whatever this process tells others to map. None is ever used twice."""


class Peer(Protocol):
    """Somebody who was told of a segment."""

    def retire(self, number: int) -> None:
        """Tell it, with the next message, to let go of the segment of this number."""


class Block:
    """A part of a segment, in use as long as anything refers to this object; whole pages.

    Pages, because a receiver drops the pages it wrote one by one: two blocks in one page would lose each other's.
    """

    __slots__ = ("__weakref__", "length", "offset", "segment")

    def __init__(self, segment: Segment, offset: int, length: int) -> None:
        self.segment = segment
        self.offset = offset
        self.length = length

    def view(self, offset: int, length: int) -> memoryview:
        """Return bytes of it, writable, which keep it in use."""
        return self.segment.mapping.view(self.offset + offset, length, self)

    def __del__(self) -> None:
        self.segment.on_unused(self.segment, self.offset, self.length)


class Segment:
    """Memory that this process owns and others may map. Not thread-safe: the arena has the lock.

    Args:
      size: Bytes, whole pages. They cost nothing until a block is taken.
      is_shared: Whether everyone it is given to may write it.
      is_huge: Whether it is made for one block.
      on_unused: Called when a block's last reference is gone, from any thread and at any moment.

    Raises:
      OSError: no descriptor or address space for it, or over `RLIMIT_FSIZE` (EFBIG).
    """

    def __init__(
        self, size: int, *, is_shared: bool, is_huge: bool, on_unused: Callable[[Segment, int, int], None]
    ) -> None:
        self.number = next(segment_numbers)
        self.size = size
        self.is_shared = is_shared
        self.is_huge = is_huge
        self.on_unused = on_unused
        self.used_bytes = 0
        self.idle_since = 0.0
        self.peers: weakref.WeakSet[Peer] = weakref.WeakSet()
        self.fd = MemFd("fdpool-shared" if is_shared else "fdpool-arena", size)
        try:
            self.mapping = Mapping(self.fd.fileno(), size, writable=True, private=False, on_unmap=remove_place)
            self.fd.seal(SEALED_SHARED if is_shared else SEALED)
        except BaseException:
            self.fd.close()
            raise
        self.mapping.prefer_huge_pages()
        add_place(self.mapping, self, is_shared=is_shared)
        self._free = [(0, size)]
        self._starts: list[int] = []
        self._blocks: dict[int, weakref.ref[Block]] = {}
        self._populated = 0

    def take(self, length: int) -> Block | None:
        """Return a block of *length* bytes (whole pages), or None if there is no room.

        The lowest room there is, so that the same pages are used again and again and stay warm.

        Raises:
          OSError: no memory for its pages (ENOMEM, ENOSPC).
        """
        for index, (start, room) in enumerate(self._free):
            if room >= length:
                self._populate(start + length)
                if room == length:
                    del self._free[index]
                else:
                    self._free[index] = (start + length, room - length)
                block = Block(self, start, length)
                insort(self._starts, start)
                self._blocks[start] = weakref.ref(block)
                self.used_bytes += length
                return block
        return None

    def give_back(self, start: int, length: int) -> None:
        """Take back the room of a block that nobody refers to any more."""
        del self._blocks[start], self._starts[bisect_left(self._starts, start)]
        self.used_bytes -= length
        index = bisect_left(self._free, (start,))
        if index < len(self._free) and self._free[index][0] == start + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            index -= 1
            start, before = self._free.pop(index)
            length += before
        self._free.insert(index, (start, length))

    def keeper_at(self, offset: int, length: int) -> Block | None:
        """Return the block that holds these bytes."""
        index = bisect_right(self._starts, offset)
        block = self._blocks[self._starts[index - 1]]() if index else None
        return block if block is not None and offset + length <= block.offset + block.length else None

    def close(self) -> None:
        """Give the memory back: it goes once those who were told of it have let go as well. No block may be in use."""
        self.fd.close()
        for peer in list(self.peers):
            peer.retire(self.number)

    def _populate(self, end: int) -> None:
        """Take the pages up to *end*, so that filling them through the mapping never raises SIGBUS."""
        if end <= self._populated:
            return
        end = min(end + -end % _POPULATE_BYTES, self.size)
        length = end - self._populated
        if not self.mapping.populate(self._populated, length):
            os.posix_fallocate(self.fd.fileno(), self._populated, length)
        self._populated = end


def whole_pages(nbytes: int) -> int:
    """Return *nbytes* rounded up to whole pages, at least one."""
    return max(nbytes + -nbytes % PAGE_BYTES, PAGE_BYTES)
