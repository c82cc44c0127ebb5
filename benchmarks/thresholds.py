"""From which size on is a buffer better off in a memfd than inside the pickle?

    python -m benchmarks.thresholds [--calls N]

Sends an array to a worker and back, with the threshold above its size and below it, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import rich
import rich.table
import trio

import fdpool
from fdpool.memory import pickling

SIZES = [1 << 10, 4 << 10, 8 << 10, 16 << 10, 24 << 10, 32 << 10, 48 << 10, 56 << 10]


def set_threshold(nbytes: int) -> None:
    pickling.OUT_OF_BAND_BYTES = nbytes  # type: ignore[misc]


def same(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array[::512] = 1  # touches every page once
    return array


async def round_trips(pool: fdpool.Pool, array: np.ndarray[Any, Any], threshold: int, calls: int) -> float:
    await pool.run_sync(set_threshold, threshold)
    set_threshold(threshold)
    await pool.run_sync(same, array)
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        await pool.run_sync(same, array)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def main(calls: int) -> None:
    table = rich.table.Table("size", "in the pickle", "in a memfd", "ratio", title="one round trip, median")
    async with fdpool.open_pool(1) as pool:
        for size in SIZES:
            array = np.zeros(size // 8)
            inside, outside = [], []
            for _ in range(5):
                inside.append(await round_trips(pool, array, 1 << 30, calls))
                outside.append(await round_trips(pool, array, 1, calls))
            pair = statistics.median(inside), statistics.median(outside)
            table.add_row(
                f"{size >> 10} KiB", f"{pair[0] * 1e6:.0f} µs", f"{pair[1] * 1e6:.0f} µs", f"{pair[1] / pair[0]:.2f}"
            )
    rich.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    trio.run(main, parser.parse_args().calls)
