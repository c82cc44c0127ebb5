"""Contract tests for PidFd, on real children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fdpool.kernel import ExitStatus, PidFd


def child(*, exits_with: int = 0, waits: bool = False) -> int:
    """Fork a child that exits, or sleeps until a signal ends it."""
    pid = os.fork()
    if pid == 0:
        if waits:
            signal.pause()
        os._exit(exits_with)
    return pid


def test_an_exit_code_is_collected_once() -> None:
    pid = child(exits_with=3)
    with PidFd(pid) as process:
        assert process.wait_exit() == ExitStatus(pid, exitcode=3)
        assert process.has_exited()
        with pytest.raises(ChildProcessError):
            process.wait_exit()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 1])
def test_a_signal_ends_exactly_this_process_and_is_reported(number: int) -> None:
    pid = child(waits=True)
    with PidFd(pid) as process:
        assert process.wait_exit_nowait() is None
        assert not process.has_exited()
        process.send_signal(number)
        assert process.wait_exit() == ExitStatus(pid, signal=number)
        with pytest.raises(ProcessLookupError):
            process.send_signal(0)


def test_the_status_says_in_words_how_it_ended() -> None:
    assert str(ExitStatus(7, signal=9)) == "process 7 was killed by SIGKILL"
    assert str(ExitStatus(7, signal=signal.SIGRTMIN + 1)) == "process 7 was killed by SIGRTMIN+1"
    assert str(ExitStatus(7, exitcode=3)) == "process 7 exited with code 3"
    assert "somebody else" in str(ExitStatus(7))


def test_pid_names_the_process_until_it_was_waited_for() -> None:
    with PidFd.current() as me:
        assert me.pid == os.getpid()
    with PidFd(child()) as process:
        process.wait_exit()
        assert process.pid == -1


def test_a_process_that_is_not_there_is_an_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError):
        PidFd(process.pid)
