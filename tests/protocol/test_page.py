"""Contract tests for the control page, in memory that two processes share."""

from __future__ import annotations

import os

import pytest

from fdpool.kernel import MemFd
from fdpool.protocol.page import PAGE_BYTES, ControlPage


def test_no_call_has_begun_at_first() -> None:
    assert ControlPage(bytearray(PAGE_BYTES)).begun_call == 0


@pytest.mark.parametrize("number", [1, 255, 2**32, 2**64 - 1])
def test_what_one_mapping_writes_another_reads(number: int) -> None:
    with MemFd(size=PAGE_BYTES) as memory, memory.map(writable=True) as ours, memory.map(writable=True) as theirs:
        mine, other = ControlPage(ours), ControlPage(theirs)
        mine.begun_call = number
        assert other.begun_call == number
        assert ours[8:] == bytes(PAGE_BYTES - 8)
        del mine, other


def test_what_a_process_wrote_is_there_after_it_was_killed() -> None:
    with MemFd(size=PAGE_BYTES) as memory:
        mapping = memory.map(writable=True)
    page = ControlPage(mapping)
    if (child := os.fork()) == 0:
        page.begun_call = 12345
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert page.begun_call == 12345


def test_memory_that_cannot_be_written_is_found_out_by_the_writer() -> None:
    page = ControlPage(bytes(PAGE_BYTES))
    assert page.begun_call == 0
    with pytest.raises(TypeError, match="read-only"):
        page.begun_call = 1


def test_each_word_is_its_own() -> None:
    page = ControlPage(bytearray(PAGE_BYTES))
    assert page.cancelled_call == 0
    page.cancelled_call = 7
    page.begun_call = 8
    assert (page.begun_call, page.cancelled_call) == (8, 7)
