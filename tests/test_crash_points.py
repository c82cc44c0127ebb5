"""End-to-end: a process is killed, or the kernel refuses, at one system call after the other; nothing may be left.

strace(1) injects the faults: `-D` makes it the grandchild, so that the traced process stays its parent's child.
A point is the n-th system call of one kind in one process. How many there are is counted in a run without faults.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = str(ROOT / "tests/programs/one_call.py")
STRACE = shutil.which("strace") or ""
AT_ONCE = 2


def strace_works() -> bool:
    """Whether strace is here, and this process may trace."""
    inject = [STRACE, "-D", "-qq", "-o", "/dev/null", "-e", "inject=getpid:retval=1", "true"]
    return bool(STRACE) and subprocess.run(inject, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not strace_works(), reason="strace is not installed, or may not trace here")


@dataclass(frozen=True)
class Target:
    """Which process is traced: the supervisor itself, or the first interpreter that it starts."""

    name: str
    start: str
    is_supervisor: bool = False
    follow: str = ""
    kind: str = ""

    def run(self, directory: Path, options: str) -> tuple[int, str]:
        """Run the program with *options* for strace; return its exit code and what it said."""
        tracing = f"{STRACE} -D -qq {self.follow} {options} {sys.executable}"
        if self.is_supervisor:
            return run([*tracing.split(), PROGRAM, self.start, "", self.kind])
        directory = directory / str(next(_numbers))
        directory.mkdir()
        script, flag = directory / "python", directory / "was-traced"
        again = f'if [ -e {flag} ]; then exec {sys.executable} "$@"; fi'
        script.write_text(f'#!/bin/sh\n{again}\n: > {flag}\nexec {tracing} "$@"\n')
        script.chmod(0o755)
        return run([sys.executable, PROGRAM, self.start, str(script), self.kind])

    def count_calls(self, directory: Path, calls: Iterable[str]) -> Counter[str]:
        """Return how often each of *calls* is made; by the process that makes most of them, if several are followed."""
        trace = directory / "trace"
        assert self.run(directory, f"-o {trace} -e trace={','.join(calls)}") == (0, "3; left: ")
        counts = Counter(re.findall(r"^(?:(\d+) +)?(\w+)\(", trace.read_text(), re.MULTILINE))
        most: Counter[str] = Counter()
        for (_, call), number in counts.items():
            most[call] = max(most[call], number)
        return most

    def points(self, directory: Path, calls: Iterable[str]) -> list[tuple[str, int]]:
        """Return each kind of call with each number it is made with."""
        counts = self.count_calls(directory, calls)
        return [(call, number) for call in calls for number in range(1, counts[call] + 1)]


_numbers = count()


def run(arguments: list[str]) -> tuple[int, str]:
    """Run a program until it, and everything it started, has ended; return its exit code and last line."""
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as program:  # fmt: skip
        assert program.stdout is not None
        # Whatever it starts holds the other end of its stdout.
        poll = select.poll()
        poll.register(program.stdout, 0)
        is_gone = bool(poll.poll(30_000))
        if not is_gone:
            program.kill()
        assert is_gone, f"something is still there: {arguments}"
        lines = program.stdout.read().splitlines()
    return program.returncode, lines[-1] if lines else ""


def outcomes(target: Target, directory: Path, faults: list[str]) -> Iterable[tuple[str, int, str]]:
    """Run once with each fault, some runs side by side; yield the fault, the exit code and what was said."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        runs = threads.map(lambda fault: target.run(directory, f"-o /dev/null -e inject={fault}"), faults)
        for fault, (code, line) in zip(faults, runs, strict=True):
            yield fault, code, line


