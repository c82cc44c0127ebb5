"""The echo server, launched by a supervisor and as a program."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

import trio

import fdpool
from tests.test_processes import ENVIRONMENT, ROOT
from workers import echo


def talk(address: tuple[str, int], data: bytes) -> int:
    """Have *data* echoed; return the pid in the greeting."""
    with socket.create_connection(address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    greeting, _, echoed = answer.partition(b"\n")
    assert echoed == data
    return int(greeting.removeprefix(b"worker "))


def test_the_program_serves_an_inherited_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "workers/echo.py", str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=ROOT, env=ENVIRONMENT) as process:
            assert talk(listener.getsockname(), b"hello") == process.pid
            with socket.create_connection(listener.getsockname()) as rude:
                # A reset in the middle is the client's own business.
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                rude.sendall(bytes(1000))
            assert talk(listener.getsockname(), bytes(100_000)) == process.pid
            process.kill()


async def talk_async(address: tuple[str, int], data: bytes) -> int:
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(data)
        await client.send_eof()
        greeting, _, echoed = b"".join([chunk async for chunk in client]).partition(b"\n")
    assert echoed == data
    return int(greeting.removeprefix(b"worker "))


async def test_a_supervisor_launches_it_as_a_task_and_the_listener_outlives_it() -> None:
    async def serve(pool: fdpool.Pool) -> None:
        while True:
            try:
                await pool.run_sync(echo.serve, listener)
            except fdpool.WorkerDied as exc:
                died.append(exc)

    died: list[fdpool.WorkerDied] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(60):
        async with fdpool.open_pool(1, grace_period=0) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(serve, pool)
            first = await talk_async(listener.getsockname(), b"x")
            with fdpool.PidFd(first) as worker:
                worker.send_signal(9)
                await trio.lowlevel.wait_readable(worker)
            second = await talk_async(listener.getsockname(), b"y")
            assert second != first
            nursery.cancel_scope.cancel()
    assert [exc.pid for exc in died] == [first]


def test_it_says_how_it_is_used() -> None:
    result = subprocess.run(
        [sys.executable, "workers/echo.py", "x"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 1
    assert "usage: python workers/echo.py FD" in result.stderr
