"""Contract tests for what is kept of a text that comes in pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdpool.protocol.last_lines import (
    BRIEF_LINES,
    FORGET_LINES,
    KEPT_BYTES,
    LINE_BYTES,
    REPORT_LINES,
    LastLines,
    in_brief,
)

# Long enough in lines, and in all, to meet every limit.
REPORTS = [b"Fatal Python error: ", b"Fatal Python error: Aborted\n" + b"frame\n" * 30]
PARTS = [b"a", b"\n", b"\r", "é".encode(), b"b" * 300, b"c" * 1500, b"\n" * 900, *REPORTS]
TEXTS = st.lists(st.sampled_from(PARTS)).map(b"".join)


def fed(*pieces: bytes) -> LastLines:
    lines = LastLines()
    for piece in pieces:
        lines.feed(piece)
    return lines


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b"", ""),
        (b"one\ntwo\n", "one\ntwo"),
        (b"one\n\nand no newline", "one\n\nand no newline"),
        (b"not \xff text\n", "not � text"),
        (b"\r 10 %\r 20 %\r 30 %", " 30 %"),
        (b"10 %\r20 %\r\n", "20 %"),
        (b"10 %\r\r\r", "10 %"),
        (b"as on another system\r\n", "as on another system"),
    ],
)
def test_lines_are_kept_as_a_terminal_would_show_them(written: bytes, kept: str) -> None:
    assert fed(written).text() == kept


def test_only_the_last_lines_are_kept_and_only_whole_ones() -> None:
    numbered = [f"line {number:04}" for number in range(5000)]
    kept = fed("\n".join(numbered).encode()).text().splitlines()
    assert kept == numbered[-len(kept) :]
    assert KEPT_BYTES - len("line 0000\n") <= len("\n".join(kept)) <= KEPT_BYTES


def test_of_a_long_line_the_beginning_is_kept() -> None:
    lines = fed(b"Traceback\n", b"x" * 3000, b"x" * 97_000, b"\nthe end\n")
    assert lines.text() == f"Traceback\n{'x' * LINE_BYTES}… ({100_000 - LINE_BYTES} bytes more)\nthe end"


def test_a_long_line_that_has_not_ended_pushes_out_the_first_lines() -> None:
    before = [b"%04d" % number + bytes(396) for number in range(10)]
    kept = fed(b"\n".join(before), b"\n", b"y" * 2000).text()
    assert kept.startswith("0003")
    assert kept.endswith("bytes more)")


def report(frames: int) -> list[str]:
    return ["Fatal Python error: Aborted", "", *(f'  File "{"directory/" * 10}", line {n} in f' for n in range(frames))]


def test_of_a_long_report_the_beginning_is_kept_beside_the_last_lines() -> None:
    whole = [*report(100), "", "Extension modules: one, two"]
    kept = fed(b"before\n" * 600, "\n".join(whole).encode()).text().splitlines()
    assert kept[:REPORT_LINES] == whole[:REPORT_LINES]
    last = kept[REPORT_LINES + 1 :]
    assert last == whole[-len(last) :]
    assert len(last) > 5
    assert kept[REPORT_LINES] == f"… ({len(whole) - REPORT_LINES - len(last)} lines more)"


def test_of_two_reports_the_last_one_is_kept() -> None:
    kept = fed("\n".join([*report(100), *report(3)]).encode()).text().splitlines()
    assert kept[-5:] == report(3)
    assert kept[0] != report(100)[0]


def test_a_report_is_forgotten_when_life_goes_on() -> None:
    lines = fed("\n".join(report(30)).encode())
    for _ in range(FORGET_LINES + 400):
        lines.feed(b"\nand on it goes")
    assert set(lines.text().splitlines()) == {"and on it goes"}


@example("aaaa\ré\ra".encode(), [8])
@given(TEXTS, st.lists(st.integers(0, 3000), max_size=5))
def test_how_it_comes_in_pieces_makes_no_difference(text: bytes, cuts: list[int]) -> None:
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert fed(*pieces).text() == fed(text).text()


@given(st.lists(TEXTS))
def test_never_more_is_kept_than_fits(pieces: list[bytes]) -> None:
    lines = fed(*pieces)
    assert len(lines.text()) <= KEPT_BYTES + len("\n… (1000 lines more)")
    assert sum(map(len, lines._lines)) + len(lines._line) <= KEPT_BYTES


def test_in_brief_the_last_lines_are_told() -> None:
    assert in_brief("") == ""
    assert in_brief("one\ntwo") == "one\ntwo"
    assert in_brief("\n".join(map(str, range(100)))).splitlines() == [str(n) for n in range(100 - BRIEF_LINES, 100)]


def test_in_brief_the_beginning_of_a_report_of_a_fatal_error_is_told() -> None:
    report = ["Fatal Python error: Aborted", *(f"  File {number}" for number in range(50))]
    assert in_brief("\n".join(["before", *report])).splitlines() == report[:BRIEF_LINES]
