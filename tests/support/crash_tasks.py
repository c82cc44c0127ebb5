"""Functions for workers to die in, or to write to their stderr before they do."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdpool.kernel import EventFd


def abort() -> NoReturn:
    os.abort()


def abort_below(depth: int) -> None:
    if depth:
        abort_below(depth - 1)
    else:
        abort()


def read_null() -> bytes:
    return ctypes.string_at(0)


def overflow_the_stack() -> object:
    """Have C code call itself until there is no stack left, without a frame of Python in between."""
    nested: Iterator[Any] = iter([])
    for _ in range(10**6):
        nested = filter(None, nested)
    return next(nested, None)


def free_what_was_never_allocated() -> None:
    memory = ctypes.create_string_buffer(100)
    ctypes.CDLL(None).free(ctypes.c_void_p(ctypes.addressof(memory) + 8))


def run_out_of_memory_in_c() -> NoReturn:
    """Do what many a library does when malloc(3) has nothing left."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while libc.malloc(ctypes.c_size_t(1 << 20)):
        pass
    libc.perror(b"the library")
    libc.abort()
    raise AssertionError("abort(3) returned")


def say_and_exit(words: bytes, code: int) -> NoReturn:
    os.write(2, words)
    os._exit(code)


def say(words: bytes) -> int:
    """Write all of *words*; return this worker's pid."""
    while words:
        words = words[os.write(2, words) :]
    return os.getpid()


def ring_and_say(event: EventFd, words: bytes) -> None:
    with event:
        event.write()
    say(words)


def say_later(words: bytes, event: EventFd) -> None:
    """Begin to write, with nobody waiting for the end of it; ring then."""

    def write() -> None:
        with event:
            say(words)
            event.write()

    threading.Thread(target=write).start()


def say_and_kill_self(words: bytes = b"") -> NoReturn:
    say(words)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still there")


def use_memory_and_kill_self(size: int) -> NoReturn:
    # A pattern, because zeros are not written, and so not resident.
    memory = b"ab" * (size // 2)
    say_and_kill_self(memory[:2] + b"\n")


def rewrite_and_kill_self(path: str, text: str) -> NoReturn:
    Path(path).write_text(text)
    say_and_kill_self()


def what_stderr_is() -> tuple[int, int, bool]:
    """Return which file it is, and whether crashes are reported there."""
    found = os.fstat(2)
    return found.st_dev, found.st_ino, faulthandler.is_enabled()


def report_crashes_to(path: str) -> None:
    global _report
    _report = open(path, "w")  # noqa: SIM115 - it has to stay open as long as the process lives
    faulthandler.enable(_report)


_report: Any = None


def leave_somebody_behind(go_on: Any, said: Any) -> None:
    """Start a program that detaches, waits for *go_on*, writes to its stderr, and then says on *said* how that went."""
    script = "read line; echo 'still here' >&2; echo $?"
    # Nobody here waits for it, which is no reason to be warned.
    subprocess.Popen(["/bin/sh", "-c", script], stdin=go_on, stdout=said, start_new_session=True).returncode = 0


def leave_something_that_writes() -> None:
    """Start a program that detaches and writes to its stderr for as long as anybody reads that."""
    subprocess.Popen(["/bin/sh", "-c", "while echo again >&2; do :; done"], start_new_session=True).returncode = 0
