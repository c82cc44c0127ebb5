"""What a worker prints: line by line, whatever standard output is connected to."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

LONGEST_LINE_BYTES: Final = 64 * 1024
"""The longest line that leaves in one write(2). A pipe keeps writes together up to 4 KiB, and longer ones as long as
it has room for them: pipe(7)."""


class LineWriter(io.BufferedWriter):
    r"""Writes whole lines at once, and the beginning of the next one with the rest of it, or when it is flushed.

    A text stream that is merely line-buffered flushes all it has when there is a newline in it. `print("a\nb")` is then
    two writes to the kernel, of `a\nb` and of the last newline, and another process's line may come in between.
    """

    def write(self, data: Buffer, /) -> int:
        """Write *data* up to its last newline now, and keep the rest; all of it if it rewrites a line."""
        text = bytes(data)
        end = text.rfind(b"\n") + 1
        if b"\r" in text[end:]:
            end = len(text)
        if end:
            super().write(text[:end])
            self.flush()
        if end < len(text):
            super().write(text[end:])
        return len(text)


def keep_lines_whole() -> None:
    """Make `sys.stdout` write line by line, if it is what the interpreter made it. Nothing happens the second time."""
    stdout: object = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper) or getattr(stdout, "name", None) != "<stdout>":
        return
    if isinstance(stdout.buffer, LineWriter):
        return
    # Whoever has got hold of the old one already can go on using it.
    stdout.reconfigure(line_buffering=True)
    file = io.FileIO(1, "w", closefd=False)
    file.name = stdout.name
    whole = io.TextIOWrapper(LineWriter(file, LONGEST_LINE_BYTES), stdout.encoding, stdout.errors, write_through=True)
    whole.mode = "w"  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = whole  # type: ignore[misc]
