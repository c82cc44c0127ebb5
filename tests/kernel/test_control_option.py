"""Contract tests for asking: which sockets a kind of message can be asked of, and what the refusal says."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

import pytest

from fdpool.kernel import (
    CONTROL_MESSAGES,
    AlgSetIv,
    ControlMessage,
    Ipv4PacketInfo,
    Ipv6PacketInfo,
    RxqOvfl,
    ScmCredentials,
    ScmInq,
    ScmPidfd,
    ScmRights,
    ScmTimestamp,
    ScmTimestamping,
    TlsRecordType,
    UdpGsoSegments,
    UnknownControlMessage,
    enable,
)

UNIX, IPV4, IPV6 = socket.AF_UNIX, socket.AF_INET, socket.AF_INET6
DGRAM, STREAM = socket.SOCK_DGRAM, socket.SOCK_STREAM


@pytest.mark.parametrize(
    ("family", "socket_type", "kind", "reason"),
    [
        (IPV4, DGRAM, ScmCredentials, "ScmCredentials comes with sockets of AF_UNIX or AF_NETLINK, .* AF_INET"),
        (IPV4, DGRAM, ScmPidfd, "ScmPidfd comes with sockets of AF_UNIX"),
        (UNIX, DGRAM, Ipv4PacketInfo, "Ipv4PacketInfo comes with sockets of AF_INET or AF_INET6"),
        (IPV4, DGRAM, Ipv6PacketInfo, "Ipv6PacketInfo comes with sockets of AF_INET6"),
        (UNIX, DGRAM, ScmTimestamping, "ScmTimestamping comes with sockets of AF_INET or AF_INET6 or AF_PACKET"),
        (IPV4, STREAM, Ipv4PacketInfo, "SOCK_STREAM: a stream has none"),
        (IPV4, STREAM, RxqOvfl, "SOCK_STREAM: a stream has none"),
        (UNIX, DGRAM, ScmInq, "SOCK_DGRAM: only streams have it"),
        (UNIX, STREAM, ScmTimestamp, "does not come with an AF_UNIX stream"),
        (UNIX, DGRAM, ScmRights, "ScmRights always arrives; deny_handles"),
        (IPV4, STREAM, TlsRecordType, "arrives by itself"),
        (IPV4, DGRAM, UdpGsoSegments, "is only ever sent"),
        (UNIX, DGRAM, AlgSetIv, "is only ever sent"),
        (UNIX, DGRAM, UnknownControlMessage, "no kind of message that the kernel could be asked for"),
    ],
)
def test_a_refusal_says_why(
    family: socket.AddressFamily, socket_type: socket.SocketKind, kind: type[ControlMessage], reason: str
) -> None:
    with socket.socket(family, socket_type) as sock, pytest.raises(ValueError, match=reason):
        enable(sock, kind)


def test_every_kind_can_be_asked_of_some_socket_or_the_refusal_says_why_of_none() -> None:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(family, socket_type))
            for family in (UNIX, IPV4, IPV6)
            for socket_type in (DGRAM, STREAM)
        ]
        never = []
        for kind in {*CONTROL_MESSAGES.values()}:
            refusals = []
            for sock in sockets:
                try:
                    enable(sock, kind)
                    break
                except (ValueError, OSError) as error:
                    refusals.append(error)
            else:
                if not any(isinstance(error, OSError) for error in refusals):
                    never.append(kind.__name__)
    assert sorted(never) == [
        "AlgSetAeadAssoclen",
        "AlgSetIv",
        "AlgSetOp",
        "ScmRights",
        "TlsRecordType",
        "UdpGsoSegments",
    ]


class OldKernel(socket.socket):
    """A socket of a kernel that knows no option from the last ten years."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_an_old_kernel_is_told_from_a_wrong_socket() -> None:
    with OldKernel(UNIX, DGRAM) as sock:
        with pytest.raises(OSError, match=r"ScmPidfd needs Linux 6\.5, and this is ") as caught:
            enable(sock, ScmPidfd)
        assert caught.value.errno == errno.ENOPROTOOPT
        with pytest.raises(OSError, match="Protocol not available"):
            enable(sock, ScmCredentials)


def test_a_netlink_socket_has_credentials() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        enable(netlink, ScmCredentials)
        assert netlink.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
        enable(netlink, ScmCredentials, 0)
        assert netlink.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 0
