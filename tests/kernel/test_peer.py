"""Contract tests for the process at the other end, and for a socket that takes no descriptors."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from fdpool.kernel import (
    ScmCredentials,
    ScmRights,
    deny_handles,
    peer_credentials,
    peer_pidfd,
    recvmsg,
    sendmsg,
)
from tests.support.interrupts import interrupt_at
from tests.support.leaks import descriptor_count
from tests.support.unprivileged import run_as_nobody


def test_the_peer_is_who_connected() -> None:
    name = b"\0fdpool-test-peer-%d" % os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()

        def check() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
                client.send(str(os.getpid()).encode())

        run_as_nobody(check)
        server, _ = listener.accept()
        with server:
            assert peer_credentials(server).pid == int(server.recv(16))
            assert peer_credentials(server).uid == (65534 if os.getuid() == 0 else os.getuid())


def test_on_a_socketpair_the_peer_is_who_made_it_even_for_a_child() -> None:
    left, right = socket.socketpair()
    with left, right:
        creator = ScmCredentials.current()

        def check() -> None:
            left.close()
            assert peer_credentials(right) == creator
            assert peer_credentials(right).pid != os.getpid()

        run_as_nobody(check)


def test_the_peer_is_a_process_that_is_owned() -> None:
    left, right = socket.socketpair()
    with left, right:
        try:
            peer = peer_pidfd(left)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            pytest.skip("SO_PEERPIDFD needs Linux 6.5")
        with peer:
            assert peer.pid == os.getpid()
            assert not os.get_inheritable(peer.fileno())


def test_without_a_peer_there_is_none() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alone:
        with pytest.raises(OSError, match="no peer") as caught:
            peer_credentials(alone)
        assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError, match=r"No data available|Protocol not available"):
            peer_pidfd(alone)


def test_other_sockets_have_no_process_for_a_peer() -> None:
    with socket.socket(socket.AF_INET) as tcp:
        with pytest.raises(ValueError, match="only AF_UNIX"):
            peer_credentials(tcp)
        with pytest.raises(ValueError, match="only AF_UNIX"):
            peer_pidfd(tcp)
        with pytest.raises(ValueError, match="only AF_UNIX"):
            deny_handles(tcp)


def test_a_socket_that_denies_handles_gets_none_and_their_sender_eperm() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        sendmsg(left, [b"before"], [ScmRights([left])])
        if not deny_handles(right):
            pytest.skip("SO_PASSRIGHTS needs Linux 6.16")
        with pytest.raises(PermissionError):
            sendmsg(left, [b"x"], [ScmRights([left])])
        sendmsg(left, [b"data"])
        assert deny_handles(right, denied=False)
        sendmsg(left, [b"after"], [ScmRights([left])])
        counts = []
        for _ in range(3):
            with recvmsg(right, [bytearray(10)]) as received:
                counts.append(len(received.fds))
        assert counts == [1, 0, 1]


class OldSocket(socket.socket):
    """A socket of a kernel that has no SO_PASSRIGHTS."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_an_old_kernel_denies_nothing_and_says_so() -> None:
    with OldSocket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        assert deny_handles(sock) is False


def test_another_failure_to_deny_is_an_error() -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        deny_handles(sock)


@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
def test_an_interrupt_at_any_bytecode_of_asking_for_the_peer_leaks_nothing() -> None:
    left, right = socket.socketpair()
    with left, right:
        before = descriptor_count()
        step = 0
        while True:
            try:
                with interrupt_at(step, __file__):
                    peer = peer_pidfd(left)
            except KeyboardInterrupt:
                step += 1
            except OSError:
                pytest.skip("SO_PEERPIDFD needs Linux 6.5")
            else:
                peer.close()
                break
            assert descriptor_count() == before, f"leaked at step {step}"
        assert step > 20
