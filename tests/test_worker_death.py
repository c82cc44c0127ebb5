"""End-to-end tests of what is told about a worker that died, and of what workers write to their stderr."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from fdpool import Backoff, Doorbell, Limits, PoolBroken, Restart, WorkerDied, open_pool
from fdpool.errors import RemoteProtocolError, describe_size
from fdpool.process.oom import OomKills
from tests.support import crash_tasks, tasks
from tests.support.leaks import descriptor_count
from tests.support.own_stderr import bytes_in, fill, open_pipe, read_exactly, stderr_is
from tests.test_processes import ENVIRONMENT, PROGRAMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from fdpool import Pool

MEGABYTE = b"".join(b"%063d\n" % number for number in range(1 << 14))


@pytest.fixture(autouse=True, params=["exec", "zygote"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with workers made in either way."""
    made: str = request.param
    monkeypatch.setitem(open_pool.__wrapped__.__kwdefaults__, "start", made)
    return made


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """End a test that hangs."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
async def captured() -> AsyncIterator[Pool]:
    async with open_pool(1, stderr="capture") as pool:
        yield pool


async def death_of(pool: Pool, task: Callable[..., Any], *args: Any) -> WorkerDied:
    with pytest.raises(WorkerDied) as caught:
        await pool.run_sync(task, *args)
    return caught.value


# Last words.


@pytest.mark.parametrize(
    ("task", "number", "says"),
    [
        (crash_tasks.abort, signal.SIGABRT, "Fatal Python error: Aborted\n"),
        (crash_tasks.read_null, signal.SIGSEGV, "Fatal Python error: Segmentation fault\n"),
        (crash_tasks.overflow_the_stack, signal.SIGSEGV, "Fatal Python error: Segmentation fault\n"),
        (
            crash_tasks.free_what_was_never_allocated,
            signal.SIGABRT,
            "free(): invalid pointer\nFatal Python error: Aborted\n",
        ),
    ],
)
async def test_a_crash_in_c_leaves_its_words_and_the_python_stack(
    captured: Pool, task: Any, number: int, says: str
) -> None:
    death = await death_of(captured, task)
    assert (death.exitcode, death.signal) == (None, number)
    assert death.stderr_tail.startswith(says)
    assert f"in {task.__name__}\n" in death.stderr_tail
    assert death.note == ""
    assert f"was killed by {signal.Signals(number).name} while running" in str(death)
    assert str(death).endswith(death.stderr_tail)
    assert await captured.run_sync(tasks.add, 1) == 2


async def test_of_a_deep_stack_the_last_calls_are_told(captured: Pool) -> None:
    death = await death_of(captured, crash_tasks.abort_below, 200)
    lines = death.stderr_tail.splitlines()
    assert lines[0] == "Fatal Python error: Aborted"
    assert [line.rpartition(" ")[2] for line in lines[3:6]] == ["abort", "abort_below", "abort_below"]


async def test_c_code_that_runs_out_of_its_memory_leaves_its_words() -> None:
    async with open_pool(1, limits=Limits(data=256 << 20), stderr="capture") as pool:
        death = await death_of(pool, crash_tasks.run_out_of_memory_in_c)
        assert death.signal == signal.SIGABRT
        assert death.stderr_tail.startswith("the library: Cannot allocate memory\nFatal Python error: Aborted\n")
        with pytest.raises(MemoryError) as caught:
            await pool.run_sync(tasks.use_memory)
        assert "Limits(data=" in caught.value.__notes__[-1]


async def test_words_without_a_newline_are_words(captured: Pool) -> None:
    death = await death_of(captured, crash_tasks.say_and_exit, b"one line\nand the last", 3)
    assert (death.exitcode, death.signal) == (3, None)
    assert death.stderr_tail == "one line\nand the last"
    assert "exited with code 3 while running" in str(death)
    assert str(death).endswith("; its stderr ended with:\none line\nand the last")


async def test_the_last_lines_are_remembered_whole(captured: Pool) -> None:
    death = await death_of(captured, crash_tasks.say_and_kill_self, MEGABYTE)
    lines = death.stderr_tail.splitlines()
    assert lines == MEGABYTE.decode().splitlines()[-64:]


async def test_each_worker_is_remembered_by_itself() -> None:
    deaths: dict[int, WorkerDied] = {}

    async def one(number: int) -> None:
        deaths[number] = await death_of(pool, crash_tasks.say_and_kill_self, f"I am {number}".encode())

    async with open_pool(8, stderr="capture") as pool, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    assert {number: death.stderr_tail for number, death in deaths.items()} == {n: f"I am {n}" for n in range(20)}


async def test_an_async_call_is_told_as_well(captured: Pool) -> None:
    async with Doorbell() as bell, trio.open_nursery() as nursery:

        async def hang() -> None:
            with pytest.raises(WorkerDied) as caught:
                await captured.run(tasks.async_ring_and_hang, bell._event, bell._event)
            assert caught.value.stderr_tail == "the end"

        nursery.start_soon(hang)
        await bell.wait()
        await death_of(captured, crash_tasks.say_and_kill_self, b"the end")


async def test_later_calls_of_a_worker_set_aside_are_told_the_same(captured: Pool) -> None:
    async with captured.worker() as worker:
        deaths = []
        for _ in range(2):
            with pytest.raises(WorkerDied) as caught:
                await worker.run_sync(crash_tasks.say_and_kill_self, b"the end")
            deaths.append(caught.value)
    assert [death.stderr_tail for death in deaths] == ["the end"] * 2
    assert deaths[0].peak_rss_bytes == deaths[1].peak_rss_bytes


async def test_crashes_are_reported_where_a_task_wants_them(captured: Pool, tmp_path: Path) -> None:
    await captured.run_sync(crash_tasks.report_crashes_to, str(tmp_path / "report"))
    death = await death_of(captured, crash_tasks.abort)
    assert death.stderr_tail == ""
    assert "Fatal Python error: Aborted" in (tmp_path / "report").read_text()


async def test_stacks_can_still_be_asked_for(captured: Pool) -> None:
    await captured.run_sync(tasks.pid)
    (stacks,) = (await captured.dump_stacks()).values()
    assert "in serve" in stacks


# Passing on.


@pytest.mark.parametrize("mode", ["tail", "inherit"])
async def test_a_megabyte_arrives_whole(mode: Any) -> None:
    with open_pipe() as (ours, theirs), stderr_is(theirs):
        async with open_pool(1, stderr=mode) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, crash_tasks.say, MEGABYTE)
            assert await read_exactly(ours, len(MEGABYTE)) == MEGABYTE
        assert bytes_in(ours) == 0


async def test_a_worker_can_write_while_nothing_is_asked_of_it(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file, stderr_is(file):
        async with Doorbell() as bell, open_pool(1) as pool:
            await pool.run_sync(crash_tasks.say_later, MEGABYTE, bell._event)
            await bell.wait()
    assert (tmp_path / "stderr").read_bytes() == MEGABYTE


async def test_what_many_workers_write_arrives_whole_and_unmixed(tmp_path: Path) -> None:
    pids = []

    async def one(number: int) -> None:
        pids.append(await pool.run_sync(crash_tasks.say, b"%099d\n" % number * 100))

    with (tmp_path / "stderr").open("wb") as file, stderr_is(file):
        # Those that are still starting at the end may finish that: interrupted in an import, they would say so.
        async with open_pool(20, grace_period=30) as pool, trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert sorted(lines) == sorted(f"{number:099}" for number in range(40) for _ in range(100))
    assert len(pids) == 40


async def test_a_worker_takes_one_descriptor_for_its_stderr(start: str) -> None:
    counts = {}
    modes: list[Any] = ["inherit", "capture", "tail"]
    for mode in modes:
        async with open_pool(4, stderr=mode) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(pool.run_sync, tasks.ring_and_hang, bell._event)
            rung = 0
            while rung < 4:
                rung += await bell.wait()
            counts[mode] = descriptor_count()
            nursery.cancel_scope.cancel()
    assert counts["capture"] == counts["inherit"] + 4 + (start == "zygote")
    assert counts["tail"] == counts["capture"] + 1


async def test_captured_words_are_not_passed_on() -> None:
    with open_pipe() as (ours, theirs), stderr_is(theirs):
        async with open_pool(1, stderr="capture") as pool:
            await pool.run_sync(crash_tasks.say, b"between us\n")
            assert (await death_of(pool, tasks.kill_self)).stderr_tail == "between us"
        assert bytes_in(ours) == 0


async def test_an_inherited_stderr_is_the_supervisors_and_nothing_is_remembered() -> None:
    with open_pipe() as (ours, theirs), stderr_is(theirs):
        async with open_pool(1, stderr="inherit") as pool:
            device, inode, is_reporting = await pool.run_sync(crash_tasks.what_stderr_is)
            found = os.fstat(2)
            assert (device, inode) == (found.st_dev, found.st_ino)
            assert not is_reporting
            assert (await death_of(pool, crash_tasks.say_and_kill_self, b"words")).stderr_tail == ""
        assert os.read(ours.fileno(), 100) == b"words"


async def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="stderr is 'keep': it is one of 'tail', 'inherit', 'capture'"):
        async with open_pool(1, stderr="keep"):
            pass


async def test_a_stderr_that_nobody_reads_costs_nobody_anything() -> None:
    with open_pipe() as (ours, theirs), stderr_is(theirs):
        async with open_pool(1) as pool:
            await pool.run_sync(crash_tasks.say, b"for somebody\n")
            ours.close()
            await pool.run_sync(crash_tasks.say, MEGABYTE)
            assert (await death_of(pool, crash_tasks.say_and_kill_self, b"for nobody")).stderr_tail.endswith("nobody")


async def test_a_stderr_that_takes_nothing_holds_up_who_writes_and_nobody_else() -> None:
    with open_pipe() as (ours, theirs), stderr_is(theirs):
        size = fill(theirs)
        async with open_pool(2) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, crash_tasks.ring_and_say, bell._event, MEGABYTE)
            await bell.wait()
            for number in range(10):
                assert await pool.run_sync(tasks.add, number) == number + 1
            # A death is told at once, and its words are passed on when there is room.
            assert (
                await death_of(pool, crash_tasks.say_and_kill_self, b"words\n" * 3)
            ).stderr_tail == "words\n" * 2 + "words"
            assert bytes_in(ours) == size
            written = (await read_exactly(ours, size + len(MEGABYTE) + 18))[size:]
        assert written.replace(b"words\n" * 3, b"") == MEGABYTE


async def test_a_worker_writes_to_what_was_stderr_when_it_was_started() -> None:
    with open_pipe() as (ours, theirs), open_pipe() as (other_ours, other_theirs):
        with stderr_is(theirs):
            async with open_pool(1) as pool:
                await pool.run_sync(tasks.pid)
                with stderr_is(other_theirs):
                    await death_of(pool, crash_tasks.say_and_kill_self, b"old")
                    assert await pool.run_sync(crash_tasks.say, b"new")
        assert os.read(ours.fileno(), 100) == b"old"
        assert os.read(other_ours.fileno(), 100) == b"new"


@pytest.mark.parametrize("mode", ["tail", "capture", "inherit"])
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-", "2>/dev/full"])
def test_a_program_without_a_stderr_works(mode: str, closed: str, start: str, tmp_path: Path) -> None:
    program = f"{sys.executable} -W error {PROGRAMS / 'without_stderr.py'} {start} {mode} {tmp_path / 'told'}"
    # The shell itself writes to where its own stderr was.
    subprocess.run(["/bin/sh", "-c", f"exec {program} {closed}"], env=ENVIRONMENT, timeout=60, check=True)
    tail = "" if mode == "inherit" else "last words"
    assert (tmp_path / "told").read_text() == f"2 {tail!r} 2"


# Those who are left behind.


async def test_somebody_left_behind_can_write_while_the_pool_is_open() -> None:
    go_on, their_go_on = socket.socketpair()
    said, their_said = socket.socketpair()
    with open_pipe() as (ours, theirs), go_on, said, stderr_is(theirs):
        async with open_pool(1, max_tasks_per_worker=1) as pool:
            with their_go_on, their_said:
                await pool.run_sync(crash_tasks.leave_somebody_behind, their_go_on, their_said)
            # By another worker in the same place: the one that started the program was waited for.
            await pool.run_sync(tasks.pid)
            go_on.sendall(b"\n")
            assert await read_exactly(ours, 11) == b"still here\n"
            await trio.lowlevel.wait_readable(said)
            assert said.recv(100) == b"0\n"
        assert said.recv(100) == b""


async def test_somebody_left_behind_who_writes_for_ever_holds_up_nothing() -> None:
    async with open_pool(1, stderr="capture") as pool:
        await pool.run_sync(crash_tasks.leave_something_that_writes)
        death = await death_of(pool, tasks.kill_self)
        assert set(death.stderr_tail.splitlines()) <= {"again"}
        assert await pool.run_sync(tasks.add, 1) == 2


# Starting.


@pytest.mark.parametrize(
    ("initializer", "arguments", "says"),
    [
        (
            crash_tasks.say_and_exit,
            (b"no such library\n", 3),
            "exited with code 3 before it was ready; its stderr ended with:\n      no such library",
        ),
        (
            crash_tasks.read_null,
            (),
            "was killed by SIGSEGV before it was ready; its stderr ended with:\n"
            "      Fatal Python error: Segmentation fault\n",
        ),
    ],
)
async def test_workers_that_die_while_they_start_are_listed_with_their_last_words(
    initializer: Any, arguments: tuple[Any, ...], says: str
) -> None:
    patience = Restart(intensity=1, backoff=Backoff(first=0.01))
    async with open_pool(1, initializer=initializer, initargs=arguments, restart=patience, stderr="capture") as pool:
        with pytest.raises(PoolBroken) as caught:
            await pool.run_sync(tasks.pid)
    for line in caught.value.exits:
        assert says in line.replace("\n    ", "\n      ")
        assert line.count("\n") <= 10


async def test_a_zygote_that_dies_is_listed_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDPOOL_TEST_PRELOAD", "crash")
    patience = Restart(intensity=1, backoff=Backoff(first=0.01))
    async with open_pool(
        1, start="zygote", preload=["tests.support.preloads"], restart=patience, stderr="capture"
    ) as pool:
        with pytest.raises(PoolBroken) as caught:
            await pool.run_sync(tasks.pid)
    assert len(caught.value.exits) == 2
    for line in caught.value.exits:
        assert "SIGSEGV while it loaded 'tests.support.preloads'; its stderr ended with:\n    Fatal Python err" in line
        assert "tests/support/preloads.py" in line


async def test_a_pool_without_room_for_descriptors_says_so_and_leaves_none() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptor_count()
    async with open_pool(1, restart=Restart(intensity=0), stderr="tail") as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(PoolBroken, match=r"could not be started: .*Too many open files"):
                await pool.run_sync(tasks.pid)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptor_count() == before


# Memory.


def test_the_peak_of_its_memory_is_told(start: str) -> None:
    """In a program of its own: this one may have had more, which an exec'd worker inherits.

    So would the program; a shell that forks once more before it is in between, and passes on only the little it has.
    """
    size = 256 << 20
    program = shlex.join([sys.executable, str(PROGRAMS / "peak_of_memory.py"), start, str(size)])
    shell = ["/bin/sh", "-c", f"{program}; exit $?"]
    result = subprocess.run(shell, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    first, second, own = result.stdout.splitlines()
    assert int(own) < size
    peak, _, words = first.partition(" ")
    assert size < int(peak) < size + (64 << 20)
    assert f"its memory peaked at {describe_size(int(peak))}" in words
    # The next one has had none of it; made by exec, no more than the program, of which it cannot be told apart then.
    if start == "zygote":
        assert 1 << 20 < int(second.partition(" ")[0]) < 64 << 20
    else:
        assert second.startswith("None ")
        assert "memory peaked" not in second


async def test_the_peak_of_memory_is_told_with_any_end(start: str) -> None:
    async with open_pool(1) as pool:
        death = await death_of(pool, tasks.exit_at_once, 1)
    # This process has loaded more than a worker ever does.
    assert (death.peak_rss_bytes is None) is (start == "exec")
    assert ("of memory at its peak" in str(death)) is (start == "zygote")


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the pool look at a file of counters of the test's own."""
    vmstat = tmp_path / "proc/vmstat"
    vmstat.parent.mkdir()
    vmstat.write_text("oom_kill 7\n")
    monkeypatch.setattr("fdpool.supervisor.OomKills", partial(OomKills, root=tmp_path))
    return vmstat


