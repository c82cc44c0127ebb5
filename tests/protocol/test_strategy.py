"""The restart policy of groups, and of one place, against models that are written another way."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.protocol.restart import Backoff, Restart, RestartHistory
from fdpool.protocol.strategy import GiveUp, Keep, Leave, Replace, RestartGroup, Strategy

PLAIN = Restart(intensity=3, period=10.0, backoff=Backoff(first=1.0, factor=2.0, cap=5.0, jitter=0.0))
P, T, X = Keep.PERMANENT, Keep.TRANSIENT, Keep.TEMPORARY


def group(strategy: Strategy, *keeps: Keep) -> RestartGroup:
    return RestartGroup(PLAIN, strategy, keeps)


def test_one_for_one_concerns_nobody_else() -> None:
    assert group(Strategy.ONE_FOR_ONE, P, P, P).record_exit(1, 0, clean=False) == Replace((), (1,), 1.0)


def test_rest_for_one_stops_the_later_ones_in_reverse_and_starts_them_in_order() -> None:
    assert group(Strategy.REST_FOR_ONE, P, P, P, P).record_exit(1, 0, clean=False) == Replace((3, 2), (1, 2, 3), 1.0)


def test_one_for_all_stops_and_starts_everybody() -> None:
    assert group(Strategy.ONE_FOR_ALL, P, P, P).record_exit(1, 0, clean=False) == Replace((2, 0), (0, 1, 2), 1.0)


@pytest.mark.parametrize(
    ("keep", "clean", "comes_back"),
    [(P, True, True), (P, False, True), (T, True, False), (T, False, True), (X, True, False), (X, False, False)],
)
def test_a_place_comes_back_as_it_is_kept(keep: Keep, clean: bool, comes_back: bool) -> None:
    verdict = group(Strategy.ONE_FOR_ONE, keep).record_exit(0, 0, clean=clean)
    assert isinstance(verdict, Replace) == comes_back
    assert isinstance(verdict, Leave) == (not comes_back)


def test_a_temporary_place_that_others_take_down_stays_down() -> None:
    assert group(Strategy.ONE_FOR_ALL, P, X, P).record_exit(0, 0, clean=False) == Replace((2, 1), (0, 2), 1.0)


def test_what_was_stopped_on_purpose_stays_down_whatever_dies() -> None:
    places = group(Strategy.ONE_FOR_ALL, P, P, P)
    places.hold(2)
    assert places.record_exit(2, 0, clean=False) == Leave()
    assert places.record_exit(0, 1, clean=False) == Replace((1,), (0, 1), 1.0)
    places.release(2)
    assert places.record_exit(0, 2, clean=False) == Replace((2, 1), (0, 1, 2), 2.0)


def test_the_deaths_of_all_places_count_together() -> None:
    places = group(Strategy.ONE_FOR_ONE, P, P, P)
    for place in range(3):
        assert isinstance(places.record_exit(place, place, clean=False), Replace)
    assert places.record_exit(0, 3, clean=False) == GiveUp((2, 1))
    assert places.running == frozenset()


@dataclass
class Death:
    pause: float
    ready_for: float


deaths = st.lists(
    st.builds(Death, pause=st.floats(0, 30), ready_for=st.floats(0, 20)),
    max_size=40,
)
backoffs = st.builds(
    Backoff, first=st.floats(0, 5), factor=st.floats(1, 10), cap=st.floats(0, 60), jitter=st.floats(0, 1)
)
policies = st.builds(Restart, intensity=st.integers(0, 8), period=st.floats(0.5, 20), backoff=backoffs)


@given(policies, deaths, st.floats(0, 1))
def test_one_places_history_agrees_with_a_model_that_remembers_everything(
    policy: Restart, story: list[Death], chance: float
) -> None:
    history, now = RestartHistory(policy), 0.0
    past: list[float] = []
    streak = 0
    for death in story:
        now += death.pause
        verdict = history.record_death(now, ready_for=death.ready_for, chance=chance)
        if death.ready_for >= policy.period:
            past, streak = [], 0
        past.append(now)
        # Asked as the policy asks it: rounded otherwise, a death just at the end of the period may be on either side.
        recent = [when for when in past if now - when < policy.period]
        if len(recent) > policy.intensity:
            assert verdict is None
            return
        wait = policy.backoff.first
        for _ in range(min(streak, 64)):
            wait *= policy.backoff.factor
            if wait > policy.backoff.cap:
                break
        streak += 1
        expected = min(wait, policy.backoff.cap) * (1 - policy.backoff.jitter + 2 * policy.backoff.jitter * chance)
        assert verdict == pytest.approx(expected, abs=1e-9)
        assert verdict is not None
        assert 0 <= verdict <= policy.backoff.cap * (1 + policy.backoff.jitter)


@st.composite
def group_stories(draw: st.DrawFn) -> tuple[Strategy, list[Keep], list[tuple[str, int, bool]]]:
    keeps = draw(st.lists(st.sampled_from(Keep), min_size=1, max_size=5))
    place = st.integers(0, len(keeps) - 1)
    step = st.tuples(st.sampled_from(["exit", "exit", "exit", "hold", "release"]), place, st.booleans())
    return draw(st.sampled_from(Strategy)), keeps, draw(st.lists(step, max_size=30))


@given(group_stories())
def test_a_group_agrees_with_a_model_of_what_runs(
    story: tuple[Strategy, list[Keep], list[tuple[str, int, bool]]],
) -> None:
    strategy, keeps, steps = story
    patient = Restart(intensity=1000, period=1.0, backoff=Backoff(first=0.0))
    places = RestartGroup(patient, strategy, keeps)
    up, wanted = [True] * len(keeps), [True] * len(keeps)
    for now, (what, place, clean) in enumerate(steps):
        if what == "hold":
            places.hold(place)
            wanted[place] = False
        elif what == "release":
            places.release(place)
            wanted[place] = up[place] = True
        elif up[place]:
            verdict = places.record_exit(place, now, clean=clean)
            up[place] = False
            if keeps[place] is P or (keeps[place] is T and not clean):
                if wanted[place]:
                    assert isinstance(verdict, Replace)
                    hit = {
                        Strategy.ONE_FOR_ONE: [],
                        Strategy.REST_FOR_ONE: list(range(place + 1, len(keeps))),
                        Strategy.ONE_FOR_ALL: list(range(len(keeps))),
                    }[strategy]
                    hit = [other for other in hit if up[other] and wanted[other]]
                    assert verdict.stop == tuple(reversed(hit))
                    for other in [place, *hit]:
                        up[other] = keeps[other] is not X
                    assert verdict.start == tuple(sorted(other for other in [place, *hit] if up[other]))
                else:
                    assert verdict == Leave()
            else:
                assert verdict == Leave()
        assert places.running == {place for place, is_up in enumerate(up) if is_up}
