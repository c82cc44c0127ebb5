"""Open a pool, say which workers there are, and keep them busy in the way that is asked for: HOW [START]."""

import collections
import itertools
import os
import signal
import subprocess
import sys
import time

import trio

import fdpool


def spin():
    """Hold the GIL, and look at no signal."""
    collections.deque(itertools.repeat(None, 10**14), maxlen=0)


def say_and(how, write_end):
    os.write(write_end.fileno(), f"{os.getpid()}\n".encode())
    if how == "sleep":
        time.sleep(1000)
    elif how == "spin":
        spin()
    elif how == "spawn":
        # Deaf to everything but SIGKILL, and holding the pipe.
        subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; sleep 1000; sleep 1000"], stdout=write_end.fileno())
        spin()


async def main(how, start="zygote"):
    async with fdpool.open_pool(2, start=start) as pool, trio.open_nursery() as nursery:
        with fdpool.OwnedFd(os.dup(1)) as stdout:
            if how in ("idle", "no zygote"):
                # Two at once, so that both workers answer.
                async with trio.open_nursery() as calls:
                    for _ in range(2):
                        calls.start_soon(pool.run_sync, say_and, "rest", stdout)
            else:
                for _ in range(2):
                    nursery.start_soon(pool.run_sync, say_and, how, stdout)
            if how == "no zygote":
                # It has forked the workers that answered.
                os.kill(pool._supervisor._launcher.pid, signal.SIGKILL)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
