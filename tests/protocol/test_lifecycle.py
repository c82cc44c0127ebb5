"""The table of states: what is in it, what follows from it, and that the documentation shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import LocalProtocolError
from fdpool.protocol.lifecycle import HAS_PROCESS, TRANSITIONS, Event, Lifecycle, State, diagram

DOCUMENT = Path(__file__).parents[2] / "docs/lifecycle.md"


def after(*events: Event) -> State:
    life = Lifecycle()
    for event in events:
        life.on(event)
    return life.state


def test_a_worker_that_is_asked_to_stop_drains_and_exits() -> None:
    assert after(Event.START, Event.READY, Event.DRAIN, Event.EXIT) is State.EXITED


def test_an_impossible_event_is_refused_and_changes_nothing() -> None:
    life = Lifecycle()
    life.on(Event.START)
    with pytest.raises(LocalProtocolError, match="a worker's place that is starting never died too often"):
        life.on(Event.GIVE_UP)
    assert life.state is State.STARTING


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached(state: State) -> None:
    reached = {State.EXITED}
    while new := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
        reached |= new
    assert state in reached


@pytest.mark.parametrize("state", State)
def test_a_process_can_end_in_every_state_that_has_one_and_in_no_other(state: State) -> None:
    assert ((state, Event.EXIT) in TRANSITIONS) == (state in HAS_PROCESS)


@pytest.mark.parametrize("state", HAS_PROCESS)
def test_every_process_can_be_signalled(state: State) -> None:
    assert TRANSITIONS[state, Event.SIGNAL] is State.STOPPING


@pytest.mark.parametrize("state", HAS_PROCESS - {State.STARTING, State.READY})
def test_nothing_makes_a_worker_that_is_on_its_way_out_ready_again(state: State) -> None:
    assert State.READY not in {after for (before, _), after in TRANSITIONS.items() if before is state}


@given(st.lists(st.sampled_from(Event)))
def test_a_process_begins_only_by_a_start_and_ends_only_by_an_exit(events: list[Event]) -> None:
    life = Lifecycle()
    for event in events:
        before = life.state
        try:
            now = life.on(event)
        except LocalProtocolError:
            assert life.state is before
            continue
        assert (event is Event.START) == (before not in HAS_PROCESS and now in HAS_PROCESS)
        assert (event is Event.EXIT) == (before in HAS_PROCESS and now not in HAS_PROCESS)


def test_the_documentation_shows_the_table() -> None:
    assert f"```mermaid\n{diagram()}```" in DOCUMENT.read_text()


def test_the_documentation_names_every_state() -> None:
    text = DOCUMENT.read_text()
    assert [state for state in State if f"`{state.value}`" not in text] == []
