"""What a big buffer costs as argument and as result: fdpool and its peers side by side in one run.

    python -m benchmarks.memory [--rounds N] [--largest MIB] [--plot DIRECTORY]

The pools take turns, size by size, one worker each; those that are not installed are left out (Ray is in no extra).
Figures are medians; a result's are without the seconds that the worker took to compute it. "read" means that the worker
reads every byte, "untouched" that it looks at one; "in place" that the array is in memory of `fdpool.empty` and handed
over every 20 ms, untouched, or read once before that.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich
import rich.table
import trio

import fdpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Call = Callable[..., Awaitable[Any]]
    Figures = dict[tuple[str, int, str], list[float]]

SIZES = [1 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30]
IN_PLACE = ["in place, untouched", "in place, read before"]
WAYS = ["argument, untouched", "argument, read", "result", "round trip", *IN_PLACE]


def first(array: np.ndarray[Any, Any]) -> float:
    return float(array.flat[0])


def total(array: np.ndarray[Any, Any]) -> float:
    return float(array.sum())


def make(count: int) -> np.ndarray[Any, Any]:
    return np.ones(count)


def seconds_to_make(count: int) -> float:
    started = time.perf_counter()
    np.ones(count)
    return time.perf_counter() - started


def same(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array


@asynccontextmanager
async def open_fdpool() -> AsyncIterator[Call]:
    async with fdpool.open_pool(1) as pool:
        yield pool.run_sync


@asynccontextmanager
async def open_executor() -> AsyncIterator[Call]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return executor.submit(function, *args).result()

        yield call


@asynccontextmanager
async def open_trio_parallel() -> AsyncIterator[Call]:
    import trio_parallel

    async with trio_parallel.open_worker_context() as context:
        yield context.run_sync


@asynccontextmanager
async def open_joblib() -> AsyncIterator[Call]:
    """Yield a call into joblib's loky backend, which hands over what is above 1 MB as a file in /dev/shm."""
    import joblib

    with joblib.Parallel(n_jobs=2) as parallel:  # with one job it would run here

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return parallel([joblib.delayed(function)(*args)])[0]

        yield call


@asynccontextmanager
async def open_ray() -> AsyncIterator[Call]:
    """Yield a call into a worker of Ray, which finds big arguments and leaves big results in a store in /dev/shm."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return ray.get(remote(function).remote(*args))

        remote: Any = functools.cache(ray.remote)
        yield call
    finally:
        ray.shutdown()


def peers() -> dict[str, Any]:
    """Return how to open each pool that is installed."""
    found = {"fdpool": open_fdpool, "ProcessPoolExecutor": open_executor}
    for module, name, opener in (
        ("trio_parallel", "trio-parallel", open_trio_parallel),
        ("joblib", "joblib", open_joblib),
        ("ray", "Ray", open_ray),
    ):
        try:
            __import__(module)
        except ImportError:
            continue
        found[name] = opener
    return found


async def measure_one(call: Call, size: int, way: str) -> float:
    """Return the seconds of one call."""
    count = size // 8
    if way in IN_PLACE:
        frame = fdpool.empty(count)
        frame.fill(1.0)
        await call(total if way == "in place, read before" else first, frame)
        for _ in range(5):  # to have been filled has emptied the caches of all else
            await trio.sleep(0.02)
            seconds = await timed(call, first, frame)
        return seconds
    if way == "result":
        computing = statistics.median([await call(seconds_to_make, count) for _ in range(3)])
        return await timed(call, make, count) - float(computing)
    function = {"argument, untouched": first, "argument, read": total, "round trip": same}[way]
    return await timed(call, function, np.ones(count))


async def timed(call: Call, function: Callable[..., Any], argument: Any) -> float:
    started = time.perf_counter()
    await call(function, argument)
    return time.perf_counter() - started


def memcpy_seconds(size: int) -> float:
    """Return the seconds that one copy between warm pages takes."""
    source, target = np.ones(size, "u1"), np.ones(size, "u1")
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def measure(rounds: int, largest: int) -> tuple[Figures, dict[int, float]]:
    """Return the seconds of every round, by pool, size and way; and those of a plain copy, by size."""
    figures: Figures = {}
    copies: dict[int, float] = {}
    sizes = [size for size in SIZES if size <= largest]
    openers = peers()
    for size in sizes:
        repeat = 20 if size <= 1 << 20 else 3
        copies[size] = memcpy_seconds(size)
        for name, open_peer in openers.items():
            async with open_peer() as call:
                for way in WAYS:
                    if way in IN_PLACE and name != "fdpool":
                        continue
                    for number in range(-2, rounds * repeat):  # the first two warm everything up
                        seconds = await measure_one(call, size, way)
                        if number >= 0:
                            figures.setdefault((name, size, way), []).append(seconds)
    return figures, copies


def show(figures: Figures, copies: dict[int, float]) -> None:
    names = list(dict.fromkeys(name for name, _, _ in figures))
    for way in WAYS:
        table = rich.table.Table("", "memcpy", *names, title=f"{way}: median, and how many times fdpool's")
        for size, copy in copies.items():
            base = statistics.median(figures["fdpool", size, way])
            cells = [
                f"{in_units(statistics.median(seconds))} {statistics.median(seconds) / base:6.2f}x" if seconds else ""
                for seconds in (figures.get((name, size, way), []) for name in names)
            ]
            table.add_row(in_bytes(size), f"{in_units(copy)} {copy / base:6.2f}x", *cells)
        rich.print(table)


def plot(figures: Figures, copies: dict[int, float], directory: Path) -> None:
    """Draw median seconds over size, one panel for each way, as memory.png and memory.svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = WAYS[:4]
    figure, panels = pyplot.subplots(1, len(shown), figsize=(4 * len(shown), 4), sharey=True, layout="constrained")
    for panel, way in zip(panels, shown, strict=True):
        for name in dict.fromkeys(name for name, _, _ in figures):
            medians = [statistics.median(figures[name, size, way]) * 1e3 for size in copies]
            panel.loglog(list(copies), medians, marker="o", label=name)
        in_place = [statistics.median(figures["fdpool", size, IN_PLACE[0]]) * 1e3 for size in copies]
        if way == shown[0]:
            panel.loglog(list(copies), in_place, marker="s", label="fdpool, in fdpool.empty")
        panel.loglog(list(copies), [copy * 1e3 for copy in copies.values()], ":", color="grey", label="one memcpy")
        panel.set_title(way)
        panel.set_xticks(list(copies), [in_bytes(size) for size in copies], rotation=45)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds, median")
    panels[0].legend(fontsize="small")
    for suffix in ("png", "svg"):
        figure.savefig(directory / f"memory.{suffix}", dpi=110)


def in_units(seconds: float) -> str:
    return f"{seconds * 1e6:7.0f} µs" if seconds < 0.01 else f"{seconds * 1e3:7.0f} ms"


def in_bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=1024, help="MiB")
    parser.add_argument("--plot", type=Path, help="where to put memory.png and memory.svg")
    options = parser.parse_args()
    figures, copies = trio.run(measure, options.rounds, options.largest << 20)
    show(figures, copies)
    if options.plot is not None:
        plot(figures, copies, options.plot)


if __name__ == "__main__":
    main()
