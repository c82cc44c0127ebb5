"""Contract tests of received memory: what was written there privately never shows anywhere else, nor later."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdpool
from fdpool.kernel import MemFd
from fdpool.kernel.mapping import PAGE_BYTES, address_of
from fdpool.memory.addresses import keeper_of
from fdpool.memory.arena import arena
from fdpool.memory.exchange import Exchange
from fdpool.memory.pickling import pack, unpack
from fdpool.memory.received import stop_watching_pages, watch_pages

if TYPE_CHECKING:
    from fdpool.memory.received import ReceivedSegment

LENGTHS = [100, 70_000, 100_000, 300_000]
"""Within the pickle; in the arena and dropped without looking; in the arena and looked through."""


@pytest.fixture(autouse=True)
def pages() -> Iterator[None]:
    arena().retain()
    watch_pages()
    yield
    stop_watching_pages()
    gc.collect()
    arena().let_go()


def carry(sender: Exchange, receiver: Exchange, value: Any) -> Any:
    """Have *value* travel."""
    packed = pack(value)
    wrapped = sender.wrap(packed)
    packed.close()
    handles: list[Any] = [fd.duplicate() for fd in wrapped.handles if isinstance(fd, MemFd)]
    parcel = receiver.take_in(memoryview(wrapped.body), handles)
    assert parcel is not None
    return unpack(parcel, handles)


def carry_news(sender: Exchange, receiver: Exchange) -> None:
    news = sender.news()
    if news is not None:
        assert receiver.take_in(memoryview(news.body), []) is None


def filled(length: int, value: int) -> Any:
    memory = fdpool.allocate(length)
    memory[:] = bytes([value]) * length
    return memory


def segment_of(view: Any) -> ReceivedSegment:
    segment: ReceivedSegment = keeper_of(address_of(view), view.nbytes)[0].segment
    return segment


STEPS = st.tuples(
    st.sampled_from(["send", "send", "send again", "write", "write", "drop", "drop", "news", "news", "clean"]),
    st.integers(0, 300_000),
    st.sampled_from(LENGTHS),
)


@settings(max_examples=60)
@given(st.booleans(), st.lists(STEPS, min_size=50, max_size=100))
def test_whatever_is_written_and_whenever_it_is_dropped_a_later_block_is_as_it_was_sent(
    cleans_later: bool, steps: list[tuple[str, int, int]]
) -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange(cleans_later=cleans_later)
    sent: list[Any] = []
    held: list[tuple[Any, bytearray]] = []
    for number, (what, place, length) in enumerate(steps):
        if what == "send":
            # Most are not kept by their owner, so that the next one gets their room once their leases have ended.
            memory = filled(length, number)
            held.append((carry(supervisor, worker, memory), bytearray(memory)))
            if place % 3 == 0:
                sent.append(memory)
            del memory
        elif what == "send again" and sent:
            memory = sent[place % len(sent)]
            part = memory[place % memory.nbytes :]
            held.append((carry(supervisor, worker, part), bytearray(part)))
            del memory, part
        elif what == "write" and held:
            view, expected = held[place % len(held)]
            for index in (place % view.nbytes, -1):
                view[index] = expected[index] = number ^ 0xFF
            del view
        elif what == "drop" and held:
            del held[place % len(held)]
        elif what == "news":
            carry_news(worker, supervisor)
        elif what == "clean":
            worker.clean()
        for view, expected in held:
            assert bytes(view) == expected
            del view


def test_a_lease_ends_before_its_pages_are_dropped_and_they_are_before_they_are_shown_again() -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange(cleans_later=True)
    view = carry(supervisor, worker, filled(200_000, 1))
    segment = segment_of(view)
    view[0] = view[100_000] = 9
    del view
    carry_news(worker, supervisor)
    assert supervisor.lent_bytes == 0
    assert segment.is_written(0, 200_000)
    again = carry(supervisor, worker, filled(100_000, 2))
    assert segment_of(again) is segment
    assert bytes(again) == bytes([2]) * 100_000
    assert not segment.is_written(0, 200_000)


@pytest.mark.parametrize("cleans_later", [False, True])
def test_pages_are_dropped_at_once_or_when_there_is_time(cleans_later: bool) -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange(cleans_later=cleans_later)
    view = carry(supervisor, worker, filled(200_000, 1))
    segment = segment_of(view)
    view[0] = view[100_000] = 9
    thread = threading.Thread(target=view.release)  # as any view may end in another thread
    thread.start()
    thread.join()
    del view, thread
    assert segment.is_written(0, 200_000) == cleans_later
    worker.clean()
    assert not segment.is_written(0, 200_000)


@pytest.mark.parametrize("cleans_later", [False, True])
def test_pages_that_a_task_has_locked_are_never_shown_again(cleans_later: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    supervisor, worker = Exchange(keeps_fds=True), Exchange(cleans_later=cleans_later)
    view = carry(supervisor, worker, filled(80_000, 1))
    segment = segment_of(view)
    assert segment.private is not None
    locked = ctypes.c_void_p(segment.private.address)
    if libc.mlock(locked, PAGE_BYTES) != 0:
        pytest.skip("this user may not lock memory")
    try:
        view[0] = 9
        del view
        worker.clean()
        carry_news(worker, supervisor)
        assert supervisor.lent_bytes == 0, "the owner gets it back all the same"
        assert segment.is_written(0, PAGE_BYTES)
        again = carry(supervisor, worker, filled(80_000, 2))
        assert bytes(again) == bytes([2]) * 80_000
    finally:
        libc.munlock(locked, PAGE_BYTES)
