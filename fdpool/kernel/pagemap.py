"""Which pages of a private mapping were written: those are anonymous memory now, the others still the file's."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from fdpool.kernel.descriptor import OwnedFd
from fdpool.kernel.mapping import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/fs.h
_PAGEMAP_SCAN: Final = 0xC0606610
_PAGE_IS_FILE: Final = 1 << 2
_PAGE_IS_PRESENT: Final = 1 << 3
_PAGE_IS_SWAPPED: Final = 1 << 4
_SCAN_ARGUMENT: Final = struct.Struct("<12Q")
_REGION: Final = struct.Struct("<3Q")
_REGIONS_PER_SCAN: Final = 64

# Documentation/admin-guide/mm/pagemap.rst
_FILE_BIT: Final = 1 << 61
_SWAPPED_BIT: Final = 1 << 62
_PRESENT_BIT: Final = 1 << 63
_ENTRY_BYTES: Final = 8
_ENTRIES_PER_READ: Final = 1 << 16


class PageMap:
    """This process's page tables, as /proc shows them to it without any privilege. Not for use after a fork.

    Raises:
      OSError: /proc is not there (ENOENT), or no descriptor is free.

    See Documentation/admin-guide/mm/pagemap.rst in the kernel's sources.
    """

    __slots__ = ("_can_scan", "_fd")

    def __init__(self) -> None:
        self._fd = OwnedFd(os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        self._can_scan = True

    def close(self) -> None:
        """Close it."""
        self._fd.close()

    def written(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield first and last-plus-one address of each run of pages, of a private mapping, that were written.

        Args:
          start: A page's address.
          end: A page's address.
        """
        if self._can_scan:
            try:
                yield from self._scan_by_ioctl(start, end)
            except OSError as exc:
                # Linux before 6.7 does not know the request. The first one finds out, before anything was yielded.
                if exc.errno != errno.ENOTTY:
                    raise
                self._can_scan = False
        if not self._can_scan:
            yield from self._scan_by_reading(start, end)

    def _scan_by_ioctl(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        regions = ctypes.create_string_buffer(_REGION.size * _REGIONS_PER_SCAN)
        while start < end:
            # Pages that are in memory or swapped out, and not the file's: inverted, "not file" counts as "file".
            argument = bytearray(
                _SCAN_ARGUMENT.pack(
                    _SCAN_ARGUMENT.size, 0, start, end, 0, ctypes.addressof(regions), _REGIONS_PER_SCAN, 0,
                    _PAGE_IS_FILE, _PAGE_IS_FILE, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, _PAGE_IS_PRESENT,
                )
            )  # fmt: skip
            found = fcntl.ioctl(self._fd.fileno(), _PAGEMAP_SCAN, argument)
            for index in range(found):
                first, last, _ = _REGION.unpack_from(regions, index * _REGION.size)
                yield first, last
            start = _SCAN_ARGUMENT.unpack(argument)[4]  # walk_end

    def _scan_by_reading(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        page, last_page = start // PAGE_BYTES, end // PAGE_BYTES
        while page < last_page:
            count = min(_ENTRIES_PER_READ, last_page - page)
            data = os.pread(self._fd.fileno(), count * _ENTRY_BYTES, page * _ENTRY_BYTES)
            if not data:
                raise OSError(errno.EIO, "the page map ends before the address space does")
            for first, last in _runs(memoryview(data).cast("Q")):
                yield (page + first) * PAGE_BYTES, (page + last) * PAGE_BYTES
            page += len(data) // _ENTRY_BYTES


def _runs(entries: memoryview) -> Iterator[tuple[int, int]]:
    """Yield where each run of written pages begins and ends."""
    first = None
    for index, entry in enumerate(entries):
        is_written = entry & _SWAPPED_BIT or (entry & _PRESENT_BIT and not entry & _FILE_BIT)
        if is_written and first is None:
            first = index
        elif not is_written and first is not None:
            yield first, index
            first = None
    if first is not None:
        yield first, len(entries)
