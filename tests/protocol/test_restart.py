"""Contract tests for the restart policy, against a model that keeps everything and forgets nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.protocol.restart import Backoff, Restart, RestartHistory

PLAIN = Backoff(first=0.1, factor=2, cap=30, jitter=0)


class Death(NamedTuple):
    after: float
    ready_for: float


def test_waits_double_up_to_the_cap() -> None:
    waits = [PLAIN.seconds_after(failures, 0.5) for failures in range(1, 12)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])


@pytest.mark.parametrize(("chance", "wait"), [(0, 0.8), (0.5, 1.0), (1, 1.2)])
def test_jitter_varies_a_wait_by_its_share(chance: float, wait: float) -> None:
    assert Backoff(first=1, jitter=0.2).seconds_after(1, chance) == pytest.approx(wait)


@given(first=st.floats(0, 1e6), factor=st.floats(1, 1e300), cap=st.floats(0, 1e6), failures=st.integers(1, 10**9))
def test_no_number_of_failures_passes_the_cap_or_overflows(
    first: float, factor: float, cap: float, failures: int
) -> None:
    wait = Backoff(first, factor, cap, jitter=0).seconds_after(failures, 0.5)
    assert 0 <= wait <= cap
    assert wait >= min(first, cap)
    if first == 0:
        assert wait == 0


@pytest.mark.parametrize(
    "arguments", [{"first": -0.1}, {"cap": -1}, {"factor": 0.5}, {"jitter": -0.1}, {"jitter": 1.1}]
)
def test_a_backoff_that_makes_no_sense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        Backoff(**arguments)


@pytest.mark.parametrize("arguments", [(-1, 10.0), (5, 0.0), (5, -1.0)])
def test_a_policy_that_makes_no_sense_is_refused(arguments: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match="at least 0, and more than 0"):
        Restart(*arguments)


def waits_of(policy: Restart, deaths: list[Death]) -> list[float | None]:
    history = RestartHistory(policy)
    now, waits = 1000.0, []
    for death in deaths:
        now += death.after
        waits.append(history.record_death(now, ready_for=death.ready_for, chance=0.5))
    return waits


@pytest.mark.parametrize("intensity", [0, 1, 5])
def test_one_death_more_than_the_intensity_is_one_too_many(intensity: int) -> None:
    waits = waits_of(Restart(intensity, 10.0, PLAIN), [Death(0.1, 0.0)] * (intensity + 1))
    assert None not in waits[:-1]
    assert waits[-1] is None


def test_deaths_as_old_as_the_period_do_not_count() -> None:
    policy = Restart(1, 10.0, PLAIN)
    assert waits_of(policy, [Death(0, 0), Death(9.5, 0)])[-1] is None
    assert waits_of(policy, [Death(0, 0), Death(10.0, 0)])[-1] is not None


def test_waits_grow_even_where_deaths_are_too_rare_to_give_up() -> None:
    assert waits_of(Restart(1, 10.0, PLAIN), [Death(11, 0)] * 4) == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_a_worker_that_was_ready_for_the_period_starts_with_a_clean_slate() -> None:
    policy = Restart(2, 10.0, PLAIN)
    soon, late = Death(1, 9.9), Death(1, 10.0)
    assert waits_of(policy, [soon, soon, late, soon, soon]) == [0.1, 0.2, 0.1, 0.2, None]


def test_the_jitter_is_drawn_where_no_chance_is_given() -> None:
    waits = {RestartHistory(Restart()).record_death(0.0) for _ in range(20)}
    assert len(waits) > 1
    assert all(wait is not None and 0.08 <= wait <= 0.12 for wait in waits)


def naive(policy: Restart, deaths: list[Death]) -> list[float | None]:
    """The rules once more: every death is looked at afresh, from the whole list."""
    waits: list[float | None] = []
    for index in range(len(deaths)):
        slate = max((i for i in range(index + 1) if deaths[i].ready_for >= policy.period), default=0)
        in_period = [i for i in range(slate, index + 1) if age(deaths, i, index) < policy.period]
        if len(in_period) > policy.intensity:
            waits.append(None)
            continue
        started = sum(wait is not None for wait in waits[slate:])
        exponent = started * math.log(policy.backoff.factor)
        wait = policy.backoff.cap if exponent > 100 else policy.backoff.first * math.exp(exponent)
        waits.append(min(policy.backoff.cap, wait))
    return waits


def age(deaths: list[Death], earlier: int, later: int) -> float:
    return sum(death.after for death in deaths[earlier + 1 : later + 1])


# Quarters add up exactly, so that both sides agree on which side of the period a death lies.
QUARTERS = st.integers(0, 80).map(lambda n: n / 4)


@given(
    intensity=st.integers(0, 4),
    period=st.integers(1, 40).map(lambda n: n / 4),
    factor=st.sampled_from([1.0, 1.5, 2.0, 10.0]),
    deaths=st.lists(st.builds(Death, QUARTERS, QUARTERS), max_size=30),
)
def test_the_policy_agrees_with_the_model(intensity: int, period: float, factor: float, deaths: list[Death]) -> None:
    policy = Restart(intensity, period, Backoff(0.1, factor, 30.0, 0.0))
    for wait, expected in zip(waits_of(policy, deaths), naive(policy, deaths), strict=True):
        assert wait == (None if expected is None else pytest.approx(expected))
