"""What leaves a block with tasks that its author does not see."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fdpool.background import open_background


async def wait_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def fail_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise OSError("crashed")


async def test_the_tasks_end_with_the_block() -> None:
    async with open_background() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def test_an_exception_of_the_block_leaves_bare() -> None:
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise KeyError("mine")


async def test_a_crash_leaves_in_a_group() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="crashed")):
        async with open_background() as nursery:
            nursery.start_soon(fail_when_cancelled)
            await trio.testing.wait_all_tasks_blocked()


async def test_an_exception_of_the_block_is_not_lost_when_what_is_around_it_is_cancelled() -> None:
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what is tested
        with trio.CancelScope() as scope:
            async with open_background() as nursery:
                nursery.start_soon(wait_in_a_nursery)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                raise KeyError("mine")


async def test_an_exception_of_the_block_and_a_crash_leave_together() -> None:
    with pytest.RaisesGroup(KeyError, pytest.RaisesGroup(OSError)):
        async with open_background() as nursery:
            nursery.start_soon(fail_when_cancelled)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError("mine")


async def test_cancelling_what_is_around_it_ends_it_quietly() -> None:
    with trio.CancelScope() as scope:
        async with open_background() as nursery:
            nursery.start_soon(wait_in_a_nursery)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_of_a_crash_nothing_is_left_once_it_is_handled() -> None:
    async def crash() -> None:
        raise ValueError("of a task")

    with pytest.RaisesGroup(ValueError):
        async with open_background() as nursery:
            nursery.start_soon(crash)
            await trio.sleep_forever()
