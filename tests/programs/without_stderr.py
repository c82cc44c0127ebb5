"""Runs calls in a program whose stderr is closed, and writes to a file what came of them."""

import sys
from pathlib import Path

import trio

from fdpool import WorkerDied, open_pool
from tests.support import crash_tasks, tasks


async def main(start, mode):
    async with open_pool(1, start=start, stderr=mode) as pool:
        first = await pool.run_sync(tasks.add, 1)
        try:
            await pool.run_sync(crash_tasks.say_and_exit, b"last words", 3)
        except (WorkerDied, OSError) as exc:
            tail = getattr(exc, "stderr_tail", "")
        second = await pool.run_sync(tasks.add, 1)
    return f"{first} {tail!r} {second}"


if __name__ == "__main__":
    start, mode, path = sys.argv[1:]
    Path(path).write_text(trio.run(main, start, mode))
