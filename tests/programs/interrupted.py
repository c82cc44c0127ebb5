"""Run calls until Ctrl-C, then end as a program should."""

import os
import signal
import time

import trio

import fdpool


def busy(write_end):
    os.write(write_end.fileno(), f"{os.getpid()}\n".encode())
    time.sleep(1000)


async def main():
    async with fdpool.open_pool(2) as pool, trio.open_nursery() as nursery:
        with fdpool.OwnedFd(os.dup(1)) as stdout:
            nursery.start_soon(pool.run_sync, busy, stdout)
            nursery.start_soon(pool.run_sync, busy, stdout)
            await trio.sleep_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trio.run(main)
    except* KeyboardInterrupt:
        print("interrupted")
