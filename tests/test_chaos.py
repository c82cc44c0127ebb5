"""End-to-end: random things happen to real workers, and every call still ends exactly once.

A second by default; FDPOOL_RACE_SECONDS makes it longer.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from benchmarks.crashes import measure
from fdpool import Backoff, EventFd, Pool, Restart, WorkerDied, open_pool
from tests.support import tasks

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("FDPOOL_RACE_SECONDS", "1"))
MOST_CALLS = 1_000_000


class World:
    """A pool, what was asked of it, and what came of it."""

    def __init__(self, pool: Pool, began: mmap.mmap, seed: int) -> None:
        self.pool = pool
        self.began = began
        self.random = random.Random(seed)
        self.asked = 0
        self.returned = 0
        self.deaths: list[int | None] = []
        self.cancelled = 0
        self.kills = 0
        self.is_over = False

    async def ask(self) -> None:
        """Make one call after the other, some with handles and some cancelled, and account for each."""
        while not self.is_over:
            number = self.asked
            self.asked += 1
            with trio.CancelScope() as scope:
                if self.random.random() < 0.1:
                    scope.deadline = trio.current_time() + self.random.random() / 200
                await self.one_call(number)
            self.cancelled += scope.cancelled_caught
            assert self.began[number] <= 1, f"call {number} was run {self.began[number]} times"

    async def one_call(self, number: int) -> None:
        try:
            if self.random.random() < 0.2:
                with EventFd(7) as event:
                    assert await self.pool.run_sync(tasks.mark_and_read, number, [event]) == (number, 7)
            else:
                pause = self.random.choice([0, 0, 0, 0.002])
                assert await self.pool.run_sync(tasks.mark, number, pause) == number
        except WorkerDied as exc:
            self.deaths.append(exc.signal)
        else:
            assert self.began[number] == 1
            self.returned += 1

    async def make_trouble(self) -> None:
        """Kill, stop and continue workers at random moments."""
        while not self.is_over:
            await trio.sleep(self.random.random() / 20)
            pids = [worker.pid for worker in self.pool._dispatcher._seats]
            if pids:
                with suppress(ProcessLookupError):
                    self.strike(self.random.choice(pids))

    def strike(self, pid: int) -> None:
        if self.random.random() < 0.3:
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, signal.SIGKILL)
            self.kills += 1


@pytest.mark.parametrize("seed", range(3))
async def test_every_call_ends_once_whatever_happens_to_the_workers(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "began"
    path.write_bytes(bytes(MOST_CALLS))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as began:
        with trio.fail_after(SECONDS + 60):
            # Workers killed while they start or idle are no reason to give up here.
            restart = Restart(intensity=10**6, backoff=Backoff(first=0, cap=0))
            async with open_pool(3, initializer=tasks.open_marks, initargs=(str(path),), restart=restart) as pool:
                world = World(pool, began, seed)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.make_trouble)
                    for _ in range(20):
                        nursery.start_soon(world.ask)
                    await trio.sleep(SECONDS)
                    world.is_over = True
                # The pool is as good as new.
                assert [await pool.run_sync(tasks.add, number) for number in range(50)] == list(range(1, 51))
        print(f"{world.asked} calls, {world.kills} kills, {len(world.deaths)} died, {world.cancelled} cancelled")
        assert world.returned + len(world.deaths) + world.cancelled == world.asked
        assert len(world.deaths) <= world.kills
        assert set(world.deaths) <= {signal.SIGKILL}
        assert world.returned > 0
        assert sum(began[:]) <= world.asked


async def test_every_call_and_every_kill_is_accounted_for() -> None:
    calls = int(2000 * SECONDS)
    with trio.fail_after(SECONDS * 10 + 60):
        account = await measure(calls, kills=calls // 50, workers=3, seed=1)
    assert account.is_right, account.rows()
    # It shows something only if kills hit calls, and calls got through.
    assert account.lost
    assert account.answered
