"""What a supervisor and its zygote say to each other: a fixed header, then whatever the operation carries."""

from __future__ import annotations

import enum
import struct
from typing import Final

from fdpool.errors import RemoteProtocolError


class ZygoteOperation(enum.IntEnum):
    """The operations. The numbers travel: never reuse one."""

    SETUP = 1
    """To the zygote, first of all: a pickled dict of how to be, and of what to load."""
    FORK = 2
    """To the zygote: request number, then a pickled dict of how things are just now; with the worker's handles."""
    LOADING = 16
    """From the zygote: it is about to load this module."""
    LOADED = 17
    """From the zygote: it can fork."""
    UNFIT = 18
    """From the zygote: it cannot fork, and never will; why, as text."""
    FORKED = 19
    """From the zygote: request number, then the worker's pid; with its pidfd."""
    NOT_FORKED = 20
    """From the zygote: request number, then the errno that said so."""


_HEADER: Final = struct.Struct("<BxQ")
_INTEGER: Final = struct.Struct("<I")

TO_ZYGOTE: Final = frozenset({ZygoteOperation.SETUP, ZygoteOperation.FORK})
FROM_ZYGOTE: Final = frozenset(ZygoteOperation) - TO_ZYGOTE


def encode(operation: ZygoteOperation, request: int = 0, body: bytes = b"") -> bytes:
    """Lay out one message's payload."""
    return _HEADER.pack(operation, request) + body


def encode_integer(operation: ZygoteOperation, request: int, value: int) -> bytes:
    """Lay out the payload of a message that carries a pid or an errno."""
    return encode(operation, request, _INTEGER.pack(value))


def decode(payload: bytes, allowed: frozenset[ZygoteOperation]) -> tuple[ZygoteOperation, int, memoryview]:
    """Take a payload apart into operation, request number and body.

    Raises:
      RemoteProtocolError: it is too short, or its operation is none of *allowed*.
    """
    if len(payload) < _HEADER.size:
        raise RemoteProtocolError(f"a message of {len(payload)} bytes is shorter than its header", payload)
    number, request = _HEADER.unpack_from(payload)
    if number not in allowed:
        raise RemoteProtocolError(f"operation {number} is not one the peer may ask for", payload)
    return ZygoteOperation(number), request, memoryview(payload)[_HEADER.size :]


def decode_integer(body: memoryview) -> int:
    """Return the pid or errno in *body*.

    Raises:
      RemoteProtocolError: there is none.
    """
    if len(body) != _INTEGER.size:
        raise RemoteProtocolError(f"a number of {len(body)} bytes", bytes(body))
    value: int = _INTEGER.unpack(body)[0]
    return value
