"""Contract tests for packing and unpacking: objects go through a real socket and come out equal."""

from __future__ import annotations

import array
import ctypes
import gc
import io
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import tracemalloc
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdpool
from fdpool.errors import RemoteProtocolError
from fdpool.kernel import EventFd, MemFd, Seal
from fdpool.memory.handles import Arrived
from fdpool.memory.pickling import (
    INLINE_BYTES,
    OUT_OF_BAND_BYTES,
    Packed,
    pack,
    pack_in_band,
    unpack,
    unpack_in_band,
)
from fdpool.transport import Handle, Message, Transport
from tests.support.leaks import descriptor_count, mapped_memfds

if TYPE_CHECKING:
    from collections.abc import Iterator

np = pytest.importorskip("numpy")

HEADER = struct.Struct("<BIQQ")
BIG = 200_000


def deliver(packed: Packed) -> Message:
    """Send a parcel through a socket, as to a worker."""
    left, right = map(Transport, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        with left.outgoing(packed.data, packed.handles) as outgoing:
            while outgoing.pending:
                left.send_next(outgoing)
        packed.close()
        while (message := right.receive_next()) is None:
            pass
        return message
    finally:
        left.close()
        right.close()


def travel(value: Any) -> Any:
    """Return what arrives of *value*."""
    message = deliver(pack(value))
    return unpack(memoryview(message.payload), message.handles)


def bulks(packed: Packed) -> int:
    return sum(isinstance(handle, MemFd) for handle in packed.handles)


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


@pytest.mark.parametrize("around", [OUT_OF_BAND_BYTES, INLINE_BYTES, 64 * 1024])
@pytest.mark.parametrize("make", [bytes, bytearray, lambda n: memoryview(bytearray(n)), np.ones])
def test_nothing_changes_at_the_limits(around: int, make: Any) -> None:
    # Headers and opcodes take some of the room, so the change is somewhere below each limit.
    before = descriptor_count()
    for size in (*range(around - 300, around + 8, 7), around - 1, around, around + 1):
        value = make(size)
        packed = pack([value, 1])
        assert len(packed.data) <= INLINE_BYTES + HEADER.size
        assert bulks(packed) <= 1
        message = deliver(packed)
        arrived, one = unpack(memoryview(message.payload), message.handles)
        assert one == 1
        assert bytes(arrived) == bytes(value)
        assert descriptor_count() == before


def test_a_pickle_of_exactly_the_limit_is_inline_and_one_byte_more_is_not() -> None:
    overhead = len(pack("x" * 1000).data) - HEADER.size - 1000
    for size, count in ((INLINE_BYTES - overhead, 0), (INLINE_BYTES - overhead + 1, 1)):
        packed = pack("x" * size)
        assert bulks(packed) == count
        packed.close()
        assert travel("x" * size) == "x" * size


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


def test_thousands_of_small_arrays_and_some_big_ones_take_one_memfd() -> None:
    value = [np.full(10, i) for i in range(5000)] + [np.full(OUT_OF_BAND_BYTES, i % 251, "u1") for i in range(300)]
    packed = pack(value)
    assert (len(packed.handles), bulks(packed)) == (1, 1)
    message = deliver(packed)
    before = descriptor_count()
    arrived = unpack(memoryview(message.payload), message.handles)
    assert descriptor_count() == before - 1
    assert len(mapped_memfds()) == 1
    assert all((a == b).all() for a, b in zip(arrived, value, strict=True))
    assert arrived[-1].ctypes.data % 64 == 0
    del arrived
    gc.collect()
    assert mapped_memfds() == []


def test_a_mapping_lives_as_long_as_the_last_view_of_it() -> None:
    first, second = travel([np.ones(BIG), np.ones(BIG)])
    del first
    gc.collect()
    assert len(mapped_memfds()) == 1
    assert second.sum() == BIG
    part = second[5:10]
    del second
    assert part.sum() == 5
    del part
    gc.collect()
    assert mapped_memfds() == []


@pytest.mark.parametrize("make", [bytes, bytearray, np.ones], ids=["bytes", "bytearray", "array"])
def test_big_data_is_not_copied_in_the_senders_heap(make: Any) -> None:
    size = 8 << 20
    value = {"deep": [make(size)]}
    pack(0).close()
    tracemalloc.start()
    try:
        packed = pack(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300_000
    assert bulks(packed) == 1
    packed.close()


def test_the_pickle_is_not_copied_as_a_whole_in_the_receivers_heap() -> None:
    message = deliver(pack([str(i) * 10 for i in range(50_000)]))
    with ExitStack() as stack:
        stack.callback(tracemalloc.stop)
        tracemalloc.start()
        arrived = unpack(memoryview(message.payload), message.handles)
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


def refuse(data: bytes, handles: list[Handle], complaint: str) -> None:
    before = descriptor_count() - len(handles)
    with pytest.raises(RemoteProtocolError, match=complaint):
        unpack(memoryview(data), handles)
    assert descriptor_count() == before
    assert handles == []


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ((4, 0, 0, 0), "a parcel with flags 0x4"),
        ((2, 0, 0, 0), "a parcel with flags 0x2"),
        ((0, 0, 0, 1), "0 bytes came where the header declares 1"),
        ((1, 0, 0, 9), "0 bytes came where the header declares 9"),
        ((1, 1, 0, 0), "a table of 1 buffers does not fit into 0 bytes"),
        ((3, 0, 0, 101), "101 bytes at 0, in a memfd of 100"),
        ((3, 0, 101, 0), "0 bytes at 101, in a memfd of 100"),
        ((3, 0, 2**64 - 1, 2**64 - 1), "in a memfd of 100"),
        ((3, 2**32 - 1, 0, 100), "a table of 4294967295 buffers does not fit into 100 bytes"),
    ],
)
def test_a_forged_header_is_refused(header: tuple[int, int, int, int], complaint: str) -> None:
    refuse(HEADER.pack(*header), [MemFd.from_bytes(bytes(100)), EventFd()], complaint)


