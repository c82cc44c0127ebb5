"""Pickle with handles and big buffers beside the stream instead of inside it.

Everything that goes into a call or comes out of one passes through `pack` and `unpack`.

Buffers of arrays (pickle 5, out of band) are collected and mapped on the other side. Big `bytes` and
`bytearray`, which pickle never puts out of band, reach the file being pickled to as the very objects they
are, whatever the depth they were found at; so they too are copied once into the memfd, and once out of it,
which is what it takes to make a `bytes`.
"""

from __future__ import annotations

import array
import io
import mmap
import pickle
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import RemoteProtocolError
from fdpool.memory import handles as handle_module
from fdpool.memory.bulk import MappedBulk, offsets_for, write_bulk
from fdpool.memory.functions import Unimportable, check_importable, main_module
from fdpool.memory.handles import Arrived, Lent, reducer_for

if TYPE_CHECKING:
    import socket

    from fdpool.kernel import HasFileno, MemFd, OwnedFd

OUT_OF_BAND_BYTES: Final = 32 * 1024
"""Smaller buffers are cheaper inside the pickle than in a memfd (measured: docs/performance.md)."""

INLINE_BYTES: Final = 60 * 1024
"""A longer pickle rides in the memfd, a shorter one in the datagram, where 64 KiB must hold the headers too."""

_HEADER: Final = struct.Struct("<BIQQ")
_HAS_BULK: Final = 0x1
_TAIL_IN_BULK: Final = 0x2
_LENGTH_BYTES: Final = 8


@dataclass(slots=True)
class Packed:
    """Objects ready to travel: bytes for a message's payload, and the handles that go with them.

    Attributes:
      data: At most `INLINE_BYTES` and a header.
      handles: Lent by their owners, but for the first, which is `bulk` if there is one.
      given: What to close here once it has arrived.
    """

    data: bytes
    handles: list[HasFileno]
    given: list[Any] = field(default_factory=list)
    bulk: MemFd | None = None

    def close(self) -> None:
        """Let go of the memory the buffers were put in; what was sent stays alive on its way."""
        if self.bulk is not None:
            self.bulk.close()


def pack(value: Any) -> Packed:
    """Take *value* apart for another process. `close()` the result once it was sent.

    Raises:
      Exception: whatever pickling *value* raises; most often `pickle.PicklingError`, `TypeError` or
          `AttributeError`. Nothing is left behind.
      OSError: no memory for its buffers.
    """
    sink = _pickle(value)
    # Where each buffer lies follows from the lengths, which go before the pickle.
    lengths = array.array("Q", [buffer.nbytes for buffer in sink.buffers])
    tail = [memoryview(lengths).cast("B"), *sink.stream]
    tail_length = sum(map(len, tail))
    count = len(sink.buffers)
    if not count and tail_length <= INLINE_BYTES:
        return Packed(_HEADER.pack(0, 0, 0, tail_length) + b"".join(tail), sink.lent.handles, sink.lent.given)
    if tail_length <= INLINE_BYTES:
        bulk = write_bulk(sink.buffers)
        data = _HEADER.pack(_HAS_BULK, count, 0, tail_length) + b"".join(tail)
    else:
        bulk = write_bulk(sink.buffers, tail)
        _, tail_offset = offsets_for(buffer.nbytes for buffer in sink.buffers)
        data = _HEADER.pack(_HAS_BULK | _TAIL_IN_BULK, count, tail_offset, tail_length)
    return Packed(data, [bulk, *sink.lent.handles], sink.lent.given, bulk)


def unpack(data: memoryview, handles: list[OwnedFd | socket.socket]) -> Any:
    """Put together what `pack` took apart.

    Args:
      data: The bytes of `Packed.data`.
      handles: What came with them; given up, and closed where nothing is rebuilt from it.

    Raises:
      RemoteProtocolError: the sender broke the rules of this format.
      Exception: whatever loading the objects raises.
    """
    arrived = Arrived(handles)
    try:
        stream, buffers = _open_parcel(data, arrived)
        return _Unpickler(stream, buffers, arrived).load()
    finally:
        arrived.close()


def pack_in_band(value: Any) -> bytes:
    """Pickle *value* into bytes alone, as is done with exceptions.

    Raises:
      Exception: whatever pickling it raises; handles in it are a `pickle.PicklingError`.
    """
    sink = _pickle(value, out_of_band=False)
    if sink.lent.handles:
        raise pickle.PicklingError("this carries a handle where only bytes can go")
    return b"".join(sink.stream)


def unpack_in_band(data: bytes) -> Any:
    """Load what `pack_in_band` made."""
    return _Unpickler(io.BytesIO(data), [], Arrived([])).load()


