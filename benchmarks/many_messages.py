"""Whether sendmmsg(2) and recvmmsg(2), called through ctypes, beat a loop of sendmsg and recvmsg_into.

The table in docs/control-messages.md is from here. Everything that can be prepared once is: the ctypes structures,
the buffers, the iovecs. "filled" is what a function taking a list of messages has to do on top: write each message's
address into them. "timestamps" has control data, which then has to be parsed in Python.

Run it with `python -m benchmarks.many_messages [rounds]`.
"""

from __future__ import annotations

import ctypes
import socket
import statistics
import struct
import sys
import time
from typing import TYPE_CHECKING

from fdpool.kernel import ScmTimestampNs, enable

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
ROOM = 256
SIZE = 100


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MmsgHdr(ctypes.Structure):
    """struct mmsghdr, the struct msghdr in it spread out."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("iov", ctypes.POINTER(IoVec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("length", ctypes.c_uint),
        ("padding", ctypes.c_uint),
    )


class Batch:
    """So many messages of `SIZE` bytes, with the structures that the kernel wants."""

    def __init__(self, count: int, room: int) -> None:
        self.count = count
        self.buffers = [bytearray(SIZE) for _ in range(count)]
        self.controls = [bytearray(max(room, 1)) for _ in range(count)]
        self.iovecs = (IoVec * count)()
        self.headers = (MmsgHdr * count)()
        for header, iovec, buffer, control in zip(self.headers, self.iovecs, self.buffers, self.controls, strict=True):
            iovec.base, iovec.length = ctypes.addressof(ctypes.c_char.from_buffer(buffer)), SIZE
            header.iov, header.iov_length = ctypes.pointer(iovec), 1
            if room:
                header.control = ctypes.addressof(ctypes.c_char.from_buffer(control))
                header.control_length = room

    def send(self, sock: socket.socket) -> None:
        """Send all of them with one call."""
        assert LIBC.sendmmsg(sock.fileno(), self.headers, self.count, 0) == self.count

    def fill_and_send(self, sock: socket.socket, messages: list[bytes]) -> None:
        """Send *messages* with one call."""
        for iovec, message in zip(self.iovecs, messages, strict=True):
            iovec.base, iovec.length = ctypes.cast(ctypes.c_char_p(message), ctypes.c_void_p), len(message)
        self.send(sock)

    def receive(self, sock: socket.socket, room: int) -> list[tuple[int, list[tuple[int, int, bytes]]]]:
        """Receive into all of them with one call; return their lengths and control items."""
        assert LIBC.recvmmsg(sock.fileno(), self.headers, self.count, 0, None) == self.count
        received = []
        for header, control in zip(self.headers, self.controls, strict=True):
            received.append((header.length, list(parse(control, header.control_length)) if room else []))
            header.control_length = room
        return received


def parse(control: bytearray, used: int) -> list[tuple[int, int, bytes]]:
    """Return the items in a control buffer, as `socket.recvmsg` would."""
    items, offset = [], 0
    while offset + 16 <= used:
        length, level, kind = struct.unpack_from("Nii", control, offset)
        items.append((level, kind, bytes(control[offset + 16 : offset + length])))
        offset += (length + 7) & ~7
    return items


def measure(count: int, rounds: int, *, timestamps: bool) -> dict[str, float]:
    """Return the median microseconds per message of each way, over UDP on the loopback interface."""
    room = ROOM if timestamps else 0
    outgoing, incoming = Batch(count, 0), Batch(count, room)
    messages = [bytes(SIZE) for _ in range(count)]
    taken: dict[str, list[float]] = {}
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
    ):
        right.bind(("127.0.0.1", 0))
        left.connect(right.getsockname())
        if timestamps:
            enable(right, ScmTimestampNs)
        ways: dict[str, Callable[[], object]] = {
            "send loop": lambda: [left.sendmsg([message]) for message in messages],
            "recvmmsg": lambda: incoming.receive(right, room),
            "sendmmsg": lambda: outgoing.send(left),
            "recv loop": lambda: [right.recvmsg_into([buffer], room) for buffer in incoming.buffers],
            "sendmmsg, filled": lambda: outgoing.fill_and_send(left, messages),
            "recv loop again": lambda: [right.recvmsg_into([buffer], room) for buffer in incoming.buffers],
        }
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                taken.setdefault(name, []).append((time.perf_counter() - start) / count * 1e6)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    for count in (8, 64):
        for timestamps in (False, True):
            medians = measure(count, rounds, timestamps=timestamps)
            print(f"{count} messages of {SIZE} bytes{', timestamps' if timestamps else ''}: us/message")
            for name, loop in (
                ("sendmmsg", "send loop"),
                ("sendmmsg, filled", "send loop"),
                ("recvmmsg", "recv loop"),
            ):
                ratio = medians[name] / medians[loop]
                print(f"  {name:18} {medians[name]:6.2f}   {loop} {medians[loop]:6.2f}   {ratio:5.2f} x")


if __name__ == "__main__":
    main()
