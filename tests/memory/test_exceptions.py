"""Exceptions as they travel, however badly they behave."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from fdpool.errors import RemoteError
from fdpool.memory.exceptions import LAST_FRAMES, rebuild, tell

if TYPE_CHECKING:
    from collections.abc import Iterator


class Hostile(Exception):
    """Raises something from each of its methods that telling it needs."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise self.error


class ExitsWhenLoaded(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def caught(error: BaseException) -> BaseException:
    """Return *error* with a traceback."""
    try:
        raise error
    except BaseException as exc:
        return exc


@pytest.mark.parametrize("error", [ValueError(), SystemExit(), KeyboardInterrupt(), RecursionError(), MemoryError()])
def test_an_exception_whose_methods_raise_is_told_all_the_same(error: BaseException) -> None:
    told = tell(caught(Hostile(error)))
    assert told[:2] == ("tests.memory.test_exceptions.Hostile", f"<its __str__ raised {type(error).__name__}>")
    assert told[2].startswith("Traceback") or "tests.memory.test_exceptions.Hostile" in told[2]
    assert told[3] == b""
    assert isinstance(rebuild(told), RemoteError)


def test_an_exception_that_exits_when_it_is_loaded_is_told_in_words() -> None:
    rebuilt = rebuild(tell(caught(ExitsWhenLoaded("the text"))))
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.text == "the text"


@pytest.fixture
def deep_recursion() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5 * LAST_FRAMES)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("deep_recursion")
def test_a_long_traceback_is_cut_and_says_so() -> None:
    def descend(levels: int) -> None:
        if levels == 0:
            raise ValueError("at the bottom")
        descend(levels - 1)

    try:
        descend(3 * LAST_FRAMES)
    except ValueError as exc:
        _, _, trace, *_ = tell(exc)
    assert trace.startswith(f"({2 * LAST_FRAMES + 1} calls before these are left out)\nTraceback")
    assert trace.endswith("ValueError: at the bottom\n")
    # Python says of frames that repeat how often they do.
    assert f"[Previous line repeated {LAST_FRAMES - 4} more times]" in trace


def test_a_traceback_that_cannot_be_formatted_is_replaced_by_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("traceback.format_exception", fail)
    assert tell(caught(ValueError("the text")))[1:3] == (
        "the text",
        "ValueError (its traceback cannot be formatted: MemoryError)\n",
    )


def test_telling_of_a_lack_of_memory_lets_go_of_what_the_frames_hold() -> None:
    held: list[int] = []

    class Big:
        def __del__(self) -> None:
            held.clear()

    def use_all_memory() -> None:
        big = Big()
        held.append(id(big))
        raise MemoryError

    def call() -> None:
        use_all_memory()

    try:
        call()
    except MemoryError as exc:
        error = exc
    assert held
    assert "in use_all_memory" in tell(error)[2]
    assert not held
