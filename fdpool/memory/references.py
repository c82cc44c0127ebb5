"""Which memory a pickle refers to: by reference where the other side can map it, else copied into one block."""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING, Final

from fdpool.kernel.mapping import address_of
from fdpool.memory import addresses
from fdpool.memory.parcel import Part
from fdpool.memory.received import Lease

if TYPE_CHECKING:
    from fdpool.memory.received import KeptFd
    from fdpool.memory.segment import Block

ALIGNMENT: Final = 64
"""Each copied buffer starts on a cache line, which is also what vectorised code likes to see."""


class _Region:
    """What is referred to of one block or lease: from the lowest byte of any buffer to the highest."""

    __slots__ = ("end", "keeper", "kept_fd", "start")

    def __init__(self, keeper: Block | Lease, kept_fd: KeptFd | None, start: int, end: int) -> None:
        self.keeper = keeper
        self.kept_fd = kept_fd
        self.start = start
        self.end = end


class References:
    """The buffers of one pickle, in order.

    Attributes:
      copied_bytes: Room that those take that must be copied.
    """

    def __init__(self) -> None:
        self.copied_bytes = 0
        self._copies: list[memoryview] = []
        self._regions: dict[int, tuple[int, _Region]] = {}
        # Region and offset in the segment, or None and offset among the copies; and the length.
        self._buffers: list[tuple[tuple[int, _Region] | None, int, int]] = []

    def __len__(self) -> int:
        return len(self._buffers)

    def add(self, buffer: memoryview, copied_from: int) -> bool:
        """Take a buffer; or return False for one that is to stay in the pickle.

        Args:
          copied_from: How long it must be to be taken, unless it lies in memory that everybody may write.

        Raises:
          OSError: it lies in memory that everybody may write, and that can no longer be passed on.
        """
        length = buffer.nbytes
        if length < copied_from and not (addresses.has_shared and length):
            return False
        keeper, offset = addresses.keeper_of(address_of(buffer), length)
        if length < copied_from and (keeper is None or not keeper.segment.is_shared):
            return False
        region = None if keeper is None else self._region(keeper, offset, length)
        if region is None:
            offset = self.copied_bytes
            self._copies.append(buffer)
            self.copied_bytes += length + -length % ALIGNMENT
        self._buffers.append((region, offset, length))
        return True

    def parts(self) -> list[Part]:
        """Return the memory that is referred to."""
        return [Part(r.keeper, r.start, r.end - r.start, r.kept_fd) for _, r in self._regions.values()]

    def table(self, copies: int) -> bytes:
        """Return where each buffer is: extent, offset in it, length. The copies are in extent number *copies*."""
        words = array("Q")
        for numbered, offset, length in self._buffers:
            if numbered is None:
                words.extend((copies, offset, length))
            else:
                number, region = numbered
                words.extend((number, offset - region.start, length))
        return words.tobytes()

    def copy_into(self, memory: memoryview) -> int:
        """Copy what has to be copied to the beginning of *memory*; return where that ends."""
        position = 0
        for buffer in self._copies:
            memory[position : position + buffer.nbytes] = buffer
            position += buffer.nbytes + -buffer.nbytes % ALIGNMENT
        return position

    def _region(self, keeper: Block | Lease, offset: int, length: int) -> tuple[int, _Region] | None:
        """Return the region that these bytes are in, or None if they have to be copied."""
        kept_fd = None
        if isinstance(keeper, Lease):
            if keeper.is_private and keeper.segment.is_written(offset, length):
                return None
            if keeper.origin is not None:
                keeper = keeper.origin
        if isinstance(keeper, Lease) and keeper.exchange is not None and keeper.exchange.keeps_fds:
            kept_fd = keeper.segment.kept_fd
            if kept_fd is None:
                if keeper.segment.is_shared:
                    raise OSError(errno.EMFILE, "no descriptor was free to keep this shared memory for others")
                return None
        numbered = self._regions.get(id(keeper))
        if numbered is None:
            numbered = len(self._regions), _Region(keeper, kept_fd, offset, offset + length)
            self._regions[id(keeper)] = numbered
        region = numbered[1]
        region.start, region.end = min(region.start, offset), max(region.end, offset + length)
        return numbered
