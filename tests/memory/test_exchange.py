"""Contract tests of Exchange: two of them in one process, and what a peer that breaks the rules can do (nothing)."""

from __future__ import annotations

import errno
import gc
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fdpool
from fdpool.errors import RemoteProtocolError
from fdpool.kernel import MemFd, Seal
from fdpool.kernel.mapping import Mapping
from fdpool.memory.arena import Arena, arena
from fdpool.memory.exchange import Exchange
from fdpool.memory.parcel import TAIL_IN_MEMORY, Packed, Part
from fdpool.memory.pickling import pack, unpack
from fdpool.memory.received import stop_watching_pages, watch_pages
from fdpool.protocol.memory import BACK, FORWARD, Extent, News, decode_news
from tests.support.delivery import deliver
from tests.support.forgery import parcel_of
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from fdpool.memory.exchange import Wrapped

DATA = os.urandom(200_000)


@pytest.fixture(autouse=True)
def pages() -> Iterator[None]:
    arena().retain()
    watch_pages()
    yield
    stop_watching_pages()
    gc.collect()
    arena().let_go()


def duplicates(wrapped: Wrapped) -> list[Any]:
    """Return what arrives of a message's handles: each a new descriptor."""
    return [fd.duplicate() if isinstance(fd, MemFd) else MemFd.adopt(os.dup(fd.fileno())) for fd in wrapped.handles]


def carry(sender: Exchange, receiver: Exchange, value: Any) -> Any:
    """Have *value* travel."""
    packed = pack(value)
    wrapped = sender.wrap(packed)
    packed.close()
    handles = duplicates(wrapped)
    parcel = receiver.take_in(memoryview(wrapped.body), handles)
    assert parcel is not None
    return unpack(parcel, handles)


def carry_news(sender: Exchange, receiver: Exchange) -> None:
    news = sender.news()
    if news is not None:
        assert receiver.take_in(memoryview(news.body), []) is None


def body(extents: list[Extent], **options: Any) -> memoryview:
    return memoryview(parcel_of(*extents, **options))


def test_a_lease_ends_with_the_last_view_and_the_owner_learns_it() -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange()
    value = carry(supervisor, worker, memoryview(DATA))
    part = value[10:20]
    del value
    carry_news(worker, supervisor)
    assert supervisor.lent_bytes >= len(DATA)
    del part
    carry_news(worker, supervisor)
    assert supervisor.lent_bytes == 0
    assert arena().statistics().used_bytes == 0


def test_a_segments_descriptor_travels_until_it_is_known_to_be_mapped() -> None:
    supervisor, worker = Exchange(), Exchange()
    packed = pack(memoryview(DATA))
    assert len(supervisor.wrap(packed).handles) == 1
    wrapped = supervisor.wrap(packed)
    assert len(wrapped.handles) == 1
    worker.take_in(memoryview(wrapped.body), duplicates(wrapped))
    carry_news(worker, supervisor)
    assert supervisor.wrap(packed).handles == []
    supervisor.close()
    packed.close()


def test_a_message_that_cannot_be_sent_leaves_nothing_lent_and_its_news_unsaid() -> None:
    supervisor, worker = Exchange(), Exchange()
    value = carry(supervisor, worker, memoryview(DATA))
    del value
    packed = pack(memoryview(DATA))
    unsent = worker.wrap(packed)
    packed.close()
    worker.take_back(unsent)
    assert worker.lent_bytes == 0
    carry_news(worker, supervisor)
    assert supervisor.lent_bytes == 0


def test_a_message_whose_handles_were_lost_gives_back_what_it_lent() -> None:
    supervisor, worker = Exchange(), Exchange()
    packed = pack(memoryview(DATA))
    wrapped = supervisor.wrap(packed)
    packed.close()
    worker.decline(memoryview(wrapped.body))
    carry_news(worker, supervisor)
    assert supervisor.lent_bytes == 0
    assert carry(supervisor, worker, memoryview(DATA)) == DATA


def test_memory_that_cannot_be_mapped_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, worker = Exchange(), Exchange()
    packed = pack(memoryview(DATA))
    wrapped = supervisor.wrap(packed)
    packed.close()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "too many mappings")

    handles = duplicates(wrapped)
    with monkeypatch.context() as patch:
        patch.setattr(Mapping, "__init__", refuse)
        with pytest.raises(OSError, match="too many mappings"):
            worker.take_in(memoryview(wrapped.body), handles)
    carry_news(worker, supervisor)
    assert supervisor.lent_bytes == 0


