"""Contract tests for exceptions with all that hangs on them: taken apart in one place, put together in another."""

from __future__ import annotations

import bdb
import copyreg
import pickle
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from tblib import pickling_support

from fdpool.errors import RemoteError, RemoteTraceback
from fdpool.memory.exceptions import LAST_FRAMES, OwnContext, rebuild, tell
from fdpool.memory.tracebacks import has_tblib
from tests.support import error_tasks as tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "tblib pickles"])
def tblib_pickles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether tblib's own pickling is in use, as it is wherever Dask was imported."""
    before = dict(copyreg.dispatch_table)
    if request.param:
        pickling_support.install()
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.fixture
def without_tblib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process one where tblib is not installed."""
    monkeypatch.setitem(sys.modules, "tblib", None)
    has_tblib.cache_clear()
    yield
    has_tblib.cache_clear()


def told_of(function: Callable[..., object], *args: object) -> Any:
    """Return what a worker would send of what *function* raises."""
    try:
        function(*args)
    except BaseException as exc:
        return pickle.loads(pickle.dumps(tell(exc)))
    raise AssertionError("nothing was raised")


def rebuilt(function: Callable[..., object], *args: object) -> Exception:
    return rebuild(told_of(function, *args))


def functions(error: BaseException | None) -> list[str]:
    """Return the names of the functions in an exception's traceback."""
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_an_exception_has_the_traceback_that_it_had() -> None:
    error = rebuilt(tasks.raise_with_note)
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["a note"]
    [frame] = traceback.extract_tb(error.__traceback__)
    assert (frame.filename, frame.name, frame.line) == (tasks.__file__, "raise_with_note", "raise error")
    assert (error.__cause__, error.__context__) == (None, None)


def test_no_column_is_underlined_that_has_nothing_to_do_with_it() -> None:
    told = told_of(tasks.raise_from)
    printed = "".join(traceback.format_exception(rebuild(told)))
    assert "^^^" in told[2]
    assert [line for line in told[2].splitlines() if line.strip(" ~^") or not line] == printed.splitlines()


def test_a_debugger_can_list_the_frames() -> None:
    error = rebuilt(tasks.raise_from)
    stack, _ = bdb.Bdb().get_stack(None, error.__traceback__)
    [(frame, line)] = [(frame, line) for frame, line in stack if frame.f_code.co_name == "raise_from"]
    assert frame.f_lineno == line
    assert frame.f_globals["__name__"] == tasks.__name__
    assert frame.f_globals["__file__"] == tasks.__file__
    assert frame.f_locals == {}


def test_its_cause_has_its_own_as_well() -> None:
    error = rebuilt(tasks.raise_from)
    assert isinstance(error, LookupError)
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__ is error.__context__
    assert error.__suppress_context__
    assert error.__cause__.__notes__ == ["of the cause"]
    assert functions(error.__cause__) == ["raise_from", "parse"]


def test_its_context_has_its_own_as_well() -> None:
    error = rebuilt(tasks.raise_during)
    assert error.__cause__ is None
    assert functions(error.__context__) == ["raise_during", "parse"]
    assert not error.__suppress_context__


def test_a_context_that_is_not_to_be_shown_is_there_all_the_same() -> None:
    error = rebuilt(tasks.raise_from_none)
    assert functions(error.__context__) == ["raise_from_none", "parse"]
    assert error.__suppress_context__
    assert error.__cause__ is None


def test_members_of_groups_have_theirs() -> None:
    error = rebuilt(tasks.raise_group)
    assert isinstance(error, ExceptionGroup)
    inner, never_raised = error.exceptions
    assert isinstance(inner, ExceptionGroup)
    first, second = inner.exceptions
    assert functions(error) == ["raise_group"]
    assert functions(first) == ["raise_group", "raise_from"]
    assert functions(first.__cause__) == ["raise_from", "parse"]
    assert functions(second) == ["raise_group", "raise_with_note"]
    assert second.__notes__ == ["a note"]
    assert inner.__traceback__ is None
    assert never_raised.__traceback__ is None


def test_a_circle_of_causes_arrives_as_a_circle_and_can_be_printed() -> None:
    error = rebuilt(tasks.raise_in_a_circle)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.__cause__ is error
    assert error.__context__ is error
    assert "ValueError: first" in "".join(traceback.format_exception(error))


def test_what_of_the_chain_cannot_travel_is_told_in_words_and_has_its_traceback() -> None:
    error = rebuilt(tasks.raise_from_exit)
    cause = error.__cause__
    assert isinstance(cause, RemoteError)
    assert str(cause) == "tests.support.error_tasks.Stubborn: cannot travel"
    assert functions(cause) == ["raise_from_exit"]
    # The end of another process is nothing that is raised here, only shown.
    assert isinstance(cause.__cause__, SystemExit)
    assert cause.__cause__.code == 3


