"""Contract tests for framing: cutting, collecting and sending messages, against plain models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import OversizedMessage
from fdpool.protocol.stream import (
    MAX_BUFFERS_PER_SEND,
    MAX_READ_BYTES,
    Framing,
    MessageReader,
    OutgoingMessages,
    split_messages,
)


def body_size(header: bytes) -> int:
    return int.from_bytes(header[:2], "little")


def framing(header_size: int = 3, max_fds: int = 0, max_body_size: int = 1000) -> Framing:
    return Framing(header_size, body_size, max_body_size, max_fds)


def encode(body: bytes, header_size: int = 3) -> bytes:
    return len(body).to_bytes(header_size, "little") + body


bodies = st.lists(st.binary(max_size=40), max_size=12)


@given(bodies, st.integers(2, 6), st.integers(0, 2), st.data())
def test_a_reader_takes_exactly_its_message_whatever_the_reads_give(
    texts: list[bytes], header_size: int, max_fds: int, data: st.DataObject
) -> None:
    stream = b"".join(encode(text, header_size) for text in texts)
    position = 0
    for text in texts:
        start = position
        reader = MessageReader(framing(header_size, max_fds))
        while reader.wanted:
            assert reader.has_begun is (position > start)
            assert reader.wanted_fds == (max_fds if position == start else 0)
            if max_fds and position == start:
                assert reader.wanted == 1
            nbytes = data.draw(st.integers(1, reader.wanted))
            reader.add(stream[position : position + nbytes])
            position += nbytes
        assert reader.message() == (stream[start : start + header_size], text)
        assert reader.data == stream[start:position]
        assert position == start + header_size + len(text)
    assert position == len(stream)


def test_a_header_over_the_limit_is_refused_before_any_memory_is_taken() -> None:
    reader = MessageReader(Framing(4, lambda _: 1 << 32, max_body_size=(1 << 32) - 1, max_fds=0))
    with pytest.raises(OversizedMessage, match="promises a body of 4294967296 bytes, over the limit") as caught:
        reader.add(b"head")
    assert caught.value.data == b"head"


def test_a_promise_within_the_limit_is_read_a_part_at_a_time() -> None:
    reader = MessageReader(Framing(4, lambda _: 1 << 40, max_body_size=1 << 40, max_fds=0))
    reader.add(b"head")
    assert reader.wanted == MAX_READ_BYTES


def test_a_negative_body_size_is_the_callers_mistake() -> None:
    reader = MessageReader(Framing(4, lambda _: -1, max_body_size=10, max_fds=0))
    with pytest.raises(ValueError, match="body_size returned -1 for the header b'head'"):
        reader.add(b"head")


@pytest.mark.parametrize(("header_size", "max_body_size"), [(0, 0), (-1, 0), (1, -1)])
def test_sizes_that_make_no_sense_are_refused(header_size: int, max_body_size: int) -> None:
    with pytest.raises(ValueError, match=r"at least 1 is needed|is negative"):
        Framing(header_size, body_size, max_body_size, 0)


@given(bodies, st.integers(0, 500), st.integers(1, 12))
def test_splitting_finds_the_whole_messages_and_no_more(texts: list[bytes], cut: int, max_messages: int) -> None:
    stream = b"".join(map(encode, texts))[:cut]
    messages, nbytes = split_messages(stream, framing(), max_messages)
    found = [body for _, body in messages]
    assert found == texts[: len(found)]
    assert nbytes == sum(map(len, map(encode, found)))
    if len(found) < min(max_messages, len(texts)):
        assert len(encode(texts[len(found)])) > len(stream) - nbytes


def test_splitting_stops_before_what_only_its_own_receiver_may_be_told() -> None:
    good, large = encode(b"good"), encode(b"x" * 11)
    assert split_messages(good + large + good, framing(max_body_size=10), 9) == ([(good[:3], b"good")], len(good))

    def refuse(header: bytes) -> int:
        raise LookupError(header)

    assert split_messages(good, Framing(3, refuse, 10, 0), 9) == ([], 0)
    assert split_messages(good, Framing(3, lambda _: -3, 10, 0), 9) == ([], 0)


messages_out = st.lists(
    st.tuples(st.lists(st.binary(max_size=6), max_size=4).filter(any), st.lists(st.integers(), max_size=2)),
    min_size=1,
    max_size=8,
)


@given(messages_out, st.data())
def test_everything_leaves_in_order_and_descriptors_once_with_their_first_byte(
    messages: list[tuple[list[bytes], list[int]]], data: st.DataObject
) -> None:
    outgoing = OutgoingMessages(messages)
    expected = b"".join(b"".join(parts) for parts, _ in messages)
    starts: dict[int, list[int]] = {}
    position = 0
    for parts, carried in messages:
        starts[position] = carried
        position += len(b"".join(parts))
    sent = b""
    arrived: dict[int, list[int]] = {}
    while outgoing:
        buffers, fds = outgoing.next_send()
        offered = b"".join(buffers)
        assert offered
        # 0 is a send that did not happen: everything is to be offered again.
        nbytes = data.draw(st.integers(0, len(offered)))
        if nbytes and fds:
            arrived[len(sent)] = list(fds)
        outgoing.advance(nbytes)
        sent += offered[:nbytes]
        assert outgoing.is_cut is (bool(sent) and len(sent) not in {*starts, len(expected)})
        assert outgoing.sent_bytes == len(sent)
    assert sent == expected
    assert arrived == {at: fds for at, fds in starts.items() if fds}
    assert outgoing.total_bytes == len(expected)


def test_a_send_takes_no_more_buffers_than_the_kernel_does() -> None:
    outgoing: OutgoingMessages[int] = OutgoingMessages([([b"x", b"y"], [])] * 1000)
    buffers, _ = outgoing.next_send()
    assert len(buffers) == MAX_BUFFERS_PER_SEND


def test_buffers_of_any_shape_are_sent_as_their_bytes() -> None:
    import array

    numbers = array.array("i", [1, 2])
    outgoing: OutgoingMessages[int] = OutgoingMessages([([numbers, bytearray(b"ab"), memoryview(b"")], [])])
    buffers, _ = outgoing.next_send()
    assert b"".join(buffers) == numbers.tobytes() + b"ab"


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        OutgoingMessages([([b"x"], []), ([b"", b""], [1])])
