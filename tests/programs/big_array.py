"""Send a 300 MB array there and back, and report by how much the peak memory of this process grew each way."""

import re
import sys
from pathlib import Path

import numpy
import trio

import fdpool

SIZE = 300_000_000


def checksum(array):
    array[0] = 5.0
    return float(array.sum())


def make(size):
    return numpy.full(size // 8, 2.0)


def resident(name):
    """Return how many bytes are resident: now ("VmRSS"), or the most since `forget_peak` ("VmHWM")."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    return resident("VmRSS")


async def main():
    async with fdpool.open_pool(1) as pool:
        array = numpy.ones(SIZE // 8)
        before = forget_peak()
        total = await pool.run_sync(checksum, array)
        there = resident("VmHWM") - before
        assert total == array.sum() + 4.0
        del array
        before = forget_peak()
        result = await pool.run_sync(make, SIZE)
        result *= 2
        back = resident("VmHWM") - before
        assert result.flags.writeable
        assert (result == 4.0).all()
        print(there / SIZE, back / SIZE)


if __name__ == "__main__":
    sys.exit(trio.run(main))