def test_notes_arrive_though_the_class_forgets_them() -> None:
    error = rebuilt(tasks.raise_reduced)
    assert isinstance(error, tasks.Reduced)
    assert error.number == 5
    assert error.__notes__ == ["a note"]


def test_a_traceback_of_a_thousand_frames_arrives_whole() -> None:
    error = rebuilt(tasks.recurse)
    assert isinstance(error, RecursionError)
    assert functions(error).count("recurse") > 800


def test_a_longer_traceback_is_cut_and_says_so() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(3 * LAST_FRAMES)
    try:
        error = rebuilt(tasks.recurse)
    finally:
        sys.setrecursionlimit(before)
    cut, *names = functions(error)
    assert names == ["recurse"] * LAST_FRAMES
    assert re.fullmatch(r"\((1\d\d\d) calls before these are left out\)", cut)


def test_a_chain_of_thousands_arrives_whole() -> None:
    def raise_many() -> None:
        error: Exception = ValueError(0)
        for number in range(1, 5000):
            following = ValueError(number)
            following.__cause__ = error
            error = following
        raise error

    error: BaseException | None = rebuilt(raise_many)
    count = 0
    while error is not None:
        count += 1
        error = error.__cause__
    assert count == 5000


def test_groups_within_groups_arrive_however_deep() -> None:
    def raise_deep() -> None:
        error: Exception = ValueError("innermost")
        for number in range(100):
            error = ExceptionGroup(f"{number}", [error])
        raise error

    error: BaseException = rebuilt(raise_deep)
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert str(error) == "innermost"


@pytest.mark.parametrize(
    ("method", "arrives"),
    [
        ("nothing", tasks.Awkward),
        ("__str__", tasks.Awkward),
        ("__repr__", tasks.Awkward),
        ("__getattribute__", tasks.Awkward),
        ("__setattr__", tasks.Awkward),
        ("__reduce__", RemoteError),
        ("__setstate__", RemoteError),
    ],
)
@pytest.mark.parametrize("has", [True, False])
def test_whatever_an_exception_does_it_arrives(
    method: str, arrives: type[Exception], has: bool, request: pytest.FixtureRequest
) -> None:
    told = told_of(tasks.raise_awkward, method)
    if not has:
        request.getfixturevalue("without_tblib")
    error = rebuild(told)
    assert type(error) is arrives
    if isinstance(error, RemoteError):
        assert error.text == "awkward"
        assert "in raise_awkward" in error.traceback
    elif has:
        names = [
            frame.f_code.co_name for frame, _ in traceback.walk_tb(vars(BaseException)["__traceback__"].__get__(error))
        ]
        assert names == ["raise_awkward"]
    else:
        assert isinstance(vars(BaseException)["__cause__"].__get__(error), RemoteTraceback)


@pytest.mark.parametrize("where", ["where it is raised", "where it arrives"])
def test_without_tblib_on_either_side_the_text_is_the_cause(where: str, request: pytest.FixtureRequest) -> None:
    if where == "where it is raised":
        request.getfixturevalue("without_tblib")
    told = told_of(tasks.raise_from)
    if where == "where it is raised":
        assert told[4] is None
    else:
        request.getfixturevalue("without_tblib")
    error = rebuild(told)
    assert isinstance(error, LookupError)
    assert error.__traceback__ is None
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raise_from" in str(error.__cause__)
    assert "The above exception was the direct cause" in str(error.__cause__)
    assert "told_of" not in str(error.__cause__)


def test_a_chain_that_does_not_fit_is_told_by_the_text() -> None:
    name, text, trace, pickled, chain = told_of(tasks.raise_from)
    error = rebuild((name, text, trace, pickled, [chain[0]._replace(cause=7)]))
    assert isinstance(error.__cause__, RemoteTraceback)


def raise_while_handling(local: Exception, error: Exception) -> None:
    try:
        raise local
    except KeyError:
        with OwnContext(error):
            raise error  # noqa: B904 - what comes of the context is the question


def test_what_was_being_handled_here_comes_behind_what_was_over_there() -> None:
    error, local = rebuilt(tasks.raise_during), KeyError("local")
    with pytest.raises(LookupError):
        raise_while_handling(local, error)
    assert isinstance(error.__context__, ValueError)
    assert error.__context__.__context__ is local


def test_without_a_context_of_its_own_an_exception_gets_that_of_here() -> None:
    error, local = rebuilt(tasks.raise_with_note), KeyError("local")
    with pytest.raises(ValueError, match="of the worker"):
        raise_while_handling(local, error)
    assert error.__context__ is local


def test_a_circle_of_contexts_stays_what_it_is() -> None:
    error = rebuilt(tasks.raise_in_a_circle)
    with pytest.raises(ValueError, match="first"):
        raise_while_handling(KeyError("local"), error)
    assert error.__context__ is error
