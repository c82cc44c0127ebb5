"""A checksum server: takes memfds off a socket, maps them, and answers with their digests.

A pool task, `pool.run_sync(checksum.serve, sock)`, or a program: `python workers/checksum.py FD` with the
number of an inherited AF_UNIX datagram socket.
"""

from __future__ import annotations

import hashlib
import socket
import sys

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel import MemFd, OwnedFd, Seal, recv_with_fd

REQUEST_BYTES = 64


def serve(sock: socket.socket) -> int:
    """Answer each memfd with its SHA-256, and each empty message with the end of this; return how many there were.

    A request is any bytes with one memfd, sealed against shrinking; the answer is 32 bytes, or `error: …`.
    """
    served = 0
    request = bytearray(REQUEST_BYTES)
    with sock:
        while True:
            try:
                nbytes, handle = recv_with_fd(sock, request)
            except (RemoteProtocolError, FdLimitError) as exc:
                served += 1
                sock.send(f"error: {exc}".encode())
                continue
            if handle is None and not nbytes:
                return served
            served += 1
            sock.send(answer(handle))


def answer(handle: OwnedFd | None) -> bytes:
    """Return what to say to a request with *handle*, which is closed."""
    if handle is None:
        return b"error: the request came without a memfd"
    with MemFd.adopt(handle.detach()) as memfd:
        try:
            return digest(memfd)
        except (OSError, ValueError) as exc:
            return f"error: {exc}".encode()


def digest(memfd: MemFd) -> bytes:
    """Return the SHA-256 of the content of *memfd*, which is mapped and not copied.

    Raises:
      ValueError: it is not sealed against shrinking, and its owner could take the pages away under the reader.
      OSError: it is not a memfd.
    """
    if not memfd.seals & Seal.SHRINK:
        raise ValueError("the memfd is not sealed against shrinking")
    if not memfd.size:
        return hashlib.sha256().digest()
    with memfd.map() as content:
        return hashlib.sha256(content).digest()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.exit("usage: python workers/checksum.py FD\nThe number of an inherited AF_UNIX datagram socket.")
    serve(socket.socket(fileno=int(sys.argv[1])))
