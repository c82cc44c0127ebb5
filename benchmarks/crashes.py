"""What crashes cost: many calls, workers killed at random moments, and an account of every call and every kill.

    python -m benchmarks.crashes [--calls N] [--kills N] [--workers N] [--seed N]

Each call notes in shared memory that it was begun and that it was done, so that what the pool says can be compared with
what happened. A call may be lost only to a kill that hit it after it had begun, and none may be begun twice.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

import fdpool
from benchmarks.crash_tasks import note, note_and_read, open_ledger

if TYPE_CHECKING:
    import mmap

CALLERS = 50


@dataclass
class Account:
    """What was asked, what came of it, and what the calls themselves have noted.

    Attributes:
      calls: How many were made.
      answered: The calls that returned what they should.
      lost: The calls whose worker died, and that worker's pid.
      killed: The pids of the workers that were killed, in their order.
      begun: How often each call noted that it was begun.
      done: How often each call noted that it was done.
      seconds: How long all of it took.
    """

    calls: int
    answered: set[int] = field(default_factory=set)
    lost: dict[int, int] = field(default_factory=dict)
    killed: list[int] = field(default_factory=list)
    begun: bytes = b""
    done: bytes = b""
    seconds: float = 0.0

    def rows(self) -> dict[str, int]:
        """Return every count that tells something, by what it is of."""
        blamed = list(self.lost.values())
        marked = {number for number in range(self.calls) if self.begun[number]}
        return {
            "calls": self.calls,
            "answered": len(self.answered),
            "lost": len(self.lost),
            "workers killed": len(self.killed),
            "… while a call had begun": len(set(blamed) & set(self.killed)),
            "… between two calls": len(set(self.killed) - set(blamed)),
            **self.faults(marked),
        }

    def faults(self, marked: set[int]) -> dict[str, int]:
        """Return the counts that have to be 0; *marked* are the calls that noted that they were begun."""
        blamed = list(self.lost.values())
        return {
            "neither answered nor lost": self.calls - len(self.answered | self.lost.keys()),
            "both answered and lost": len(self.answered & self.lost.keys()),
            "begun more than once": sum(count > 1 for count in self.begun),
            "answered, not begun and done once": sum(
                (self.begun[number], self.done[number]) != (1, 1) for number in self.answered
            ),
            "begun, and not accounted for": len(marked - self.answered - self.lost.keys()),
            "lost with a worker that nobody killed": len(set(blamed) - set(self.killed)),
            "lost with a worker that cost another call": len(blamed) - len(set(blamed)),
        }

    @property
    def is_right(self) -> bool:
        """Whether every call and every kill is accounted for."""
        return not any(self.faults({number for number in range(self.calls) if self.begun[number]}).values())


class Trial:
    """A pool under fire."""

    def __init__(self, pool: fdpool.Pool, account: Account, kills: int, chance: random.Random) -> None:
        self._pool = pool
        self._account = account
        self._chance = chance
        self._numbers = iter(range(account.calls))
        # A kill is due when so many calls have ended, and comes a random while later.
        self._due = sorted(chance.sample(range(account.calls), kills))
        self._progress = trio.Event()

    async def run(self) -> None:
        """Make all the calls, and do all the killing."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill)
            for _ in range(CALLERS):
                nursery.start_soon(self._call)

    async def _call(self) -> None:
        for number in self._numbers:
            try:
                if self._chance.random() < 0.05:
                    with fdpool.EventFd(number + 1) as event:
                        assert await self._pool.run_sync(note_and_read, number, event) == number + 1
                else:
                    pause = self._chance.choice((0, 0, 0, 0.001))
                    assert await self._pool.run_sync(note, number, pause) == number
            except fdpool.WorkerDied as exc:
                self._account.lost[number] = exc.pid
            else:
                self._account.answered.add(number)
            self._progress.set()

    async def _kill(self) -> None:
        account = self._account
        for due in self._due:
            while len(account.answered) + len(account.lost) < due:
                self._progress = trio.Event()
                await self._progress.wait()
            await trio.sleep(self._chance.random() / 1000)
            # One that was killed a moment ago may not have been missed yet, and dies only once.
            pids = [worker.pid for worker in self._pool.statistics().workers if worker.pid not in account.killed]
            if pids:
                pid = self._chance.choice(pids)
                os.kill(pid, signal.SIGKILL)
                account.killed.append(pid)


async def measure(calls: int, kills: int, workers: int, seed: int) -> Account:
    """Make *calls* calls, and kill workers up to *kills* times meanwhile; return what came of it."""
    account = Account(calls)
    # Workers killed while they start or idle are no reason to give up here.
    restart = fdpool.Restart(intensity=kills, backoff=fdpool.Backoff(first=0, cap=0))
    with fdpool.MemFd(size=2 * calls) as memory, memory.map() as ledger:
        path = f"/proc/{os.getpid()}/fd/{memory.fileno()}"
        async with fdpool.open_pool(workers, initializer=open_ledger, initargs=(path, calls), restart=restart) as pool:
            started = time.perf_counter()
            await Trial(pool, account, kills, random.Random(seed)).run()
            account.seconds = time.perf_counter() - started
        _read(account, ledger)
    return account


def _read(account: Account, ledger: mmap.mmap) -> None:
    account.begun, account.done = ledger[: account.calls], ledger[account.calls :]


def show(account: Account) -> None:
    """Print the account as a table."""
    import rich
    import rich.table

    rate = account.calls / account.seconds
    table = rich.table.Table("", "count", title=f"{account.seconds:.1f} s, {rate:.0f} calls/s")
    for what, count in account.rows().items():
        table.add_row(what, f"{count}")
    rich.print(table)
    rich.print("every call and every kill is accounted for" if account.is_right else "[red]something is wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    show(trio.run(measure, options.calls, options.kills, options.workers, options.seed))


if __name__ == "__main__":
    main()
