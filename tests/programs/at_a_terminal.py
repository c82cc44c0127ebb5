"""Run a call that refuses to end, until Ctrl-C: WHERE, which is what waits for it, and GRACE seconds."""

import os
import signal
import sys

import trio

import fdpool


def refuse_aloud(stdout):
    # Speaks and remembers that it has in one step, between which no interrupt can come.
    speech = map(os.write, [stdout.fileno()], [f"{os.getpid()}\n".encode()])
    while True:
        try:
            for _ in speech:
                pass
            while True:
                signal.pause()
        except BaseException:
            os.write(stdout.fileno(), b"refused\n")


def give_in(stdout):
    os.write(stdout.fileno(), f"{os.getpid()}\n".encode())
    signal.pause()


async def main(where, grace):
    with fdpool.OwnedFd(os.dup(1)) as stdout:
        async with trio.open_nursery() as nursery, fdpool.open_pool(1, grace_period=grace) as pool:
            if where == "call":
                await pool.run_sync(refuse_aloud, stdout)
            elif where == "call that gives in":
                await pool.run_sync(give_in, stdout)
            elif where == "nursery":
                async with trio.open_nursery() as calls:
                    calls.start_soon(pool.run_sync, give_in, stdout)
            else:
                # Left at once: the pool waits for the call.
                nursery.start_soon(pool.run_sync, refuse_aloud, stdout)
                while not pool._dispatcher._seats or not any(s.calls for s in pool._dispatcher._seats.values()):
                    await trio.lowlevel.checkpoint()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], float(sys.argv[2]))
    except* KeyboardInterrupt:
        print("interrupted")
    except* trio.ClosedResourceError:
        pass
