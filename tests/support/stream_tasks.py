"""Functions for workers to run, whose items are streamed."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

import fdpool
from fdpool.errors import TaskCancelled
from fdpool.kernel import EventFd
from tests.support import tasks
from tests.support.memory_tasks import speak


class Made:
    """Counts in memory that everybody sees: how many items were made, and how many generators have ended."""

    def __init__(self, memory: memoryview | None = None) -> None:
        self.memory = fdpool.allocate(16, shared=True) if memory is None else memory
        self.words = self.memory.cast("Q")
        if memory is None:
            self.words[0] = self.words[1] = 0

    @property
    def items(self) -> int:
        return self.words[0]

    @property
    def ended(self) -> int:
        return self.words[1]

    def one_more(self) -> None:
        self.words[0] += 1

    def end(self) -> None:
        self.words[1] += 1

    def __reduce__(self) -> tuple[type[Made], tuple[memoryview]]:
        return Made, (self.memory,)


def numbers(limit: int, made: Made | None = None) -> Iterator[int]:
    try:
        for number in range(limit):
            if made is not None:
                made.one_more()
            yield number
    finally:
        if made is not None:
            made.end()


async def async_numbers(limit: int, made: Made | None = None) -> AsyncIterator[int]:
    try:
        for number in range(limit):
            if made is not None:
                made.one_more()
            yield number
    finally:
        if made is not None:
            made.end()


def pieces(size: int, made: Made) -> Iterator[bytes]:
    for number in count():
        made.one_more()
        yield bytes([number % 256]) * size


async def async_pieces(size: int, made: Made) -> AsyncIterator[bytes]:
    for piece in pieces(size, made):
        yield piece


def keywords(**words: Any) -> Any:
    return words.items()


def lines_of(path: str) -> Any:
    return open(path, encoding="utf-8")


def arrays(number: int, shape: tuple[int, ...]) -> Iterator[Any]:
    import numpy as np

    for value in range(number):
        yield np.full(shape, value % 256, "u1")


def filled_in_place(number: int, size: int) -> Iterator[Any]:
    """Yield one and the same array, in memory that travels by reference, filled anew each time."""
    array = fdpool.empty(size, "u1")
    for value in range(number):
        array[:] = value
        yield array


def yield_and_raise(number: int) -> Iterator[int]:
    yield from range(number)
    raise ValueError("of the generator")


async def async_yield_and_raise(number: int) -> AsyncIterator[int]:
    for item in range(number):
        yield item
    raise ValueError("of the generator")


def yield_and(number: int, last: Callable[..., Any], *args: Any) -> Iterator[Any]:
    yield from range(number)
    yield last(*args)


def exit_politely_at(number: int) -> Iterator[int]:
    yield from range(number)
    sys.exit(3)


def yield_a_generator(number: int, made: Made) -> Iterator[Any]:
    try:
        yield from range(number)
        yield (item for item in "never looked at")
    finally:
        made.end()


async def async_yield_a_generator(number: int, made: Made) -> AsyncIterator[Any]:
    try:
        for item in range(number):
            yield item
        yield (item for item in "never looked at")
    finally:
        made.end()


class FailsToLoad:
    def __reduce__(self) -> Any:
        return fail_to_load, ()


def fail_to_load() -> None:
    raise LookupError("not here")


def items_that_fail_to_load() -> Iterator[Any]:
    yield 1
    yield FailsToLoad()
    yield 3


def tell_what_is_raised(ready: EventFd, told: EventFd, waits: bool) -> Iterator[int]:
    """Yield once, then hang or yield again; say what is raised: 1 for `TaskCancelled`, 2 for `GeneratorExit`."""
    with ready, told:
        try:
            yield 1
            ready.write()
            if not waits:
                tasks.ring_and_hang(ready)
            yield 2
        except TaskCancelled:
            told.write(1)
            raise
        except GeneratorExit:
            told.write(2)
            raise


async def async_tell_what_is_raised(ready: EventFd, told: EventFd, waits: bool) -> AsyncIterator[int]:
    """As `tell_what_is_raised`; 3 for `Cancelled`, and 10 more if what cleans up could wait for something."""
    import trio

    with ready, told:
        try:
            yield 1
            ready.write()
            if not waits:
                await trio.sleep_forever()
            yield 2
        except trio.Cancelled:
            told.write(3)
            raise
        except GeneratorExit:
            await trio.lowlevel.checkpoint()
            told.write(12)
            raise


def refuse_to_end(ready: EventFd) -> Iterator[int]:
    yield 1
    tasks.ring_and_refuse(ready)


def ignore_exits(made: Made) -> Iterator[int]:
    for number in count():
        try:
            yield number
        except GeneratorExit:
            made.end()


def ignore_interrupts(ready: EventFd) -> Iterator[int]:
    """Go on yielding, whatever is raised."""
    with ready:
        yield 1
        for number in count():
            try:
                tasks.ring_and_hang(ready)
            except TaskCancelled:
                yield number


def yield_in_finally(made: Made) -> Iterator[int]:
    try:
        yield 1
    finally:
        made.end()
        yield 2


def raise_when_closed() -> Iterator[int]:
    try:
        yield from count()
    finally:
        raise ValueError("while it was closed")


async def async_raise_when_closed() -> AsyncIterator[int]:
    try:
        for number in count():
            yield number
    finally:
        raise ValueError("while it was closed")


def die_when_closed() -> Iterator[int]:
    try:
        yield from count()
    finally:
        tasks.kill_self(signal.SIGSEGV)


def wait_in_the_open(ready: EventFd, go_on: EventFd, made: Made) -> Iterator[int]:
    """Yield, ring, wait to be told to go on, and yield again."""
    with ready, go_on:
        try:
            yield 1
            ready.write()
            select.select([go_on], [], [])
            made.one_more()
            yield 2
            raise AssertionError("gone on with")
        finally:
            made.end()


async def async_wait_in_the_open(ready: EventFd, go_on: EventFd, made: Made) -> AsyncIterator[int]:
    import trio

    with ready, go_on:
        try:
            yield 1
            ready.write()
            await trio.lowlevel.wait_readable(go_on)
            made.one_more()
            yield 2
            raise AssertionError("gone on with")
        finally:
            made.end()


def sockets(number: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    for _ in range(number):
        yield socket.socketpair()


def given_sockets(number: int) -> Iterator[tuple[Any, socket.socket]]:
    for _ in range(number):
        left, right = socket.socketpair()
        yield fdpool.give(left), right


def kept_socket(done: EventFd) -> Iterator[socket.socket]:
    """Yield one end of a pair; ring once the other end sees that nobody holds it any more."""
    with done:
        left, right = socket.socketpair()
        yield fdpool.give(left)
        del left
        with right:
            assert right.recv(1) == b""
        done.write()


def closed_sockets() -> Iterator[Any]:
    yield 1
    sock = socket.socket()
    sock.close()
    yield sock


def events(number: int, of_each: int) -> Iterator[list[EventFd]]:
    for value in range(number):
        yield [EventFd(value) for _ in range(of_each)]


def run_trio(number: int) -> Iterator[int]:
    import trio

    async def answer(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value

    for value in range(number):
        yield trio.run(answer, value)


async def run_trio_within(_number: int) -> AsyncIterator[int]:
    for value in run_trio(1):
        yield value


async def yield_in_a_scope(made: Made) -> AsyncIterator[int]:
    import trio

    try:
        with trio.CancelScope():
            for number in count():
                await trio.lowlevel.checkpoint()
                yield number
    finally:
        made.end()


async def pass_on(bell: EventFd, next_bell: EventFd) -> AsyncIterator[int]:
    """Wait for a ring and pass it on, again and again; yield which process does."""
    import trio

    with bell, next_bell:
        while True:
            await trio.lowlevel.wait_readable(bell)
            bell.read()
            next_bell.write()
            yield os.getpid()


def pids(number: int) -> Iterator[int]:
    for _ in range(number):
        yield os.getpid()


def die_after(number: int, how: int = signal.SIGKILL) -> Iterator[int]:
    yield from range(number)
    tasks.kill_self(how)


async def async_die_after(number: int) -> AsyncIterator[int]:
    for item in range(number):
        yield item
    tasks.kill_self()


def count_and_die(made: Made) -> Iterator[int]:
    made.one_more()
    yield tasks.kill_self()


def from_a_thread(number: int) -> Iterator[int]:
    """Yield what another thread computes."""
    found: list[int] = []
    for value in range(number):
        thread = threading.Thread(target=found.append, args=(value,))
        thread.start()
        thread.join()
        yield found.pop()


def forge_items(number: int, body: bytes) -> Iterator[int]:
    """Send items past the worker's loop, whether there is room for them or not."""
    yield 0
    for _ in range(number):
        speak(body, "ITEM")
    signal.pause()


def loaded_modules() -> Iterator[str]:
    yield from sys.modules


def async_generator_of(limit: int) -> AsyncIterator[int]:
    return async_numbers(limit)


def read_all(sock: socket.socket) -> Iterator[bytes]:
    with sock:
        while data := sock.recv(100):
            yield data


class Numbers:
    """Called, it yields asynchronously; iterated over, it does so plainly."""

    async def __call__(self, limit: int) -> AsyncIterator[int]:
        for number in range(limit):
            yield number

    async def async_numbers(self, limit: int) -> AsyncIterator[int]:
        async for number in self(limit):
            yield number

    def __iter__(self) -> Iterator[int]:
        yield 5
