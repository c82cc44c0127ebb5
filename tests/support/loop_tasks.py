"""Plain functions for workers to run, that run an event loop of their own, or change how signals are taken."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from fdpool.kernel import EventFd


def run_trio(how: str, event: EventFd, cleaned_up: EventFd) -> NoReturn:
    """Have two tasks of trio ring, go on for ever in some way, and ring again when they were cancelled and waited."""
    import trio

    async def one() -> None:
        try:
            event.write()
            while True:  # noqa: ASYNC110 - it waits for nothing, again and again
                await trio.sleep(0 if how == "busy" else 1000)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.001)
            cleaned_up.write()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)

    with event, cleaned_up:
        trio.run(main)
    raise AssertionError("nobody cancelled it")


def run_asyncio(how: str, event: EventFd, cleaned_up: EventFd) -> NoReturn:
    """As `run_trio`."""
    import asyncio

    async def one() -> None:
        try:
            event.write()
            while True:  # noqa: ASYNC110 - it waits for nothing, again and again
                await asyncio.sleep(0 if how == "busy" else 1000)
        finally:
            await asyncio.sleep(0.001)
            cleaned_up.write()

    async def main() -> None:
        await asyncio.gather(one(), one())

    with event, cleaned_up:
        asyncio.run(main())
    raise AssertionError("nobody cancelled it")


def compute_in_trio(event: EventFd, cleaned_up: EventFd) -> NoReturn:
    """Ring from a task of trio, and never let its loop go on."""
    import trio

    async def main() -> None:
        ring_and_compute(event, cleaned_up)

    trio.run(main)
    raise AssertionError("nobody cancelled it")


def compute_in_asyncio(event: EventFd, cleaned_up: EventFd) -> NoReturn:
    """As `compute_in_trio`."""
    import asyncio

    async def main() -> None:
        ring_and_compute(event, cleaned_up)

    asyncio.run(main())
    raise AssertionError("nobody cancelled it")


def ring_and_compute(event: EventFd, cleaned_up: EventFd) -> NoReturn:
    with event, cleaned_up:
        try:
            event.write()
            while True:
                sum(range(1000))
        finally:
            cleaned_up.write(2)


def handle_sigint(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)


def handle_by_exiting(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(3)
