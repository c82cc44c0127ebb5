"""How long it takes to cancel a call that runs, and to answer the next one: fdpool beside its peers, in one run.

    python -m benchmarks.cancellation [--rounds N]

A loop in Python can be interrupted, and its worker goes on. A loop in C that looks at no signal cannot: its worker is
killed, by fdpool after the grace period, which is subtracted here. trio-parallel (`kill_on_cancel`) and pebble (left
out if it is not installed) kill the worker in either case, and start another one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import rich
import rich.table
import trio
import trio_parallel

import fdpool
from benchmarks.cancellation_tasks import loop_in_c, loop_in_python, pid

GRACE_SECONDS = 0.1

Task = Callable[[str], None]
Cancel = Callable[[Task, str], Awaitable[float]]
"""Begins a task, cancels it when it runs, and returns how many seconds that took."""


class Started:
    """A named pipe through which tasks say that they run."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "started")
        os.mkfifo(self.path)
        # Open for both, so that it never ends.
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    async def wait(self) -> int:
        """Wait for the next task; return the pid of its worker."""
        await trio.lowlevel.wait_readable(self._fd)
        return int.from_bytes(os.read(self._fd, 8), "little")

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._fd)


@dataclass
class Figures:
    """What was measured of one way to cancel one kind of task, in seconds, and how often the worker stayed."""

    cancelled: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    stayed: int = 0


@dataclass
class Peer:
    """One way to cancel. *open* gives what runs a task in a scope, and what calls a function."""

    open: Callable[[], AbstractAsyncContextManager[tuple[Callable[..., Any], Callable[..., Any]]]]
    grace: float = 0.0


@asynccontextmanager
async def open_fdpool(on_cancel: Literal["interrupt", "kill"]) -> AsyncIterator[tuple[Any, Any]]:
    async with fdpool.open_pool(1, on_cancel=on_cancel, grace_period=GRACE_SECONDS) as pool:
        yield pool.run_sync, pool.run_sync


@asynccontextmanager
async def open_trio_parallel() -> AsyncIterator[tuple[Any, Any]]:
    async with trio_parallel.open_worker_context() as context:
        yield partial(context.run_sync, kill_on_cancel=True), context.run_sync


@asynccontextmanager
async def open_pebble() -> AsyncIterator[tuple[Any, Any]]:
    """Give pebble's pool as if it were async. A task has been cancelled when its process has ended."""
    pebble: Any = importlib.import_module("pebble")
    with pebble.ProcessPool(1, context=get_context("spawn")) as pool:

        async def run(function: Callable[..., Any], *args: Any) -> None:
            worker = fdpool.PidFd(await call(pid))
            with worker:
                future = pool.schedule(function, args)
                try:
                    await trio.sleep_forever()
                finally:
                    future.cancel()
                    select.select([worker], [], [])

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return pool.schedule(function, args).result()

        yield run, call
        pool.stop()
        pool.join()


PEERS = {
    "fdpool, interrupt": Peer(partial(open_fdpool, "interrupt"), GRACE_SECONDS),
    "fdpool, kill": Peer(partial(open_fdpool, "kill")),
    "trio-parallel": Peer(open_trio_parallel),
    "pebble": Peer(open_pebble),
}
TASKS: dict[str, Task] = {"loop in Python": loop_in_python, "loop in C": loop_in_c}


async def cancel_one(run: Any, call: Any, task: Task, started: Started, figures: Figures) -> None:
    """Begin a task, cancel it when it runs, and call something after it."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, task, started.path)
            worker = await started.wait()
            # Not at the moment when the task begins, but at any.
            await trio.sleep(0.002)
            began = time.perf_counter()
            scope.cancel()
    figures.cancelled.append(time.perf_counter() - began)
    began = time.perf_counter()
    figures.stayed += await call(pid) == worker
    figures.answered.append(time.perf_counter() - began)


async def measure(rounds: int) -> dict[tuple[str, str], Figures]:
    """Return what was measured, by peer and kind of task; the peers take turns."""
    found: dict[tuple[str, str], Figures] = {}
    with tempfile.TemporaryDirectory() as directory:
        started = Started(directory)
        for what, task in TASKS.items():
            for name, peer in PEERS.items():
                figures = found[name, what] = Figures()
                try:
                    async with peer.open() as (run, call):
                        await call(pid)
                        # Some peers take seconds for each of the slow ones.
                        for _ in range(rounds if task is loop_in_python else rounds // 5):
                            await cancel_one(run, call, task, started, figures)
                except ModuleNotFoundError as exc:
                    print(f"without {exc.name}")
                    del found[name, what]
        started.close()
    return found


def show(found: dict[tuple[str, str], Figures]) -> None:
    for what in TASKS:
        headings = "ms", "p50", "p99", "max", "times", "next answer", "times", "worker stayed"
        table = rich.table.Table(*headings, title=what)
        rows = {name: figures for (name, kind), figures in found.items() if kind == what}
        latencies = {name: latencies_of(figures, name, what) for name, figures in rows.items()}
        base = statistics.median(next(iter(latencies.values())))
        base_answer = statistics.median(next(iter(rows.values())).answered)
        for name, figures in rows.items():
            seconds = latencies[name]
            p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100, method="inclusive")[98]
            answer = statistics.median(figures.answered)
            table.add_row(
                name, *map(in_milliseconds, (p50, p99, max(seconds))), f"{p50 / base:.1f}",
                in_milliseconds(answer), f"{answer / base_answer:.1f}", f"{figures.stayed} of {len(seconds)}",
            )  # fmt: skip
        rich.print(table)


def latencies_of(figures: Figures, name: str, what: str) -> list[float]:
    """Return how long cancelling took, without what is waited for on purpose."""
    grace = PEERS[name].grace if what == "loop in C" else 0.0
    return [seconds - grace for seconds in figures.cancelled]


def in_milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    show(trio.run(measure, parser.parse_args().rounds))


if __name__ == "__main__":
    main()