async def test_a_kill_that_came_while_the_kernel_was_out_of_memory_is_told_so(counters: Path) -> None:
    async with open_pool(1) as pool:
        death = await death_of(pool, crash_tasks.rewrite_and_kill_self, str(counters), "oom_kill 8\n")
    assert death.note.startswith(
        "killed, but not by this program: out of memory? The kernel's out-of-memory killer struck 1 time meanwhile"
    )
    assert f"({death.note})" in str(death)


async def test_a_kill_by_somebody_else_is_told_so(counters: Path) -> None:
    async with open_pool(1) as pool:
        death = await death_of(pool, tasks.kill_self)
    assert death.note.startswith(
        "killed, but not by this program: out of memory? The kernel's out-of-memory killer did"
    )


async def test_an_idle_worker_that_is_killed_is_listed_with_the_evidence(counters: Path) -> None:
    async with open_pool(1, restart=Restart(intensity=0)) as pool:
        os.kill(await pool.run_sync(tasks.pid), signal.SIGKILL)
        with pytest.raises(
            PoolBroken, match="was killed by SIGKILL while it was idle: killed, but not by this program"
        ):
            await pool.run_sync(tasks.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV])
async def test_another_signal_is_no_sign_of_a_lack_of_memory(number: int, counters: Path) -> None:
    async with open_pool(1, stderr="capture") as pool:
        death = await death_of(pool, tasks.kill_self, number)
    assert death.note == ""


