"""Make one call in a pool, and say what came of it and what was left: START [INTERPRETER [memory | stream]].

With "memory" the call takes and returns a megabyte, and is followed by another that has to work. So is a "stream" of
megabytes, which arrives whole or ends with an error.
"""

import gc
import itertools
import os
import sys

import trio

import fdpool
from fdpool.memory.arena import arena
from tests.support.leaks import children, open_descriptors

ITEMS = 6
MEGABYTE = bytes(range(97, 123)) * 40_330


async def main(start, kind):
    restart = fdpool.Restart(intensity=2, backoff=fdpool.Backoff(first=0.01))
    async with fdpool.open_pool(1, start=start, restart=restart, ready_timeout=10, grace_period=5) as pool:
        with trio.fail_after(20):
            if not kind:
                return await say(pool, abs, -3, 3)
            if kind == "stream":
                outcome = await say_of_stream(pool)
            else:
                outcome = await say(pool, bytes.swapcase, MEGABYTE, MEGABYTE.upper())
            again = await say(pool, bytes.swapcase, MEGABYTE, MEGABYTE.upper())
            used = arena().statistics().used_bytes
            return outcome if (again, used) == ("3", 0) else f"{outcome}, then {again}, {used} bytes still in use"


async def say(pool, function, argument, expected):
    try:
        return "3" if await pool.run_sync(function, argument) == expected else "wrong"
    except (fdpool.WorkerDied, fdpool.PoolBroken, OSError, MemoryError) as exc:
        return type(exc).__name__


async def say_of_stream(pool):
    received = 0
    try:
        # The window is smaller than the stream, so that the worker has to be told of what was taken.
        async with pool.options(stream_items=2).stream(itertools.repeat, MEGABYTE, ITEMS) as items:
            async for item in items:
                if item != MEGABYTE:
                    return "wrong"
                received += 1
    except (fdpool.WorkerDied, fdpool.PoolBroken, OSError, MemoryError) as exc:
        return type(exc).__name__
    return "3" if received == items.received == ITEMS else f"{received} of {items.received} items"


if __name__ == "__main__":
    start, interpreter, kind = (*sys.argv[1:], "", "")[:3]
    if interpreter:
        sys.executable = interpreter
    before = open_descriptors()
    try:
        outcome = trio.run(main, start, kind)
    except* OSError as errors:
        # Nothing can be started in this process, trio's own loop included.
        outcome = f"refused with {errors.exceptions[0]!r}"
    gc.collect()
    left = {number: name for number, name in open_descriptors().items() if before.get(number) != name}
    os.write(1, f"{outcome}; left: {children() or ''}{left or ''}\n".encode())
