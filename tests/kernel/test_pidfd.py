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


def test_the_status_tells_the_peak_of_memory() -> None:
    peaks = []
    for size in (0, 64 << 20):
        pid = os.fork()
        if pid == 0:
            # A pattern, because zeros are not written by calloc(3), and so not resident.
            len(b"ab" * (size // 2))
            os._exit(0)
        with PidFd(pid) as process:
            peak = process.wait_exit().peak_rss_bytes
            assert peak is not None
            peaks.append(peak)
    # The kernel adds up what each processor has counted now and then: docs/kernel-notes.md.
    assert 60 << 20 < peaks[1] - peaks[0] < 72 << 20


def test_a_status_that_somebody_else_collected_is_an_error() -> None:
    pid = child()
    with PidFd(pid) as process:
        os.waitpid(pid, 0)
        with pytest.raises(ChildProcessError):
            process.wait_exit()


def test_a_number_that_was_used_again_meanwhile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the collecting, another thread collects, and a child that lives gets the number."""
    pid, living = child(), child(waits=True)
    look = os.waitid

    def look_and_lose(*arguments: int) -> os.waitid_result | None:
        found = look(*arguments)
        os.waitpid(pid, 0)
        return found and os.waitid_result((living, *tuple(found)[1:]))

    with PidFd(pid) as process, PidFd(living) as other:
        monkeypatch.setattr(os, "waitid", look_and_lose)
        with pytest.raises(ChildProcessError):
            process.wait_exit()
        monkeypatch.undo()
        assert not other.has_exited()
        other.send_signal(signal.SIGKILL)
        assert other.wait_exit() == ExitStatus(living, signal=signal.SIGKILL)


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
