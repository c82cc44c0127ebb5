"""Contract tests for control messages as values: encoding, decoding, sizes. No socket is involved."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fdpool.kernel
from fdpool.kernel import (
    CONTROL_MESSAGES,
    AlgSetIv,
    ControlMessage,
    EventFd,
    Ipv4OrigDstAddr,
    Ipv4PacketInfo,
    Ipv4RecvErr,
    Ipv4Tos,
    Ipv6OrigDstAddr,
    OwnedFd,
    PidFd,
    ScmCredentials,
    ScmPidfd,
    ScmRights,
    ScmSecurity,
    ScmTimestamp,
    ScmTimestampNs,
    SoMark,
    TlsRecordType,
    UdpGsoSegments,
    UnknownControlMessage,
    control_space,
    decode_control,
)
from fdpool.kernel.control import StructMessage
from tests.support.leaks import descriptor_count
from tests.support.messages import EACH, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable

WITH_DESCRIPTORS = {ScmRights, ScmPidfd}
WITHOUT_DESCRIPTORS = sorted(place for place, kind in CONTROL_MESSAGES.items() if kind not in WITH_DESCRIPTORS)


def test_every_message_of_the_table_is_public_and_has_a_property_test() -> None:
    for kind in CONTROL_MESSAGES.values():
        assert getattr(fdpool.kernel, kind.__name__) is kind
    assert {*EACH} | WITH_DESCRIPTORS == {*CONTROL_MESSAGES.values()}


@pytest.mark.parametrize("kind", EACH)
def test_a_message_is_decoded_to_what_was_encoded(kind: type[ControlMessage]) -> None:
    @given(EACH[kind])
    def check(message: ControlMessage) -> None:
        assert type(message) is kind
        assert decode_control(*message.wire()) == message
        assert len(message.encode()) == message.payload_size()

    check()


@given(MESSAGES, st.data())
def test_a_payload_cut_anywhere_is_typed_or_unknown(message: ControlMessage, data: st.DataObject) -> None:
    level, kind, payload = message.wire()
    cut = payload[: data.draw(st.integers(0, len(payload)))]
    decoded = decode_control(level, kind, cut)
    if isinstance(decoded, UnknownControlMessage):
        assert decoded == UnknownControlMessage(level, kind, cut)
    else:
        assert type(decoded) is type(message)
        assert decode_control(*decoded.wire()) == decoded


@given(st.sampled_from(WITHOUT_DESCRIPTORS), st.binary(max_size=80))
def test_random_bytes_are_typed_or_unknown(place: tuple[int, int], data: bytes) -> None:
    decoded = decode_control(*place, data)
    if isinstance(decoded, UnknownControlMessage):
        assert decoded.wire() == (*place, data)
    else:
        assert type(decoded) is CONTROL_MESSAGES[place]
        assert decode_control(*decoded.wire()) == decoded


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.binary(max_size=40))
def test_what_has_no_class_keeps_level_type_and_payload(level: int, kind: int, data: bytes) -> None:
    if (level, kind) not in CONTROL_MESSAGES:
        decoded = decode_control(level, kind, data)
        assert decoded == UnknownControlMessage(level, kind, data)
        assert decoded.wire() == (level, kind, data)


@given(st.integers(0, 5), st.integers(0, 20))
def test_cut_anywhere_each_whole_descriptor_is_owned(count: int, kept_bytes: int) -> None:
    before = descriptor_count()
    with EventFd() as event:
        numbers = [event.duplicate().detach() for _ in range(count)]
        payload = struct.pack(f"{count}i", *numbers)[:kept_bytes]
        decoded = decode_control(socket.SOL_SOCKET, socket.SCM_RIGHTS, payload)
        assert isinstance(decoded, ScmRights)
        whole = len(payload) // 4
        assert [owner.fileno() for owner in decoded.fds if isinstance(owner, OwnedFd)] == numbers[:whole]
        for owner in [*decoded.fds, *map(OwnedFd, numbers[whole:])]:
            assert isinstance(owner, OwnedFd)
            owner.close()
    assert descriptor_count() == before


def test_a_negative_number_is_an_errno_and_never_an_owner() -> None:
    with EventFd() as event:
        payload = struct.pack("3i", -1, event.duplicate().detach(), -24)
        decoded = decode_control(socket.SOL_SOCKET, socket.SCM_RIGHTS, payload)
        assert isinstance(decoded, ScmRights)
        (fd,) = decoded.fds
        assert isinstance(fd, OwnedFd)
        fd.close()
    assert decode_control(socket.SOL_SOCKET, 4, struct.pack("i", -24)) == ScmPidfd(None, 24)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 3, b"\0" * 5, b"\0" * 8])
def test_a_malformed_pidfd_owns_nothing(data: bytes) -> None:
    assert decode_control(socket.SOL_SOCKET, 4, data) == UnknownControlMessage(socket.SOL_SOCKET, 4, data)


def test_a_pidfd_is_decoded_to_an_owner_of_its_class() -> None:
    with PidFd.current() as mine:
        message = ScmPidfd(mine)
        assert message.payload_size() == 4
        decoded = decode_control(*message.wire()[:2], struct.pack("i", mine.duplicate().detach()))
        assert isinstance(decoded, ScmPidfd)
        assert isinstance(decoded.fd, PidFd)
        assert decoded.fd.pid == mine.pid
        decoded.fd.close()
    assert decode_control(*ScmPidfd(None, 3).wire()) == ScmPidfd(None, 3)


def test_payloads_are_what_the_headers_say() -> None:
    assert ScmCredentials(1, 2, 3).wire() == (1, 2, struct.pack("iII", 1, 2, 3))
    assert Ipv4PacketInfo(3, IPv4Address("10.0.0.1")).wire() == (0, 8, struct.pack("i", 3) + b"\x0a\0\0\1" + bytes(4))
    assert Ipv4OrigDstAddr(IPv4Address("1.2.3.4"), 258).encode() == b"\2\0\1\2\1\2\3\4" + bytes(8)
    assert Ipv6OrigDstAddr(IPv6Address(1), 258, 1, 2).encode() == (
        b"\x0a\0\1\2\0\0\0\1" + bytes(15) + b"\1" + struct.pack("I", 2)
    )
    assert AlgSetIv(b"abc").wire() == (279, 2, struct.pack("I", 3) + b"abc")
    assert UdpGsoSegments(1400).wire() == (17, 103, struct.pack("H", 1400))
    assert ScmTimestamp(1_500_002_000).encode() == struct.pack("ll", 1, 500_002)
    assert ScmTimestampNs(-1).encode() == struct.pack("ll", -1, 999_999_999)
    error = struct.pack("=IBBBBII", 111, 2, 3, 3, 0, 0, 0)
    offender = struct.pack("=HH4s8x", socket.AF_INET, 0, b"\x7f\0\0\1")
    assert Ipv4RecvErr(111, 2, 3, 3, 0, 0, IPv4Address("127.0.0.1")).wire() == (0, 11, error + offender)
    assert decode_control(0, 11, error) == Ipv4RecvErr(111, 2, 3, 3, 0, 0, None)


def test_a_tls_record_type_is_sent_as_one_type_and_received_as_another() -> None:
    assert TlsRecordType(22).wire() == (282, 1, b"\x16")
    assert decode_control(282, 2, b"\x16") == TlsRecordType(22)


def test_a_timestamp_is_exact_and_a_datetime() -> None:
    stamp = ScmTimestampNs(1_700_000_000_123_456_789)
    assert stamp.nanoseconds == 1_700_000_000_123_456_789
    assert stamp.datetime().isoformat() == "2023-11-14T22:13:20.123456+00:00"
    assert ScmTimestampNs(-1).datetime().isoformat() == "1969-12-31T23:59:59.999999+00:00"


@pytest.mark.parametrize("data", [struct.pack("ll", 1, 1_000_000), struct.pack("ll", 1, -1), struct.pack("l", 1)])
def test_a_timestamp_with_more_than_a_second_of_rest_is_unknown(data: bytes) -> None:
    assert decode_control(1, 29, data) == UnknownControlMessage(1, 29, data)


def test_an_address_of_another_family_is_unknown() -> None:
    data = b"\x0a\0\1\2\1\2\3\4" + bytes(8)
    assert decode_control(0, 20, data) == UnknownControlMessage(0, 20, data)
    error = bytes(16) + b"\x0a\0" + bytes(14)
    assert decode_control(0, 11, error) == UnknownControlMessage(0, 11, error)


@pytest.mark.parametrize(
    "message",
    [
        ScmCredentials(2**31, 0, 0),
        ScmCredentials(0, -1, 0),
        Ipv4Tos(256),
        SoMark(-1),
        UdpGsoSegments(2**16),
        TlsRecordType(-1),
        ScmTimestamp(1),
        Ipv4OrigDstAddr(IPv4Address(0), 2**16),
        Ipv6OrigDstAddr(IPv6Address(0), -1),
        Ipv6OrigDstAddr(IPv6Address(0), 0, flow_info=2**32),
        Ipv4RecvErr(-1, 0, 0, 0, 0, 0),
        ScmRights([2**31]),
    ],
    ids=str,
)
def test_a_value_that_has_no_place_in_the_payload_is_a_value_error(message: ControlMessage) -> None:
    with pytest.raises(ValueError, match=r"payload|port|microseconds|too big"):
        message.encode()


@given(st.lists(MESSAGES, max_size=6))
def test_space_is_what_the_kernel_counts(messages: list[ControlMessage]) -> None:
    assert control_space(*messages) == sum(socket.CMSG_SPACE(len(message.encode())) for message in messages)


def test_space_is_computed_from_counts_alone() -> None:
    assert ScmRights.space(2) + ScmCredentials.space() == socket.CMSG_SPACE(8) + socket.CMSG_SPACE(12)
    assert control_space(ScmRights([0, 1]), ScmCredentials.current()) == ScmRights.space(2) + ScmCredentials.space()
    assert control_space(ScmCredentials, ScmTimestamp) == socket.CMSG_SPACE(12) + socket.CMSG_SPACE(16)
    assert control_space() == 0
    assert ScmRights.space(1) == ScmRights.space(2) == 24


@pytest.mark.parametrize("kind", [kind for kind in EACH if issubclass(kind, StructMessage)])
def test_a_fixed_size_is_known_without_a_message(kind: type[StructMessage]) -> None:
    @given(EACH[kind])
    def check(message: ControlMessage) -> None:
        assert kind.space() == control_space(message)

    check()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (ScmSecurity.space, ScmSecurity(b"x" * 13)),
        (AlgSetIv.space, AlgSetIv(b"x" * 13)),
        (UnknownControlMessage.space, UnknownControlMessage(9, 9, b"x" * 13)),
    ],
)
def test_a_varying_size_is_computed_from_the_length(space: Callable[[int], int], message: ControlMessage) -> None:
    assert space(13) == control_space(message)


@pytest.mark.parametrize("kind", [Ipv4RecvErr, fdpool.kernel.Ipv6RecvErr])
def test_an_error_has_room_for_its_offender(kind: type[Ipv4RecvErr]) -> None:
    assert kind.space() == control_space(kind(0, 0, 0, 0, 0, 0))


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ScmCredentials(1, 2, 3).pid = 4  # type: ignore[misc]
    assert SoMark(1) == SoMark(1) != SoMark(2)
    assert len({SoMark(1), SoMark(1), SoMark(2)}) == 2


def test_names_of_the_package_that_load_late_agree_with_what_type_checkers_see() -> None:
    for name in fdpool.kernel.__all__:
        assert getattr(fdpool.kernel, name) is not None
    assert {*fdpool.kernel.__all__} <= {*dir(fdpool.kernel)}
    with pytest.raises(AttributeError, match="no attribute 'ScmNothing'"):
        _ = fdpool.kernel.ScmNothing
