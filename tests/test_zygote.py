"""End-to-end tests of workers that are forked from a zygote: what they inherit, and what its end means to them."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import fdpool
from fdpool import Backoff, EventFd, OwnedFd, PoolBroken, Restart, WorkerDied, open_pool
from fdpool.errors import RemoteProtocolError
from fdpool.process.zygote import Zygote
from fdpool.protocol.zygote import FROM_ZYGOTE, ZygoteOperation, decode, decode_integer, encode
from tests.support import preloads, tasks
from tests.support.leaks import children

if TYPE_CHECKING:
    from pathlib import Path

    from fdpool import Pool

IMPATIENT = Restart(intensity=2, backoff=Backoff(first=0.01))


def zygote_of(pool: Pool) -> Zygote:
    launcher = pool._supervisor._launcher
    assert isinstance(launcher, Zygote)
    return launcher


async def replace_worker(pool: Pool) -> None:
    with pytest.raises(WorkerDied):
        await pool.run_sync(tasks.kill_self)


async def test_a_preloaded_module_is_loaded_once_for_all_workers() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", preload=["tests.support.preloads"]) as pool:
            loader = await pool.run_sync(preloads.loaded_by)
            await replace_worker(pool)
            assert await pool.run_sync(preloads.loaded_by) == loader == zygote_of(pool).pid
            assert await pool.run_sync(tasks.pid) != loader


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("raise", r"preloading 'tests.support.preloads' failed:\n(.*\n)*ValueError: no good"),
        ("exit", r"preloading 'tests.support.preloads' failed:\n(.*\n)*SystemExit: 5"),
        ("thread", r"'tests.support.preloads' started threads, which do not survive a fork: \"the test's own\""),
        ("hang", "did not finish loading 'tests.support.preloads' in 0.5 seconds"),
        ("crash", "SIGSEGV while it loaded 'tests.support.preloads'"),
    ],
)
async def test_a_preload_that_cannot_work_breaks_the_pool_with_the_reason(
    what: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FDPOOL_TEST_PRELOAD", what)
    timeout = 0.5 if what == "hang" else 30
    with trio.fail_after(30):
        async with open_pool(
            2, start="zygote", preload=["tests.support.preloads"], ready_timeout=timeout, restart=IMPATIENT
        ) as pool:
            for _ in range(2):
                with pytest.raises(PoolBroken, match=says):
                    await pool.run_sync(tasks.pid)


async def test_a_missing_module_breaks_the_pool_with_the_reason() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", preload=["no_such_module"]) as pool:
            with pytest.raises(PoolBroken, match="ModuleNotFoundError: No module named 'no_such_module'"):
                await pool.run_sync(tasks.pid)


async def test_a_library_that_ends_its_threads_before_a_fork_may_be_preloaded() -> None:
    pytest.importorskip("numpy")
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", preload=["numpy"]) as pool:
            assert await pool.run_sync(tasks.matrix_product, 200) == 200.0


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"preload": "numpy"}, TypeError, "preload is the string 'numpy'"),
        ({"preload": ["numpy"], "start": "exec"}, ValueError, "preload needs start='zygote'"),
        ({"start": "spawn"}, ValueError, "start is 'spawn', not 'zygote' or 'exec'"),
        ({"ready_timeout": 0}, ValueError, "ready_timeout is 0 seconds"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        async with open_pool(1, **arguments):
            pass


async def test_workers_outlive_the_zygote_and_the_next_comes_from_a_new_one() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote") as pool:
            worker = await pool.run_sync(tasks.pid)
            zygote = zygote_of(pool).pid
            assert zygote is not None
            os.kill(zygote, signal.SIGKILL)
            await trio.testing.wait_all_tasks_blocked()
            assert await pool.run_sync(tasks.pid) == worker
            await replace_worker(pool)
            assert await pool.run_sync(tasks.pid) != worker
            assert zygote_of(pool).pid not in {zygote, None}


async def test_a_stopped_zygote_that_is_killed_over_a_request_costs_nothing() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote") as pool:
            await pool.run_sync(tasks.pid)
            zygote = zygote_of(pool).pid
            assert zygote is not None
            os.kill(zygote, signal.SIGSTOP)
            await replace_worker(pool)
            await trio.testing.wait_all_tasks_blocked()
            assert zygote_of(pool)._process is not None
            os.kill(zygote, signal.SIGKILL)
            assert await pool.run_sync(tasks.add, 1) == 2


async def test_closing_while_a_stopped_zygote_owes_a_worker_leaves_nothing() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", grace_period=0) as pool:
            await pool.run_sync(tasks.pid)
            zygote = zygote_of(pool).pid
            assert zygote is not None
            os.kill(zygote, signal.SIGSTOP)
            await replace_worker(pool)
            await trio.testing.wait_all_tasks_blocked()
        assert not children()


async def test_a_zygote_that_is_killed_again_and_again_breaks_the_pool() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", restart=IMPATIENT) as pool:
            await pool.run_sync(tasks.pid)
            for _ in range(3):
                while (zygote := zygote_of(pool).pid) is None:
                    await zygote_of(pool)._news.wait()
                os.kill(zygote, signal.SIGKILL)
                while zygote_of(pool).pid == zygote:
                    await trio.lowlevel.checkpoint()
            await replace_worker(pool)
            with pytest.raises(PoolBroken, match=r"the zygote died 3 times(.*\n)*.*was killed by SIGKILL"):
                await pool.run_sync(tasks.pid)


async def test_workers_are_children_of_the_supervisor_in_groups_of_their_own() -> None:
    with trio.fail_after(30):
        async with open_pool(2, start="zygote") as pool:
            me, (parent, group) = await pool.run_sync(tasks.pid), await pool.run_sync(tasks.parent_and_group)
            assert parent == os.getpid()
            assert group != os.getpgrp()
            assert os.getpgid(me) == me


async def test_every_worker_draws_other_random_numbers() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", preload=["random"]) as pool:
            first = await pool.run_sync(tasks.random_number)
            await replace_worker(pool)
            assert await pool.run_sync(tasks.random_number) != first


async def test_every_worker_draws_other_random_numbers_from_numpy() -> None:
    pytest.importorskip("numpy")
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", preload=["numpy.random"]) as pool:
            first = await pool.run_sync(tasks.numpy_random_number)
            await replace_worker(pool)
            assert await pool.run_sync(tasks.numpy_random_number) != first


async def test_a_worker_finds_things_as_they_are_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FDPOOL_TEST_STAYS", "1")
    monkeypatch.setenv("FDPOOL_TEST_GOES", "1")
    with trio.fail_after(30), ExitStack() as stack:
        async with open_pool(1, start="zygote") as pool:
            await pool.run_sync(tasks.pid)
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("FDPOOL_TEST_COMES", "2")
            monkeypatch.delenv("FDPOOL_TEST_GOES")
            stdin = stack.enter_context(OwnedFd(os.dup(0)))
            stack.callback(lambda: os.dup2(stdin.fileno(), 0))
            (tmp_path / "input").write_bytes(b"the new input")
            with OwnedFd(os.open(tmp_path / "input", os.O_RDONLY)) as other:
                os.dup2(other.fileno(), 0)
            await replace_worker(pool)
            found = await pool.run_sync(tasks.circumstances)
            assert found["directory"] == str(tmp_path)
            assert found["input"] == b"the new input"
            assert {name: value for name, value in found["environment"].items() if name.startswith("FDPOOL_TEST")} == {
                "FDPOOL_TEST_STAYS": "1",
                "FDPOOL_TEST_COMES": "2",
            }
            assert found["niceness"] == os.getpriority(os.PRIO_PROCESS, 0)
            assert found["name"] == "fdpool-worker"


async def test_a_worker_holds_only_what_it_was_born_with() -> None:
    with trio.fail_after(30):
        counts = {}
        for start in ("exec", "zygote"):
            async with open_pool(1, start=start) as pool:
                counts[start] = await pool.run_sync(tasks.descriptor_total)
        assert counts["zygote"] == counts["exec"]


async def test_threads_can_be_started_in_a_forked_worker() -> None:
    with trio.fail_after(30):
        async with open_pool(1, start="zygote") as pool:
            assert await pool.run_sync(tasks.in_thread, 3) == 3


async def test_exit_handlers_of_a_task_run_at_the_end_of_its_worker() -> None:
    with trio.fail_after(30), EventFd() as event:
        async with open_pool(1, start="zygote", grace_period=30) as pool:
            await pool.run_sync(tasks.ring_at_exit, event)
        assert event.read() == 1


async def test_a_supervisor_without_room_for_a_pidfd_leaves_no_process() -> None:
    patient = Restart(intensity=100, backoff=Backoff(first=0.01, factor=1))
    with trio.fail_after(30):
        async with open_pool(1, start="zygote", restart=patient) as pool:
            await pool.run_sync(tasks.pid)
            zygote = zygote_of(pool).pid
            assert zygote is not None
            os.kill(zygote, signal.SIGSTOP)
            await replace_worker(pool)
            await trio.testing.wait_all_tasks_blocked()
            process = zygote_of(pool)._process
            assert process is not None
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            # No number is free below the limit: the pidfd that the zygote is about to send cannot be installed.
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                os.kill(zygote, signal.SIGCONT)
                while process._requests:
                    await trio.lowlevel.checkpoint()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await pool.run_sync(tasks.add, 1) == 2


def test_what_a_zygote_may_say_is_checked() -> None:
    with pytest.raises(RemoteProtocolError, match="shorter than its header"):
        decode(b"x", FROM_ZYGOTE)
    with pytest.raises(RemoteProtocolError, match="operation 2 is not one the peer may ask for"):
        decode(encode(ZygoteOperation.FORK), FROM_ZYGOTE)
    with pytest.raises(RemoteProtocolError, match="a number of 3 bytes"):
        decode_integer(memoryview(b"abc"))


def test_the_error_of_a_zygote_tells_all_its_ends() -> None:
    assert str(fdpool.ZygoteError("it is over; it", ["died", "died again"])) == "it is over; it\n  died\n  died again"


async def test_resizing_ends_where_the_zygote_fails_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDPOOL_TEST_PRELOAD", "raise")
    with trio.fail_after(30):
        async with open_pool(3, start="zygote", preload=["tests.support.preloads"], restart=IMPATIENT) as pool:
            await pool.resize(1)
            with pytest.raises(PoolBroken, match="no good"):
                await pool.run_sync(tasks.pid)
