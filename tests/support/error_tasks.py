"""Functions for workers to run that raise, each in its own way."""

from __future__ import annotations

import sys
from typing import Any, NoReturn


def parse(text: str) -> int:
    return int(text)


def raise_with_note() -> NoReturn:
    error = ValueError("of the worker")
    error.add_note("a note")
    raise error


def raise_from() -> None:
    try:
        parse("x")
    except ValueError as exc:
        exc.add_note("of the cause")
        raise LookupError("not found") from exc


def raise_during() -> None:
    try:
        parse("x")
    except ValueError:
        raise LookupError("not found")  # noqa: B904 - the context is what this is for


def raise_from_none() -> None:
    try:
        parse("x")
    except ValueError:
        raise LookupError("not found") from None


def raise_group() -> NoReturn:
    errors: list[Exception] = []
    for function in (raise_from, raise_with_note):
        try:
            function()
        except Exception as exc:
            errors.append(exc)
    raise ExceptionGroup("outer", [ExceptionGroup("inner", errors), KeyError("never raised")])


async def raise_async() -> None:
    raise_from()


def raise_in_a_circle() -> NoReturn:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__ = first
    raise first


def raise_from_exit() -> NoReturn:
    """Have causes that are no `Exception`, and that cannot be pickled."""
    try:
        try:
            sys.exit(3)
        except SystemExit as exc:
            raise Stubborn("cannot travel") from exc
    except Stubborn as exc:
        raise LookupError("not found") from exc


class Stubborn(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not me")


class Reduced(Exception):
    """An exception with a way of its own to be pickled, which leaves out the notes."""

    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}")
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, (self.number,)


def raise_reduced() -> NoReturn:
    error = Reduced(5)
    error.add_note("a note")
    raise error


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


def item(number: int) -> int:
    return 1 // number


def hide_tblib() -> None:
    """Make this process one where tblib is not installed; to be called before anything was raised in it."""
    sys.modules["tblib"] = None  # type: ignore[assignment]


class Awkward(Exception):
    """An exception of which one method raises."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method

    def _may_be_asked(self, method: str) -> None:
        if self.method == method:
            raise SystemExit(f"{method} was asked for")

    def __str__(self) -> str:
        self._may_be_asked("__str__")
        return "awkward"

    def __repr__(self) -> str:
        self._may_be_asked("__repr__")
        return "Awkward()"

    def __reduce__(self) -> Any:
        self._may_be_asked("__reduce__")
        return super().__reduce__()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name.startswith("__"):
            self._may_be_asked("__setattr__")

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._may_be_asked("__setstate__")

    def __getattribute__(self, name: str) -> Any:
        if name in ("__cause__", "__context__", "__notes__", "__traceback__", "__suppress_context__"):
            self._may_be_asked("__getattribute__")
        return super().__getattribute__(name)


def raise_awkward(method: str) -> NoReturn:
    raise Awkward(method)


def array_or_error(number: int) -> Any:
    import numpy as np

    return np.ones(100_000) if number else recurse()
