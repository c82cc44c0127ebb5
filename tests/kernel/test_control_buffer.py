"""Contract tests for ControlBuffer: room, sending from it, receiving into it, and who owns what is in it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import ControlTruncatedError
from fdpool.kernel import (
    ControlBuffer,
    ControlMessage,
    EventFd,
    OwnedFd,
    ScmCredentials,
    ScmPidfd,
    ScmRights,
    control_space,
    enable,
    recvmsg,
    sendmsg,
)
from tests.support.leaks import descriptor_count
from tests.support.messages import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_the_example_of_socket_ancillary() -> None:
    # Add descriptors, send, receive, look at each, clear, receive again.
    left, right = socket.socketpair()
    with left, right, ControlBuffer(128) as ancillary:
        assert ancillary.add_fds([left])
        sendmsg(left, [b"12345678"], ancillary)
        ancillary.clear()
        buffer = bytearray(8)
        recvmsg(right, [buffer], control=ancillary)
        for message in ancillary.messages():
            assert isinstance(message, ScmRights)
            assert len(message.fds) == 1
        assert not ancillary.truncated
        ancillary.clear()
        assert ancillary.is_empty
        sendmsg(left, [b"again"])
        recvmsg(right, [buffer], control=ancillary)
        assert ancillary.messages() == ()


def test_the_example_of_send_ancillary_buffer() -> None:
    # Room for two descriptors and credentials, computed from counts, and no more.
    left, right = socket.socketpair()
    enable(right, ScmCredentials)
    with left, right, ControlBuffer(ScmRights.space(2) + ScmCredentials.space()) as buffer:
        assert buffer.push(ScmRights([left, right]))
        assert buffer.push(ScmCredentials.current())
        assert not buffer.push(ScmRights([left]))
        sendmsg(left, [b"x"], buffer)
        with recvmsg(right, [bytearray(1)]) as received:
            assert received.find(ScmCredentials) == ScmCredentials.current()
            assert len(received.fds) == 2


@given(st.lists(MESSAGES, max_size=8), st.integers(0, 300))
def test_what_fits_is_taken_and_what_does_not_changes_nothing(messages: list[ControlMessage], capacity: int) -> None:
    buffer = ControlBuffer(capacity)
    taken: list[ControlMessage] = []
    for message in messages:
        fits = control_space(*taken, message) <= capacity
        assert buffer.push(message) is fits
        taken += [message] * fits
        assert buffer.messages() == tuple(taken)
        assert len(buffer) == control_space(*taken) <= buffer.capacity == capacity
        assert buffer.is_empty is (not taken)


@given(st.lists(MESSAGES, max_size=8), st.integers(0, 300))
def test_extending_stops_at_the_first_that_does_not_fit(messages: list[ControlMessage], capacity: int) -> None:
    buffer = ControlBuffer(capacity)
    count = buffer.extend(messages)
    assert buffer.messages() == tuple(messages[:count])
    assert count == len(messages) or control_space(*messages[: count + 1]) > capacity


def test_without_room_nothing_is_added() -> None:
    buffer = ControlBuffer(0)
    assert not buffer.add_fds([])
    assert not buffer.add_credentials()
    assert (len(buffer), buffer.is_empty, repr(buffer)) == (0, True, "<ControlBuffer 0 of 0 bytes: []>")
    with pytest.raises(ValueError, match="negative"):
        ControlBuffer(-1)


def test_descriptors_that_were_pushed_are_lent_and_stay_open(pair: Pair) -> None:
    left, right = pair
    with EventFd() as event:
        with ControlBuffer(200) as buffer:
            buffer.add_fds([event])
            buffer.add_fds([event, event])
            sendmsg(left, [b"x"], buffer)
        assert not event.closed
    with recvmsg(right, [bytearray(1)]) as received:
        assert len(received.fds) == 3


def test_descriptors_that_were_received_are_closed_before_the_next_receive(pair: Pair) -> None:
    left, right = pair
    before = descriptor_count()
    with ControlBuffer(200) as buffer:
        for _ in range(3):
            sendmsg(left, [b"x"], [ScmRights([left, right])])
            with recvmsg(right, [bytearray(1)], control=buffer) as received:
                pass
            assert received.control == buffer.messages()
            assert [fd.closed for fd in received.fds] == [False, False]
            assert len(buffer) == ScmRights.space(2)
            assert descriptor_count() == before + 2
    assert descriptor_count() == before


def test_descriptors_that_were_taken_stay_open(pair: Pair) -> None:
    left, right = pair
    enable(right, ScmPidfd)
    before = descriptor_count()
    with ControlBuffer(200) as buffer:
        sendmsg(left, [b"x"], [ScmRights([left, right])])
        recvmsg(right, [bytearray(1)], control=buffer)
        assert descriptor_count() == before + 3
        taken = buffer.take_fds()
        assert len(taken) == 2
    buffer.close()
    assert descriptor_count() == before + 2
    for fd in taken:
        fd.close()


def test_what_did_arrive_of_a_truncated_message_stays_in_the_buffer_owned(pair: Pair) -> None:
    left, right = pair
    before = descriptor_count()
    with ControlBuffer(ScmRights.space(2)) as buffer:
        sendmsg(left, [b"payload"], [ScmRights([left] * 5)])
        with pytest.raises(ControlTruncatedError) as caught:
            recvmsg(right, [bytearray(7)], control=buffer)
        assert caught.value.data == b"payload"
        assert caught.value.control == buffer.messages()
        assert buffer.truncated
        (rights,) = buffer.messages()
        assert isinstance(rights, ScmRights)
        assert [isinstance(fd, OwnedFd) and fd.closed for fd in rights.fds] == [False, False]
        assert descriptor_count() == before + 2
        buffer.clear()
        assert len(buffer) == 0
        assert descriptor_count() == before


def test_with_a_capacity_of_nothing_messages_without_control_data_are_received(pair: Pair) -> None:
    left, right = pair
    buffer = ControlBuffer(0)
    sendmsg(left, [b"x"], buffer)
    assert recvmsg(right, [bytearray(1)], control=buffer).nbytes == 1
    sendmsg(left, [b"x"], [ScmRights([left])])
    with pytest.raises(ControlTruncatedError, match="room for 0 bytes, and at least 17"):
        recvmsg(right, [bytearray(1)], control=buffer)
    assert buffer.truncated
    assert buffer.push(ScmRights([])) is False