@pytest.mark.parametrize("length", [101, 2**63, 2**64 - 1])
def test_a_buffer_outside_the_memory_is_refused(length: int) -> None:
    table = struct.pack("<QQ", 10, length)
    refuse(HEADER.pack(1, 2, 0, 16) + table, [MemFd.from_bytes(bytes(100)), EventFd()], "in a memfd of 100")


def test_memory_that_could_shrink_is_refused() -> None:
    header = HEADER.pack(1, 0, 0, 0)
    refuse(header, [MemFd.from_bytes(bytes(100), seals=Seal(0)), EventFd()], "not sealed against shrinking")
    refuse(header, [MemFd.from_bytes(bytes(100), seals=Seal.WRITE | Seal.GROW)], "not sealed against shrinking")


def test_missing_memory_is_refused() -> None:
    header = HEADER.pack(1, 0, 0, 0)
    refuse(header, [], "should be in a memfd, and none came")
    refuse(header, [EventFd(), MemFd.from_bytes(b"")], "should be in a memfd, and none came")


OWNED = b"cfdpool.memory.handles\n_owned\n"


def inline(stream: bytes) -> bytes:
    return HEADER.pack(0, 0, 0, len(stream)) + stream


def test_handles_that_are_not_asked_for_are_closed() -> None:
    handles: list[Handle] = [EventFd(), MemFd()]
    before = descriptor_count()
    assert unpack(memoryview(inline(pickle.dumps("nothing"))), handles) == "nothing"
    assert descriptor_count() == before - 2
    assert handles == []


@pytest.mark.parametrize("index", [-1, 2, 10**30])
def test_a_handle_that_did_not_come_is_refused(index: int) -> None:
    number = pickle.dumps(index, 2)[2:-1]
    forged = b"\x80\x05" + OWNED + b"(" + number + b"cfdpool.kernel.eventfd\nEventFd\ntR."
    refuse(inline(forged), [EventFd(), EventFd()], f"asks for handle {index} of 2, or asks twice")


