"""Memory to fill in place, that travels to other processes without being copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fdpool.memory.arena import arena

if TYPE_CHECKING:
    import numpy


def allocate(nbytes: int, *, shared: bool = False) -> memoryview:
    """Return writable memory, in a pool's process or in a task, that calls and results carry by reference.

    So do views and slices of it, and arrays built on it. It is in use as long as any of those is looked at, in any
    process. By reference means that a receiver sees what is written here while it looks, until it has written to
    that page itself: what it writes is its own, and nobody else sees it.

    Args:
      nbytes: How much. It holds anything at first.
      shared: Whether everybody it is given to writes into the very same memory.

    Raises:
      ValueError: *nbytes* is negative.
      OSError: no memory for it (ENOMEM, ENOSPC), over `RLIMIT_FSIZE` (EFBIG), or no descriptor free (EMFILE).
    """
    if nbytes < 0:
        raise ValueError(f"{nbytes} bytes cannot be allocated")
    return arena().allocate(nbytes, shared=shared).view(0, nbytes)


def empty(
    shape: int | tuple[int, ...], dtype: Any = float, *, order: Literal["C", "F"] = "C", shared: bool = False
) -> numpy.ndarray[Any, Any]:
    """Return a NumPy array on memory as `allocate` returns. It holds anything at first.

    Args:
      order: "C" for rows first, "F" for columns first.
      shared: Whether everybody it is given to writes into the very same memory.

    Raises:
      ValueError: arrays of objects cannot lie in such memory.
      OSError: as `allocate`.
    """
    import numpy

    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"arrays of {kind} hold objects, which other processes cannot reach")
    lengths = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = kind.itemsize
    for length in lengths:
        nbytes *= length
    memory = allocate(nbytes, shared=shared)
    return numpy.ndarray(lengths, kind, memory, order=order)


def zeros(
    shape: int | tuple[int, ...], dtype: Any = float, *, order: Literal["C", "F"] = "C", shared: bool = False
) -> numpy.ndarray[Any, Any]:
    """Return an array as `empty` does, all zero."""
    array = empty(shape, dtype, order=order, shared=shared)
    array.fill(0)
    return array


def copy(array: numpy.ndarray[Any, Any], *, shared: bool = False) -> numpy.ndarray[Any, Any]:
    """Return a copy of *array* on memory as `empty` does, in the same order of elements."""
    order: Literal["C", "F"] = "F" if array.flags.fnc else "C"
    duplicate = empty(array.shape, array.dtype, order=order, shared=shared)
    duplicate[...] = array
    return duplicate
