"""Contract tests for writing to this process's own stderr, whatever that is."""

from __future__ import annotations

import os
import pty
import resource
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from fdpool.kernel import OwnedFd
from fdpool.process.own_stderr import OwnStderr, is_inherited
from tests.support.own_stderr import open_pipe, stderr_is

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def own_stderr(stack: ExitStack) -> OwnStderr:
    """Hold what descriptor 2 is now, until the end of the test."""
    own = OwnStderr()
    stack.callback(own.release)
    return own


def a_pipe(stack: ExitStack) -> tuple[OwnedFd, OwnedFd]:
    return stack.enter_context(open_pipe())


def a_terminal(stack: ExitStack) -> tuple[OwnedFd, OwnedFd]:
    ours, theirs = pty.openpty()
    return stack.enter_context(OwnedFd(ours)), stack.enter_context(OwnedFd(theirs))


def a_socket(stack: ExitStack) -> tuple[OwnedFd, OwnedFd]:
    ours, theirs = socket.socketpair()
    return stack.enter_context(OwnedFd(ours.detach())), stack.enter_context(OwnedFd(theirs.detach()))


def a_pipe_that_cannot_be_opened_again(stack: ExitStack) -> tuple[OwnedFd, OwnedFd]:
    ours, theirs = a_pipe(stack)
    patch = pytest.MonkeyPatch()
    stack.callback(patch.undo)
    opened = os.open

    def refuse(path: str, flags: int) -> int:
        if path.startswith("/proc/self/fd/"):
            raise PermissionError(path)
        return opened(path, flags)

    patch.setattr(os, "open", refuse)
    return ours, theirs


KINDS = [a_pipe, a_terminal, a_socket, a_pipe_that_cannot_be_opened_again]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_arrives_unchanged(stack: ExitStack, kind: Callable[..., tuple[OwnedFd, OwnedFd]]) -> None:
    ours, theirs = kind(stack)
    with stderr_is(theirs):
        own = own_stderr(stack)
        assert own.write(b"the words") == 9
    assert os.read(ours.fileno(), 100) == b"the words"


@pytest.mark.parametrize("kind", KINDS)
async def test_writing_to_one_that_is_full_waits_in_no_thread_and_changes_nothing_of_it(
    stack: ExitStack, kind: Callable[..., tuple[OwnedFd, OwnedFd]]
) -> None:
    ours, theirs = kind(stack)
    with stderr_is(theirs):
        own = own_stderr(stack)
    written = 0
    # A terminal that took a line feed each time would take for ever to be full.
    with trio.fail_after(10):
        while count := own.write(b"x" * 100_000):
            written += count
        assert written > 1000
        assert os.get_blocking(theirs.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            while written > 0:
                written -= len(os.read(ours.fileno(), written))
        assert own.write(b"y") == 1


def test_a_file_is_written_to_where_it_stands(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, stderr_is(file):
        os.write(2, b"before\n")
        own = own_stderr(stack)
        assert own.write(b"in between\n") == 11
        os.write(2, b"after\n")
    assert path.read_bytes() == b"before\nin between\nafter\n"


@pytest.mark.parametrize("kind", KINDS)
def test_writing_to_one_that_nobody_reads_is_no_error(
    stack: ExitStack, kind: Callable[..., tuple[OwnedFd, OwnedFd]]
) -> None:
    ours, theirs = kind(stack)
    with stderr_is(theirs):
        own = own_stderr(stack)
        ours.close()
        again = own_stderr(stack)
    assert own.write(b"for nobody") == 10
    assert again.write(b"for nobody") == 10


def test_a_disk_that_is_full_is_no_error(stack: ExitStack) -> None:
    with open("/dev/full", "wb") as full, stderr_is(full):
        assert own_stderr(stack).write(b"no room") == 7


@pytest.mark.parametrize("is_pending", [False, True])
def test_a_process_that_sigpipe_would_end_lives_on(stack: ExitStack, is_pending: bool) -> None:
    ours, theirs = a_pipe(stack)
    with stderr_is(theirs):
        own = own_stderr(stack)
    ours.close()
    stack.callback(signal.signal, signal.SIGPIPE, signal.signal(signal.SIGPIPE, signal.SIG_DFL))
    if is_pending:
        # One that came for another reason stays where it is.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        stack.callback(signal.sigtimedwait, {signal.SIGPIPE}, 0)
        signal.raise_signal(signal.SIGPIPE)
    assert own.write(b"for nobody") == 10
    assert (signal.SIGPIPE in signal.sigpending()) is is_pending
    assert (signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, ())) is is_pending


def test_it_is_closed_with_its_last_holder() -> None:
    own = OwnStderr()
    own.hold().release()
    assert (own.is_closed, own._fd.closed) == (False, False)
    own.release()
    assert (own.is_closed, own._fd.closed) == (True, True)


def test_another_stderr_is_told_from_the_same(stack: ExitStack, tmp_path: Path) -> None:
    _, theirs = a_pipe(stack)
    _, others = a_pipe(stack)
    with stderr_is(theirs):
        own = own_stderr(stack)
        assert own.is_current()
        with stderr_is(theirs):
            assert own.is_current()
        with stderr_is(others):
            assert not own.is_current()
        os.set_inheritable(2, False)
        assert not own.is_current()
        os.close(2)
        assert not own.is_current()


def test_a_file_that_was_opened_again_is_another_stderr(stack: ExitStack, tmp_path: Path) -> None:
    files = [stack.enter_context((tmp_path / "log").open("wb")) for _ in range(2)]
    with stderr_is(files[0]):
        own = own_stderr(stack)
        own.write(b"four")
        assert own.is_current()
        with stderr_is(files[1]):
            assert not own.is_current()


def test_what_a_program_would_not_get_is_not_inherited(stack: ExitStack) -> None:
    _, theirs = a_pipe(stack)
    assert not is_inherited(theirs.fileno())
    os.set_inheritable(theirs.fileno(), True)
    assert is_inherited(theirs.fileno())
    number = theirs.fileno()
    theirs.close()
    assert not is_inherited(number)


def test_no_room_for_a_descriptor_is_an_error_and_nothing_is_left(stack: ExitStack) -> None:
    _, theirs = a_pipe(stack)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with stderr_is(theirs):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                OwnStderr()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
