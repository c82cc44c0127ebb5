"""Objects that are memory and little else: how they are taken apart into a buffer and its layout, and rebuilt."""

from __future__ import annotations

import array
import mmap
import pickle
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fdpool.kernel.mapping import export
from fdpool.memory.addresses import keeper_of

if TYPE_CHECKING:
    from collections.abc import Callable

Reduced = tuple["Callable[..., Any]", tuple[Any, ...]]


def reduce_view(value: Any) -> Reduced | None:
    """Take *value* apart if pickle would not, or would copy memory that can travel by reference; else return None."""
    kind = type(value)
    if kind is memoryview:
        return _reduce_memoryview(value)
    if kind is mmap.mmap:
        return _reduce_memoryview(memoryview(value))
    if kind is array.array:
        return rebuild_array, (value.typecode, pickle.PickleBuffer(value))
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray and not value.flags.forc:
        return _reduce_strided(value, numpy)
    return None


def _reduce_memoryview(view: memoryview) -> Reduced:
    """Take a memoryview apart: its bytes out of band, its shape beside them.

    Raises:
      TypeError: its items have a format that no memoryview made over there could have.
    """
    layout = _native_format(view)
    shape = view.shape
    if not view.c_contiguous:
        # Strides would make the other side's view refer to bytes that did not travel.
        view = memoryview(bytes(view) if view.readonly else bytearray(view))
    return rebuild_view, (pickle.PickleBuffer(view), layout, shape)


def _native_format(view: memoryview) -> str:
    """Return the format of *view* in the notation of `memoryview.cast`; that of ctypes differs, for the same items."""
    native = view.format.lstrip("@=<" if sys.byteorder == "little" else "@=>!")
    with suppress(ValueError, TypeError):
        if memoryview(bytes(view.itemsize)).cast(native).itemsize == view.itemsize:  # type: ignore[call-overload]
            return native
    raise TypeError(f"a memoryview of format {view.format!r} cannot be made in another process; its .cast('B') can")


def rebuild_view(buffer: Any, layout: str, shape: tuple[int, ...]) -> memoryview:
    """Return a view of *buffer*, writable if the original was, of the original's format and shape."""
    view = memoryview(buffer).cast("B")
    if 0 not in shape:
        return view.cast(layout, shape)  # type: ignore[call-overload,no-any-return]
    # Of all empty views, cast makes only the flat ones.
    return view.cast(layout)  # type: ignore[call-overload,no-any-return]


def rebuild_array(typecode: str, buffer: Any) -> array.array[Any]:
    """Return an array of the bytes of *buffer*, which it copies: it cannot lie in memory that is not its own."""
    rebuilt: array.array[Any] = array.array(typecode)
    rebuilt.frombytes(buffer)
    return rebuilt


def _reduce_strided(value: Any, numpy: Any) -> Reduced | None:
    """Take apart an array with gaps, if what it spans is memory that others can map; NumPy would copy it."""
    if value.dtype.hasobject or not value.size:
        return None
    byte_bounds = numpy.lib.array_utils.byte_bounds if hasattr(numpy.lib, "array_utils") else numpy.byte_bounds
    low, high = byte_bounds(value)
    if keeper_of(low, high - low)[0] is None:
        return None
    span = export(low, high - low, value)
    first = value.__array_interface__["data"][0] - low
    buffer = pickle.PickleBuffer(span if value.flags.writeable else span.toreadonly())
    return rebuild_strided, (buffer, value.dtype, value.shape, value.strides, first)


def rebuild_strided(buffer: Any, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], first: int) -> Any:
    """Return an array with the original's strides on *buffer*."""
    import numpy

    return numpy.ndarray(shape, dtype, memoryview(buffer), first, strides)
