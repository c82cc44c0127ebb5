"""Contract tests of the arena, on real memory."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpool.kernel import MemFd
from fdpool.kernel.mapping import PAGE_BYTES, Mapping, address_of
from fdpool.memory.addresses import keeper_of
from fdpool.memory.arena import HUGE_BLOCK_BYTES, SEGMENT_BYTES, Arena, arena
from fdpool.memory.segment import whole_pages
from tests.support.leaks import descriptor_count, mapped_memfds


@pytest.fixture
def own_arena() -> Iterator[Arena]:
    own = Arena()
    own.retain()
    yield own
    own.let_go()
    assert own.statistics().segments == 0


@contextmanager
def limited_file_size(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_memory_is_recycled_and_goes_back_when_nobody_retains_the_arena() -> None:
    own, before = Arena(), descriptor_count()
    own.retain()
    addresses = {address_of(own.allocate(1 << 20).view(0, 1 << 20)) for _ in range(50)}
    assert len(addresses) == 1
    assert descriptor_count() == before + 1
    assert own.statistics().idle_bytes == SEGMENT_BYTES
    own.let_go()
    assert descriptor_count() == before
    assert not [line for line in mapped_memfds() if "fdpool-arena" in line]


def test_a_view_outlives_the_block_object_and_the_retaining() -> None:
    own = Arena()
    view = own.allocate(100).view(10, 20)
    view[:] = bytes(range(20))
    assert own.statistics().used_bytes == PAGE_BYTES
    assert bytes(view[5:7]) == b"\x05\x06"
    del view
    assert own.statistics().segments == 0


@settings(max_examples=60)
@given(st.lists(st.one_of(st.integers(0, 200_000), st.floats(0, 0.999)), max_size=60))
def test_blocks_never_overlap_and_nothing_is_lost(steps: list[int | float]) -> None:
    own = Arena()
    own.retain()
    views: list[tuple[memoryview, int]] = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            views.append((own.allocate(step).view(0, step), number))
            views[-1][0][:] = bytes([number]) * step
        elif views:
            del views[int(step * len(views))]
    for view, number in views:
        assert bytes(view) == bytes([number]) * view.nbytes
        assert not view.nbytes or keeper_of(address_of(view), view.nbytes)[0].length == whole_pages(view.nbytes)
    assert own.statistics().used_bytes == sum(whole_pages(view.nbytes) for view, _ in views)
    view = memoryview(b"")
    views.clear()
    assert own.statistics().used_bytes == 0
    # All of it has become one room again.
    assert own.allocate(HUGE_BLOCK_BYTES).offset == 0
    own.let_go()


def test_a_huge_block_has_a_segment_of_its_own_size(own_arena: Arena) -> None:
    small, huge = own_arena.allocate(5000), own_arena.allocate(SEGMENT_BYTES + 1)
    assert huge.segment is not small.segment
    assert huge.segment.size == SEGMENT_BYTES + (2 << 20)
    size = huge.segment.size
    del huge
    assert own_arena.allocate(SEGMENT_BYTES - PAGE_BYTES).segment.size == size
    # The larger one would waste more than half of itself on this, and a small block would keep it from going.
    assert own_arena.allocate(HUGE_BLOCK_BYTES + 1).segment.size == HUGE_BLOCK_BYTES + (2 << 20)
    assert own_arena.allocate(HUGE_BLOCK_BYTES).segment is small.segment
    del small


def test_nobody_else_can_write_or_cut_a_segment(own_arena: Arena) -> None:
    block = own_arena.allocate(1000)
    fd = block.segment.fd
    with pytest.raises(PermissionError):
        Mapping(fd.fileno(), PAGE_BYTES, writable=True, private=False)
    with pytest.raises(PermissionError):
        os.pwrite(fd.fileno(), b"x", 0)
    with pytest.raises(PermissionError):
        fd.resize(PAGE_BYTES)
    with pytest.raises(PermissionError):
        os.ftruncate(fd.fileno(), 2 * SEGMENT_BYTES)
    with MemFd.adopt(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDWR)) as again, pytest.raises(PermissionError):
        again.write([b"x"])
    block.view(0, 1)[0] = 7  # the owner can


def test_shared_memory_comes_from_other_segments_that_others_may_write(own_arena: Arena) -> None:
    block, private = own_arena.allocate(1000, shared=True), own_arena.allocate(1000)
    assert block.segment is not private.segment
    other = Mapping(block.segment.fd.fileno(), PAGE_BYTES, writable=True, private=False)
    other.view(0, 1, None)[0] = 9
    assert block.view(0, 1)[0] == 9
    with pytest.raises(PermissionError):
        block.segment.fd.resize(PAGE_BYTES)


def test_idle_segments_are_closed_after_a_while_and_others_stay(own_arena: Arena) -> None:
    kept, idle = own_arena.allocate(1000), own_arena.allocate(HUGE_BLOCK_BYTES + 1)
    del idle
    own_arena.trim(idle_seconds=1000.0)
    assert own_arena.statistics().segments == 2
    own_arena.trim()
    assert own_arena.statistics().segments == 1
    del kept


def test_a_file_size_limit_is_an_error_and_small_blocks_fit_below_it(own_arena: Arena) -> None:
    with limited_file_size(1 << 20):
        assert own_arena.allocate(100_000).segment.size < 1 << 20
        with pytest.raises(OSError, match="File too large") as caught:
            own_arena.allocate(2 << 20)
    assert caught.value.errno == errno.EFBIG
    assert own_arena.statistics().used_bytes == 0


def test_no_memory_is_an_error_after_idle_memory_was_given_back(
    own_arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_arena.allocate(HUGE_BLOCK_BYTES + 1)
    before = descriptor_count()
    refusals = 0

    def refuse(_mapping: Mapping, _offset: int, _length: int) -> bool:
        nonlocal refusals
        refusals += 1
        raise OSError(errno.ENOMEM, "as a full machine says")

    monkeypatch.setattr(Mapping, "populate", refuse)
    with pytest.raises(OSError, match="full machine"):
        own_arena.allocate(1000)
    assert refusals == 2
    assert descriptor_count() == before - 1
    assert own_arena.statistics().segments == 0


def test_where_the_kernel_cannot_populate_pages_are_reserved_by_descriptor(
    own_arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mapping, "populate", lambda *_: False)
    block = own_arena.allocate(1 << 20)
    assert os.fstat(block.segment.fd.fileno()).st_blocks * 512 >= 1 << 20
    block.view(0, 1)[0] = 1


def test_threads_share_an_arena() -> None:
    own = Arena()
    own.retain()

    def work(number: int) -> None:
        for step in range(200):
            view = own.allocate(5000 + step).view(0, 5000)
            view[:] = bytes([number]) * 5000
            mixed.update({number} if bytes(view) == bytes([number]) * 5000 else {-1})

    mixed: set[int] = set()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == {0, 1, 2, 3}
    assert own.statistics().used_bytes == 0
    own.let_go()


def test_a_forked_child_does_not_use_its_parents_arena() -> None:
    block = arena().allocate(1000)
    child = os.fork()
    if child == 0:
        os._exit(arena().statistics().segments)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert arena().statistics().segments == 1
    del block


def test_addresses_of_ordinary_memory_belong_to_nobody(own_arena: Arena) -> None:
    block = own_arena.allocate(1000)
    address = address_of(block.view(0, 1))
    assert keeper_of(address, 1000) == (block, block.offset)
    assert keeper_of(address + block.length, 1)[0] is None
    assert keeper_of(address, block.length + 1)[0] is None
    assert keeper_of(address_of(b"ordinary"), 8)[0] is None
    assert keeper_of(1, 1)[0] is None
