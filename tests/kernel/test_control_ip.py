"""Contract tests for the messages about an IP packet's path, over the loopback interface."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import (
    ControlMessage,
    Ipv4OrigDstAddr,
    Ipv4PacketInfo,
    Ipv4Tos,
    Ipv4Ttl,
    Ipv6HopLimit,
    Ipv6OrigDstAddr,
    Ipv6PacketInfo,
    Ipv6TClass,
    enable,
    recvmsg,
    sendmsg,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = socket.if_nametoindex("lo")


@contextmanager
def udp(address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give a sender that is not bound, connected to a receiver."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as left, socket.socket(family, socket.SOCK_DGRAM) as right:
        right.bind((address, 0))
        left.connect(right.getsockname())
        yield left, right


def received_by(right: socket.socket) -> tuple[ControlMessage, ...]:
    with recvmsg(right, [bytearray(10)]) as received:
        return received.control


def test_ipv4_packet_info_says_interface_and_addresses() -> None:
    with udp("127.0.0.1") as (left, right):
        enable(right, Ipv4PacketInfo)
        sendmsg(left, [b"x"])
        address = IPv4Address("127.0.0.1")
        assert received_by(right) == (Ipv4PacketInfo(LOOPBACK, address, address),)


def test_ipv4_packet_info_chooses_the_source_address() -> None:
    with udp("127.0.0.1") as (left, right):
        sendmsg(left, [b"x"], [Ipv4PacketInfo(LOOPBACK, IPv4Address("127.0.0.7"))])
        with recvmsg(right, [bytearray(1)]) as received:
            assert received.address[0] == "127.0.0.7"


def test_ipv6_packet_info_says_interface_and_address() -> None:
    with udp("::1") as (left, right):
        enable(right, Ipv6PacketInfo)
        sendmsg(left, [b"x"], [Ipv6PacketInfo(IPv6Address("::1"), LOOPBACK)])
        assert received_by(right) == (Ipv6PacketInfo(IPv6Address("::1"), LOOPBACK),)


def test_an_interface_that_does_not_exist_is_the_kernels_error() -> None:
    with udp("127.0.0.1") as (left, _), pytest.raises(OSError, match="No such device"):
        sendmsg(left, [b"x"], [Ipv4PacketInfo(2**31 - 1)])


def test_an_ipv6_socket_receives_the_ipv4_messages_of_mapped_addresses() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as right,
    ):
        right.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        right.bind(("::ffff:127.0.0.1", 0))
        enable(right, Ipv4Ttl)
        sendmsg(left, [b"x"], [Ipv4Ttl(7)], 0, ("127.0.0.1", right.getsockname()[1]))
        assert received_by(right) == (Ipv4Ttl(7),)


@pytest.mark.parametrize("ttl", [1, 64, 255])
def test_ttl_arrives_as_it_was_sent(ttl: int) -> None:
    with udp("127.0.0.1") as (left, right):
        enable(right, Ipv4Ttl)
        sendmsg(left, [b"x"], [Ipv4Ttl(ttl)])
        assert received_by(right) == (Ipv4Ttl(ttl),)


@pytest.mark.parametrize("tos", [0, 0x20, 0xB8])
def test_tos_arrives_as_it_was_sent(tos: int) -> None:
    with udp("127.0.0.1") as (left, right):
        enable(right, Ipv4Tos)
        sendmsg(left, [b"x"], [Ipv4Tos(tos)])
        assert received_by(right) == (Ipv4Tos(tos),)


@pytest.mark.parametrize("limit", [1, 64, 255])
def test_hop_limit_arrives_as_it_was_sent(limit: int) -> None:
    with udp("::1") as (left, right):
        enable(right, Ipv6HopLimit)
        sendmsg(left, [b"x"], [Ipv6HopLimit(limit)])
        assert received_by(right) == (Ipv6HopLimit(limit),)


def test_a_hop_limit_of_minus_one_is_the_routes_own() -> None:
    with udp("::1") as (left, right):
        enable(right, Ipv6HopLimit)
        sendmsg(left, [b"x"], [Ipv6HopLimit(-1)])
        (message,) = received_by(right)
        assert isinstance(message, Ipv6HopLimit)
        assert message.hop_limit > 0


@pytest.mark.parametrize("tclass", [0, 0x20, 0xB8])
def test_traffic_class_arrives_as_it_was_sent(tclass: int) -> None:
    with udp("::1") as (left, right):
        enable(right, Ipv6TClass)
        sendmsg(left, [b"x"], [Ipv6TClass(tclass)])
        assert received_by(right) == (Ipv6TClass(tclass),)


def test_the_original_destination_is_where_it_was_sent_to() -> None:
    with udp("127.0.0.1") as (left, right):
        enable(right, Ipv4OrigDstAddr)
        sendmsg(left, [b"x"])
        assert received_by(right) == (Ipv4OrigDstAddr(IPv4Address("127.0.0.1"), right.getsockname()[1]),)
    with udp("::1") as (left, right):
        enable(right, Ipv6OrigDstAddr)
        sendmsg(left, [b"x"])
        assert received_by(right) == (Ipv6OrigDstAddr(IPv6Address("::1"), right.getsockname()[1]),)


def test_all_at_once_arrive_in_the_kernels_order() -> None:
    with udp("::1") as (left, right):
        for kind in (Ipv6PacketInfo, Ipv6HopLimit, Ipv6TClass, Ipv6OrigDstAddr):
            enable(right, kind)
        sendmsg(left, [b"x"], [Ipv6HopLimit(9), Ipv6TClass(4)])
        control = received_by(right)
        assert {type(message) for message in control} == {Ipv6PacketInfo, Ipv6HopLimit, Ipv6TClass, Ipv6OrigDstAddr}


@pytest.mark.parametrize("message", [Ipv4Ttl(256), Ipv4Ttl(0)], ids=str)
def test_a_value_the_kernel_does_not_take_is_its_error(message: ControlMessage) -> None:
    with udp("127.0.0.1") as (left, _), pytest.raises(OSError, match="Invalid argument"):
        sendmsg(left, [b"x"], [message])


def test_ipv6_messages_are_refused_on_ipv4_sockets() -> None:
    with udp("127.0.0.1") as (left, _), pytest.raises(ValueError, match="Ipv6HopLimit means nothing to a socket"):
        sendmsg(left, [b"x"], [Ipv6HopLimit(3)])
