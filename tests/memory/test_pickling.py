"""Contract tests for packing and unpacking: objects go through a real socket and come out equal."""

from __future__ import annotations

import array
import ctypes
import io
import mmap
import os
import pickle
import resource
import signal
import sys
import tracemalloc
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

import fdpool
from fdpool.errors import RemoteProtocolError
from fdpool.kernel import EventFd, MemFd
from fdpool.memory.exchange import Exchange
from fdpool.memory.handles import Arrived
from fdpool.memory.pickling import pack, pack_in_band, unpack, unpack_in_band
from fdpool.transport import close_all
from tests.support.delivery import deliver, travel
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdpool.transport import Handle

np = pytest.importorskip("numpy")

BIG = 200_000


def iter_of_nothing() -> Iterator[None]:
    yield from ()


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        -(2**5000),
        "text",
        "x" * BIG,
        b"bytes",
        [1, (2, {3: {4}}), [frozenset({5})]],
        Point(1, 2),
        [Point(i, -i) for i in range(3000)],
        len,
        Point,
        {str(i): [i] * 10 for i in range(5000)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_arrive_equal(value: Any) -> None:
    before = descriptor_count()
    assert travel(value) == value
    assert descriptor_count() == before


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, BIG])
def test_bytes_and_bytearrays_of_any_size_arrive_as_what_they_are(size: int) -> None:
    data = os.urandom(size)
    for value in (data, bytearray(data)):
        arrived = travel({"deep": [(value, 1), value]})
        assert type(arrived["deep"][1]) is type(value)
        assert arrived["deep"][1] == data
        assert arrived["deep"][0][0] is arrived["deep"][1]


def test_views_are_writable_only_if_the_original_is() -> None:
    original = bytearray(os.urandom(BIG))
    view = memoryview(original)
    for value in (view, view[100:60_000], view[:100]):
        arrived = travel(value)
        assert arrived == value
        assert not arrived.readonly
        arrived[0] = arrived[0] ^ 1
        assert arrived != value
        frozen = travel(value.toreadonly())
        assert frozen == value
        assert frozen.readonly


def test_shared_references_stay_shared() -> None:
    view = memoryview(bytearray(BIG))
    block = np.zeros(BIG, "u1")
    data = bytearray(BIG)
    arrived = travel([view, view, block, block, data, data])
    assert arrived[0] is arrived[1]
    assert arrived[2] is arrived[3]
    assert arrived[4] is arrived[5]


