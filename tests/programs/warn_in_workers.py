"""Have a worker warn in several ways, having set some filters before: arguments are the way of starting it."""

from __future__ import annotations

import sys
import warnings

import trio

import fdpool


class ScriptWarning(UserWarning):
    pass


def deprecated() -> None:
    warnings.warn("old", DeprecationWarning, stacklevel=1)


def warn_of_the_scripts_own() -> None:
    warnings.warn("own", ScriptWarning, stacklevel=1)


async def main() -> None:
    warnings.filterwarnings("error", category=ScriptWarning)
    async with fdpool.open_pool(1, start=sys.argv[1]) as pool:
        await pool.run_sync(deprecated)
        try:
            await pool.run_sync(warn_of_the_scripts_own)
        except ScriptWarning:
            print("raised", flush=True)


if __name__ == "__main__":
    trio.run(main)
