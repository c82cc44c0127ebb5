"""Contract tests of a pool's budget of memory: who gets room, in which order, and what cancelling takes away."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpool.warehouse import Budget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIMIT = 100


class Asking:
    """Tasks that ask a budget for room, by number, and what they got."""

    def __init__(self, budget: Budget, nursery: trio.Nursery) -> None:
        self.budget = budget
        self._nursery = nursery
        self.scopes: list[trio.CancelScope] = []
        # Who is let in at the same moment goes on in any order.
        self.granted: set[int] = set()

    async def ask(self, nbytes: int) -> None:
        """Have a new task ask, and wait until it has got it or waits in line."""
        self.scopes.append(trio.CancelScope())
        self._nursery.start_soon(self._acquire, len(self.scopes) - 1, nbytes)
        await trio.testing.wait_all_tasks_blocked()

    async def cancel(self, number: int) -> None:
        self.scopes[number].cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def _acquire(self, number: int, nbytes: int) -> None:
        with self.scopes[number]:
            await self.budget.acquire(nbytes)
            self.granted.add(number)


def with_tasks(play: Callable[[Asking], Awaitable[None]], limit: int | None = LIMIT) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await play(Asking(Budget(limit), nursery))
            nursery.cancel_scope.cancel()

    trio.run(main)


STEPS = st.tuples(st.sampled_from(["ask", "ask", "cancel", "release"]), st.integers(0, LIMIT))


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=30))
def test_room_is_given_in_the_order_it_was_asked_for_whoever_is_cancelled(steps: list[tuple[str, int]]) -> None:
    async def play(asking: Asking) -> None:
        waiting: deque[tuple[int, int]] = deque()
        granted: set[int] = set()
        held: list[int] = []
        count = 0
        for what, size in steps:
            if what == "ask":
                waiting.append((count, size))
                await asking.ask(size)
                count += 1
            elif what == "cancel" and count:
                number = size % count
                waiting = deque(entry for entry in waiting if entry[0] != number)
                await asking.cancel(number)
            elif what == "release" and held:
                asking.budget.release(held.pop(size % len(held)))
                await trio.testing.wait_all_tasks_blocked()
            while waiting and sum(held) + waiting[0][1] <= LIMIT:
                number, nbytes = waiting.popleft()
                granted.add(number)
                held.append(nbytes)
            assert asking.granted == granted
            assert asking.budget.in_flight == sum(held) <= LIMIT

    with_tasks(play)


def test_nobody_overtakes_a_call_that_waits_for_much() -> None:
    async def play(asking: Asking) -> None:
        for nbytes in (60, 90, 10):
            await asking.ask(nbytes)
        assert asking.granted == {0}
        asking.budget.release(60)
        await trio.testing.wait_all_tasks_blocked()
        assert asking.granted == {0, 1, 2}

    with_tasks(play)


def test_whoever_is_cancelled_lets_those_behind_it_pass() -> None:
    async def play(asking: Asking) -> None:
        for nbytes in (60, 90, 10, 30):
            await asking.ask(nbytes)
        await asking.cancel(1)
        assert asking.granted == {0, 2, 3}
        assert asking.budget.in_flight == 100

    with_tasks(play)


def test_room_that_comes_in_the_moment_of_being_cancelled_goes_to_the_next() -> None:
    async def play(asking: Asking) -> None:
        for nbytes in (60, 90, 80):
            await asking.ask(nbytes)
        asking.scopes[1].cancel()
        # Before the cancelled task has run.
        asking.budget.release(60)
        assert asking.budget.in_flight == 90
        await trio.testing.wait_all_tasks_blocked()
        assert asking.granted == {0, 2}
        assert asking.budget.in_flight == 80

    with_tasks(play)


def test_more_than_all_of_it_is_refused_at_once_even_behind_others() -> None:
    async def play(asking: Asking) -> None:
        for nbytes in (60, 90):
            await asking.ask(nbytes)
        with pytest.raises(ValueError, match="101 bytes to copy, and the memory_budget is 100 bytes"):
            await asking.budget.acquire(101)
        assert asking.budget.in_flight == 60

    with_tasks(play)


def test_without_a_limit_nobody_waits() -> None:
    async def play(asking: Asking) -> None:
        for _ in range(3):
            await asking.ask(1 << 60)
        assert asking.granted == {0, 1, 2}

    with_tasks(play, limit=None)