def non_contiguous_views() -> Iterator[memoryview[Any]]:
    for size in (1000, BIG):
        flat = memoryview(bytearray(os.urandom(size)))
        yield flat[::2]
        yield flat[::-1]
        yield flat[::2][:0]
        yield flat[:1][::5]
        yield flat.cast("d", (size // 40, 5))[::2]
        yield flat.cast("H", (5, size // 20, 2))
        yield flat.cast("b", (size // 10, 5, 2))
        yield np.asfortranarray(np.arange(size).reshape(4, -1)).data
        yield np.arange(size)[::-3].data
        yield np.arange(size).reshape(2, -1).T.data


@pytest.mark.parametrize("index", range(20))
def test_views_of_any_layout_arrive_contiguous_and_equal(index: int) -> None:
    view = [*non_contiguous_views()][index]
    for value in (view, view.toreadonly()):
        arrived = travel(value)
        assert arrived.c_contiguous
        assert (arrived.format, arrived.shape, arrived.readonly) == (value.format, value.shape, value.readonly)
        assert arrived.tobytes() == value.tobytes()


def test_views_without_dimensions_or_items_arrive() -> None:
    number = travel(np.array(7).data)
    assert (number.shape, number[()]) == ((), 7)
    for empty in (memoryview(b""), memoryview(array.array("d")), np.zeros((0, 3)).data, np.zeros((3, 0)).data):
        arrived = travel(empty)
        assert (arrived.nbytes, arrived.format) == (0, empty.format)


def test_views_of_ctypes_arrays_arrive_in_native_notation() -> None:
    values = (ctypes.c_int * 3)(1, 2, 3)
    assert memoryview(values).format == "<i"
    arrived = travel(memoryview(values))
    assert (arrived.format, arrived.tolist()) == ("i", [1, 2, 3])


def test_a_view_of_items_no_other_view_could_have_is_refused() -> None:
    for strange in (np.zeros(3, [("a", "i4"), ("b", "f8")]).data, np.zeros(3, ">i4").data):
        with pytest.raises(TypeError, match=r"cannot be made in another process; its \.cast\('B'\) can"):
            pack(strange)
        assert travel(strange.cast("B")) == strange.cast("B")


def test_a_released_view_is_refused() -> None:
    view = memoryview(b"x")
    view.release()
    with pytest.raises(ValueError, match="released"):
        pack([view])


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_mapping_arrives_as_a_view_of_its_bytes(size: int) -> None:
    with mmap.mmap(-1, size) as mapping, MemFd.from_bytes(b"x" * size) as memory:
        mapping[:3] = b"abc"
        arrived = travel(mapping)
        assert type(arrived) is memoryview
        assert (arrived.nbytes, bytes(arrived[:3]), arrived.readonly) == (size, b"abc", False)
        arrived[0] = 0
        assert mapping[0] == ord("a")
        with memory.map() as unwritable:
            frozen = travel(unwritable)
            assert frozen.readonly
            assert frozen == b"x" * size


def arrays() -> Iterator[Any]:
    for shape in ((3, 5), (300, 500)):
        yield np.arange(shape[0] * shape[1], dtype="f8").reshape(shape)
        yield np.asfortranarray(np.arange(shape[0] * shape[1]).reshape(shape))
        yield np.arange(shape[0] * shape[1] * 2).reshape(shape[0], -1)[:, ::2]
        yield np.ones(shape, [("a", "i4"), ("b", "f8", 3)])
        yield np.ones(shape, ">u2")
        yield np.full(shape, "2020-01-01", "M8[D]")
        yield np.full(shape, "text")
        yield np.ones(shape, "c16").T
        yield np.ones((shape[0], 0))
        yield np.broadcast_to(np.arange(shape[1]), shape)
        yield np.ma.masked_array(np.ones(shape), np.zeros(shape, bool))
    yield np.array(5)
    yield np.array([{"a": 1}, None, [2]], dtype=object)
    yield np.arange(BIG)[BIG // 3 : -7]


@pytest.mark.parametrize("index", range(25))
def test_arrays_arrive_equal_and_writable_and_the_sender_sees_no_write(index: int) -> None:
    value = [*arrays()][index]
    copy = value.copy()
    arrived = travel({"deep": [value]})["deep"][0]
    assert (arrived.dtype, arrived.shape) == (value.dtype, value.shape)
    assert (arrived == value).all()
    assert arrived.flags.writeable
    if arrived.size:
        arrived[...] = np.zeros(1, value.dtype)[0]
    assert (value == copy).all()


@pytest.mark.parametrize("size", [10, BIG])
def test_an_array_keeps_its_order_and_a_read_only_one_stays_so(size: int) -> None:
    frozen = np.arange(size)
    frozen.flags.writeable = False
    assert not travel(frozen).flags.writeable
    assert travel(np.asfortranarray(np.ones((2, size)))).flags.f_contiguous


def test_the_pickle_is_not_copied_as_a_whole_in_the_receivers_heap() -> None:
    message = deliver(pack([str(i) * 10 for i in range(50_000)]))
    with ExitStack() as stack:
        stack.callback(tracemalloc.stop)
        tracemalloc.start()
        arrived = message.open()
        kept, peak = tracemalloc.get_traced_memory()
    assert len(arrived) == 50_000
    assert peak - kept < 1_200_000  # the memo of the unpickler, mostly


def test_a_pack_that_fails_leaves_nothing_behind() -> None:
    before = descriptor_count()
    with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
        pack([bytes(BIG), iter_of_nothing()])
    assert descriptor_count() == before


def test_no_room_for_the_buffers_is_an_error_that_leaves_nothing_behind() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = descriptor_count()
    resource.setrlimit(resource.RLIMIT_FSIZE, (BIG // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            pack(bytes(BIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert descriptor_count() == before


# In band, as exceptions go.


def test_in_band_everything_is_in_the_bytes() -> None:
    for value in (ValueError("text", 3), np.ones(BIG), memoryview(bytearray(BIG)), bytes(BIG)):
        arrived = unpack_in_band(pack_in_band(value))
        assert type(arrived) is type(value)
        assert repr(arrived)[:20] == repr(value)[:20] or type(value) is memoryview


def test_in_band_there_are_no_handles() -> None:
    error = ValueError("with a handle")
    with EventFd() as error.event:  # type: ignore[attr-defined]
        with pytest.raises(pickle.PicklingError, match="carries a handle where only bytes can go"):
            pack_in_band(error)


# What a sender gets wrong.


def test_the_module_of_rebuilders_can_still_be_named() -> None:
    assert travel(fdpool.give) is fdpool.give
    assert travel(Arrived) is Arrived


def test_objects_of_the_io_module_without_a_descriptor_pickle_as_ever() -> None:
    text = travel(io.StringIO("text"))
    assert text.getvalue() == "text"
    assert travel(io.BytesIO(b"bytes")).getvalue() == b"bytes"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes cannot offer buffers before 3.12")
def test_a_pickle_buffer_travels_as_its_bytes() -> None:
    assert bytes(travel(pickle.PickleBuffer(bytearray(BIG)))) == bytes(BIG)


def test_handles_that_are_not_asked_for_are_closed() -> None:
    delivery = deliver(pack("nothing"))
    delivery.handles += [EventFd(), EventFd()]
    before = descriptor_count()
    assert delivery.open() == "nothing"
    assert descriptor_count() == before - 2
    assert delivery.handles == []


@pytest.mark.parametrize("index", [-1, 2, 10**30])
def test_a_handle_that_did_not_come_is_refused(index: int) -> None:
    arrived = Arrived([EventFd(), EventFd()])
    with pytest.raises(RemoteProtocolError, match=f"asks for handle {index} of 2, or asks twice"):
        arrived.take(index)
    arrived.close()


def test_a_handle_asked_for_twice_is_refused() -> None:
    arrived = Arrived([EventFd()])
    with arrived.take(0):
        with pytest.raises(RemoteProtocolError, match="asks for handle 0 of 1, or asks twice"):
            arrived.take(0)


@pytest.mark.parametrize("value", [[1, b"two"], [np.arange(20_000), "text"], ["x" * 70_000, np.arange(20_000)]])
def test_a_parcel_cut_anywhere_is_an_error_that_leaks_nothing(value: Any) -> None:
    before = descriptor_count()
    packed = pack(value)
    wrapped = Exchange().wrap(packed)
    for length in range(len(wrapped.body)):
        handles: list[Handle] = [MemFd.adopt(os.dup(handle.fileno())) for handle in wrapped.handles]
        exchange = Exchange()
        with suppress(RemoteProtocolError, pickle.UnpicklingError, EOFError):
            parcel = exchange.take_in(memoryview(wrapped.body)[:length], handles)
            assert parcel is None or unpack(parcel, handles) is None, "a part was taken for the whole"
        close_all(handles)
        exchange.close()
    packed.close()
    assert descriptor_count() == before
