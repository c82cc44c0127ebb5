"""Contract tests for buffers in a sealed memfd."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import RemoteProtocolError
from fdpool.kernel import IMMUTABLE, MemFd, Seal
from fdpool.memory.bulk import ALIGNMENT, MappedBulk, offsets_for, write_bulk
from tests.support.leaks import descriptor_count, mapped_memfds


@given(st.lists(st.integers(0, 1 << 40)))
def test_buffers_are_aligned_and_do_not_overlap(lengths: list[int]) -> None:
    offsets, end = offsets_for(lengths)
    assert all(offset % ALIGNMENT == 0 for offset in [*offsets, end])
    for length, offset, following in zip(lengths, offsets, [*offsets, end][1:], strict=True):
        assert length <= following - offset < length + ALIGNMENT


@pytest.mark.parametrize("lengths", [[], [0], [1], [64], [63, 0, 65, 1], [5000] * 1500])
def test_what_was_written_is_found_where_the_lengths_say(lengths: list[int]) -> None:
    buffers = [bytes([number % 251]) * length for number, length in enumerate(lengths)]
    with write_bulk([memoryview(buffer) for buffer in buffers], [memoryview(b"tail"), memoryview(b"end")]) as memfd:
        bulk = MappedBulk(memfd)
    offsets, end = offsets_for(lengths)
    assert [bytes(bulk.view(*where)) for where in zip(offsets, lengths, strict=True)] == buffers
    assert bytes(bulk.view(end, 7)) == b"tailend"


def test_a_bulk_of_nothing_is_empty() -> None:
    with write_bulk([]) as memfd:
        assert bytes(MappedBulk(memfd).view(0, 0)) == b""


def test_nobody_can_change_a_bulk() -> None:
    with write_bulk([memoryview(b"x" * 100)]) as memfd:
        assert memfd.seals & IMMUTABLE == IMMUTABLE
        with pytest.raises(PermissionError):
            memfd.map(writable=True)
        with pytest.raises(PermissionError):
            memfd.resize(0)


def test_views_are_writable_and_private() -> None:
    with write_bulk([memoryview(b"x" * 100)]) as memfd:
        first, second = MappedBulk(memfd).view(0, 100), MappedBulk(memfd).view(0, 100)
        first[:3] = b"abc"
        assert bytes(first[:4]) == b"abcx"
        assert bytes(second) == b"x" * 100
        assert bytes(memfd.map()[:100]) == b"x" * 100


def test_a_mapping_takes_no_descriptor_and_ends_with_its_last_view() -> None:
    before = descriptor_count()
    with write_bulk([memoryview(b"x" * 100_000)]) as memfd:
        views = [MappedBulk(memfd).view(i * 10, 10) for i in range(50)]
    assert descriptor_count() == before
    assert len(mapped_memfds()) == 50
    assert {bytes(view) for view in views} == {b"x" * 10}
    del views[10:]
    gc.collect()
    assert len(mapped_memfds()) == 10
    del views
    gc.collect()
    assert mapped_memfds() == []


def test_a_mapping_that_the_kernel_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemFd, "size", 1 << 60)
    with write_bulk([memoryview(b"x")]) as memfd, pytest.raises((OSError, ValueError)):
        MappedBulk(memfd)
    assert mapped_memfds() == []


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (101, 0), (100, 1), (1, 2**64 - 1), (2**64 - 1, 1)])
def test_what_is_not_inside_is_refused(offset: int, length: int) -> None:
    with MemFd.from_bytes(bytes(100)) as memfd:
        bulk = MappedBulk(memfd)
    with pytest.raises(RemoteProtocolError, match=f"{length} bytes at {offset}, in a memfd of 100"):
        bulk.view(offset, length)


@pytest.mark.parametrize("seals", [Seal(0), Seal.GROW | Seal.WRITE, Seal.SEAL])
def test_memory_that_may_shrink_is_refused(seals: Seal) -> None:
    with MemFd.from_bytes(bytes(100), seals=seals) as memfd:
        with pytest.raises(RemoteProtocolError, match="not sealed against shrinking"):
            MappedBulk(memfd)
