"""What a supervisor and a worker say to each other: a fixed header, then whatever the operation carries."""

from __future__ import annotations

import enum
import struct
from typing import Final

from fdpool.errors import RemoteProtocolError


class Operation(enum.IntEnum):
    """The operations. The numbers travel: never reuse one."""

    SETTINGS = 1
    """To a worker, first of all: a pickled dict of how to be like the process that started it."""
    RUN = 2
    """To a worker: call number, then a packed (function, args, kwargs)."""
    STOP = 3
    """To a worker: exit when idle."""
    RUN_ASYNC = 4
    """To a worker: as `RUN`, of an async function, which runs beside others in the worker's trio loop."""
    CANCEL = 5
    """To a worker: cancel the async call, or the stream, of that number."""
    STREAM = 6
    """To a worker: call number, then a packed (function, args, kwargs, items, bytes), the last two its window."""
    MORE = 7
    """To a worker: how many items of that stream have been taken by now, then news about memory."""
    STREAM_ASYNC = 8
    """To a worker: as `STREAM`, of an async generator function, which runs in the worker's trio loop."""
    READY = 16
    """From a worker: it waits for calls."""
    NOT_READY = 17
    """From a worker: it cannot start; why, as text."""
    BEGUN = 18
    """From a worker: it has the handles of this call (only said if asked for)."""
    RESULT = 19
    """From a worker: the call returned; a packed value."""
    ERROR = 20
    """From a worker: the call raised; a packed exception; see `fdpool.memory.exceptions`."""
    ITEM = 21
    """From a worker: the next item of a stream, packed; what ends the stream is a `RESULT` or an `ERROR`."""
    LOG = 24
    """From a worker, at any time: a log record; see `fdpool.protocol.records`."""
    MEMORY = 40
    """Either way: news about memory, and nothing else."""


REPORT_BEGUN: Final = 0x1
"""Flag of whatever begins a call: say `BEGUN` once its handles have arrived."""

WHATEVER_RUNS: Final = 0
"""Number in a `CANCEL` that means every call there is."""

AT_NEXT_ITEM: Final = 0x1
"""Flag of `CANCEL`: close a stream where it yields next, and do not interrupt it before."""

TRIM: Final = 0x1
"""Flag of `MEMORY`: give back what has been idle for a while."""

_HEADER: Final = struct.Struct("<BBQ")
HEADER_BYTES: Final = _HEADER.size

BEGINS: Final = frozenset({Operation.RUN, Operation.RUN_ASYNC, Operation.STREAM, Operation.STREAM_ASYNC})
"""What begins a call."""

FROM_WORKER: Final = frozenset(
    {
        Operation.READY,
        Operation.NOT_READY,
        Operation.BEGUN,
        Operation.RESULT,
        Operation.ERROR,
        Operation.ITEM,
        Operation.LOG,
        Operation.MEMORY,
    }
)
DURING_STREAM: Final = frozenset({Operation.MORE, Operation.CANCEL, Operation.MEMORY, Operation.STOP})
"""What a worker may be told while it runs the stream of a plain function."""

TO_WORKER: Final = DURING_STREAM | BEGINS | {Operation.SETTINGS}


def encode(operation: Operation, call: int = 0, body: bytes = b"", flags: int = 0) -> bytes:
    """Lay out one message's payload."""
    return _HEADER.pack(operation, flags, call) + body


def decode(payload: bytes, allowed: frozenset[Operation]) -> tuple[Operation, int, int, memoryview]:
    """Take a payload apart into operation, flags, call number and body.

    Raises:
      RemoteProtocolError: it is too short, or its operation is none of *allowed*.
    """
    if len(payload) < _HEADER.size:
        raise RemoteProtocolError(f"a message of {len(payload)} bytes is shorter than its header", payload)
    number, flags, call = _HEADER.unpack_from(payload)
    if number not in allowed:
        raise RemoteProtocolError(f"operation {number} is not one the peer may ask for", payload)
    return Operation(number), flags, call, memoryview(payload)[_HEADER.size :]
