"""End-to-end tests of what workers print, and of their warnings."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import pytest
import trio

from fdpool import Doorbell, WorkerDied, open_pool
from tests.support import output_tasks as tasks
from tests.support.programs import REPOSITORY, environment

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, params=["exec", "zygote"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with workers made in either way."""
    made: str = request.param
    monkeypatch.setitem(open_pool.__wrapped__.__kwdefaults__, "start", made)
    return made


@pytest.fixture(autouse=True)
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


# Prints. Standard output is a file here, to which Python writes in blocks.


async def test_a_line_shows_while_its_task_still_runs(capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool, Doorbell() as bell, Doorbell() as go_on, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, tasks.print_and_wait, "line\npart", bell._event, go_on._event)
            await bell.wait()
            assert capfd.readouterr().out == "line\n"
            go_on.ring()
    assert capfd.readouterr().out == "part"


@pytest.mark.parametrize("how", ["exit", "kill"])
async def test_lines_printed_before_a_worker_dies_are_there(capfd: pytest.CaptureFixture[str], how: str) -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            with pytest.raises(WorkerDied):
                await pool.run_sync(tasks.print_and_die, "first\nsecond\nnot a line", how)
    assert capfd.readouterr().out == "first\nsecond\n"


async def test_what_is_no_line_is_there_when_a_worker_is_retired_and_when_the_pool_closes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with trio.fail_after(60):
        async with open_pool(1, max_tasks_per_worker=2) as pool:
            workers = [await pool.run_sync(tasks.print_some, f"<{number}>") for number in range(3)]
    assert capfd.readouterr().out == "<0><1><2>"
    assert len(set(workers)) == 2


@pytest.mark.parametrize("start", ["zygote"], indirect=True)
async def test_what_a_preloaded_module_printed_is_there_once(capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(60):
        async with open_pool(3, preload=["tests.support.output_preload"]) as pool:
            await pool.run_sync(tasks.print_some, "")
            while len(pool._dispatcher._seats) < 3:
                await trio.lowlevel.checkpoint()
    captured = capfd.readouterr()
    assert captured.out == "loading\nand not done"
    assert captured.err == "to errors, not done either"


async def test_lines_of_several_workers_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(60):
        async with open_pool(3) as pool, trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(pool.run_sync, tasks.print_pairs, name, 5000)
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(
        f"{name} {which} {n}" for name in "abc" for which in ("first", "second") for n in range(5000)
    )


WITHOUT = """
import fdpool, sys, trio

async def main():
    async with fdpool.open_pool(1, start=sys.argv[1]) as pool:
        await pool.run_sync(print, "to nobody")
        assert await pool.run_sync(abs, -3) == 3

trio.run(main)
sys.exit(7)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_without_standard_streams_has_workers_all_the_same(start: str, closed: str) -> None:
    command = ["/bin/sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", WITHOUT, start]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment())
    assert (result.returncode, result.stderr) == (7, b"")


# Warnings.


def said_by_tasks(message: str, line: int) -> str:
    return f"{tasks.__file__}:{line}: CarelessWarning: {message}\n  warnings.warn(message, category, stacklevel=1)\n"


async def test_a_warning_is_shown_once_with_its_file_and_line(capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            line = await pool.run_sync(tasks.warn, tasks.CarelessWarning, "careful", 3)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == said_by_tasks("careful", line)


async def test_filters_set_here_hold_in_workers(capfd: pytest.CaptureFixture[str]) -> None:
    warnings.filterwarnings("ignore", "not so (bad|good)")
    warnings.filterwarnings("always", category=tasks.CarelessWarning)
    warnings.filterwarnings("error", "very bad", tasks.CarelessWarning, r"tests\.support\.")
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            await pool.run_sync(tasks.warn, UserWarning, "not so bad")
            line = await pool.run_sync(tasks.warn, tasks.CarelessWarning, "bad", 2)
            with pytest.raises(tasks.CarelessWarning, match="very bad"):
                await pool.run_sync(tasks.warn, tasks.CarelessWarning, "very bad")
    assert capfd.readouterr().err == said_by_tasks("bad", line) * 2


async def test_a_worker_that_starts_later_has_the_filters_of_then() -> None:
    with trio.fail_after(60):
        async with open_pool(1, max_tasks_per_worker=1) as pool:
            await pool.run_sync(tasks.filters)
            warnings.filterwarnings("error", "from now on")
            # This one may have been started before.
            await pool.run_sync(tasks.filters)
            with pytest.raises(UserWarning, match="from now on"):
                await pool.run_sync(tasks.warn, UserWarning, "from now on")


@pytest.mark.parametrize("start", ["zygote"], indirect=True)
async def test_filters_of_a_preloaded_module_hold_beside_those_set_here(capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(60):
        async with open_pool(1, preload=["tests.support.output_preload"], max_tasks_per_worker=2) as pool:
            for _ in range(3):
                await pool.run_sync(tasks.warn, UserWarning, "of the preloaded module")
                first, *_ = await pool.run_sync(tasks.filters)
                assert first[1].pattern == "of the preloaded module"
            # The supervisor's newest are before those of the module, in workers that start from then on.
            warnings.filterwarnings("error", "of the preloaded module itself")
            for _ in range(2):
                await pool.run_sync(tasks.filters)
            patterns = [message and message.pattern for _, message, *_ in await pool.run_sync(tasks.filters)]
            assert patterns[0] == "of the preloaded module itself"
            assert patterns.count("of the preloaded module") == 1
    assert "of the preloaded module" not in capfd.readouterr().err


PROGRAM = REPOSITORY / "tests/programs/warn_in_workers.py"
LINE = 1 + PROGRAM.read_text().splitlines().index('    warnings.warn("old", DeprecationWarning, stacklevel=1)')


@pytest.mark.parametrize(
    ("flags", "variable", "says", "prints"),
    [
        ([], "", f"{PROGRAM}:{LINE}: DeprecationWarning: old\n", "raised\n"),
        (["-W", "ignore"], "", "", "raised\n"),
        ([], "ignore", "", "raised\n"),
        (["-W", "error"], "", f'"{PROGRAM}", line {LINE}, in deprecated\n', ""),
        ([], "error::DeprecationWarning", f'"{PROGRAM}", line {LINE}, in deprecated\n', ""),
    ],
)
def test_options_of_the_interpreter_and_filters_of_a_script_hold_in_workers(
    start: str, flags: list[str], variable: str, says: str, prints: str
) -> None:
    result = subprocess.run(
        [sys.executable, *flags, str(PROGRAM), start],
        capture_output=True, text=True, timeout=60, check=False, env={**environment(), "PYTHONWARNINGS": variable},
    )  # fmt: skip
    assert result.stderr.count(says) == 1 or says == result.stderr == ""
    assert result.stdout == prints
