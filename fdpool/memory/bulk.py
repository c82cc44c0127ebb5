"""Big buffers in a sealed memfd: written once, mapped by whoever receives it, never copied again."""

from __future__ import annotations

import mmap
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import RemoteProtocolError
from fdpool.kernel import IMMUTABLE, MemFd, Seal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALIGNMENT: Final = 64
"""Each buffer starts on a cache line, which is also what vectorised code likes to see."""

_PADDING: Final = bytes(ALIGNMENT)
_MAP_FIXED: Final = 0x10  # linux/mman.h


def offsets_for(lengths: Iterable[int]) -> tuple[list[int], int]:
    """Return where buffers of these *lengths* lie in a bulk, and where what follows them begins."""
    offsets = []
    position = 0
    for length in lengths:
        offsets.append(position)
        position += length + -length % ALIGNMENT
    return offsets, position


def write_bulk(buffers: Sequence[memoryview], tail: Sequence[memoryview] = ()) -> MemFd:
    """Copy *buffers*, each aligned, and then *tail* into a new memfd, and seal it.

    Raises:
      OSError: no memory for it (ENOSPC, ENOMEM), or over `RLIMIT_FSIZE` (EFBIG).
    """
    pieces: list[memoryview | bytes] = []
    for buffer in buffers:
        pieces += (buffer, _PADDING[: -buffer.nbytes % ALIGNMENT])
    memfd = MemFd("fdpool-bulk")
    try:
        memfd.write([*pieces, *tail])
        memfd.seal(IMMUTABLE)
    except BaseException:
        memfd.close()
        raise
    return memfd


class MappedBulk:
    """The memfd of somebody else's buffers, mapped. The mapping lives as long as any view of it.

    Views are writable and private (copy-on-write): nobody else ever sees what is written through them.

    Args:
      memfd: Lent. It must be sealed against shrinking, else its owner could make any reader die of SIGBUS.

    Raises:
      RemoteProtocolError: it is not sealed.
    """

    __slots__ = ("_view",)

    def __init__(self, memfd: MemFd) -> None:
        if not memfd.seals & Seal.SHRINK:
            raise RemoteProtocolError("the buffers came in a memfd that is not sealed against shrinking")
        self._view = memoryview(_map(memfd.fileno(), memfd.size) if memfd.size else b"")

    def view(self, offset: int, length: int) -> memoryview:
        """Return the bytes at *offset*.

        Raises:
          RemoteProtocolError: they are not all inside the memfd.
        """
        if offset + length > self._view.nbytes:
            raise RemoteProtocolError(f"{length} bytes at {offset}, in a memfd of {self._view.nbytes}")
        return self._view[offset : offset + length]


def _map(fd_number: int, size: int) -> mmap.mmap:
    """Map the whole of a memfd, private and writable, without keeping a descriptor for as long as that lives."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd_number, size, mmap.MAP_PRIVATE, protection, trackfd=False)
    # Before 3.13 an mmap keeps a duplicate of what it maps, so that a thousand results kept would be a thousand
    # descriptors. One of no file has none, and the kernel can put the memfd in its place.
    import ctypes

    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    if _libc_mmap()(address, size, protection, mmap.MAP_PRIVATE | _MAP_FIXED, fd_number, 0) != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return mapping


@cache
def _libc_mmap() -> Any:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    return function