def _open_parcel(data: memoryview, arrived: Arrived) -> tuple[Any, list[memoryview]]:
    """Return the pickle as a file, and the buffers beside it."""
    if data.nbytes < _HEADER.size:
        raise RemoteProtocolError(f"{data.nbytes} bytes are too short for a header of {_HEADER.size}", bytes(data))
    flags, count, tail_offset, tail_length = _HEADER.unpack_from(data)
    tail = data[_HEADER.size :]
    if flags == 0:
        return io.BytesIO(_checked(tail, tail_length)), []
    if flags not in (_HAS_BULK, _HAS_BULK | _TAIL_IN_BULK):
        raise RemoteProtocolError(f"a parcel with flags {flags:#x}", bytes(data))
    with arrived.take_memory() as memfd:
        bulk = MappedBulk(memfd)
    if flags & _TAIL_IN_BULK:
        tail = bulk.view(tail_offset, tail_length)
    table_length = count * _LENGTH_BYTES
    if table_length > _checked(tail, tail_length).nbytes:
        raise RemoteProtocolError(f"a table of {count} buffers does not fit into {tail_length} bytes", bytes(data))
    lengths = array.array("Q", tail[:table_length].tobytes())
    offsets, _ = offsets_for(lengths)
    buffers = list(map(bulk.view, offsets, lengths))
    stream = tail[table_length:]
    return _ViewFile(stream) if flags & _TAIL_IN_BULK else io.BytesIO(stream), buffers


def _checked(tail: memoryview, length: int) -> memoryview:
    if tail.nbytes != length:
        raise RemoteProtocolError(f"{tail.nbytes} bytes came where the header declares {length}")
    return tail


class _Sink:
    """What pickling leaves behind: the stream in pieces, the big buffers, the handles."""

    __slots__ = ("_out_of_band", "buffers", "lent", "stream")

    def __init__(self, *, out_of_band: bool) -> None:
        self.stream: list[memoryview] = []
        self.buffers: list[memoryview] = []
        self.lent = Lent()
        self._out_of_band = out_of_band

    def write(self, data: bytes | bytearray) -> None:
        # The pickler writes a big bytes or bytearray as itself: kept by reference, it is not copied here.
        self.stream.append(memoryview(data))

    def keep_out_of_band(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of the pickle, or return True to leave it in."""
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES or not self._out_of_band:
            return True
        self.buffers.append(raw)
        return False


class _Reducing:
    """The part of a pickler that takes handles apart and sees that functions can be found again."""

    sink: _Sink

    def reducer_override(self, value: Any) -> Any:
        reducer = reducer_for(value)
        if reducer is not None:
            return reducer(self.sink.lent, value)
        if type(value) in (memoryview, mmap.mmap):
            return _reduce_view(memoryview(value))
        check_importable(value)
        return self.reduce_other(value)

    def reduce_other(self, _value: Any) -> Any:
        return NotImplemented


class _Pickler(_Reducing, pickle.Pickler):
    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, pickle.HIGHEST_PROTOCOL, buffer_callback=sink.keep_out_of_band)
        self.sink = sink


def _pickle(value: Any, *, out_of_band: bool = True) -> _Sink:
    sink = _Sink(out_of_band=out_of_band)
    try:
        _Pickler(sink).dump(value)
    except (pickle.PicklingError, AttributeError) as exc:
        # What is only known by value, a lambda or a closure, or a function typed at a prompt.
        sink = _Sink(out_of_band=out_of_band)
        if not _pickle_by_value(value, sink):
            hint = "lambdas, closures and functions typed at a prompt travel with: pip install 'fdpool[cloudpickle]'"
            exc.add_note(hint)
            raise
    return sink


def _pickle_by_value(value: Any, sink: _Sink) -> bool:
    """Pickle with cloudpickle; return False if it is not installed."""
    try:
        import cloudpickle
    except ImportError:
        return False

    class ByValue(_Reducing, cloudpickle.Pickler):  # type: ignore[misc]
        def reduce_other(self, value: Any) -> Any:
            return cloudpickle.Pickler.reducer_override(self, value)

        def reducer_override(self, value: Any) -> Any:
            try:
                return super().reducer_override(value)
            except Unimportable:
                reduced = self.reduce_other(value)
                if reduced is NotImplemented:
                    # It would go by name as well, since the module it names exists here.
                    raise
                return reduced

    pickler = ByValue(sink, pickle.HIGHEST_PROTOCOL, buffer_callback=sink.keep_out_of_band)
    pickler.sink = sink
    pickler.dump(value)
    return True


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, buffers: list[memoryview], arrived: Arrived) -> None:
        super().__init__(stream, buffers=buffers)
        self._arrived = arrived

    def find_class(self, module: str, name: str) -> Any:
        if module == handle_module.__name__ and (rebuilder := self._arrived.rebuilder(name)) is not None:
            return rebuilder
        if module in ("__main__", "__mp_main__"):
            return super().find_class(main_module(), name)
        return super().find_class(module, name)


class _ViewFile(io.RawIOBase):
    """Reads memory as a file, without the copy of everything that `io.BytesIO` begins with."""

    def __init__(self, view: memoryview) -> None:
        self._left = view

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        part = self._left[: len(target)]
        target[: len(part)] = part
        self._left = self._left[len(part) :]
        return len(part)


def _reduce_view(view: memoryview) -> tuple[Any, tuple[Any, ...]]:
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
