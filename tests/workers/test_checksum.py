"""The checksum server, launched by a supervisor and as a program."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import trio

import fdpool
from fdpool.kernel import EventFd, MemFd, send_with_fd, send_with_fds
from tests.test_processes import ENVIRONMENT, ROOT
from workers import checksum

Ask = Callable[[object], bytes]


@pytest.fixture
def program() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    command = [sys.executable, "workers/checksum.py", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=ENVIRONMENT) as process, ours:
        theirs.close()
        yield ours
        ours.send(b"")
        assert process.wait(30) == 0


def test_the_program_answers_with_digests(program: socket.socket) -> None:
    for data in (b"", b"abc", bytes(5 << 20)):
        with MemFd.from_bytes(data) as memfd:
            send_with_fd(program, b"?", memfd)
        assert program.recv(64) == hashlib.sha256(data).digest()


def test_bad_requests_are_answered_and_the_program_goes_on(program: socket.socket) -> None:
    program.send(b"no memfd")
    assert program.recv(100) == b"error: the request came without a memfd"
    with MemFd(size=5) as unsealed, EventFd() as event:
        send_with_fd(program, b"?", unsealed)
        assert program.recv(100) == b"error: the memfd is not sealed against shrinking"
        send_with_fd(program, b"?", event)
        assert program.recv(100) == b"error: [Errno 22] Invalid argument"
        send_with_fds(program, [b"?"], [event, event])
        assert program.recv(200).startswith(b"error: the peer sent 2 descriptors")
    with MemFd.from_bytes(b"still there") as memfd:
        send_with_fd(program, b"?", memfd)
    assert program.recv(64) == hashlib.sha256(b"still there").digest()


async def test_a_supervisor_launches_it_as_a_task() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    served = []

    async def serve(pool: fdpool.Pool) -> None:
        served.append(await pool.run_sync(checksum.serve, fdpool.give(theirs)))

    with ours, trio.fail_after(60):
        async with fdpool.open_pool(1) as pool:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, pool)
                with MemFd.from_bytes(b"abc") as memfd:
                    send_with_fd(ours, b"?", memfd)
                await trio.lowlevel.wait_readable(ours)
                assert ours.recv(64) == hashlib.sha256(b"abc").digest()
                ours.send(b"")
            assert served == [1]
            with MemFd.from_bytes(b"xyz") as memfd:
                assert await pool.run_sync(checksum.digest, memfd) == hashlib.sha256(b"xyz").digest()


def test_it_says_how_it_is_used() -> None:
    result = subprocess.run(
        [sys.executable, "workers/checksum.py"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 1
    assert "usage: python workers/checksum.py FD" in result.stderr
