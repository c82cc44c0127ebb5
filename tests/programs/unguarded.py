"""A script without a guard: loading it in a worker opens a pool again."""

import trio

import fdpool


def double(number):
    return 2 * number


async def main():
    async with fdpool.open_pool(1) as pool:
        print(await pool.run_sync(double, 21))


trio.run(main)
