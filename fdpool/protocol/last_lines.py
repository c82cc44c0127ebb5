"""The last lines of a text that comes in pieces: what is kept of what a process writes to its stderr."""

from __future__ import annotations

from collections import deque
from typing import Final

KEPT_BYTES: Final = 4096
"""How much is kept, in whole lines."""
LINE_BYTES: Final = 1024
"""How much is kept of one line: its beginning. The list of modules that faulthandler ends a report with is a line of
several KiB where much is imported, and would leave no room for the stack above it."""
REPORT_LINES: Final = 20
"""How much is kept of the beginning of a report of a fatal error. Its stack begins with the last call, where the error
was; with the first calls, those at the end, it may have many KiB."""
FORGET_LINES: Final = 1000
"""After how many lines more such a report is no longer kept: it was that of another process, which wrote there too."""
BRIEF_LINES: Final = 10
_REPORT: Final = b"Fatal Python error: "


class LastLines:
    """Takes in a text piece by piece, and keeps its last lines as a terminal would show them.

    So a line that is written again and again from its beginning, as a progress bar is, is kept as it was last. Of a
    report of a fatal error (`faulthandler`) the first lines are kept beside the last ones.
    """

    __slots__ = ("_is_overwritten", "_left_out", "_line", "_lines", "_report", "_size", "_skipped")

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._size = 0
        # Where the last report begins, and how many lines of it were left out after its first ones.
        self._report: int | None = None
        self._left_out = 0
        self._line = b""
        self._skipped = 0
        self._is_overwritten = False

    def feed(self, data: bytes) -> None:
        """Take in the next piece."""
        rest, *lines = data.split(b"\n")
        self._write(rest)
        has_report = self._report is not None or self._line.startswith(_REPORT) or _REPORT in data
        for line in lines if has_report else _last_of(lines):
            self._end_line()
            self._write(line)
        self._trim()

    def text(self) -> str:
        """Return the last lines; also the one that was not ended, if there is one. No newline at the end."""
        lines = list(self._lines)
        if self._left_out:
            lines.insert(REPORT_LINES, f"… ({self._left_out} lines more)".encode())
        if line := self._shown():
            lines.append(line)
        return b"\n".join(lines).decode("utf-8", "replace")

    def _write(self, part: bytes) -> None:
        if not part:
            return
        _, is_returned, shown = part.rstrip(b"\r").rpartition(b"\r")
        if shown and (is_returned or self._is_overwritten):
            self._start_line()
        room = LINE_BYTES - len(self._line)
        self._line += shown[:room]
        self._skipped += len(shown[room:])
        self._is_overwritten = part.endswith(b"\r")

    def _end_line(self) -> None:
        line = self._shown()
        if line.startswith(_REPORT):
            self._report, self._left_out = len(self._lines), 0
        self._lines.append(line)
        self._size += len(line) + 1
        self._start_line()
        self._trim()

    def _start_line(self) -> None:
        self._line, self._skipped, self._is_overwritten = b"", 0, False

    def _shown(self) -> bytes:
        return self._line + f"… ({self._skipped} bytes more)".encode() if self._skipped else self._line

    def _trim(self) -> None:
        while self._lines and self._size + len(self._shown()) > KEPT_BYTES:
            self._drop_one()

    def _drop_one(self) -> None:
        """Drop the first line, or the first after the beginning of a report if that comes first."""
        place = 0
        if self._report == 0 and len(self._lines) > REPORT_LINES and self._left_out < FORGET_LINES:
            place = REPORT_LINES
            self._left_out += 1
        elif self._report == 0:
            self._report, self._left_out = None, 0
        elif self._report is not None:
            self._report -= 1
        self._size -= len(self._lines[place]) + 1
        del self._lines[place]


def _last_of(lines: list[bytes]) -> list[bytes]:
    """Return those of *lines* that can be among the last ones when all of them were taken in."""
    size = 0
    for number, line in enumerate(reversed(lines), start=1):
        # Of a line that is written again from its beginning only the end is kept, which may be nothing.
        size += 1 if b"\r" in line else min(len(line), LINE_BYTES) + 1
        if size > KEPT_BYTES:
            return lines[-number:]
    return lines


def in_brief(text: str) -> str:
    """Return the few lines of *text* that tell most: the first of the report of a fatal error, or else the last."""
    lines = text.splitlines()
    reports = [number for number, line in enumerate(lines) if line.startswith(_REPORT.decode())]
    return "\n".join(lines[reports[-1] :][:BRIEF_LINES] if reports else lines[-BRIEF_LINES:])