def test_a_closed_segment_is_unmapped_by_those_who_were_told_of_it() -> None:
    supervisor, worker = Exchange(), Exchange()
    del_me = carry(supervisor, worker, memoryview(DATA))
    del del_me
    carry_news(worker, supervisor)
    assert worker.mapped_bytes
    arena().trim()
    carry_news(supervisor, worker)
    assert worker.mapped_bytes == 0


def test_descriptors_kept_for_passing_on_do_not_use_up_the_limit() -> None:
    """A hundred workers' segments under a limit of 64: beyond some, what lies in them is copied to be passed on."""
    supervisors, workers, values = [], [], []
    with limited_descriptors(64):
        before = descriptor_count()
        for number in range(100):
            own = Arena()
            own.retain()
            block = own.allocate(50_000)
            block.view(0, 50_000)[:] = bytes([number]) * 50_000
            worker, supervisor = Exchange(), Exchange(keeps_fds=True)
            packed = Packed(b"", (0, 0, 0), 1, 0, [Part(block, block.offset, 50_000)])
            wrapped = worker.wrap(packed)
            parcel = supervisor.take_in(memoryview(wrapped.body), duplicates(wrapped))
            assert parcel is not None
            values.append(parcel.buffer(0, 0, 50_000))
            packed.parts.clear()
            wrapped.handles.clear()
            block.segment.fd.close()  # what a process of its own would hold
            workers.append(worker)
            supervisors.append(supervisor)
            del block, packed, wrapped, parcel
        assert descriptor_count() - before <= 8
        last = Exchange()
        for number, value in enumerate(values):
            hub = Exchange(keeps_fds=True)
            with closing(hub):
                assert bytes(carry(hub, last, memoryview(value))[:1]) == bytes([number])


@contextmanager
def limited_descriptors(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# A peer that breaks the rules.

HUGE = 1 << 63


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "shorter than its header"),
        (News(mapped=[1] * 9).encode()[:-8], "does not fit"),
        (News(shares=[(5, b"x" * 100)]).encode()[:-1], "does not fit"),
        (News(shares=[(5, b"x" * 100)]).encode(), "nothing to share"),
        (News().encode() + b"x", "too short for a parcel"),
        (News(segments=[(5, 4096, 0)]).encode(), "1 segments were announced, and 0 came"),
        (News(ended=[77]).encode(), "lease 77 ended, and was not given"),
        (body([Extent(FORWARD, 5, 0, 10, 1)]), "not inside anything that was announced or lent"),
        (body([Extent(BACK, 5, 0, 10, 1)]), "not inside anything that was announced or lent"),
        (body([Extent(7, 1, 0, 10, 1)]), "not inside anything that was announced or lent"),
        (body([], extent_count=1000), "does not fit"),
        (body([], mode=3), "mapping mode 3"),
    ],
)
def test_a_forged_message_is_refused_at_once(message: Any, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says):
        Exchange(keeps_fds=True).take_in(memoryview(message), [])


@pytest.mark.parametrize(("offset", "length"), [(0, 200_065), (200_000, 100), (HUGE, HUGE), (1, HUGE), (4096, 200_000)])
@pytest.mark.parametrize("kind", [FORWARD, BACK])
def test_references_beyond_what_is_there_are_refused(kind: int, offset: int, length: int) -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange()
    sender, receiver = (worker, supervisor) if kind == FORWARD else (supervisor, worker)
    kept = carry(sender, receiver, memoryview(DATA))
    reference = next(iter(supervisor._segments)) if kind == FORWARD else next(iter(supervisor._lent))
    if kind == FORWARD:
        offset += 64 << 20 if offset < HUGE else 0
    with pytest.raises(RemoteProtocolError, match="not inside anything"):
        supervisor.take_in(body([Extent(kind, reference, offset, length, 1)]), [])
    assert kept == DATA


