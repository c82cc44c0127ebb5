"""Memory as its receiver sees it: mapped once, written privately, and clean again before its owner reuses it."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from fdpool.kernel.mapping import PAGE_BYTES, Mapping
from fdpool.kernel.pagemap import PageMap
from fdpool.memory.addresses import add_place, remove_place
from fdpool.memory.segment import Block, Peer, Segment, segment_numbers

if TYPE_CHECKING:
    from fdpool.kernel import MemFd
    from fdpool.memory.exchange import Exchange

MappingMode = Literal["private", "readonly", "copy"]
"""How received buffers arrive: writable without a copy, read-only, or as a copy in ordinary memory."""

_SMALL_BYTES: Final = 64 << 10
"""Dropping so few pages and taking them in again costs less than finding out which were written."""

_pagemap: PageMap | None = None
_watchers = 0


def watch_pages() -> None:
    """Keep the page map open, until as many calls of `stop_watching_pages`. Without it every page counts as written."""
    global _pagemap, _watchers
    _watchers += 1
    if _pagemap is None:
        try:
            _pagemap = PageMap()
        except OSError:
            # No /proc, or no descriptor free: what follows is slower and just as right.
            _pagemap = None


def stop_watching_pages() -> None:
    """End one `watch_pages`."""
    global _pagemap, _watchers
    _watchers -= 1
    if _pagemap is not None and _watchers == 0:
        _pagemap.close()
        _pagemap = None


class KeptFd:
    """A segment's descriptor, closed when the last one that may still want to pass it on is gone."""

    count: ClassVar[int] = 0
    """How many there are in this process."""

    def __init__(self, fd: MemFd) -> None:
        self.fd = fd
        KeptFd.count += 1

    def __del__(self) -> None:
        KeptFd.count -= 1
        self.fd.close()


class ReceivedSegment:
    """A segment of another process, mapped here; or one of this process, as a receiver would see it.

    Args:
      fd: Lent; not needed afterwards.
      size: Bytes to map.
      is_shared: Whether it is memory that everybody may write.

    Raises:
      OSError: no memory or address space for its mappings.
    """

    def __init__(self, fd: MemFd, size: int, *, is_shared: bool) -> None:
        self.number = next(segment_numbers)
        self.size = size
        self.is_shared = is_shared
        self.peers: weakref.WeakSet[Peer] = weakref.WeakSet()
        self.kept_fd: KeptFd | None = None
        # What others see; read-only unless everybody may write.
        self.base = Mapping(fd.fileno(), size, writable=is_shared, private=False, on_unmap=remove_place)
        self._base_place = _Base()
        add_place(self.base, self._base_place, is_shared=is_shared)
        self.private: Mapping | None = None
        if not is_shared:
            self.private = Mapping(fd.fileno(), size, writable=True, private=True, on_unmap=remove_place)
            add_place(self.private, self)
        # Leases that may be written, by where they begin: no two of them have a page in common.
        self._starts: list[int] = []
        self._leases: dict[int, weakref.ref[Lease]] = {}
        # What was given up: where it begins and ends, and whether it is clean.
        self._ended: deque[tuple[int, int, bool]] = deque()

    def claim(self, lease: Lease) -> bool:
        """Let *lease* be the one that writes its pages; False if one of them is another one's."""
        if self._ended:
            self.clean()
        starts = self._starts
        if starts:
            index = bisect_right(starts, lease.start)
            before = self._leases[starts[index - 1]]() if index else None
            if index and (before is None or before.end > lease.start):
                return False
            if index < len(starts) and starts[index] < lease.end:
                return False
        insort(starts, lease.start)
        self._leases[lease.start] = weakref.ref(lease)
        return True

    def give_up(self, start: int, end: int, *, later: bool) -> None:
        """Take back what nobody looks at any more. From any thread, at any moment.

        Args:
          start: A page's offset.
          end: A page's offset.
          later: Whether what was written there is left to `clean`. Nobody else can see it, and nothing is shown
              there again before it was dropped.
        """
        is_clean = not later and self._drop_written(start, end)
        self._ended.append((start, end, is_clean))

    def clean(self) -> None:
        """Drop what was written into what was given up. By the thread that also claims."""
        while self._ended:
            start, end, is_clean = self._ended[0]
            if is_clean or self._drop_written(start, end):
                self._forget(start)
            # Last, so that what an interrupt prevents is done again. What cannot be dropped is never claimed again.
            self._ended.popleft()

    def _drop_written(self, start: int, end: int) -> bool:
        """Drop the private pages from *start* to *end*; return False if the kernel refuses, as for locked ones."""
        assert self.private is not None
        first, last = self.private.address + start, self.private.address + end
        runs = [(first, last)]
        if _pagemap is not None and end - start > _SMALL_BYTES:
            with suppress(OSError, ValueError):  # just closed by another thread: then all of it goes
                runs = list(_pagemap.written(first, last))
        try:
            for run_start, run_end in runs:
                self.private.drop(run_start - self.private.address, run_end - run_start)
        except OSError:
            return False
        return True

    def _forget(self, start: int) -> None:
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == start:
            del self._starts[index]
        self._leases.pop(start, None)

    def is_written(self, offset: int, length: int) -> bool:
        """Whether what is seen here differs, or may differ, from what others see."""
        if self.private is None:
            return False
        if _pagemap is None:
            return True
        first = self.private.address + offset
        last = first + length
        return any(True for _ in _pagemap.written(first - first % PAGE_BYTES, last + -last % PAGE_BYTES))

    def keeper_at(self, offset: int, length: int) -> Lease | None:
        """Return the lease that these private bytes belong to."""
        index = bisect_right(self._starts, offset)
        lease = self._leases[self._starts[index - 1]]() if index else None
        return lease if lease is not None and offset + length <= lease.end else None

    def show(self, lease: Lease) -> None:
        """Let *lease* be found by the address of what it shows of the common memory."""
        self._base_place.leases.add(lease)

    def __del__(self) -> None:
        for peer in list(self.peers):
            peer.retire(self.number)


