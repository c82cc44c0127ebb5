"""Functions for workers to run, that leave a mark as they begin, in memory that outlives the worker."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any, NoReturn

from fdpool.kernel import EventFd
from tests.support.tasks import mark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Marked(Exception):
    """Raised by a call, with its number."""


def mark_item(number: int) -> int:
    return mark(number, 0)


def mark_and_wait(number: int, gate: EventFd) -> int:
    """Return when the gate is open."""
    mark(number, 0)
    with gate:
        select.select([gate], [], [])
    return number


def mark_and_raise(number: int) -> NoReturn:
    mark(number, 0)
    raise Marked(number)


def mark_and_look_up(number: int, table: dict[int, bytes], key: int) -> bytes:
    mark(number, 0)
    return table[key]


def mark_and_trade(number: int, event: EventFd, sock: socket.socket) -> tuple[int, EventFd, socket.socket]:
    """Use up what was handed over, and hand something back."""
    mark(number, 0)
    with event, sock:
        count = event.read()
        sock.sendall(b"seen")
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"from the worker")
    return count, EventFd(count + 1), theirs


def mark_and_yield(number: int, how_many: int, with_handles: bool) -> Iterator[Any]:
    mark(number, 0)
    for index in range(how_many):
        yield (index, EventFd(index + 1)) if with_handles else (index, None)


async def async_mark_and_yield(number: int, how_many: int, with_handles: bool) -> AsyncIterator[Any]:
    import trio

    for item in mark_and_yield(number, how_many, with_handles):
        yield item
        await trio.lowlevel.checkpoint()


async def async_mark_item(number: int) -> int:
    return mark(number, 0)


async def async_mark_and_wait(number: int, gate: EventFd) -> int:
    import trio

    mark(number, 0)
    with gate:
        await trio.lowlevel.wait_readable(gate)
    return number


async def async_mark(number: int, _gate: Any) -> int:
    import trio

    mark(number, 0)
    await trio.lowlevel.checkpoint()
    return number
