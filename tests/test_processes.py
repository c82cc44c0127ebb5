"""End-to-end tests of whole programs: their scripts, their ends, their memory."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import PidFd
from tests.support.leaks import living_group

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTS = ["exec", "zygote"]
RACE_SECONDS = float(os.environ.get("FDPOOL_RACE_SECONDS", "1"))
PROGRAMS = Path(__file__).parent / "programs"
ROOT = PROGRAMS.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, check=False, cwd="/",
        env={**ENVIRONMENT, **environment},
    )  # fmt: skip


@pytest.fixture
def start() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.clean_up()


class Starter:
    """Starts programs that would run for ever, and reads the pids they print."""

    def __init__(self) -> None:
        self.programs: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
        )
        self.programs.append(program)
        return program

    def clean_up(self) -> None:
        for program in self.programs:
            program.kill()
            program.communicate()


def workers_of(program: subprocess.Popen[str]) -> list[PidFd]:
    assert program.stdout is not None
    pids = {int(program.stdout.readline()) for _ in range(2)}
    return [PidFd(pid) for pid in pids]


def seconds_until_gone(processes: list[PidFd]) -> float:
    started = time.monotonic()
    for process in processes:
        assert select.select([process], [], [], 30)[0], f"{process} is still there"
        process.close()
    return time.monotonic() - started


def test_functions_and_classes_of_the_script_itself_work() -> None:
    result = run(str(PROGRAMS / "guarded.py"), "an", "argument")
    assert result.stderr == ""
    assert result.stdout == "3 not moved ['an', 'argument'] ['an', 'argument']\n"


def test_functions_of_a_module_run_as_a_script_work() -> None:
    result = run("-m", "tests.programs.guarded")
    assert result.stderr == ""
    assert result.stdout == "3 not moved [] []\n"


def test_a_script_without_a_guard_is_told_so() -> None:
    result = run(str(PROGRAMS / "unguarded.py"))
    assert result.returncode == 1
    assert "put the part that opens pools behind `if __name__ == '__main__':`" in result.stderr


STDIN_SCRIPT = (PROGRAMS / "unguarded.py").read_text()


def test_a_script_on_standard_input_works_with_cloudpickle() -> None:
    pytest.importorskip("cloudpickle")
    result = run("-", stdin=STDIN_SCRIPT)
    assert result.stderr == ""
    assert result.stdout == "42\n"


def test_a_script_on_standard_input_without_cloudpickle_is_told_what_to_install() -> None:
    result = run("-", stdin="import sys; sys.modules['cloudpickle'] = None\n" + STDIN_SCRIPT)
    assert result.returncode == 1
    assert "double is defined in a __main__ without a file" in result.stderr
    assert "pip install 'fdpool[cloudpickle]'" in result.stderr


HOW = [
    *(pytest.param(how, start, id=f"{how}-{start}") for how in ("idle", "sleep", "spin", "spawn") for start in STARTS),
    pytest.param("no zygote", "zygote", id="zygote killed first"),
]


@pytest.mark.parametrize(("how", "made"), HOW)
def test_no_process_outlives_a_supervisor_that_is_killed(start: Starter, how: str, made: str) -> None:
    supervisor = start(str(PROGRAMS / "supervise.py"), how, made)
    workers = workers_of(supervisor)
    supervisor.kill()
    # The promise is 100 ms; the bound leaves room for a machine that does something else just now.
    assert seconds_until_gone(workers) < 5
    wait_all_gone(supervisor)


@pytest.mark.parametrize("made", STARTS)
def test_no_process_outlives_a_supervisor_killed_at_any_moment(start: Starter, made: str) -> None:
    until = time.monotonic() + RACE_SECONDS
    while time.monotonic() < until:
        supervisor = start(str(PROGRAMS / "supervise.py"), "spawn", made)
        assert supervisor.stdout is not None
        # Not a wait for anything: the moment is what is being varied.
        select.select([], [], [], random.uniform(0, 0.4))
        supervisor.kill()
        wait_all_gone(supervisor)


def wait_all_gone(supervisor: subprocess.Popen[str]) -> None:
    """Wait for the end of the pipe that the supervisor's zygote, its workers and what they started all hold."""
    assert supervisor.stdout is not None
    poll = select.poll()
    poll.register(supervisor.stdout, 0)
    assert poll.poll(5000), "something that the supervisor started is still there"
    supervisor.communicate(timeout=30)


