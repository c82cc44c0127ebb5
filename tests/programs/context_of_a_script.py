"""Pass a context variable of the script itself to a worker."""

from __future__ import annotations

import sys
from contextvars import ContextVar

import trio

import fdpool

request = ContextVar("request")


def look():
    return request.get()


async def main():
    request.set("the script's")
    async with fdpool.open_pool(1, start=sys.argv[1], context=["__main__:request"]) as pool:
        print(await pool.run_sync(look))


if __name__ == "__main__":
    trio.run(main)
