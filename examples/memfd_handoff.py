"""A buffer of any size changes process in microseconds: 4 KiB and 1 GiB side by side.

    python examples/memfd_handoff.py [MEBIBYTES]

The worker maps each memfd it is sent, looks at the last page, and signs it; the signature is then there to
be read in this process too, because both sides see the same pages. At the end the checksum server of
`workers/checksum.py` reads all of it.
"""

import hashlib
import os
import socket
import statistics
import sys
import time

import trio

import fdpool
from workers import checksum

ROUNDS = 50
SIGNATURE_BYTES = 8


def sign_each(sock: socket.socket) -> None:
    """Answer each memfd with its last 8 bytes, and put this worker's pid there instead; runs in a worker."""
    signature = os.getpid().to_bytes(SIGNATURE_BYTES, "little")
    with sock:
        while (handle := fdpool.recv_with_fd(sock, bytearray(1))[1]) is not None:
            with fdpool.MemFd.adopt(handle.detach()) as memfd, memfd.map(writable=True) as pages:
                sock.send(pages[-SIGNATURE_BYTES:])
                pages[-SIGNATURE_BYTES:] = signature
                sock.send(b"done")


def hand_over(sock: socket.socket, memfd: fdpool.MemFd) -> float:
    """Send a memfd, again and again; return the median of the seconds until the worker answered from its pages."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        fdpool.send_with_fd(sock, b"?", memfd)
        sock.recv(SIGNATURE_BYTES)
        seconds.append(time.perf_counter() - started)
        sock.recv(4)
    return statistics.median(seconds)


async def show_handoff(pool: fdpool.Pool, sizes: list[int]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, sign_each, fdpool.give(theirs))
        for size in sizes:
            with fdpool.MemFd("handoff", size) as memfd, memfd.map(writable=True) as pages:
                pages[-SIGNATURE_BYTES:] = b"from us!"
                seconds = await trio.to_thread.run_sync(hand_over, ours, memfd)
                signed_by = int.from_bytes(pages[-SIGNATURE_BYTES:], "little")
            print(f"{size / 2**20:10.3f} MiB  {seconds * 1e6:6.1f} µs  signed by worker {signed_by}")
        ours.send(b"")
    ours.close()


async def show_checksum(pool: fdpool.Pool, size: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, checksum.serve, fdpool.give(theirs))
        data = os.urandom(2**20) * (size // 2**20)
        with fdpool.MemFd.from_bytes(data) as memfd:
            fdpool.send_with_fd(ours, b"?", memfd)
        answer = await trio.to_thread.run_sync(ours.recv, 64)
        assert answer == hashlib.sha256(data).digest()
        print(f"SHA-256 of {size >> 20} MiB by the worker: {answer.hex()[:16]}…, equal to ours")
        ours.send(b"")
    ours.close()


async def main(mebibytes: int) -> None:
    async with fdpool.open_pool(1) as pool:
        await show_handoff(pool, [4096, 2**20, mebibytes * 2**20])
        await show_checksum(pool, min(mebibytes, 64) * 2**20)


if __name__ == "__main__":
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and not sys.argv[1].isdigit()):
        sys.exit("usage: python examples/memfd_handoff.py [MEBIBYTES]")
    trio.run(main, int(sys.argv[1]) if len(sys.argv) == 2 else 1024)
