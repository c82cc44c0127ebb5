"""Prints the peaks of memory of workers that had much and little, and that of this program, in a fresh process."""

import resource
import sys

import trio

from fdpool import WorkerDied, open_pool
from tests.support import crash_tasks


async def main(start, size):
    peaks = []
    async with open_pool(1, start=start, stderr="capture") as pool:
        for used in (int(size), 2):
            try:
                await pool.run_sync(crash_tasks.use_memory_and_kill_self, used)
            except WorkerDied as exc:
                peaks.append((exc.peak_rss_bytes, str(exc).splitlines()[0]))
    for peak, words in peaks:
        print(peak, words)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
