"""Contract tests for Doorbell."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import fdpool
from fdpool.channel import open_channel_pair
from fdpool.doorbell import Doorbell
from fdpool.kernel import MAX_EVENTFD_VALUE, EventFd, PidFd
from tests.support.sweep import cancellation_points


@pytest.fixture
async def bell() -> AsyncIterator[Doorbell]:
    async with Doorbell() as bell:
        yield bell


def rings_waiting(bell: Doorbell) -> int:
    with EventFd.adopt(os.dup(bell.fileno())) as event:
        try:
            return event.read()
        except BlockingIOError:
            return 0


async def test_wait_returns_how_often_it_was_rung(bell: Doorbell) -> None:
    bell.ring()
    bell.ring(5)
    with assert_checkpoints():
        assert await bell.wait() == 6
    bell.ring()
    assert await bell.wait() == 1


async def test_wait_waits_for_a_ring(bell: Doorbell) -> None:
    rings: list[int] = []

    async def wait() -> None:
        rings.append(await bell.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert rings == []
        bell.ring(3)
    assert rings == [3]


async def test_a_thread_rings_it(bell: Doorbell) -> None:
    def ring() -> None:
        for _ in range(100):
            bell.ring()

    thread = threading.Thread(target=ring)
    thread.start()
    rings = 0
    with trio.fail_after(5):
        while rings < 100:
            rings += await bell.wait()
    thread.join()
    assert rings == 100


async def test_a_duplicate_in_other_hands_rings_it(bell: Doorbell) -> None:
    left, right = open_channel_pair()
    async with left, right:
        await left.send(b"", [bell])
        with await right.receive() as message:
            [handle] = message.handles
            assert isinstance(handle, EventFd)
            handle.write(2)
            assert await bell.wait() == 2
            async with Doorbell(handle) as other:
                other.ring()
                assert await bell.wait() == 1


async def test_a_process_rings_it(bell: Doorbell) -> None:
    if (child := os.fork()) == 0:
        bell.ring(7)
        os._exit(0)
    with PidFd(child) as process, trio.fail_after(5):
        assert await bell.wait() == 7
        await trio.lowlevel.wait_readable(process)
        assert process.wait_exit().exitcode == 0


async def test_close_wakes_who_waits(bell: Doorbell) -> None:
    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await bell.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        bell.close()


async def test_a_closed_doorbell_says_so(bell: Doorbell) -> None:
    assert repr(bell) == f"<Doorbell fd={bell.fileno()}>"
    with assert_checkpoints():
        await bell.aclose()
    bell.close()
    with pytest.raises(trio.ClosedResourceError):
        bell.ring()
    with pytest.raises(trio.ClosedResourceError):
        await bell.wait()
    assert repr(bell) == "<Doorbell closed>"


def test_it_is_rung_and_closed_without_trio_too() -> None:
    bell = Doorbell()
    bell.ring()
    assert rings_waiting(bell) == 1
    bell.close()
    assert bell.fileno() == -1


async def test_two_who_wait_are_one_too_many(bell: Doorbell) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await bell.wait()
        bell.ring()


async def test_a_wait_cancelled_at_any_point_takes_no_ring(bell: Doorbell) -> None:
    async def ring_when_blocked() -> None:
        await wait_all_tasks_blocked()
        bell.ring(2)

    was_cancelled = []
    for point in cancellation_points():
        rings = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring_when_blocked)
            with point:
                rings = await bell.wait()
        assert rings == (0 if point.cancelled_caught else 2)
        assert rings_waiting(bell) == 2 - rings
        was_cancelled.append(point.cancelled_caught)
    assert sum(was_cancelled) == 2


@pytest.mark.parametrize("n", [0, -1, MAX_EVENTFD_VALUE + 1])
async def test_a_number_that_cannot_be_rung_is_refused(bell: Doorbell, n: int) -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        bell.ring(n)
    assert rings_waiting(bell) == 0


async def test_a_bell_that_is_full_refuses_to_block(bell: Doorbell) -> None:
    bell.ring(MAX_EVENTFD_VALUE)
    with pytest.raises(BlockingIOError):
        bell.ring()
    assert await bell.wait() == MAX_EVENTFD_VALUE


def test_the_doorbell_is_the_one_of_the_front_page() -> None:
    assert fdpool.Doorbell is Doorbell