@pytest.mark.parametrize("made", STARTS)
def test_what_a_task_started_ends_with_its_worker(start: Starter, made: str) -> None:
    supervisor = start(str(PROGRAMS / "supervise.py"), "spawn", made)
    first, second = workers_of(supervisor)
    groups = [first.pid, second.pid]
    first.send_signal(signal.SIGKILL)
    # Its WorkerDied ends the program, and so the other worker.
    seconds_until_gone([first, second])
    for group in groups:
        wait_group_gone(group)


def wait_group_gone(group: int) -> None:
    """Wait until nobody of the process group runs: its members have no common handle to wait on."""
    deadline = time.monotonic() + 5
    while members := living_group(group):
        assert time.monotonic() < deadline, f"still there: {members}"


def test_ctrl_c_ends_the_program_quietly_and_all_its_workers(start: Starter) -> None:
    program = start(str(PROGRAMS / "interrupted.py"))
    workers = workers_of(program)
    # A terminal sends it to the whole foreground group: supervisor and workers.
    os.killpg(program.pid, signal.SIGINT)
    assert program.communicate(timeout=30)[0] == "interrupted\n"
    assert program.returncode == 0
    seconds_until_gone(workers)


def test_a_big_array_costs_its_size_once_in_each_direction() -> None:
    pytest.importorskip("numpy")
    result = run(str(PROGRAMS / "big_array.py"))
    assert result.stderr == ""
    there, back = map(float, result.stdout.split())
    # The one copy is in the arena, which is mapped here as well, and counts as this process's until it is idle.
    assert there < 1.2
    assert back < 1.2


def test_the_entrypoint_says_how_it_is_used() -> None:
    result = run("-m", "fdpool.worker")
    assert result.returncode == 2
    assert "usage: python -m fdpool.worker worker CHANNEL PAGE LIFELINE SUPERVISOR\n" in result.stderr
    assert "       python -m fdpool.worker zygote CHANNEL LIFELINE SUPERVISOR\n" in result.stderr


@pytest.mark.parametrize("role", ["worker", "zygote"])
def test_a_process_whose_supervisor_has_ended_leaves_before_it_loads_anything(role: str) -> None:
    """It may be orphaned in the moment between its start and its being tied to its supervisor."""
    with subprocess.Popen(["true"]) as supervisor:
        pidfd = PidFd(supervisor.pid)
    with pidfd:
        numbers = ["0", "1", "2"] if role == "worker" else ["0", "1"]
        command = [sys.executable, "-v", "-P", "-m", "fdpool.worker", role, *numbers, str(pidfd.fileno())]
        result = subprocess.run(command, pass_fds=[pidfd.fileno()], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0
    loaded = re.findall(r"^import '([\w.]+)'", result.stderr, re.MULTILINE)
    assert "select" in loaded
    assert [name for name in loaded if name.startswith("fdpool.worker.") or name == "ctypes"] == []


def test_importing_fdpool_imports_no_trio() -> None:
    result = run("-c", "import fdpool, fdpool.worker.loop, sys; print('trio' in sys.modules, len(dir(fdpool)) > 10)")
    assert result.stdout == "False True\n"


def test_every_public_name_resolves() -> None:
    result = run("-c", "import fdpool\nfor name in fdpool.__all__: getattr(fdpool, name)\nfdpool.no_such_name")
    assert "module 'fdpool' has no attribute 'no_such_name'" in result.stderr
