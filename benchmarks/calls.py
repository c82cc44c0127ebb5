"""What one call costs: fdpool, its executor, ProcessPoolExecutor and trio-parallel side by side in one run.

    python -m benchmarks.calls [--rounds N] [--megabytes N]

The pools take turns, round by round, so that a machine that is slow for a while is slow for all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import rich
import rich.table
import trio
import trio_parallel

import fdpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from concurrent.futures import Executor
    from contextlib import AbstractAsyncContextManager

    Call = Callable[..., Awaitable[Any]]

WORKERS = 2
TRIVIAL_CALLS = 200
CONCURRENT_CALLS = 400


def nothing(number: int) -> int:
    return number


def rest(_number: int) -> None:
    """Keep a worker busy, so that another one has to take the next call."""
    time.sleep(0.2)


def first(array: np.ndarray[Any, Any]) -> float:
    """Take an array and look at next to nothing of it."""
    return float(array[0])


def total(array: np.ndarray[Any, Any]) -> float:
    """Take an array and read every byte of it."""
    return float(array.sum())


def make(count: int) -> np.ndarray[Any, Any]:
    return np.ones(count)


def seconds_to_make(count: int) -> float:
    started = time.perf_counter()
    np.ones(count)
    return time.perf_counter() - started


@asynccontextmanager
async def open_fdpool() -> AsyncIterator[Call]:
    async with fdpool.open_pool(WORKERS) as pool:
        yield pool.run_sync


@asynccontextmanager
async def open_trio_parallel() -> AsyncIterator[Call]:
    async with trio_parallel.open_worker_context() as context:
        limiter = trio.CapacityLimiter(WORKERS)

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return await context.run_sync(function, *args, limiter=limiter)

        yield call


@asynccontextmanager
async def open_executor(make_executor: Callable[[], Executor]) -> AsyncIterator[Call]:
    """Yield a call into an executor. It waits by blocking, which is the fastest such a pool can be used."""
    with make_executor() as executor:

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return executor.submit(function, *args).result()

        async def many(function: Callable[..., Any], items: range) -> None:
            list(executor.map(function, items))

        call.many = many  # type: ignore[attr-defined]
        yield call


PEERS: dict[str, Callable[[], AbstractAsyncContextManager[Call]]] = {
    "\nfdpool": open_fdpool,
    "fdpool\nExecutor": partial(open_executor, partial(fdpool.Executor, WORKERS)),
    "ProcessPool\nExecutor": partial(
        open_executor, partial(ProcessPoolExecutor, WORKERS, mp_context=get_context("spawn"))
    ),
    "trio-\nparallel": open_trio_parallel,
}


async def one_after_the_other(call: Call) -> float:
    started = time.perf_counter()
    for number in range(TRIVIAL_CALLS):
        await call(nothing, number)
    return (time.perf_counter() - started) / TRIVIAL_CALLS


async def at_once(call: Call, function: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    if hasattr(call, "many"):
        await call.many(function, range(count))
    else:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(call, function, number)
    return (time.perf_counter() - started) / count


async def timed(call: Call, function: Callable[..., Any], argument: Any) -> float:
    started = time.perf_counter()
    await call(function, argument)
    return time.perf_counter() - started


async def measure(rounds: int, megabytes: int) -> dict[str, dict[str, list[float]]]:
    """Return, for each peer and each thing that was measured, the seconds of every round."""
    count = megabytes * 1_000_000 // 8
    array = np.ones(count)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in PEERS}
    for round_number in range(-1, rounds):  # round -1 warms everything up and does not count
        for name, open_peer in PEERS.items():
            async with open_peer() as call:
                await at_once(call, rest, 2 * WORKERS)
                await call(total, array[:100_000])
                figures = {
                    "calls in turn": await one_after_the_other(call),
                    f"{CONCURRENT_CALLS} at once": await at_once(call, nothing, CONCURRENT_CALLS),
                    f"{megabytes} MB in": await timed(call, first, array),
                    "  all read": await timed(call, total, array),
                    f"{megabytes} MB out": await timed(call, make, count) - await call(seconds_to_make, count),
                }
            if round_number >= 0:
                for what, seconds in figures.items():
                    rows[name].setdefault(what, []).append(seconds)
    return rows


def show(rows: dict[str, dict[str, list[float]]]) -> None:
    table = rich.table.Table("", *rows, title="median of the rounds, and how many times fdpool's")
    for what, ours in rows["\nfdpool"].items():
        base = statistics.median(ours)
        cells = []
        for name in rows:
            seconds = statistics.median(rows[name][what])
            cells.append(f"{in_units(seconds)} {seconds / base:5.2f}x")
        table.add_row(what, *cells)
    rich.print(table)


def in_units(seconds: float) -> str:
    return f"{seconds * 1e6:4.0f} µs" if seconds < 0.01 else f"{seconds * 1e3:4.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    show(trio.run(measure, options.rounds, options.megabytes))


if __name__ == "__main__":
    main()
