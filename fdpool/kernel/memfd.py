"""MemFd: memory with a descriptor and no name, that can be sealed against change."""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

from fdpool.kernel.buffers import bytes_of
from fdpool.kernel.descriptor import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

# linux/memfd.h and linux/fcntl.h; os and fcntl lack them in interpreters built against older headers.
_MFD_CLOEXEC: Final = 0x1
_MFD_ALLOW_SEALING: Final = 0x2
_MFD_NOEXEC_SEAL: Final = 0x8
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034

MAX_BUFFERS_PER_WRITE: Final = 1024  # IOV_MAX, writev(2)


class Seal(enum.IntFlag):
    """What can never happen to a memfd any more. See fcntl(2), "File Sealing"."""

    SEAL = 0x1
    """No further seals."""
    SHRINK = 0x2
    """It cannot become smaller: a mapping of it can never raise SIGBUS."""
    GROW = 0x4
    """It cannot become larger."""
    WRITE = 0x8
    """Nobody writes: refused (EBUSY) while a writable shared mapping exists."""
    FUTURE_WRITE = 0x10
    """Nobody writes but through shared writable mappings that exist already."""
    EXEC = 0x20
    """It cannot be made executable (set from birth where the kernel can, Linux 6.3)."""


IMMUTABLE: Final = Seal.WRITE | Seal.SHRINK | Seal.GROW | Seal.SEAL


class MemFd(OwnedFd):
    """Anonymous memory behind a descriptor, owned. Gone with its last descriptor and mapping.

    See memfd_create(2).

    Args:
      name: Shown in /proc for debugging only; need not be unique. At most 249 bytes.
      size: Bytes, all zero. Their pages are taken when first written; `reserve()` takes them at once.
    """

    __slots__ = ()

    def __init__(self, name: str = "fdpool", size: int = 0) -> None:
        super().__init__(_create(name))
        if size:
            try:
                self.resize(size)
            except BaseException:
                self.close()
                raise

    @classmethod
    def from_bytes(cls, data: Buffer, *, name: str = "fdpool", seals: Seal = IMMUTABLE) -> MemFd:
        """Return a memfd holding a copy of *data*, sealed with *seals*.

        Raises:
          OSError: no memory for it (ENOSPC, ENOMEM), or over `RLIMIT_FSIZE` (EFBIG).
        """
        self = cls(name)
        try:
            self.write([data])
            if seals:
                self.seal(seals)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def size(self) -> int:
        """Its length in bytes."""
        self._check_open()
        return os.fstat(self._fd).st_size

    def resize(self, size: int) -> None:
        """Grow with zero bytes, or cut. Whoever has mapped what is cut off gets SIGBUS: seal SHRINK first.

        Raises:
          PermissionError: sealed against it.
          OSError: over `RLIMIT_FSIZE` (EFBIG).
        """
        self._check_open()
        os.ftruncate(self._fd, size)

    def reserve(self) -> None:
        """Take every page now, so that writing through a mapping cannot run out of memory (SIGBUS).

        Raises:
          OSError: no memory for it (ENOSPC, ENOMEM).
        """
        if size := self.size:
            os.posix_fallocate(self._fd, 0, size)

    def write(self, buffers: Sequence[Buffer], offset: int = 0) -> int:
        """Write all *buffers*, one after the other, from *offset* on; return how many bytes that was.

        Raises:
          PermissionError: sealed against writing.
          OSError: no memory for it (ENOSPC, ENOMEM), or over `RLIMIT_FSIZE` (EFBIG); a part may have been written.
        """
        self._check_open()
        pending = [view for buffer in buffers if (view := bytes_of(buffer)).nbytes]
        pending.reverse()
        position = offset
        while pending:
            # One write(2) moves at most 0x7ffff000 bytes and may stop anywhere.
            written = os.pwritev(self._fd, pending[: -MAX_BUFFERS_PER_WRITE - 1 : -1], position)
            if written == 0:
                raise OSError(errno.ENOSPC, "the kernel took none of the bytes")
            position += written
            while pending and written >= pending[-1].nbytes:
                written -= pending.pop().nbytes
            if written:
                pending[-1] = pending[-1][written:]
        return position - offset

    def seal(self, seals: Seal) -> None:
        """Add *seals*; they hold for everyone, for good.

        Raises:
          PermissionError: sealed against sealing.
          OSError: `Seal.WRITE` while a writable shared mapping exists (EBUSY).
        """
        self._check_open()
        fcntl.fcntl(self._fd, _F_ADD_SEALS, int(seals))

    @property
    def seals(self) -> Seal:
        """The seals it carries."""
        self._check_open()
        return Seal(fcntl.fcntl(self._fd, _F_GET_SEALS))

    def map(
        self, *, writable: bool = False, private: bool = False, length: int | None = None, offset: int = 0
    ) -> mmap.mmap:
        """Map it, or a part of it. The mapping lives on its own: this may be closed right after.

        Args:
          writable: Whether the mapping may be written.
          private: Whether its writes are its own (copy-on-write) instead of everybody's.
          length: Bytes, from *offset* to the end by default.
          offset: Where to begin, a multiple of the page size.

        Raises:
          ValueError: the part is empty or not inside the memfd.
          PermissionError: a shared writable mapping of something sealed against writing.
        """
        size = self.size
        length = size - offset if length is None else length
        if length <= 0 or offset < 0 or offset + length > size:
            raise ValueError(f"bytes {offset} to {offset + length} cannot be mapped: the memfd has {size}")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        visibility = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        return mmap.mmap(self._fd, length, visibility, protection, offset=offset)


def _create(name: str) -> int:
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        return _memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as exc:
        # Linux before 6.3 does not know the flag.
        if exc.errno != errno.EINVAL:
            raise
    return _memfd_create(name, flags)


def _memfd_create_syscall(name: str, flags: int) -> int:
    """Call memfd_create(2) from an interpreter built without it, as some portable builds are."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.memfd_create(os.fsencode(name), ctypes.c_uint(flags))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


_memfd_create = getattr(os, "memfd_create", _memfd_create_syscall)
