"""The parent listens, workers accept; kill one of them and the listener lives on.

    python examples/socket_handoff.py

Both workers run the echo server of `workers/echo.py` on the same listening socket, which they were handed
as an argument.
"""

import os
import signal
import socket

import trio

import fdpool
from workers import echo


async def talk(address: tuple[str, int], text: bytes) -> int:
    """Send *text* to the service and check what comes back; return the pid of the worker that answered."""
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(text)
        await stream.send_eof()
        answer = b"".join([chunk async for chunk in stream])
    greeting, _, echoed = answer.partition(b"\n")
    assert echoed == text
    return int(greeting.split()[1])


async def serve(pool: fdpool.Pool, listener: socket.socket) -> None:
    """Have a worker serve on *listener*, and another one when it dies."""
    while True:
        try:
            await pool.run_sync(echo.serve, listener)
        except fdpool.WorkerDied as exc:
            print(f"  {exc}")


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        print(f"process {os.getpid()} listens on port {address[1]}")
        async with fdpool.open_pool(2, grace_period=0) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(serve, pool, listener)
            nursery.start_soon(serve, pool, listener)
            first = await talk(address, b"hello")
            print(f"worker {first} answered; killing it")
            with fdpool.PidFd(first) as worker:
                worker.send_signal(signal.SIGKILL)
                await trio.lowlevel.wait_readable(worker)  # gone: it cannot take one more connection with it
            answered = [await talk(address, f"request {number}".encode()) for number in range(20)]
            assert first not in answered
            print(f"20 requests later, none lost: answered by {sorted(set(answered))}")
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
