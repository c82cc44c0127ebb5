"""Contract tests for the layout of messages in datagrams: pure bytes, integers for handles."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fdpool.errors import RemoteProtocolError
from fdpool.protocol.datagram import (
    INTERJECTED_HEADER,
    MAX_CHUNKS,
    MAX_DATAGRAM_BYTES,
    MAX_HANDLES,
    MAX_HANDLES_PER_DATAGRAM,
    MAX_INLINE_BYTES,
    Assembler,
    Parts,
    datagrams_for,
)

HEADER_BYTES = 20
COUNTS = st.one_of(st.integers(0, 3), st.sampled_from([252, 253, 254, 506, 507, 600]))


class Wire(NamedTuple):
    """A datagram on the wire."""

    data: bytes
    handles: list[int]


def lay_out(
    message_id: int, payload: bytes = b"", handles: list[int] | None = None, *, spilled: bool = False
) -> list[Wire]:
    handles = handles or []
    kinds = bytes(handle % 6 for handle in handles)
    return [
        Wire(b"".join(datagram.pieces), list(datagram.handles))
        for datagram in datagrams_for(message_id, payload, handles, kinds, spilled=spilled)
    ]


def all_handles(parts: Parts[int]) -> list[int]:
    return parts.handles if parts.spill is None else [parts.spill, *parts.handles]


@given(
    message_id=st.integers(0, 2**64 - 1),
    payload=st.one_of(st.binary(max_size=64), st.just(bytes(MAX_INLINE_BYTES))),
    count=COUNTS,
    first=st.integers(0, 5),
)
def test_a_message_comes_out_as_it_went_in(message_id: int, payload: bytes, count: int, first: int) -> None:
    handles = list(range(first, first + count))
    assembler: Assembler[int] = Assembler()
    datagrams = lay_out(message_id, payload, handles)
    assert len(datagrams) == max(1, -(-count // 253))
    for data, part in datagrams[:-1]:
        assert assembler.feed(data, part) == (None, [])
    parts, stale = assembler.feed(*datagrams[-1])
    assert parts is not None
    assert (parts.payload, parts.handles, parts.spill, stale) == (payload, handles, None, [])
    assert list(parts.kinds) == [handle % 6 for handle in handles]
    assert not parts.is_damaged
    assert assembler.clear() == []


@pytest.mark.parametrize("count", [1, 2, 253, 254, 600])
def test_what_holds_a_spilled_payload_is_told_from_the_handles(count: int) -> None:
    handles = list(range(count))
    assembler: Assembler[int] = Assembler()
    *_, (parts, _) = (assembler.feed(*datagram) for datagram in lay_out(1, b"", handles, spilled=True))
    assert parts is not None
    assert (parts.payload, parts.spill, parts.handles) == (b"", 0, handles[1:])
    assert len(parts.kinds) == len(parts.handles)


def test_the_longest_datagram_has_the_size_that_receivers_make_room_for() -> None:
    [datagram] = lay_out(2**64 - 1, bytes(MAX_INLINE_BYTES), list(range(MAX_HANDLES_PER_DATAGRAM)))
    assert len(datagram.data) == MAX_DATAGRAM_BYTES


def test_too_long_a_payload_is_refused() -> None:
    with pytest.raises(ValueError, match="65537 bytes: at most 65536 travel inline"):
        datagrams_for(1, bytes(MAX_INLINE_BYTES + 1), [], b"")


def test_as_many_handles_as_allowed_are_taken_and_one_more_is_refused() -> None:
    handles = [7] * MAX_HANDLES
    datagrams = datagrams_for(1, b"", handles, bytes(MAX_HANDLES))
    assert len(datagrams) == MAX_CHUNKS
    assembler: Assembler[int] = Assembler()
    last = datagrams[-1]
    with pytest.raises(RemoteProtocolError, match="out of order"):  # and not: a claim that cannot be
        assembler.feed(b"".join(last.pieces), last.handles)
    with pytest.raises(ValueError, match="1048577 handles in one message"):
        datagrams_for(1, b"", [*handles, 7], bytes(MAX_HANDLES + 1))


def test_a_new_message_abandons_one_that_is_not_whole() -> None:
    assembler: Assembler[int] = Assembler()
    first = lay_out(1, b"abandoned", list(range(600)))
    assembler.feed(*first[0])
    assembler.feed(*first[1])
    parts, stale = assembler.feed(*lay_out(2, b"next", [900])[0])
    assert stale == list(range(506))
    assert parts is not None
    assert (parts.payload, parts.handles) == (b"next", [900])
    with pytest.raises(RemoteProtocolError, match="chunk 2 of 3 of message 1 is out of order"):
        assembler.feed(*first[2])


def test_what_holds_an_abandoned_payload_is_given_back_too() -> None:
    assembler: Assembler[int] = Assembler()
    assembler.feed(*lay_out(1, b"", list(range(300)), spilled=True)[0])
    assert assembler.clear() == list(range(253))
    assert assembler.clear() == []


def test_a_malformed_datagram_in_between_does_not_disturb_a_message() -> None:
    assembler: Assembler[int] = Assembler()
    first, second = lay_out(1, b"payload", list(range(300)))
    assembler.feed(*first)
    with pytest.raises(RemoteProtocolError):
        assembler.feed(b"garbage", [1000])
    parts, _ = assembler.feed(*second)
    assert parts is not None
    assert parts.handles == list(range(300))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_message_that_lost_handles_keeps_its_payload_and_no_handle(lost: int) -> None:
    assembler: Assembler[int] = Assembler()
    given_back: list[int] = []
    for index, (data, handles) in enumerate(lay_out(1, b"payload", list(range(600)))):
        parts, stale = assembler.feed(data, [] if index == lost else handles, damaged=index == lost)
        given_back += stale
    assert parts is not None
    assert (parts.is_damaged, parts.payload, parts.handles) == (True, b"payload", [])
    assert len(parts.kinds) == 600
    assert sorted(given_back) == [handle for handle in range(600) if handle // 253 != lost]


@pytest.mark.parametrize(("lost", "spill"), [(0, None), (1, 0)])
def test_a_spilled_payload_survives_the_loss_of_other_handles(lost: int, spill: int | None) -> None:
    assembler: Assembler[int] = Assembler()
    for index, (data, handles) in enumerate(lay_out(1, b"", list(range(400)), spilled=True)):
        parts, _ = assembler.feed(data, [] if index == lost else handles, damaged=index == lost)
    assert parts is not None
    assert (parts.is_damaged, parts.spill) == (True, spill)
    assert len(parts.kinds) == 399


@given(
    payloads=st.lists(st.binary(max_size=20), max_size=4), count=st.sampled_from([0, 254, 600]), at=st.integers(0, 3)
)
def test_an_interjected_message_neither_continues_nor_ends_another(payloads: list[bytes], count: int, at: int) -> None:
    assembler: Assembler[int] = Assembler()
    arrived: list[tuple[bytes, list[int]]] = []
    # Of the same message id, which is of no consequence.
    wires = lay_out(0, b"payload", list(range(count)))
    wires[at:at] = [Wire(INTERJECTED_HEADER + payload, []) for payload in payloads]
    for wire in wires:
        parts, stale = assembler.feed(*wire)
        assert stale == []
        if parts is not None:
            arrived.append((parts.payload, parts.handles))
    assert (b"payload", list(range(count))) in arrived
    arrived.remove((b"payload", list(range(count))))
    assert arrived == [(payload, []) for payload in payloads]
    assert assembler.is_idle


@pytest.mark.parametrize(
    ("flags", "kinds", "place", "chunks"), [(2, b"\x01", 0, 1), (2, b"", 1, 2), (2, b"", 0, 2), (3, b"\x02", 0, 1)]
)
def test_an_interjected_message_with_handles_or_chunks_is_refused(
    flags: int, kinds: bytes, place: int, chunks: int
) -> None:
    assembler: Assembler[int] = Assembler()
    first, second = lay_out(1, b"payload", list(range(300)))
    assembler.feed(*first)
    data = struct.pack("<BBHIIQ", 1, flags, len(kinds), place, chunks, 1) + kinds
    with pytest.raises(RemoteProtocolError, match="has handles or chunks of its own"):
        assembler.feed(data, [7] * len(kinds))
    parts, _ = assembler.feed(*second)
    assert parts is not None
    assert parts.handles == list(range(300))


GOOD = lay_out(5, b"payload", [1, 2])[0].data


def changed(offset: int, new: bytes) -> bytes:
    return GOOD[:offset] + new + GOOD[offset + len(new) :]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "0 bytes is shorter than the header's 20"),
        (GOOD[: HEADER_BYTES - 1], "19 bytes is shorter"),
        (GOOD[: HEADER_BYTES + 1], "21 bytes cannot name the kinds of 2 handles"),
        (changed(0, b"\x02"), "version 2; this side speaks version 1"),
        (changed(1, b"\x82"), "flags 0x82, of which 0x3 are known"),
        (changed(1, b"\x01"), "7 bytes of payload that do not belong there"),
        (changed(1, b"\x01\x00\x00")[:HEADER_BYTES], "should be in a handle, and the datagram has none"),
        (changed(2, b"\x03"), "declares 3 handles and 2 arrived"),
        (changed(2, b"\x00"), "declares 0 handles and 2 arrived"),
        (changed(8, b"\x00"), "chunk 0 of 0"),
        (changed(8, b"\xff\xff\xff\xff"), "chunk 0 of 4294967295"),
        (changed(4, b"\x01"), "chunk 1 of 1"),
        (changed(4, b"\x01\x00\x00\x00\x02"), "7 bytes of payload that do not belong there"),
        (changed(4, b"\x01\x00\x00\x00\x02")[:-7], "chunk 1 of 2 of message 5 is out of order"),
    ],
)
def test_a_malformed_datagram_is_refused_with_its_bytes(data: bytes, complaint: str) -> None:
    assembler: Assembler[int] = Assembler()
    handles = [1, 2]
    with pytest.raises(RemoteProtocolError, match=complaint) as caught:
        assembler.feed(data, handles)
    assert caught.value.data == data
    assert handles == [1, 2]
    assert assembler.clear() == []


@st.composite
def wires(draw: st.DrawFn) -> list[Wire]:
    """Datagrams as no honest peer sends them: reordered, repeated, left out, cut, overwritten, or plain noise."""
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 253, 254, 600]), max_size=3))
    honest: list[Wire] = []
    for message_id, count in enumerate(counts):
        spilled = bool(count) and draw(st.booleans())
        honest += lay_out(message_id, b"" if spilled else b"payload", [0] * count, spilled=spilled)
    order = draw(st.lists(st.integers(0, len(honest) - 1), max_size=8)) if honest else []
    if draw(st.booleans()):
        order.sort()
    return [draw(spoilt(honest[index])) for index in order] + draw(st.lists(noise(), max_size=2))


@st.composite
def spoilt(draw: st.DrawFn, wire: Wire) -> Wire:
    data = wire.data
    if draw(st.booleans()):
        return wire
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    else:
        at = draw(st.integers(0, min(len(data), HEADER_BYTES + 4) - 1))
        data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    return Wire(data, wire.handles[: draw(st.integers(0, len(wire.handles)))])


@st.composite
def noise(draw: st.DrawFn) -> Wire:
    return Wire(draw(st.binary(max_size=40)), [0] * draw(st.integers(0, 3)))


@given(wires=wires(), damage=st.sets(st.integers(0, 9)))
def test_whatever_arrives_no_handle_is_lost_or_doubled(wires: list[Wire], damage: set[int]) -> None:
    assume(wires)
    assembler: Assembler[int] = Assembler()
    fed: list[int] = []
    returned: list[int] = []
    for index, (data, some) in enumerate(wires):
        damaged = index in damage
        handles = [] if damaged else list(range(len(fed), len(fed) + len(some)))
        fed += handles
        try:
            parts, stale = assembler.feed(data, handles, damaged=damaged)
        except RemoteProtocolError:
            returned += handles
        else:
            returned += stale
            if parts is not None:
                returned += all_handles(parts)
                assert len(parts.kinds) == len(parts.handles) or parts.is_damaged
    returned += assembler.clear()
    assert sorted(returned) == fed
