"""Pickle with handles and big buffers beside the stream instead of inside it.

Everything that goes into a call or comes out of one passes through `gather` and `unpack`.

Buffers of arrays (pickle 5, out of band) are copied into this process's arena once, unless they lie in memory
already that the other side can map: then they travel by reference. Big `bytes` and `bytearray`, which pickle
never puts out of band, reach the file being pickled to as the very objects they are, whatever the depth they
were found at; so they too are copied once into the arena, and once out of it, which is what it takes to make
a `bytes`.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import RemoteProtocolError
from fdpool.memory import handles as handle_module
from fdpool.memory.arena import arena
from fdpool.memory.functions import Unimportable, check_importable, main_module
from fdpool.memory.handles import Arrived, Lent, reducer_for
from fdpool.memory.parcel import MODES, Packed, Parcel, Part
from fdpool.memory.references import References
from fdpool.memory.shared import Shared, shared_object
from fdpool.memory.views import reduce_view
from fdpool.protocol.memory import decode_triples

if TYPE_CHECKING:
    import socket

    from fdpool.kernel import OwnedFd
    from fdpool.memory.exchange import Exchange
    from fdpool.memory.received import MappingMode

OUT_OF_BAND_BYTES: Final = 32 * 1024
"""Smaller buffers are cheaper inside the pickle than in a memfd (measured: docs/performance.md)."""

_PLAIN: Final = frozenset({type(None), bool, int, float})

INLINE_BYTES: Final = 48 * 1024
"""A longer pickle lies in the arena, a shorter one in the datagram, where 64 KiB must hold the headers too."""


class Gathered:
    """Objects pickled, and their memory not yet copied.

    Attributes:
      nbytes: How much of the arena `pack` will take.
    """

    def __init__(self, sink: _Sink, mode: MappingMode, inline_bytes: int = INLINE_BYTES) -> None:
        self._sink = sink
        self._mode = mode
        self._stream_bytes = sum(map(len, sink.stream)) + 24 * len(sink.references)
        self._is_inline = self._stream_bytes <= inline_bytes
        self.nbytes = sink.references.copied_bytes + (0 if self._is_inline else self._stream_bytes)

    def pack(self) -> Packed:
        """Copy what has to be copied; return what can be sent. To be closed once that was done.

        Raises:
          OSError: no memory (ENOMEM, ENOSPC), over `RLIMIT_FSIZE` (EFBIG), or no descriptor free (EMFILE).
        """
        sink, references = self._sink, self._sink.references
        mode = MODES.index(self._mode)
        if not len(references) and self._is_inline:
            tail = b"".join(sink.stream)
            return Packed(tail, (0, 0, 0), 0, mode, [], sink.lent.handles, sink.lent.given, sink.shared)
        parts = references.parts()
        stream: list[memoryview | bytes] = [references.table(len(parts)), *sink.stream]
        tail, tail_at = b"", (0, 0, 0)
        if self._is_inline:
            tail = b"".join(stream)
        if self.nbytes:
            block = arena().allocate(self.nbytes)
            memory = block.view(0, self.nbytes)
            position = references.copy_into(memory)
            if not tail:
                tail_at = len(parts), position, self._stream_bytes
                for piece in stream:
                    memory[position : position + len(piece)] = piece
                    position += len(piece)
            parts.append(Part(block, block.offset, self.nbytes))
        return Packed(tail, tail_at, len(references), mode, parts, sink.lent.handles, sink.lent.given, sink.shared)


def gather(value: Any, mode: MappingMode = "private") -> Gathered:
    """Take *value* apart for another process.

    Args:
      mode: How the receiver is to map its buffers.

    Raises:
      Exception: whatever pickling *value* raises; most often `pickle.PicklingError`, `TypeError` or
          `AttributeError`. Nothing is left behind.
    """
    return Gathered(_pickle(value), mode)


def share(value: Any, mode: MappingMode = "private") -> Shared[Any]:
    """Pickle *value* into the arena, all of it, to be loaded any number of times.

    Raises:
      Exception: whatever pickling it raises; handles in it are a `pickle.PicklingError`.
      OSError: as `Gathered.pack`.
    """
    sink = _pickle(value)
    if sink.lent.handles or sink.shared:
        raise pickle.PicklingError("a handle, or another Shared, cannot be part of a shared object")
    gathered = Gathered(sink, mode, inline_bytes=-1)
    return Shared(gathered.pack(), gathered.nbytes)


def pack(value: Any, mode: MappingMode = "private") -> Packed:
    """Take *value* apart and copy what has to be copied. Raises as `gather` and `Gathered.pack` do."""
    if type(value) in _PLAIN:
        # Many results are no more than a number; nothing of all this can be in one.
        return Packed(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), (0, 0, 0), 0, MODES.index(mode), [])
    return gather(value, mode).pack()


def unpack(parcel: Parcel, handles: list[OwnedFd | socket.socket]) -> Any:
    """Put together what `pack` took apart; give up the parcel.

    Args:
      parcel: What the exchange made of the message.
      handles: What came with it; given up, and closed where nothing is rebuilt from it.

    Raises:
      RemoteProtocolError: the sender broke the rules of this format.
      Exception: whatever loading the objects raises.
    """
    arrived = Arrived(handles)
    try:
        return _load(parcel, arrived)
    finally:
        # A view holds what it needs; the lease of a part that nothing was built from ends here.
        parcel.close()
        arrived.close()


def _load(parcel: Parcel, arrived: Arrived) -> Any:
    stream = parcel.tail()
    buffers = []
    if parcel.buffers:
        table, stream = decode_triples(stream, parcel.buffers)
        buffers = [parcel.buffer(*place) for place in table]
    file = io.BytesIO(stream) if parcel.is_inline else _ViewFile(stream)
    return _unpickler(file, buffers, arrived, parcel.exchange).load()


def _load_shared(exchange: Exchange | None, number: int) -> Any:
    """Return a shared object, loading it if this is its first use here.

    Raises:
      RemoteProtocolError: the peer has not sent it.
      Exception: whatever loading it raises; then the next use tries again.
    """
    objects = {} if exchange is None else exchange.shared_objects
    if number not in objects:
        raise RemoteProtocolError(f"shared object {number} was never sent, or dropped before it was used")
    if isinstance(objects[number], Parcel):
        objects[number] = _load(objects[number], Arrived([]))
    return objects[number]


def pack_in_band(value: Any) -> bytes:
    """Pickle *value* into bytes alone, as is done with exceptions: each by itself, what hangs on it is told elsewhere.

    Raises:
      Exception: whatever pickling it raises; handles in it are a `pickle.PicklingError`.
    """
    sink = _pickle(value, out_of_band=False)
    if sink.lent.handles:
        raise pickle.PicklingError("this carries a handle where only bytes can go")
    return b"".join(sink.stream)


def unpack_in_band(data: bytes) -> Any:
    """Load what `pack_in_band` made."""
    return _unpickler(io.BytesIO(data), [], Arrived([]), None).load()


class _Sink:
    """What pickling leaves behind: the stream in pieces, the big buffers, the handles."""

    __slots__ = ("is_out_of_band", "lent", "references", "shared", "stream")

    def __init__(self, *, out_of_band: bool) -> None:
        self.stream: list[memoryview] = []
        self.references = References()
        self.lent = Lent()
        self.shared: list[Shared[Any]] = []
        self.is_out_of_band = out_of_band

    def write(self, data: bytes | bytearray) -> None:
        # The pickler writes a big bytes or bytearray as itself: kept by reference, it is not copied here.
        self.stream.append(memoryview(data))

    def keep_out_of_band(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of the pickle, or return True to leave it in."""
        return not self.is_out_of_band or not self.references.add(buffer.raw(), OUT_OF_BAND_BYTES)


