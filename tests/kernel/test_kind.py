"""Contract tests for handle_kind: what the kernel says a descriptor is."""

from __future__ import annotations

import os
import select
import socket
import tempfile

import pytest

from fdpool.kernel import EventFd, HandleKind, MemFd, PidFd, handle_kind


def test_every_kind_is_told_apart() -> None:
    sock = socket.socket()
    read_end, write_end = os.pipe()
    with MemFd() as memfd, EventFd() as event, PidFd.current() as me, sock, select.epoll() as epoll:
        with tempfile.TemporaryFile() as file:
            kinds = [handle_kind(handle.fileno()) for handle in (memfd, event, me, sock, epoll, file)]
    assert kinds == [
        HandleKind.MEMFD, HandleKind.EVENTFD, HandleKind.PIDFD, HandleKind.SOCKET, HandleKind.OTHER, HandleKind.FILE,
    ]  # fmt: skip
    assert handle_kind(read_end) is HandleKind.FILE
    os.close(read_end)
    os.close(write_end)


def test_a_closed_number_is_an_error() -> None:
    with EventFd() as event:
        number = event.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        handle_kind(number)
