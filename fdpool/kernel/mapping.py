"""Mapping: memory of a descriptor in this process, without a descriptor of its own; and buffers that keep things alive.

`mmap.mmap` of the standard library duplicates the descriptor and keeps it (before Python 3.13), and cannot say
when the last view of it is gone. These mappings hold nothing but addresses.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

PAGE_BYTES: Final = mmap.PAGESIZE

# asm-generic/mman-common.h
_MAP_NORESERVE: Final = 0x4000  # mmap has it from Python 3.13 on
_MADV_DONTNEED: Final = 4
_MADV_HUGEPAGE: Final = 14
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class Mapping:
    """A mapping, owned: unmapped when this object goes, which every view made by `view` prevents.

    Args:
      fd_number: What to map, from its beginning. Not needed afterwards.
      length: Bytes; rounded up to whole pages.
      writable: Whether it may be written.
      private: Whether what is written is this mapping's own (copy-on-write).
      on_unmap: Called when it is gone, from whatever thread and at whatever moment drops the last reference.

    Raises:
      OSError: no memory or address space for it (ENOMEM), or the descriptor does not allow it (EPERM, EACCES).

    See mmap(2), madvise(2).
    """

    __slots__ = ("_on_unmap", "_unmap", "address", "length")

    def __init__(
        self,
        fd_number: int,
        length: int,
        *,
        writable: bool,
        private: bool,
        on_unmap: Callable[[int], object] | None = None,
    ) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # A private mapping that may be written in full is not charged as if it were (overcommit).
        kind = mmap.MAP_PRIVATE | _MAP_NORESERVE if private else mmap.MAP_SHARED
        address = _mmap(None, length, protection, kind, fd_number, 0)
        if address == _MAP_FAILED:
            raise _os_error(f"{length} bytes of descriptor {fd_number} cannot be mapped")
        self.address: int = address
        self.length = length
        self._on_unmap = on_unmap
        # Kept here because module globals may be gone when the interpreter ends before the last view does.
        self._unmap = _munmap

    def view(self, offset: int, length: int, keeper: object) -> memoryview:
        """Return *length* bytes from *offset* on; *keeper* lives as long as any view made of them, and the mapping too.

        The bytes must be inside the mapping, which nothing here checks.
        """
        return export(self.address + offset, length, (self, keeper))

    def populate(self, offset: int, length: int) -> bool:
        """Take the pages of a writable shared mapping now, so that writing there cannot raise SIGBUS.

        Returns:
          False where the kernel cannot (before Linux 5.14); nothing was done then.

        Raises:
          OSError: no memory for them (ENOMEM).
        """
        if _madvise(self.address + offset, length, _MADV_POPULATE_WRITE) == 0:
            return True
        if ctypes.get_errno() == errno.EINVAL:
            return False
        # EFAULT is how it says that touching the pages would have raised SIGBUS.
        raise OSError(errno.ENOMEM, f"there is no memory for {length} bytes")

    def prefer_huge_pages(self) -> None:
        """Ask for 2 MiB pages, which the kernel takes five times as fast. It may decline."""
        _madvise(self.address, self.length, _MADV_HUGEPAGE)

    def drop(self, offset: int, length: int) -> None:
        """Forget the private copies of whole pages: they show what the descriptor holds again.

        Raises:
          OSError: the pages are not mapped, or locked.
        """
        if _madvise(self.address + offset, length, _MADV_DONTNEED) != 0:
            raise _os_error(f"{length} bytes at {offset} cannot be dropped")

    def __del__(self) -> None:
        if hasattr(self, "_unmap"):
            self._unmap(self.address, self.length)
            if self._on_unmap is not None:
                self._on_unmap(self.address)

    def __repr__(self) -> str:
        return f"<Mapping {self.address:#x}-{self.address + self.length:#x}>"


def export(address: int, length: int, keeper: object) -> memoryview:
    """Return the memory at *address* as writable bytes; *keeper* lives as long as any view made of them."""
    # The exporter may end beyond the memory: nobody looks there, and one class for each power of two is enough.
    exporter = _exporter_class(max(length - 1, 0).bit_length()).from_address(address)
    exporter.keeper = keeper
    return memoryview(exporter).cast("B")[:length]


@lru_cache(maxsize=64)
def _exporter_class(bits: int) -> Any:
    return ctypes.c_ubyte * (1 << bits)


class _PyBuffer(ctypes.Structure):
    """`Py_buffer` of the C API, Include/cpython/object.h."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)


def address_of(buffer: Buffer) -> int:
    """Return where the bytes of a contiguous *buffer* lie; true as long as somebody holds the buffer.

    Raises:
      BufferError, TypeError: it is no contiguous buffer.
    """
    info = _PyBuffer()
    _get_buffer(buffer, info, 0)  # PyBUF_SIMPLE
    address: int = info.buf or 0
    _release_buffer(info)
    return address


def _os_error(message: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{message}: {os.strerror(code)}")
