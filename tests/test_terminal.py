"""End-to-end tests of Ctrl-C, typed at a terminal."""

from __future__ import annotations

import os
import pty
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import PidFd
from tests.test_processes import ENVIRONMENT, PROGRAMS, seconds_until_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

CTRL_C = b"\x03"
SECONDS = 30.0


class Terminal:
    """A program with a terminal of its own, seen from the keyboard's side."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(PROGRAMS / "at_a_terminal.py"), *arguments]
        # Before the fork: nothing but the exec may happen between them.
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, ENVIRONMENT)
        self.process = PidFd(self.pid)
        self.output = b""

    def press(self, key: bytes) -> None:
        os.write(self.fd, key)

    def read_until(self, text: bytes) -> bytes:
        """Return what the program wrote up to *text*; raise EOFError if it ended instead."""
        while text not in self.output:
            assert select.select([self.fd], [], [], SECONDS)[0], f"nothing came after {self.output!r}"
            try:
                self.output += os.read(self.fd, 1000)
            except OSError:  # a terminal that nobody has open any more: EIO
                raise EOFError(self.output) from None
        before, _, self.output = self.output.partition(text)
        return before

    def read_all(self) -> bytes:
        with pytest.raises(EOFError) as caught:
            self.read_until(b"\0")
        return bytes(caught.value.args[0])

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        os.close(self.fd)
        self.process.wait_exit()
        self.process.close()


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("where", ["call that gives in", "nursery"])
def test_ctrl_c_interrupts_what_runs_and_ends_the_program(terminals: list[Terminal], where: str) -> None:
    terminal = Terminal(where, "1000")
    terminals.append(terminal)
    worker = PidFd(int(terminal.read_until(b"\r\n")))
    terminal.press(CTRL_C)
    assert terminal.read_all() == b"^Cinterrupted\r\n"
    seconds_until_gone([worker])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_ctrl_c_twice_does_not_wait_for_a_call_that_refuses(terminals: list[Terminal]) -> None:
    terminal = Terminal("call", "1000")
    terminals.append(terminal)
    worker = PidFd(int(terminal.read_until(b"\r\n")))
    terminal.press(CTRL_C)
    terminal.read_until(b"refused\r\n")
    terminal.press(CTRL_C)
    assert terminal.read_all() == b"^Cinterrupted\r\n"
    seconds_until_gone([worker])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_ctrl_c_does_not_wait_for_a_pool_that_waits_for_its_calls(terminals: list[Terminal]) -> None:
    terminal = Terminal("closing", "1000")
    terminals.append(terminal)
    worker = PidFd(int(terminal.read_until(b"\r\n")))
    terminal.press(CTRL_C)
    assert terminal.read_all() == b"^Cinterrupted\r\n"
    seconds_until_gone([worker])