@pytest.mark.parametrize("buffer", [(1, 0, 10), (0, 195_000, 10_000), (0, HUGE, HUGE), (HUGE, 0, 0)])
def test_buffers_beyond_the_extents_are_refused_when_they_are_looked_at(buffer: tuple[int, int, int]) -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange()
    kept = carry(supervisor, worker, memoryview(DATA))
    extent = Extent(BACK, next(iter(supervisor._lent)), 0, 200_000, 0)
    parcel = supervisor.take_in(body([extent], tail=struct.pack("<3Q", *buffer) + b"N.", buffers=1), [])
    assert parcel is not None
    with pytest.raises(RemoteProtocolError, match="not inside extent"):
        unpack(parcel, [])
    parcel = supervisor.take_in(body([extent], flags=TAIL_IN_MEMORY, tail_at=(0, 199_999, 2)), [])
    assert parcel is not None
    with pytest.raises(RemoteProtocolError, match="not inside extent"):
        unpack(parcel, [])
    assert kept == DATA


@pytest.mark.parametrize(
    ("seals", "declared", "is_shared", "says"),
    [
        (Seal(0), 4096, 0, "sealed against shrinking"),
        (Seal.SHRINK, 8192, 0, "of the size it should be"),
        (Seal.SHRINK, 0, 0, "of the size it should be"),
        (Seal.SHRINK | Seal.FUTURE_WRITE, 4096, 1, "sealed against that"),
    ],
)
def test_a_segment_that_could_hurt_is_not_mapped(seals: Seal, declared: int, is_shared: int, says: str) -> None:
    before = descriptor_count()
    with MemFd("fdpool-test", 4096) as memfd:
        memfd.seal(seals)
        news = News(segments=[(5, declared, is_shared)])
        with pytest.raises(RemoteProtocolError, match=says):
            Exchange().take_in(memoryview(news.encode()), [memfd.duplicate()])
    assert descriptor_count() == before


def test_a_lease_cannot_end_twice() -> None:
    supervisor, worker = Exchange(), Exchange()
    kept = carry(supervisor, worker, memoryview(DATA))
    ended = News(ended=[next(iter(supervisor._lent))]).encode()
    supervisor.take_in(memoryview(ended), [])
    with pytest.raises(RemoteProtocolError, match="has ended already"):
        supervisor.take_in(memoryview(ended), [])
    del kept


@given(st.binary(max_size=300))
def test_any_bytes_are_news_or_a_protocol_error(data: bytes) -> None:
    exchange = Exchange(keeps_fds=True)
    try:
        exchange.take_in(memoryview(data), [])
    except RemoteProtocolError:
        assert exchange.mapped_bytes == 0


@given(
    st.builds(
        News,
        segments=st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 3), max_size=3),
        mapped=st.lists(st.integers(0, 2**64 - 1), max_size=5),
        ended=st.lists(st.integers(0, 2**64 - 1), max_size=5),
        retired=st.lists(st.integers(0, 2**64 - 1), max_size=5),
        dropped=st.lists(st.integers(0, 2**64 - 1), max_size=5),
        shares=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=20)), max_size=3),
    ),
    st.binary(max_size=20),
)
def test_news_are_read_as_they_were_written(news: News, rest: bytes) -> None:
    decoded, behind = decode_news(memoryview(news.encode() + rest))
    assert (decoded, bytes(behind)) == (news, rest)


def test_allocated_memory_keeps_its_bounds_when_it_comes_back() -> None:
    supervisor, worker = Exchange(keeps_fds=True), Exchange()
    memory = fdpool.allocate(300_000)
    memory[:] = bytes(300_000)
    there = carry(supervisor, worker, memory[100_000:200_000])
    back = carry(worker, supervisor, there[20_000:60_000])
    memory[120_000] = 7  # still seen: no page of it was written over there or here
    assert back[0] == 7
    assert len(back) == 40_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: b"short",
        lambda: [DATA, bytearray(DATA), "text"],
        lambda: "x" * 300_000,
        lambda: [fdpool.allocate(70_000), DATA],
    ],
    ids=["nothing", "inline", "several", "a long pickle", "by reference"],
)
def test_a_parcel_is_as_large_here_as_it_was_there(make: Callable[[], object]) -> None:
    """Both ends of a stream count the same bytes, or one of them might wait for ever."""
    packed = pack(make())
    nbytes = packed.nbytes
    arrived = deliver(packed)
    assert arrived.parcel.nbytes == nbytes > 0
    arrived.open()
