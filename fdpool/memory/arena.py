"""The arena: this process's memory for what other processes are to see, recycled instead of made anew.

Taking fresh pages from the kernel costs ten times what copying into warm ones does. So blocks come from segments
that stay mapped; segments with nothing in them are given back after a while.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fdpool.memory.segment import HUGE_PAGE_BYTES, Block, Segment, whole_pages

if TYPE_CHECKING:
    from collections.abc import Iterable

SEGMENT_BYTES: Final = 64 << 20
"""What blocks of ordinary size are cut from. Address space only: pages are taken as blocks are."""

HUGE_BLOCK_BYTES: Final = 32 << 20
"""A block over this has a segment of its own, which goes back to the kernel by itself."""


IDLE_SECONDS: Final = 5.0
"""Memory that nobody has used for so long goes back to the kernel."""


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """What an arena holds.

    Attributes:
      segments: How many segments there are, each a descriptor and a mapping.
      used_bytes: In blocks that somebody refers to, here or in another process.
      idle_bytes: In segments without any such block; given back after a while.
    """

    segments: int
    used_bytes: int
    idle_bytes: int


class Arena:
    """Segments and the blocks in them. May be used from any thread.

    Keeps segments that have become idle only while somebody retains it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        # Blocks end wherever their last reference does: in another thread, or while this one holds the lock.
        self._unused: deque[tuple[Segment, int, int]] = deque()
        self._retainers = 0

    def allocate(self, nbytes: int, *, shared: bool = False) -> Block:
        """Return a block of at least *nbytes*, in use as long as it is referred to. What it holds is anything.

        Raises:
          OSError: no memory for it (ENOMEM, ENOSPC), over `RLIMIT_FSIZE` (EFBIG), or no descriptor free (EMFILE).
        """
        length = whole_pages(nbytes)
        try:
            with self._lock:
                self._settle()
                try:
                    return self._take(length, shared)
                except OSError as exc:
                    if exc.errno not in (errno.ENOMEM, errno.ENOSPC, errno.EMFILE) or not self._close_idle(0.0):
                        raise
                # What idle segments held may be just what was missing.
                return self._take(length, shared)
        finally:
            self._settle_if_possible()

    def retain(self) -> None:
        """Keep idle segments, until as many calls of `let_go`."""
        with self._lock:
            self._retainers += 1

    def let_go(self) -> None:
        """End one `retain`; after the last, idle segments are closed at once."""
        with self._lock:
            self._retainers -= 1
            self._settle()

    def trim(self, idle_seconds: float = 0.0) -> None:
        """Close the segments that have been idle for so long."""
        with self._lock:
            self._settle()
            self._close_idle(idle_seconds)

    @property
    def has_segments(self) -> bool:
        """Whether it holds any memory, in use or idle."""
        return bool(self._segments)

    def statistics(self) -> ArenaStatistics:
        """Return what it holds now."""
        with self._lock:
            self._settle()
            used = sum(segment.used_bytes for segment in self._segments)
            idle = sum(segment.size for segment in self._segments if not segment.used_bytes)
            return ArenaStatistics(len(self._segments), used, idle)

    def _take(self, length: int, shared: bool) -> Block:
        for segment in self._candidates(length, shared):
            block = segment.take(length)
            if block is not None:
                return block
        segment = self._new_segment(length, shared)
        try:
            block = segment.take(length)
            assert block is not None, "a new segment has room for what it was made for"
        except BaseException:
            segment.close()
            raise
        self._segments.append(segment)
        return block

    def _candidates(self, length: int, shared: bool) -> Iterable[Segment]:
        """Return the segments that may have room, the one to be preferred first."""
        fitting = [s for s in self._segments if s.is_shared == shared and s.is_huge == (length > HUGE_BLOCK_BYTES)]
        if length <= HUGE_BLOCK_BYTES:
            return fitting
        free = [s for s in fitting if not s.used_bytes and length <= s.size <= 2 * length]
        return sorted(free, key=lambda segment: segment.size)

    def _new_segment(self, length: int, shared: bool) -> Segment:
        if length > HUGE_BLOCK_BYTES:
            size = length + -length % HUGE_PAGE_BYTES
            return Segment(size, is_shared=shared, is_huge=True, on_unused=self._on_unused)
        try:
            return Segment(SEGMENT_BYTES, is_shared=shared, is_huge=False, on_unused=self._on_unused)
        except OSError as exc:
            # Within RLIMIT_FSIZE there may be room for this block, if not for a whole segment.
            if exc.errno != errno.EFBIG:
                raise
        return Segment(length, is_shared=shared, is_huge=False, on_unused=self._on_unused)

    def _on_unused(self, segment: Segment, offset: int, length: int) -> None:
        self._unused.append((segment, offset, length))
        self._settle_if_possible()

    def _settle_if_possible(self) -> None:
        # Whoever holds the lock comes by here when it has let go of it.
        while self._unused and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Take in the blocks that have ended. With the lock held."""
        while self._unused:
            segment, offset, length = self._unused.popleft()
            segment.give_back(offset, length)
            if not segment.used_bytes:
                segment.idle_since = time.monotonic()
        if not self._retainers:
            self._close_idle(0.0)

    def _close_idle(self, idle_seconds: float) -> bool:
        """Close idle segments; return whether there were any. With the lock held."""
        latest = time.monotonic() - idle_seconds
        idle = [s for s in self._segments if not s.used_bytes and s.idle_since <= latest]
        for segment in idle:
            self._segments.remove(segment)
            segment.close()
        return bool(idle)


_arena = Arena()


def arena() -> Arena:
    """Return this process's arena."""
    return _arena


def _forget_inherited() -> None:
    """Begin anew after a fork: the inherited segments are the parent's, which goes on writing them."""
    global _arena
    _arena = Arena()


os.register_at_fork(after_in_child=_forget_inherited)
