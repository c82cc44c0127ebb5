"""Functions for workers to run, that fork."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fdpool.kernel import EventFd


def forked(then: Any) -> Any:
    """Fork, and return on both sides, the child what *then* says; the parent how the child ended."""
    child = os.fork()
    if child == 0:
        return end(then)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end(then: Any) -> Any:
    if isinstance(then, BaseException):
        raise then
    if then == "exit":
        sys.exit("the child's last words")
    if then == "generator":
        return (number for number in range(3))
    return then


def fork_and_forget(read_end: Any) -> int:
    """Leave a child behind that outlives the call, as long as nobody closes the other end of *read_end*."""
    child = os.fork()
    if child == 0:
        os.read(read_end.fileno(), 1)
    return child


class ForksWhenPickled:
    def __reduce__(self) -> Any:
        child = os.fork()
        return (int, (child,)) if child == 0 else (int, (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),))


def make_one_that_forks_when_pickled() -> ForksWhenPickled:
    return ForksWhenPickled()


def fork_and_interrupt() -> int:
    """Interrupt a child the way a shell would; return how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"!")
            signal.pause()
        except KeyboardInterrupt:
            os._exit(5)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def double(number: int) -> int:
    return 2 * number


def use_multiprocessing(method: str) -> tuple[list[int], list[int]]:
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        mapped = pool.map(double, range(10))
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return mapped, list(executor.map(double, range(3)))


async def async_forked(then: Any) -> Any:
    return forked(then)


async def fork_and_wait(event: EventFd) -> int:
    """Fork; the child goes on in the loop of the worker, as if it were the worker."""
    import trio

    child = os.fork()
    if child == 0:
        with event:
            await trio.lowlevel.wait_readable(event)
        return 0
    event.close()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222 - the child has hardly anything to do


def forked_items(thens: list[Any]) -> Iterator[Any]:
    for then in thens:
        yield forked(then)


async def async_forked_items(thens: list[Any]) -> AsyncIterator[Any]:
    for then in thens:
        yield forked(then)
