"""Contract tests of PageMap: both ways of asking the kernel say the same."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.kernel import MemFd
from fdpool.kernel.mapping import PAGE_BYTES, Mapping
from fdpool.kernel.pagemap import PageMap

PAGES = 300


@pytest.fixture(params=["scanned", "read"])
def pagemap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageMap]:
    if request.param == "read":
        monkeypatch.setattr("fcntl.ioctl", refuse)
    with closing(PageMap()) as pagemap:
        yield pagemap


def refuse(*_: object) -> None:
    raise OSError(errno.ENOTTY, "as a kernel before 6.7 says")


@pytest.fixture
def mapping() -> Mapping:
    with MemFd("fdpool-test", PAGES * PAGE_BYTES) as memfd:
        memfd.reserve()
        return Mapping(memfd.fileno(), PAGES * PAGE_BYTES, writable=True, private=True)


@given(st.sets(st.integers(0, PAGES - 1)), st.sets(st.integers(0, PAGES - 1)))
def test_exactly_the_written_pages_are_found(writes: set[int], reads: set[int]) -> None:
    with MemFd("fdpool-test", PAGES * PAGE_BYTES) as memfd:
        mapping = Mapping(memfd.fileno(), PAGES * PAGE_BYTES, writable=True, private=True)
    view = mapping.view(0, mapping.length, None)
    for page in reads:
        assert view[page * PAGE_BYTES] == 0
    for page in writes:
        view[page * PAGE_BYTES] = 1
    start, end = mapping.address, mapping.address + mapping.length
    with closing(PageMap()) as pagemap:
        scanned = {page for run in pagemap.written(start, end) for page in range(*(at // PAGE_BYTES for at in run))}
        read = list(pagemap._scan_by_reading(start, end))
    assert scanned == {start // PAGE_BYTES + page for page in writes}
    assert {page for run in read for page in range(*(at // PAGE_BYTES for at in run))} == scanned


def test_only_the_range_asked_for_is_looked_at(pagemap: PageMap, mapping: Mapping) -> None:
    view = mapping.view(0, mapping.length, None)
    for page in (3, 4, 9):
        view[page * PAGE_BYTES] = 1
    start = mapping.address
    found = list(pagemap.written(start + 4 * PAGE_BYTES, start + 9 * PAGE_BYTES))
    assert found == [(start + 4 * PAGE_BYTES, start + 5 * PAGE_BYTES)]


def test_more_runs_than_one_answer_holds_are_all_found(pagemap: PageMap, mapping: Mapping) -> None:
    view = mapping.view(0, mapping.length, None)
    for page in range(0, PAGES, 2):
        view[page * PAGE_BYTES] = 1
    assert len(list(pagemap.written(mapping.address, mapping.address + mapping.length))) == PAGES // 2


def test_what_was_dropped_is_not_written_any_more(pagemap: PageMap, mapping: Mapping) -> None:
    mapping.view(0, 1, None)[0] = 1
    mapping.drop(0, PAGE_BYTES)
    assert list(pagemap.written(mapping.address, mapping.address + mapping.length)) == []
