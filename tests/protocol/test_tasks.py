"""Contract tests for the messages between a supervisor and a worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import RemoteProtocolError
from fdpool.protocol.tasks import FROM_WORKER, HEADER_BYTES, TO_WORKER, Operation, decode, encode


@given(st.sampled_from(Operation), st.integers(0, 2**64 - 1), st.binary(), st.integers(0, 255))
def test_a_message_comes_out_as_it_went_in(operation: Operation, call: int, body: bytes, flags: int) -> None:
    payload = encode(operation, call, body, flags)
    assert len(payload) == HEADER_BYTES + len(body)
    *header, arrived = decode(payload, frozenset(Operation))
    assert (header, bytes(arrived)) == ([operation, flags, call], body)


def test_every_operation_has_its_direction() -> None:
    assert set(Operation) == FROM_WORKER | TO_WORKER
    assert {Operation.MEMORY} == FROM_WORKER & TO_WORKER, "only memory is spoken of both ways"


@pytest.mark.parametrize("operation", sorted(set(Operation) - {Operation.MEMORY}))
def test_an_operation_from_the_wrong_side_is_refused(operation: Operation) -> None:
    allowed = FROM_WORKER if operation in TO_WORKER else TO_WORKER
    with pytest.raises(
        RemoteProtocolError, match=f"operation {int(operation)} is not one the peer may ask for"
    ) as caught:
        decode(encode(operation), allowed)
    assert caught.value.data == encode(operation)


@given(st.binary(max_size=30))
def test_noise_is_refused_or_read_as_a_message(payload: bytes) -> None:
    if len(payload) < HEADER_BYTES or payload[0] not in FROM_WORKER:
        with pytest.raises(RemoteProtocolError) as caught:
            decode(payload, FROM_WORKER)
        assert caught.value.data == payload
    else:
        operation, flags, call, body = decode(payload, FROM_WORKER)
        assert encode(operation, call, bytes(body), flags) == payload


def test_the_numbers_that_travel_never_change() -> None:
    assert {operation.name: operation.value for operation in Operation} == {
        "SETTINGS": 1,
        "RUN": 2,
        "STOP": 3,
        "RUN_ASYNC": 4,
        "CANCEL": 5,
        "STREAM": 6,
        "MORE": 7,
        "STREAM_ASYNC": 8,
        "READY": 16,
        "NOT_READY": 17,
        "BEGUN": 18,
        "RESULT": 19,
        "ERROR": 20,
        "ITEM": 21,
        "LOG": 24,
        "MEMORY": 40,
    }
