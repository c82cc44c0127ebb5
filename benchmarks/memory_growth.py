"""What does not grow: descriptors, mappings and memory over many calls; memory over many workers.

    python -m benchmarks.memory_growth [--calls N]

Exits with 1 if something grew that must not.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import trio

import fdpool

WARM_UP = 500
ALLOWED_RSS = 16 << 20


def footprint() -> tuple[int, int, int]:
    """Return how many descriptors and mappings this process has, and the bytes that are resident."""
    gc.collect()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), maps, int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def scale(array: np.ndarray[Any, Any], factor: float) -> np.ndarray[Any, Any]:
    """Write to some of the pages, and return all of them."""
    array[:: len(array) // 8] *= factor
    return array


def die(array: np.ndarray[Any, Any]) -> None:
    array[:] = 0
    os.kill(os.getpid(), signal.SIGKILL)


def total(array: np.ndarray[Any, Any]) -> int:
    """Read every byte, and return this worker's proportional share of the memory it has mapped, in bytes."""
    assert array.sum() == len(array)
    smaps = Path("/proc/self/smaps").read_text()
    return sum(int(kilobytes) << 10 for kilobytes in re.findall(r"memfd:fdpool.*?\nPss: +(\d+) kB", smaps, re.DOTALL))


def look_up(table: dict[int, np.ndarray[Any, Any]], key: int) -> float:
    return float(table[key][0])


async def soak(calls: int, *, kill_every: int = 0) -> bool:
    """Make calls of 1 MiB; say what grew between the first few hundred and the last."""
    value = np.ones(1 << 17)
    before = there = (0, 0, 0)
    async with fdpool.open_pool(2) as pool:
        for number in range(calls):
            if number == min(WARM_UP, calls // 2):
                before, there = footprint(), await pool.run_sync(footprint)
            if kill_every and number % kill_every == kill_every - 1:
                try:
                    await pool.run_sync(die, value)
                except fdpool.WorkerDied:
                    continue
            result = await pool.run_sync(scale, value, 2.0)
            assert result[0] == 2.0
            del result
        after, after_there = footprint(), await pool.run_sync(footprint)
    what = f"{calls} calls of 1 MiB" + (f", a worker killed every {kill_every}" if kill_every else "")
    print(what)
    for where, old, new in (("supervisor", before, after), ("worker", there, after_there)):
        print(f"  {where:10}  descriptors {old[0]} → {new[0]}  mappings {old[1]} → {new[1]}", end="")
        print(f"  resident {old[2] >> 20} → {new[2] >> 20} MiB")
    # With workers dying, one more or less of them may be there at either moment, with its own few descriptors.
    slack = 8 if kill_every else 1
    pairs = ((before, after), (there, after_there))
    return all(n[0] <= o[0] + slack and n[1] <= o[1] + 4 * slack and n[2] <= o[2] + ALLOWED_RSS for o, n in pairs)


async def one_array_in_eight_workers() -> bool:
    """Have 8 workers read the same 512 MiB; compare what they take together with what one would."""
    array = fdpool.empty(512 << 20, "u1")
    array[:] = 1
    shares: list[int] = []
    async with fdpool.open_pool(8) as pool:
        both = trio.Event()

        async def one() -> None:
            await pool.run_sync(total, array)
            ready.append(None)
            if len(ready) == 8:
                both.set()
            await both.wait()
            shares.append(await pool.run_sync(total, array))

        ready: list[None] = []
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
    # This process has it mapped as well, and is counted as a ninth share.
    together = sum(shares) * 9 / 8 / (512 << 20)
    print(f"8 workers reading one array of 512 MiB: {together:.3f} times its size, this process included")
    return together <= 1.1


async def one_pickling_for_eight_workers() -> bool:
    """Share a dict of 100 MB of arrays; compare with pickling it for each of 8 workers."""
    table = {key: np.full(125_000, key, "f8") for key in range(100)}
    async with fdpool.open_pool(8) as pool:
        async with trio.open_nursery() as nursery:  # they start, and import NumPy
            for key in range(32):
                nursery.start_soon(pool.run_sync, look_up, {key: table[key]}, key)
        started = time.perf_counter()
        shared = await pool.share(table)
        pickled = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for key in range(8):
                nursery.start_soon(pool.run_sync, look_up, shared, key)
        done = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for key in range(8):
                nursery.start_soon(pool.run_sync, look_up, table, key)
        apart = time.perf_counter()
    print(
        f"a dict of 100 MB for 8 workers: shared in {pickled - started:.3f} s and loaded in {done - pickled:.3f} s; "
        f"as an argument of each {apart - done:.3f} s"
    )
    return True


async def run(calls: int) -> bool:
    return all(
        [
            await soak(calls),
            await soak(calls, kill_every=50),
            await one_array_in_eight_workers(),
            await one_pickling_for_eight_workers(),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    options = parser.parse_args()
    sys.exit(0 if trio.run(run, options.calls) else 1)


if __name__ == "__main__":
    main()
