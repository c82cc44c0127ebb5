"""Make one call in a pool, and say what came of it and what was left: START [INTERPRETER]."""

import gc
import os
import sys

import trio

import fdpool
from tests.support.leaks import children, open_descriptors


async def main(start):
    restart = fdpool.Restart(intensity=2, backoff=fdpool.Backoff(first=0.01))
    async with fdpool.open_pool(1, start=start, restart=restart, ready_timeout=10, grace_period=5) as pool:
        try:
            with trio.fail_after(20):
                outcome = str(await pool.run_sync(abs, -3))
        except (fdpool.WorkerDied, fdpool.PoolBroken, OSError) as exc:
            outcome = type(exc).__name__
    return outcome


if __name__ == "__main__":
    if sys.argv[2:]:
        sys.executable = sys.argv[2]
    before = open_descriptors()
    try:
        outcome = trio.run(main, sys.argv[1])
    except* OSError as errors:
        # Nothing can be started in this process, trio's own loop included.
        outcome = f"refused with {errors.exceptions[0]!r}"
    gc.collect()
    left = {number: name for number, name in open_descriptors().items() if before.get(number) != name}
    os.write(1, f"{outcome}; left: {children() or ''}{left or ''}\n".encode())
