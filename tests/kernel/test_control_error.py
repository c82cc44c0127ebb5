"""Contract tests for the error queue: a port where nobody listens, and a packet that is too long for its path."""

from __future__ import annotations

import errno
import socket

import pytest

from fdpool.kernel import ErrorOrigin, Ipv4RecvErr, Ipv6RecvErr, enable, recvmsg, sendmsg


def closed_port(family: socket.AddressFamily, address: str) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as taken:
        taken.bind((address, 0))
        port: int = taken.getsockname()[1]
        return port


def test_a_port_nobody_listens_on_is_in_the_error_queue_with_who_said_so() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        enable(udp, Ipv4RecvErr)
        port = closed_port(socket.AF_INET, "127.0.0.1")
        sendmsg(udp, [b"knock"], (), 0, ("127.0.0.1", port))
        buffer = bytearray(16)
        with recvmsg(udp, [buffer], flags=socket.MSG_ERRQUEUE) as received:
            error = received.find(Ipv4RecvErr)
            assert bytes(buffer[: received.nbytes]) == b"knock"
            assert received.address == ("127.0.0.1", port)
        assert error is not None
        assert (error.errno, error.origin) == (errno.ECONNREFUSED, ErrorOrigin.ICMP)
        assert (error.type, error.code) == (3, 3)
        assert str(error.offender) == "127.0.0.1"


def test_the_same_of_ipv6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        enable(udp, Ipv6RecvErr)
        port = closed_port(socket.AF_INET6, "::1")
        sendmsg(udp, [b"knock"], (), 0, ("::1", port))
        with recvmsg(udp, [bytearray(16)], flags=socket.MSG_ERRQUEUE) as received:
            error = received.find(Ipv6RecvErr)
        assert error is not None
        assert (error.errno, error.origin) == (errno.ECONNREFUSED, ErrorOrigin.ICMP6)
        assert (error.type, error.code) == (1, 4)
        assert str(error.offender) == "::1"


def test_a_local_error_has_no_offender() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        enable(udp, Ipv4RecvErr)
        udp.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: never fragment
        udp.connect(("127.0.0.1", closed_port(socket.AF_INET, "127.0.0.1")))
        with pytest.raises(OSError, match="Message too long"):
            sendmsg(udp, [bytes(65508)])
        with recvmsg(udp, [bytearray(1)], flags=socket.MSG_ERRQUEUE) as received:
            error = received.find(Ipv4RecvErr)
        assert error is not None
        assert (error.errno, error.origin) == (errno.EMSGSIZE, ErrorOrigin.LOCAL)
        assert error.info == udp.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU
        assert error.offender is None


def test_an_empty_error_queue_never_blocks() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        with pytest.raises(BlockingIOError):
            recvmsg(udp, [bytearray(1)], flags=socket.MSG_ERRQUEUE)
