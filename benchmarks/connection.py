"""What a Connection costs over the system calls it is made of.

    python -m benchmarks.connection [--seconds S] [--json]

Both ends are in one thread, so that it is their own cost that shows and not the scheduler's: a burst of messages
is sent, then received, again and again. The raw side does the same with blocking `sendmsg` and `recvmsg`, one of
each per message. All variants take turns, and of each the best turn counts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from array import array
from typing import TYPE_CHECKING

import trio
from rich.console import Console
from rich.table import Table

from fdpool.connection import Connection, StreamMessage
from fdpool.kernel import EventFd, recv_with_fds, send_with_fds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Variant = Callable[[int], Awaitable[None]]

BODY = bytes(52)
HEADER = (1).to_bytes(8, "little") + len(BODY).to_bytes(4, "little")
SIZE = len(HEADER) + len(BODY)
BURST = 128
TURNS = 10


def body_size(header: bytes) -> int:
    return int.from_bytes(header[8:], "little")


def variants(
    left: Connection, right: Connection, near: socket.socket, far: socket.socket, event: EventFd
) -> dict[str, dict[str, Variant]]:
    """Return, for each kind of message, what moves a burst of them from one end to the other."""
    numbers = array("i", [event.fileno()])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
    plain, carrying = StreamMessage(HEADER, BODY), StreamMessage(HEADER, BODY, [event])

    async def raw(burst: int) -> None:
        buffer = bytearray(SIZE)
        for _ in range(burst):
            near.sendmsg([HEADER, BODY])
        for _ in range(burst):
            far.recvmsg_into([buffer])

    async def batched(burst: int) -> None:
        await left.send_messages([plain] * burst)
        while burst:
            burst -= len(await right.receive_messages(len(HEADER), body_size, max_fds=1))

    async def one_by_one(burst: int) -> None:
        for _ in range(burst):
            await left.send_message(HEADER, BODY)
        for _ in range(burst):
            await right.receive_message(len(HEADER), body_size, max_fds=0)

    async def raw_fds(burst: int) -> None:
        buffer, room = bytearray(SIZE), socket.CMSG_SPACE(4)
        for _ in range(burst):
            near.sendmsg([HEADER, BODY], rights)
        for _ in range(burst):
            _, control, _, _ = far.recvmsg_into([buffer], room, socket.MSG_CMSG_CLOEXEC)
            for number in array("i", control[0][2]):
                os.close(number)

    async def owned_fds(burst: int) -> None:
        buffer = bytearray(SIZE)
        for _ in range(burst):
            send_with_fds(near, [HEADER, BODY], [event])
        for _ in range(burst):
            for fd in recv_with_fds(far, [buffer])[1]:
                fd.close()

    async def batched_fds(burst: int) -> None:
        await left.send_messages([carrying] * burst)
        while burst:
            messages = await right.receive_messages(len(HEADER), body_size, max_fds=1)
            for message in messages:
                message.fds[0].close()
            burst -= len(messages)

    async def one_by_one_fds(burst: int) -> None:
        for _ in range(burst):
            await left.send_message(HEADER, BODY, fds=[event])
        for _ in range(burst):
            (await right.receive_message(len(HEADER), body_size, max_fds=1)).fds[0].close()

    return {
        f"{SIZE}-byte messages": {
            "raw sendmsg, recvmsg": raw,
            "send_messages, receive_messages": batched,
            "send_message, receive_message": one_by_one,
        },
        f"{SIZE}-byte messages with a descriptor": {
            "raw sendmsg, recvmsg, close": raw_fds,
            "send_with_fds, recv_with_fds, close": owned_fds,
            "send_messages, receive_messages, close": batched_fds,
            "send_message, receive_message, close": one_by_one_fds,
        },
    }


async def seconds_per_message(variant: Variant, seconds: float) -> float:
    """Run bursts for about so long, and return what a message took."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        await variant(BURST)
        count += BURST
    return passed / count


async def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Return for each kind of message what it took with each variant."""
    left, right = Connection.pair()
    near, far = socket.socketpair()
    async with left, right:
        with near, far, EventFd() as event:
            kinds = variants(left, right, near, far, event)
            best = {kind: dict.fromkeys(names, 1.0) for kind, names in kinds.items()}
            for _ in range(TURNS):
                for kind, names in kinds.items():
                    for name, variant in names.items():
                        took = await seconds_per_message(variant, seconds / TURNS)
                        best[kind][name] = min(best[kind][name], took)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Connection against raw sendmsg and recvmsg")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each variant")
    parser.add_argument("--json", action="store_true", help="print seconds per message instead of tables")
    options = parser.parse_args()
    results = trio.run(measure, options.seconds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for kind, names in results.items():
        table = Table("", "per second", "each", "against raw", title=kind, title_justify="left")
        raw = next(iter(names.values()))
        for name, took in names.items():
            table.add_row(name, f"{1 / took:,.0f}", f"{took * 1e6:.2f} µs", f"{took / raw:.2f} x")
        Console().print(table)


if __name__ == "__main__":
    main()
