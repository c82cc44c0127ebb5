"""Contract tests of Mapping, on real memfds."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest

from fdpool.kernel import MemFd, Seal
from fdpool.kernel.mapping import PAGE_BYTES, Mapping, address_of, export
from tests.support.leaks import descriptor_count, mapped_memfds

FOREIGN_SEALS = Seal.FUTURE_WRITE | Seal.SHRINK | Seal.GROW | Seal.SEAL


class Keeper:
    pass


def test_a_mapping_holds_no_descriptor_and_goes_with_its_last_view() -> None:
    before = descriptor_count()
    with MemFd("fdpool-test-map", 3 * PAGE_BYTES) as memfd:
        mapping = Mapping(memfd.fileno(), 3 * PAGE_BYTES, writable=True, private=False)
    assert descriptor_count() == before
    view = mapping.view(5, 10, None)
    part = view[3:]
    del mapping, view
    part[:2] = b"ok"
    assert any("fdpool-test-map" in line for line in mapped_memfds())
    del part
    gc.collect()
    assert not any("fdpool-test-map" in line for line in mapped_memfds())


def test_the_keeper_lives_as_long_as_any_view() -> None:
    keeper = Keeper()
    watch = weakref.ref(keeper)
    data = bytearray(100)
    view = export(address_of(data), 50, keeper)
    del keeper
    part = memoryview(view)[1:2].cast("B")
    del view
    assert watch() is not None
    del part
    assert watch() is None


def test_arrays_made_of_a_view_keep_it() -> None:
    numpy = pytest.importorskip("numpy")
    keeper = Keeper()
    watch = weakref.ref(keeper)
    data = bytearray(800)
    array = numpy.frombuffer(export(address_of(data), 800, keeper), "f8")[3:7].reshape(2, 2)
    del keeper
    array[:] = 1.5
    assert watch() is not None
    del array
    assert watch() is None
    assert bytes(data[24:32]) == numpy.float64(1.5).tobytes()


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097])
def test_a_view_has_exactly_the_length_asked_for(length: int) -> None:
    data = bytearray(8192)
    view = export(address_of(data), length, None)
    assert (view.nbytes, view.format, view.readonly) == (length, "B", False)


@pytest.mark.parametrize("buffer", [b"bytes", bytearray(b"bytes"), memoryview(b"__bytes")[2:]])
def test_the_address_is_where_the_bytes_are(buffer: bytes) -> None:
    assert bytes(export(address_of(buffer), 5, buffer)) == b"bytes"


def test_what_a_private_mapping_wrote_is_its_own_until_dropped() -> None:
    with MemFd.from_bytes(b"a" * 2 * PAGE_BYTES, seals=Seal(0)) as memfd:
        owner = Mapping(memfd.fileno(), 2 * PAGE_BYTES, writable=True, private=False).view(0, 2 * PAGE_BYTES, None)
        memfd.seal(FOREIGN_SEALS)
        mapping = Mapping(memfd.fileno(), 2 * PAGE_BYTES, writable=True, private=True)
        view = mapping.view(0, 2 * PAGE_BYTES, None)
        view[0:1] = view[PAGE_BYTES : PAGE_BYTES + 1] = b"x"
        assert bytes(owner[0:1]) == b"a"
        owner[0:2] = b"bb"
        assert bytes(view[0:2]) == b"xa"  # its own page, stale
        mapping.drop(0, PAGE_BYTES)
        assert bytes(view[0:2]) == b"bb"
        assert bytes(view[PAGE_BYTES : PAGE_BYTES + 1]) == b"x"


def test_nobody_but_the_owner_maps_sealed_memory_for_shared_writing() -> None:
    with MemFd("fdpool-test", PAGE_BYTES) as memfd:
        memfd.seal(FOREIGN_SEALS)
        with pytest.raises(PermissionError, match="4096 bytes of descriptor"):
            Mapping(memfd.fileno(), PAGE_BYTES, writable=True, private=False)


def test_populating_takes_pages_and_reports_what_cannot_be_taken() -> None:
    with MemFd("fdpool-test", 4 * PAGE_BYTES) as memfd:
        mapping = Mapping(memfd.fileno(), 8 * PAGE_BYTES, writable=True, private=False)
        mapping.prefer_huge_pages()
        if not mapping.populate(0, 4 * PAGE_BYTES):
            pytest.skip("this kernel cannot populate a mapping")
        # Beyond the end of the memfd, where touching it would be a SIGBUS.
        with pytest.raises(OSError, match="there is no memory for 16384 bytes") as caught:
            mapping.populate(4 * PAGE_BYTES, 4 * PAGE_BYTES)
        assert caught.value.errno == errno.ENOMEM


def test_it_says_when_it_is_gone() -> None:
    gone: list[int] = []
    with MemFd("fdpool-test", PAGE_BYTES) as memfd:
        mapping = Mapping(memfd.fileno(), PAGE_BYTES, writable=False, private=False, on_unmap=gone.append)
    address = mapping.address
    assert repr(mapping) == f"<Mapping {address:#x}-{address + PAGE_BYTES:#x}>"
    del mapping
    assert gone == [address]


def test_dropping_what_is_not_mapped_is_an_error() -> None:
    with MemFd("fdpool-test", PAGE_BYTES) as memfd:
        mapping = Mapping(memfd.fileno(), PAGE_BYTES, writable=False, private=True)
    with pytest.raises(OSError, match="cannot be dropped"):
        mapping.drop(1, PAGE_BYTES)
