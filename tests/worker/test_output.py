"""Contract tests for what a worker prints, with a datagram socket as its output: each write(2) is one datagram."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fdpool.worker.output import LONGEST_LINE_BYTES, LineWriter, keep_lines_whole
from tests.support.programs import environment

if TYPE_CHECKING:
    from collections.abc import Iterator


class Output:
    """A text stream that writes whole lines, and what the kernel got of it."""

    def __init__(self) -> None:
        self._reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)
        file = io.FileIO(writer.detach(), "w")
        self.stream = io.TextIOWrapper(LineWriter(file, LONGEST_LINE_BYTES), "utf-8", write_through=True)

    def writes(self) -> list[str]:
        found = []
        try:
            while True:
                found.append(self._reader.recv(200_000).decode())
        except BlockingIOError:
            return found

    def close(self) -> None:
        self.stream.close()
        self._reader.close()


@pytest.fixture
def output() -> Iterator[Output]:
    output = Output()
    yield output
    output.close()


def test_a_line_leaves_in_one_piece_as_soon_as_it_ends(output: Output) -> None:
    print("a", "b", 3, file=output.stream)
    assert output.writes() == ["a b 3\n"]
    print("a", end="", file=output.stream)
    assert output.writes() == []
    print("b", file=output.stream)
    assert output.writes() == ["ab\n"]


def test_the_beginning_of_a_line_waits_for_its_end(output: Output) -> None:
    print("first\nsecond", file=output.stream)
    assert output.writes() == ["first\n", "second\n"]


def test_flushing_writes_the_beginning_of_a_line(output: Output) -> None:
    print("first\nsec", end="", flush=True, file=output.stream)
    assert output.writes() == ["first\n", "sec"]


def test_a_line_that_is_rewritten_shows_at_once(output: Output) -> None:
    print("\r50%", end="", file=output.stream)
    assert output.writes() == ["\r50%"]


@pytest.mark.parametrize("length", [10_000, LONGEST_LINE_BYTES - 1])
def test_a_long_line_leaves_in_one_piece(output: Output, length: int) -> None:
    print("x" * length, file=output.stream)
    assert output.writes() == ["x" * length + "\n"]


def test_a_longer_line_is_all_there(output: Output) -> None:
    print("x" * 100_000, file=output.stream)
    assert "".join(output.writes()) == "x" * 100_000 + "\n"


def test_bytes_are_written_like_text(output: Output) -> None:
    assert output.stream.buffer.write(b"first\nsec") == 9
    assert output.stream.buffer.write(memoryview(b"ond\n")) == 4
    assert output.writes() == ["first\n", "second\n"]


CHECK = """
import io, sys
before = sys.stdout
from fdpool.worker.output import LineWriter, keep_lines_whole
keep_lines_whole()
changed = sys.stdout
keep_lines_whole()
assert sys.stdout is sys.__stdout__ is changed is not before
assert isinstance(changed.buffer, LineWriter)
assert (changed.name, changed.mode) == ("<stdout>", "w")
assert (changed.encoding, changed.errors) == (before.encoding, before.errors)
assert changed.fileno() == 1
print("first\\nsecond")
print("old", file=before)
print("part", end="")
"""


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_standard_output_becomes_one_that_keeps_lines_whole(flags: list[str]) -> None:
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reader:
        with writer:
            command = [sys.executable, "-X", "dev", *flags, "-c", CHECK]
            variables = environment()
            variables.pop("PYTHONUNBUFFERED", None)
            subprocess.run(command, stdout=writer.fileno(), env=variables, timeout=60, check=True)
        # The old stream, to which somebody may have a reference, is line-buffered at least; the rest comes at the end.
        written = [reader.recv(100) for _ in range(4 + len(flags))]
    assert written[:2] == [b"first\n", b"second\n"]
    assert b"".join(written[2:-1]) == b"old\n"
    assert written[-1] == b"part"


def test_a_standard_output_of_somebodys_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = io.StringIO()
    wrapped = io.TextIOWrapper(io.BytesIO())
    for stream in (own, wrapped, None):
        monkeypatch.setattr(sys, "stdout", stream)
        keep_lines_whole()
        assert sys.stdout is stream
