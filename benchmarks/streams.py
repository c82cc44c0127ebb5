"""What an item of a stream costs, beside a call that returns the same.

    python -m benchmarks.streams [--rounds N]

The two take turns, round by round, so that a machine that is slow for a while is slow for both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import rich
import rich.table
import trio

import fdpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

WINDOWS = (1, 16, 256)
SIZES = {"an int": 0, "1 MiB array": 1 << 20}
ITEMS = {"an int": 2000, "1 MiB array": 300}


def one(size: int) -> Any:
    return np.ones(size, "u1") if size else 1


def many(size: int, number: int) -> Iterator[Any]:
    for _ in range(number):
        yield one(size)


async def many_async(size: int, number: int) -> AsyncIterator[Any]:
    for item in many(size, number):
        yield item


async def time_calls(pool: fdpool.Pool, size: int, number: int) -> float:
    started = time.perf_counter()
    for _ in range(number):
        await pool.run_sync(one, size)
    return (time.perf_counter() - started) / number


async def time_stream(pool: fdpool.Pool, function: Any, size: int, number: int) -> float:
    async with pool.stream(function, size, number) as items:
        await anext(items)
        started = time.perf_counter()
        async for _ in items:
            pass
        return (time.perf_counter() - started) / (number - 1)


async def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return, for each way and each kind of item, the seconds for one item in every round."""
    figures: dict[str, dict[str, list[float]]] = {}
    async with fdpool.open_pool(2) as pool:
        for _ in range(rounds):
            for name, size in SIZES.items():
                number = ITEMS[name]
                ways = {"a call": await time_calls(pool, size, number)}
                for window in WINDOWS:
                    narrow = pool.options(stream_items=window)
                    ways[f"a stream, {window} ahead"] = await time_stream(narrow, many, size, number)
                ways["an async stream, 16 ahead"] = await time_stream(pool, many_async, size, number)
                for way, seconds in ways.items():
                    figures.setdefault(way, {}).setdefault(name, []).append(seconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    figures = trio.run(measure, parser.parse_args().rounds)
    table = rich.table.Table("one after the other", *SIZES, title="microseconds for each, medians")
    for way, kinds in figures.items():
        table.add_row(way, *(f"{statistics.median(seconds) * 1e6:.0f}" for seconds in kinds.values()))
    rich.print(table)


if __name__ == "__main__":
    main()