def test_a_handle_asked_for_twice_is_refused() -> None:
    call = OWNED + b"(K\x00cfdpool.kernel.eventfd\nEventFd\ntR"
    handles: list[Handle] = [EventFd(), EventFd()]
    with pytest.warns(ResourceWarning, match="unclosed <EventFd"):  # the first one belonged to nobody yet
        refuse(inline(b"\x80\x05" + call + call + b"\x86."), handles, "asks for handle 0 of 2, or asks twice")


def test_the_module_of_rebuilders_can_still_be_named() -> None:
    assert travel(fdpool.give) is fdpool.give
    assert travel(Arrived) is Arrived


PARCELS = [
    pack([1, "two", b"three"]),
    pack([np.arange(20_000), "text", np.arange(20_000)]),
    pack(["x" * 70_000, np.arange(20_000)]),
]
CONTENTS = [b"" if packed.bulk is None else bytes(packed.bulk.map()) for packed in PARCELS]
for packed in PARCELS:
    packed.close()


@settings(deadline=None, max_examples=200)
@given(which=st.sampled_from([0, 1, 2]), data=st.data())
def test_whatever_is_cut_or_changed_only_known_errors_are_raised(which: int, data: st.DataObject) -> None:
    parcel, content = PARCELS[which].data, CONTENTS[which]
    cut = draw_cut(data, parcel)
    content = draw_cut(data, content) if data.draw(st.booleans()) else content
    handles: list[Handle] = [] if PARCELS[which].bulk is None else [MemFd.from_bytes(content)]
    before = descriptor_count() - len(handles)
    try:
        unpack(memoryview(cut), handles)
    except (RemoteProtocolError, pickle.UnpicklingError, EOFError):
        pass
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, ImportError, OverflowError, MemoryError):
        pass  # what pickle raises where its input makes no sense
    assert descriptor_count() == before


def draw_cut(data: st.DataObject, whole: bytes) -> bytes:
    return whole[: data.draw(st.integers(0, len(whole)))]


def test_a_parcel_cut_anywhere_is_refused() -> None:
    for parcel, content in zip(PARCELS, CONTENTS, strict=True):
        for length in range(len(parcel.data)):
            handles: list[Handle] = [MemFd.from_bytes(content)] if content else []
            refuse(parcel.data[:length], handles, "too short|came where the header declares")


def test_a_bulk_cut_anywhere_is_refused() -> None:
    for parcel, content in zip(PARCELS[1:], CONTENTS[1:], strict=True):
        for length in (0, 1, 100, len(content) // 2, len(content) - 64):
            refuse(parcel.data, [MemFd.from_bytes(content[:length])], "in a memfd of")


def test_a_truncated_pickle_in_memory_is_an_unpickling_error() -> None:
    stream = pickle.dumps([bytes(100_000), bytearray(100_000), "x" * 100_000], 5)
    for length in (*range(40), 65_000, 100_005, 199_999, 200_030, len(stream) - 1):
        header = HEADER.pack(3, 0, 0, length)
        with pytest.raises((pickle.UnpicklingError, EOFError)):
            unpack(memoryview(header), [MemFd.from_bytes(stream[:length])])


def test_text_opcodes_of_old_pickles_are_read_from_memory_too() -> None:
    stream = pickle.dumps([1, 10**30, Point], 0)
    arrived = unpack(memoryview(HEADER.pack(3, 0, 0, len(stream))), [MemFd.from_bytes(stream)])
    assert arrived == [1, 10**30, Point]


def test_objects_of_the_io_module_without_a_descriptor_pickle_as_ever() -> None:
    text = travel(io.StringIO("text"))
    assert text.getvalue() == "text"
    assert travel(io.BytesIO(b"bytes")).getvalue() == b"bytes"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes cannot offer buffers before 3.12")
def test_a_pickle_buffer_travels_as_its_bytes() -> None:
    assert bytes(travel(pickle.PickleBuffer(bytearray(BIG)))) == bytes(BIG)
