"""Contract tests for context variables on their way to another process."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

import pytest

from fdpool.memory.context import context_with, current_values, find_variables, run_apart, set_values
from tests.support.context_tasks import NAME, look, look_and_change, other, request

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = NAME.replace("request", "other")


def in_a_context_of_its_own(check: Callable[[], None]) -> None:
    contextvars.Context().run(check)


def test_only_what_is_set_travels() -> None:
    variables = find_variables([NAME, OTHER])
    assert [each.found for each in variables] == [request, other]

    def check() -> None:
        assert current_values(variables) == {}
        other.set(None)
        assert current_values(variables) == {OTHER: None}

    in_a_context_of_its_own(check)


def test_a_context_with_values_is_a_copy_that_keeps_what_is_done_in_it() -> None:
    def check() -> None:
        other.set("stays")
        context = context_with({NAME: 1})
        assert context.run(look_and_change, 5) == 1
        assert context.run(look) == ("changed", 5)
        assert context[other] == "stays"
        assert look() == "nobody's"

    in_a_context_of_its_own(check)


def test_values_can_be_set_in_the_context_there_is() -> None:
    def check() -> None:
        set_values({NAME: 1, OTHER: 2})
        assert (request.get(), other.get()) == (1, 2)

    in_a_context_of_its_own(check)


def test_what_runs_apart_changes_nothing() -> None:
    def check() -> None:
        request.set(1)
        assert run_apart(look_and_change, 2) == 1
        assert look() == 1

    in_a_context_of_its_own(check)


def test_a_value_of_something_that_is_no_variable_here_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no such variable"):
        context_with({NAME + "s": 1})