class _Base:
    """The mapping of a segment that is not private, where leases may overlap."""

    def __init__(self) -> None:
        self.leases: weakref.WeakSet[Lease] = weakref.WeakSet()

    def keeper_at(self, offset: int, length: int) -> Lease | None:
        covering = (lease for lease in list(self.leases) if lease.start <= offset and offset + length <= lease.end)
        return next(covering, None)


class Lease:
    """The use of a part of a segment, as long as anything refers to this object.

    Args:
      segment: Where it is.
      offset: Where it begins there.
      length: Bytes. The lease covers the pages they are in.
      number: What the owner knows it by; 0 for a part of something that is in use here already.
      exchange: Where it is told that it has ended.
      origin: The block, or the lease, that it is a part of.
    """

    __slots__ = (
        "__weakref__",
        "_is_claimed",
        "end",
        "exchange",
        "length",
        "number",
        "offset",
        "origin",
        "segment",
        "start",
    )

    def __init__(
        self,
        segment: ReceivedSegment,
        offset: int,
        length: int,
        *,
        number: int = 0,
        exchange: Exchange | None = None,
        origin: Block | Lease | None = None,
    ) -> None:
        self.segment = segment
        self.offset = offset
        self.length = length
        self.start = offset - offset % PAGE_BYTES
        self.end = offset + length + -(offset + length) % PAGE_BYTES
        self.number = number
        self.exchange = exchange
        self.origin = origin
        self._is_claimed = False

    @property
    def is_private(self) -> bool:
        """Whether it shows private copies of pages that were written here."""
        return self._is_claimed

    def open(self, offset: int, length: int, mode: MappingMode) -> tuple[memoryview, bool]:
        """Return the bytes, and whether they may be kept: if not they are to be copied at once.

        Pages that another lease may have written cannot be shown here as they are in the segment, so such are copied.
        """
        segment = self.segment
        if segment.is_shared or mode == "readonly":
            segment.show(self)
            view = segment.base.view(offset, length, self)
            return (view if segment.is_shared else view.toreadonly()), True
        if mode == "private" and segment.private is not None:
            self._is_claimed = self._is_claimed or segment.claim(self)
            if self._is_claimed:
                return segment.private.view(offset, length, self), True
        return self.peek(offset, length), False

    def peek(self, offset: int, length: int) -> memoryview:
        """Return the bytes as they are in the segment, read-only."""
        return self.segment.base.view(offset, length, self).toreadonly()

    def __del__(self) -> None:
        exchange = self.exchange
        if self._is_claimed:
            self.segment.give_up(self.start, self.end, later=exchange is not None and exchange.cleans_later)
        if exchange is not None:
            exchange.lease_ended(self)


_own: weakref.WeakKeyDictionary[Segment, ReceivedSegment] = weakref.WeakKeyDictionary()


def as_received(segment: Segment) -> ReceivedSegment:
    """Return this process's own segment as a receiver sees it, for what comes back by reference.

    Raises:
      OSError: no memory or address space for its mappings.
    """
    if segment not in _own:
        _own[segment] = ReceivedSegment(segment.fd, segment.size, is_shared=segment.is_shared)
    return _own[segment]


def _forget_inherited() -> None:
    """Do not look at the parent's page tables after a fork."""
    global _pagemap
    if _pagemap is not None:
        _pagemap.close()
        _pagemap = None


os.register_at_fork(after_in_child=_forget_inherited)
