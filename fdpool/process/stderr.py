"""What a process writes to its stderr: read while it runs and after, passed on, and the end of it remembered."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
import textwrap
from contextlib import ExitStack
from typing import Final, Literal, get_args

import trio

from fdpool.kernel import OwnedFd
from fdpool.process.own_stderr import STDERR, OwnStderr, is_inherited
from fdpool.protocol.last_lines import LastLines, in_brief

StderrMode = Literal["tail", "inherit", "capture"]

_READ_BYTES: Final = 65536  # what a pipe holds: pipe(7)
_PASSING_ON_SECONDS: Final = 1.0
"""How long this process's own stderr may take to take in the rest, at the very end, before that is dropped."""


class StderrPipe:
    """One process's stderr. C code's output counts as well, which is why it is a pipe and not an object of Python's.

    One task reads at a time; whoever has the last use of it awaits `read_on`, or closes it. Where the process has
    inherited this one's stderr there is no pipe, and everything to be read has been.

    Args:
      reader: Where it comes out, never blocking. Owned.
      writer: Where it goes in, for the process that is about to be started. Owned.
      own: Where it is passed on to, if so. Held until it is closed.
    """

    def __init__(
        self, reader: OwnedFd | None = None, writer: OwnedFd | None = None, own: OwnStderr | None = None
    ) -> None:
        self.writer = writer
        self._reader = reader
        self._own = own
        self._unwritten = bytearray()
        self._last_lines = LastLines()

    @property
    def tail(self) -> str:
        """The last lines that were taken in, 4 KiB at most."""
        return self._last_lines.text()

    @property
    def last_words(self) -> str:
        """A few of the last lines, to be put after how the process ended; empty if there are none."""
        words = in_brief(self.tail)
        return f"; its stderr ended with:\n{textwrap.indent(words, '    ')}" if words else ""

    @trio.lowlevel.enable_ki_protection
    async def read(self) -> None:
        """Take in what is written, and pass it on, until nobody has it open for writing any more.

        While this process's own stderr takes in nothing, nothing more is read: who writes has to wait then, as with
        one that was inherited.

        Cancellation: nothing is lost, and it can be called again.
        """
        await trio.lowlevel.checkpoint()
        await self._pass_on()
        while self._reader is not None:
            await trio.lowlevel.wait_readable(self._reader)
            self._take(_READ_BYTES)
            await self._pass_on()

    @trio.lowlevel.enable_ki_protection
    async def read_on(self) -> None:
        """Go on reading after the end of the process, for what it started and left behind; then close it.

        Cancellation: what has been written so far is still passed on.
        """
        try:
            await self.read()
        finally:
            self.drain()
            with trio.move_on_after(_PASSING_ON_SECONDS, shield=True):
                await self._pass_on()
            self.close()

    def drain(self) -> None:
        """Take in what has been written so far, and pass on as much of it as there is room for, without waiting."""
        if self._reader is not None:
            # Others may write faster than this reads; but there is an end to what is there now.
            if size := _bytes_in(self._reader):
                self._take(size)
            if _is_at_end(self._reader):
                self._close_reader()
        if self._own is not None and not self._own.turn.locked():
            self._write()

    def close_writer(self) -> None:
        """Let go of the end that the process has by now."""
        if self.writer is not None:
            self.writer.close()

    def close(self) -> None:
        """Let go of everything. What still writes gets SIGPIPE. May be called twice."""
        self.close_writer()
        self._close_reader()
        own, self._own = self._own, None
        if own is not None:
            own.release()

    def _take(self, limit: int) -> None:
        assert self._reader is not None
        try:
            data = os.read(self._reader.fileno(), limit)
        except BlockingIOError:
            return
        if not data:
            self._close_reader()
        self._last_lines.feed(data)
        if self._own is not None:
            self._unwritten += data

    @trio.lowlevel.enable_ki_protection
    async def _pass_on(self) -> None:
        if self._own is None or not self._unwritten:
            return
        async with self._own.turn:
            self._write()
            while self._unwritten:
                await self._own.wait_writable()
                self._write()

    def _write(self) -> None:
        assert self._own is not None
        while self._unwritten and (written := self._own.write(self._unwritten)):
            del self._unwritten[:written]

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


class StderrPipes:
    """Makes the pipes for a pool's processes.

    Args:
      mode: "tail": what they write is remembered, and passed on to this process's own stderr. "capture": it is
          remembered only. "inherit": neither; they have this process's own.

    Raises:
      ValueError: there is no such mode.
    """

    def __init__(self, mode: StderrMode) -> None:
        if mode not in get_args(StderrMode):
            raise ValueError(f"stderr is {mode!r}: it is one of 'tail', 'inherit', 'capture'")
        self._mode = mode
        self._own: OwnStderr | None = None

    @property
    def is_remembered(self) -> bool:
        """Whether what processes write is remembered."""
        return self._mode != "inherit"

    def open_pipe(self) -> StderrPipe:
        """Make the pipe for a process that is about to be started; the caller owns it.

        Raises:
          OSError: no descriptors left.
        """
        if self._mode == "inherit":
            return StderrPipe()
        with ExitStack() as on_failure:
            reader, writer = (on_failure.enter_context(OwnedFd(number)) for number in os.pipe())
            # The other end has a description of its own, and goes on blocking.
            os.set_blocking(reader.fileno(), False)
            own = self._hold_own() if self._mode == "tail" else None
            on_failure.pop_all()
        return StderrPipe(reader, writer, own)

    def _hold_own(self) -> OwnStderr | None:
        """Hold this process's own stderr as it is now, and return it; None if there is none."""
        if not is_inherited(STDERR):
            return None
        if self._own is None or self._own.is_closed or not self._own.is_current():
            self._own = OwnStderr()
            return self._own
        return self._own.hold()


def _bytes_in(pipe: OwnedFd) -> int:
    """Return how many bytes can be read without waiting: FIONREAD, pipe(7)."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _is_at_end(pipe: OwnedFd) -> bool:
    """Whether there is nothing to be read, and nobody who could write."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return [events for _, events in poll.poll(0)] == [select.POLLHUP]