async def test_a_worker_killed_for_a_cancelled_call_did_not_run_out_of_memory(counters: Path) -> None:
    """The other call on it hears of its death, and must not be told that it was memory."""
    deaths = []
    async with open_pool(1) as pool, Doorbell() as bell, trio.open_nursery() as nursery:

        async def hang() -> None:
            with pytest.raises(WorkerDied) as caught:
                await pool.run(tasks.async_ring_and_hang, bell._event, bell._event)
            deaths.append(caught.value)

        nursery.start_soon(hang)
        await bell.wait()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(
                    pool.options(on_cancel="kill").run, tasks.async_ring_and_hang, bell._event, bell._event
                )
                await bell.wait()
                scope.cancel()
    (death,) = deaths
    assert death.signal == signal.SIGKILL
    assert death.note == ""


async def test_a_worker_killed_for_its_silence_did_not_run_out_of_memory(counters: Path) -> None:
    async with open_pool(1, liveness=0.4) as pool, Doorbell() as bell:
        death = await death_of(pool, tasks.ring_and_wait_with_the_gil, bell._event)
    assert "it gave no sign of life" in death.note
    assert "out of memory" not in death.note


async def test_a_worker_killed_for_its_manners_did_not_run_out_of_memory(counters: Path) -> None:
    async with open_pool(1) as pool, Doorbell() as bell, trio.open_nursery() as nursery:
        notes = []

        async def hang() -> None:
            with pytest.raises(WorkerDied) as caught:
                await pool.run(tasks.async_ring_and_hang, bell._event, bell._event)
            notes.append(caught.value.note)

        nursery.start_soon(hang)
        await bell.wait()
        with pytest.raises(RemoteProtocolError, match="shorter than the header"):
            await pool.run_sync(tasks.write_garbage, b"x")
    assert len(notes) == 1
    assert "out of memory" not in notes[0]
