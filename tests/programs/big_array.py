"""Send a 300 MB array there and back, and report by how much the peak memory of this process grew each way."""

import pathlib
import resource
import sys

import numpy
import trio

import fdpool

SIZE = 300_000_000


def checksum(array):
    array[0] = 5.0
    return float(array.sum())


def make(size):
    return numpy.full(size // 8, 2.0)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_now():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def main():
    async with fdpool.open_pool(1) as pool:
        array = numpy.ones(SIZE // 8)
        before = peak()
        assert await pool.run_sync(checksum, array) == array.sum() + 4.0
        there = peak() - before
        del array
        # The peak is compared with what is resident now that the argument is gone.
        resident = resident_now()
        result = await pool.run_sync(make, SIZE)
        result *= 2
        assert result.flags.writeable
        assert (result == 4.0).all()
        print(there / SIZE, (peak() - resident) / SIZE)


if __name__ == "__main__":
    sys.exit(trio.run(main))
