"""Contract tests for who sent a message, and what is left on a stream, between AF_UNIX sockets."""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import (
    ControlBuffer,
    EventFd,
    ScmCredentials,
    ScmInq,
    ScmPidfd,
    ScmRights,
    ScmSecurity,
    enable,
    recvmsg,
    sendmsg,
)
from tests.support.unprivileged import NOBODY, run_as_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, request.param)
    with left, right:
        yield left, right


def sender_of(sock: socket.socket) -> ScmCredentials | None:
    with recvmsg(sock, [bytearray(16)]) as received:
        return received.find(ScmCredentials)


def test_credentials_come_with_every_message_whether_sent_or_not(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    sendmsg(left, [b"x"])
    assert sender_of(right) == ScmCredentials(os.getpid(), os.getuid(), os.getgid())
    sendmsg(left, [b"x"], [ScmCredentials.current()])
    assert sender_of(right) == ScmCredentials.current()


def test_without_enabling_none_come_even_if_sent(pair: Pair) -> None:
    left, right = pair
    sendmsg(left, [b"x"], [ScmCredentials.current()])
    assert sender_of(right) is None


def test_a_message_sent_before_enabling_is_from_nobody(pair: Pair) -> None:
    left, right = pair
    sendmsg(left, [b"x"])
    enable(right, ScmCredentials)
    assert sender_of(right) == ScmCredentials(0, NOBODY, NOBODY)


def test_a_child_is_told_from_its_parent(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    enable(right, ScmPidfd)

    def check() -> None:
        sendmsg(left, [str(os.getpid()).encode()])

    run_as_nobody(check)
    buffer = bytearray(16)
    with recvmsg(right, [buffer]) as received:
        pid = int(buffer[: received.nbytes])
        uid = NOBODY if os.getuid() == 0 else os.getuid()
        assert received.find(ScmCredentials) == ScmCredentials(pid, uid, NOBODY if uid == NOBODY else os.getgid())


def test_credentials_cannot_be_forged_without_privileges(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    parent = os.getpid()

    def check() -> None:
        mine = ScmCredentials.current()
        for forged in (
            ScmCredentials(parent, mine.uid, mine.gid),
            ScmCredentials(mine.pid, 0, mine.gid),
            ScmCredentials(mine.pid, mine.uid, 0),
        ):
            with pytest.raises(PermissionError):
                sendmsg(left, [b"forged"], [forged])
        sendmsg(left, [b"honest"], [mine])

    run_as_nobody(check)
    buffer = bytearray(16)
    with recvmsg(right, [buffer]) as received:
        assert bytes(buffer[: received.nbytes]) == b"honest"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may send other credentials than its own")
def test_root_may_send_any_ids_and_any_process_that_exists(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    sendmsg(left, [b"x"], [ScmCredentials(1, 12345, 54321)])
    assert sender_of(right) == ScmCredentials(1, 12345, 54321)
    with pytest.raises(ProcessLookupError):
        sendmsg(left, [b"x"], [ScmCredentials(2**22 + 1, 0, 0)])


def test_too_many_descriptors_in_flight_are_refused_until_some_arrive() -> None:
    def check() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with left, right, EventFd() as event:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            # The check comes before adding, and so allows one batch more than the limit.
            for _ in range(68 // 4):
                sendmsg(left, [b"x"], [ScmRights([event] * 4)])
            with pytest.raises(OSError, match="Too many references") as caught:
                sendmsg(left, [b"x"], [ScmRights([event])])
            assert caught.value.errno == errno.ETOOMANYREFS
            with recvmsg(right, [bytearray(1)]) as received:
                assert len(received.fds) == 4
            sendmsg(left, [b"x"], [ScmRights([event] * 4)])

    run_as_nobody(check)


def test_what_is_left_on_a_stream_is_told() -> None:
    left, right = socket.socketpair()
    with left, right:
        try:
            enable(right, ScmInq)
        except OSError as error:
            pytest.skip(str(error))
        sendmsg(left, [b"0123456789"])
        with recvmsg(right, [bytearray(4)]) as received:
            assert received.control == (ScmInq(6),)


def test_a_security_label_comes_where_a_security_module_gives_one(pair: Pair) -> None:
    left, right = pair
    try:
        enable(right, ScmSecurity)
    except OSError as error:
        pytest.skip(f"this kernel passes no labels: {error.strerror}")
    sendmsg(left, [b"x"])
    with recvmsg(right, [bytearray(1)]) as received:
        label = received.find(ScmSecurity)
    assert label is None or label.label


def test_credentials_are_added_to_a_buffer(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmCredentials)
    with ControlBuffer(ScmCredentials.space()) as buffer:
        assert buffer.add_credentials()
        assert not buffer.add_credentials()
        sendmsg(left, [b"x"], buffer)
    assert sender_of(right) == ScmCredentials.current()
