"""What typed control messages and owned descriptors cost, beside what the standard library does with bare ints.

Every way sends N duplicates of one eventfd over a socketpair, receives them and closes them, side by side in one run:

- raw: `sendmsg` and `recvmsg_into` as Python's documentation uses them, with MSG_CMSG_CLOEXEC: bare ints.
- raw, checked: the same with what it lacks to be right: no SIGPIPE, truncation noticed, all closed if anything fails.
- send_fds: `socket.send_fds` and `recv_fds`, whose descriptors are inheritable, and whose truncation is silent.
- typed: `sendmsg` with `ScmRights`, `recvmsg`, all closed by `Received`.
- typed, each: the same, with every descriptor taken and closed by itself.
- with_fds: `send_with_fds` and `recv_with_fds`, every descriptor closed by itself.

Run it with `python -m benchmarks.ancillary [rounds]`.
"""

from __future__ import annotations

import array
import os
import platform
import socket
import statistics
import sys
import timeit
from typing import TYPE_CHECKING

from fdpool.kernel import EventFd, ScmRights, recv_with_fds, recvmsg, send_with_fds, sendmsg

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[], None]

ROOM = socket.CMSG_SPACE(253 * 4)


def ways(left: socket.socket, right: socket.socket, fds: list[EventFd]) -> dict[str, Way]:
    """Return each way to pass *fds* from *left* to *right*, once, and close what arrived."""
    buffer = bytearray(1)

    def raw() -> None:
        numbers = array.array("i", [fd.fileno() for fd in fds])
        left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        _, items, _, _ = right.recvmsg_into([buffer], ROOM, socket.MSG_CMSG_CLOEXEC)
        arrived = array.array("i")
        for level, kind, data in items:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                arrived.frombytes(data[: len(data) - (len(data) % arrived.itemsize)])
        for number in arrived:
            os.close(number)

    def raw_checked() -> None:
        numbers = array.array("i", [fd.fileno() for fd in fds])
        left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)], socket.MSG_NOSIGNAL)
        _, items, flags, _ = right.recvmsg_into([buffer], ROOM, socket.MSG_CMSG_CLOEXEC)
        arrived = array.array("i")
        try:
            for level, kind, data in items:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    arrived.frombytes(data[: len(data) - (len(data) % arrived.itemsize)])
            if flags & socket.MSG_CTRUNC:
                raise OSError("descriptors were lost")
        finally:
            for number in arrived:
                os.close(number)

    def send_fds() -> None:
        socket.send_fds(left, [b"x"], [fd.fileno() for fd in fds])
        _, numbers, _, _ = socket.recv_fds(right, 1, len(fds))
        for number in numbers:
            os.close(number)

    def typed() -> None:
        sendmsg(left, [b"x"], [ScmRights(fds)])
        with recvmsg(right, [buffer]):
            pass

    def typed_each() -> None:
        sendmsg(left, [b"x"], [ScmRights(fds)])
        with recvmsg(right, [buffer]) as received:
            for fd in received.take_fds():
                fd.close()

    def with_fds() -> None:
        send_with_fds(left, [b"x"], fds)
        _, arrived = recv_with_fds(right, [buffer])
        for fd in arrived:
            fd.close()

    return {
        "raw": raw,
        "raw, checked": raw_checked,
        "send_fds": send_fds,
        "typed": typed,
        "typed, each": typed_each,
        "with_fds": with_fds,
    }


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of each way with *count* descriptors, by round, in which the ways take turns."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    repeats = max(1, 1000 // (count + 3))
    taken: dict[str, list[float]] = {}
    with left, right, EventFd() as event:
        for _ in range(rounds):
            for name, way in ways(left, right, [event] * count).items():
                seconds = timeit.timeit(way, number=repeats) / repeats
                taken.setdefault(name, []).append(seconds * 1e6)
    return taken


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median of how one way compares to another in the same round: on a busy machine rounds differ more."""
    return statistics.median(time / other for time, other in zip(times, others, strict=True))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {rounds} rounds, medians")
    for count in (1, 253):
        taken = measure(count, rounds)
        print(f"\n{count} per message       us/message   us/fd   x raw   x raw, checked")
        for name, times in taken.items():
            time = statistics.median(times)
            against = f"{ratio(times, taken['raw']):7.2f} {ratio(times, taken['raw, checked']):16.2f}"
            print(f"  {name:18} {time:12.2f} {time / count:7.3f} {against}")


if __name__ == "__main__":
    main()
