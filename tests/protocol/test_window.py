"""Contract tests for the windows of streams: both ends against each other, in every order of events."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import RemoteProtocolError
from fdpool.protocol.window import ReceivingWindow, SendingWindow, decode_taken, encode_taken

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


@given(items=st.integers(1, 20), nbytes=st.integers(1, 2000), sizes=SIZES, choices=st.randoms(use_true_random=False))
def test_every_item_arrives_whatever_the_window_and_none_beyond_it(
    items: int, nbytes: int, sizes: list[int], choices: object
) -> None:
    """One end sends, the other takes and tells, each when chance has it; neither ever has to wait for nothing."""
    sender, receiver = SendingWindow(items, nbytes), ReceivingWindow(items, nbytes)
    to_make, arrived, told = deque(sizes), deque[int](), deque[int]()
    waiting_bytes = 0
    is_telling = False
    while to_make or arrived:
        steps = ["note"] if is_telling else []
        if told:
            steps.append("hear")
        if to_make and sender.has_room:
            steps.append("make")
        if arrived and not is_telling:
            steps.append("take")
        assert steps, "both ends wait for each other"
        step = choices.choice(steps)  # type: ignore[attr-defined]
        if step == "hear":
            sender.taken(told.popleft())
        elif step == "note":
            # The other end may have heard of it long ago, and sent more.
            receiver.told()
            is_telling = False
        elif step == "make":
            # Less than the window was waiting before this one.
            assert not arrived or (len(arrived) < items and waiting_bytes < nbytes)
            size = to_make.popleft()
            sender.sent(size)
            receiver.arrived()
            arrived.append(size)
            waiting_bytes += size
        else:
            size = arrived.popleft()
            waiting_bytes -= size
            receiver.took(size)
            if receiver.is_due:
                told.append(receiver.taken)
                is_telling = True
    assert receiver.taken == len(sizes)


def test_an_item_beyond_the_window_is_refused() -> None:
    window = ReceivingWindow(2, 100)
    window.arrived()
    window.arrived()
    with pytest.raises(RemoteProtocolError, match="an item came beyond the window of 2"):
        window.arrived()
    window.took(1)
    window.arrived()
    with pytest.raises(RemoteProtocolError):
        window.arrived()


def test_an_item_of_unknown_size_is_told_of_at_once() -> None:
    window = ReceivingWindow(100, 10**9)
    window.arrived()
    window.took(1)
    assert not window.is_due
    window.arrived()
    window.took(None)
    assert window.is_due


def test_more_items_cannot_be_taken_than_were_sent() -> None:
    window = SendingWindow(4, 100)
    window.sent(1)
    with pytest.raises(RemoteProtocolError, match="2 items were taken, and only 1 were sent"):
        window.taken(2)
    window.taken(1)
    window.taken(0)
    with pytest.raises(RemoteProtocolError):
        window.taken(2)


@given(st.integers(0, 2**64 - 1), st.binary())
def test_a_count_comes_out_as_it_went_in(total: int, news: bytes) -> None:
    taken, rest = decode_taken(memoryview(encode_taken(total, news)))
    assert (taken, bytes(rest)) == (total, news)


def test_a_count_that_is_cut_off_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="7 bytes are too short for a count of items"):
        decode_taken(memoryview(encode_taken(1, b"")[:7]))