def report(title: str, tally: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ", ".join(f"{number} times {outcome}" for outcome, number in tally.most_common())
    with capsys.disabled():
        print(f"\n{title}: {tally.total()} points: {words}")
    assert tally.total() > 5


@pytest.mark.parametrize("start", ["exec", "zygote"])
def test_a_supervisor_killed_at_any_point_leaves_nothing(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("supervisor", start, is_supervisor=True)
    calls = ["socketpair", "memfd_create", "vfork", "sendmsg", "recvmsg", "setpgid", "kill", "waitid"]
    calls += ["pipe2", "wait4"]
    faults = [f"{call}:signal=SIGKILL:when={number}" for call, number in target.points(tmp_path, calls)]
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(target, tmp_path, faults):
        # It is not always the same number of calls, so that the last ones may not be made.
        assert code == -9 or (code, line) == (0, "3; left: "), fault
        tally["killed, and nothing left" if code == -9 else "not reached"] += 1
    report(f"supervisor of start={start!r} killed", tally, capsys)


OTHERS = [Target("worker", "exec"), Target("zygote", "zygote"), Target("zygote and workers", "zygote", follow="-f")]


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.name)
def test_a_call_is_answered_wherever_what_runs_it_is_killed(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = ["execve", "prctl", "sigaltstack", "fcntl", "recvmsg", "sendmsg", "poll", "exit_group"]
    if target.start == "zygote":
        calls += ["clone", "dup2", "fchdir"]
    faults = [f"{call}:signal=SIGKILL:when={number}" for call, number in target.points(tmp_path, calls)]
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(target, tmp_path, faults):
        outcome, _, left = line.partition("; left: ")
        assert (code, left) == (0, ""), f"{fault}: {line}"
        assert outcome in {"3", "WorkerDied", "PoolBroken"}, f"{fault}: {line}"
        tally["answered" if outcome == "3" else outcome] += 1
    report(f"{target.name} killed", tally, capsys)


# How a process gets memory of its own, and another's into its address space. Before the call an interpreter that starts
# makes many of them, so that only the last ones are looked at.
MEMORY_CALLS = {"memfd_create": 2, "ftruncate": 2, "mmap": 9, "madvise": 4, "munmap": 4, "ioctl": 2}
WITH_MEMORY = Target("worker", "exec", kind="memory")


def memory_points(target: Target, directory: Path) -> list[str]:
    """Return a fault for each of the last calls that have to do with memory: SIGKILL as the call begins."""
    counts = target.count_calls(directory, MEMORY_CALLS)
    return [
        f"{call}:signal=SIGKILL:when={number}"
        for call, last in MEMORY_CALLS.items()
        for number in range(max(counts[call] - last, 0) + 1, counts[call] + 1)
    ]


def test_a_worker_killed_while_it_maps_memory_costs_its_call_and_keeps_none_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(WITH_MEMORY, tmp_path, memory_points(WITH_MEMORY, tmp_path)):
        outcome, _, left = line.partition("; left: ")
        assert (code, left) == (0, ""), f"{fault}: {line}"
        # The one that is killed in the second call has answered the first.
        assert outcome in {"3", "WorkerDied", "3, then WorkerDied, 0 bytes still in use"}, f"{fault}: {line}"
        tally["answered" if outcome == "3" else outcome] += 1
    assert tally["WorkerDied"] >= 3
    report("worker killed while it maps", tally, capsys)


def test_a_supervisor_killed_while_it_maps_memory_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("supervisor", "zygote", is_supervisor=True, kind="memory")
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(target, tmp_path, memory_points(target, tmp_path)):
        assert code == -9 or (code, line) == (0, "3; left: "), f"{fault}: {line}"
        tally["killed, and nothing left" if code == -9 else "not reached"] += 1
    report("supervisor killed while it maps", tally, capsys)


MEMORY_ERRORS = {"memfd_create": "EMFILE", "ftruncate": "ENOSPC", "mmap": "ENOMEM", "madvise": "EFAULT"}


def test_memory_that_is_refused_to_a_worker_costs_its_call_and_keeps_none_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = WITH_MEMORY.count_calls(tmp_path, MEMORY_ERRORS)
    faults = [
        f"{call}:error={error}:when={number}"
        for call, error in MEMORY_ERRORS.items()
        for number in range(max(counts[call] - MEMORY_CALLS[call], 0) + 1, counts[call] + 1)
    ]
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(WITH_MEMORY, tmp_path, faults):
        outcome, _, left = line.partition("; left: ")
        assert (code, left) == (0, ""), f"{fault}: {line}"
        # Some of the mappings are the interpreter's own, for its objects.
        assert outcome in {"3", "OSError", "MemoryError", "WorkerDied"}, f"{fault}: {line}"
        tally["answered" if outcome == "3" else outcome] += 1
    assert tally["OSError"] >= 3
    report("memory refused to a worker", tally, capsys)


WITH_STREAM = Target("worker", "exec", kind="stream")


def test_a_worker_killed_while_it_streams_costs_the_rest_of_the_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = ["sendmsg", "recvmsg", "memfd_create"]
    faults = [f"{call}:signal=SIGKILL:when={number}" for call, number in WITH_STREAM.points(tmp_path, calls)]
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(WITH_STREAM, tmp_path, faults):
        outcome, _, left = line.partition("; left: ")
        assert (code, left) == (0, ""), f"{fault}: {line}"
        # Killed before it got the stream, another worker makes all of it; killed after it, the call behind it fails.
        assert outcome in {"3", "WorkerDied", "3, then WorkerDied, 0 bytes still in use"}, f"{fault}: {line}"
        tally["answered" if outcome == "3" else outcome] += 1
    assert tally["WorkerDied"] >= 5
    report("worker killed while it streams", tally, capsys)


def test_a_worker_that_is_refused_messages_while_it_streams_ends_the_stream_or_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"sendmsg": ["ENOBUFS", "EAGAIN"], "recvmsg": ["ENOMEM", "EINTR"]}
    points = WITH_STREAM.points(tmp_path, errors)
    faults = [f"{call}:error={error}:when={number}" for call, number in points for error in errors[call]]
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(WITH_STREAM, tmp_path, faults):
        outcome, _, left = line.partition("; left: ")
        assert (code, left) == (0, ""), f"{fault}: {line}"
        assert outcome in {"3", "WorkerDied", "OSError"}, f"{fault}: {line}"
        tally["answered" if outcome == "3" else outcome] += 1
    report("worker refused while it streams", tally, capsys)


ERRORS = {
    "recvmsg": ["EMFILE", "ENOMEM", "EAGAIN", "EINTR"],
    "sendmsg": ["ENOBUFS", "ENOMEM", "EAGAIN", "EINTR"],
    "socketpair": ["EMFILE"],
    "memfd_create": ["EMFILE", "ENOMEM"],
    "pipe2": ["EMFILE"],
    "pidfd_open": ["EMFILE", "ENOMEM"],
    "vfork": ["EAGAIN", "ENOMEM"],
    "clone": ["EAGAIN", "ENOMEM"],
}
MOST_POINTS_OF_ONE_ERROR = 3


REFUSED = [OTHERS[0], OTHERS[2], Target("supervisor", "zygote", is_supervisor=True)]


@pytest.mark.parametrize("target", REFUSED, ids=lambda target: target.name)
def test_a_call_is_answered_whatever_the_kernel_refuses(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = target.count_calls(tmp_path, ERRORS)
    faults = [
        f"{call}:error={error}:when={number}"
        for call, errors in ERRORS.items()
        for error in errors
        for number in range(1, min(counts[call], MOST_POINTS_OF_ONE_ERROR) + 1)
    ]
    # Of the many mappings of an interpreter's start only the last is fdpool's own.
    mappings = target.count_calls(tmp_path, ["mmap"])["mmap"]
    faults.append(f"mmap:error=ENOMEM:when={mappings}")
    tally: Counter[str] = Counter()
    for fault, code, line in outcomes(target, tmp_path, faults):
        outcome, _, left = line.partition("; left: ")
        assert (code, left) == (0, ""), f"{fault}: {line}"
        tally["answered" if outcome == "3" else outcome] += 1
    report(f"{target.name} refused", tally, capsys)
