"""Open a pool, say which workers there are, and keep them busy in the way that is asked for."""

import collections
import itertools
import os
import sys
import time

import trio

import fdpool


def say_and(how, write_end):
    os.write(write_end.fileno(), f"{os.getpid()}\n".encode())
    if how == "sleep":
        time.sleep(1000)
    elif how == "spin":
        # Holds the GIL, and looks at no signal.
        collections.deque(itertools.repeat(None, 10**14), maxlen=0)


async def main(how):
    async with fdpool.open_pool(2) as pool, trio.open_nursery() as nursery:
        with fdpool.OwnedFd(os.dup(1)) as stdout:
            for _ in range(2):
                if how == "idle":
                    # Two at once, so that both workers answer.
                    nursery.start_soon(pool.run_sync, say_and, "rest", stdout)
                else:
                    nursery.start_soon(pool.run_sync, say_and, how, stdout)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