class _Reducing:
    """The part of a pickler that takes handles apart and sees that functions can be found again."""

    sink: _Sink

    def reducer_override(self, value: Any) -> Any:
        reducer = reducer_for(value)
        if reducer is not None:
            return reducer(self.sink.lent, value)
        if type(value) is Shared and self.sink.is_out_of_band:
            self.sink.shared.append(value)
            return shared_object, (value.number,)
        reduced = reduce_view(value)
        if reduced is not None:
            return reduced
        if isinstance(value, BaseException) and not self.sink.is_out_of_band and _is_reduced_by_tblib(type(value)):
            return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        check_importable(value)
        return self.reduce_other(value)

    def reduce_other(self, _value: Any) -> Any:
        return NotImplemented


def _is_reduced_by_tblib(kind: type[BaseException]) -> bool:
    """Whether somebody here has put tblib's way for this class into the table that all picklers share.

    Dask does so where it is imported, for every exception there is. That way pickles whole chains, which recurses and
    fails for all where it fails for one, and it loses the code of a `SystemExit`.
    """
    reducer = copyreg.dispatch_table.get(kind)
    return getattr(reducer, "__module__", None) == "tblib.pickling_support"


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
    arrived: Arrived
    exchange: Exchange | None

    def find_class(self, module: str, name: str) -> Any:
        if module == _HANDLES and (rebuilder := self.arrived.rebuilder(name)) is not None:
            return rebuilder
        if module == _SHARED and name == shared_object.__name__:
            return partial(_load_shared, self.exchange)
        if module in ("__main__", "__mp_main__"):
            return super().find_class(main_module(), name)
        return super().find_class(module, name)


def _unpickler(
    stream: Any, buffers: list[memoryview | bytearray], arrived: Arrived, exchange: Exchange | None
) -> _Unpickler:
    # Not as arguments of its own: one call less, for every call there is.
    unpickler = _Unpickler(stream, buffers=buffers)
    unpickler.arrived = arrived
    unpickler.exchange = exchange
    return unpickler


_HANDLES: Final = handle_module.__name__
_SHARED: Final = shared_object.__module__


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
