"""End-to-end tests of the exceptions that workers raise, with tblib and without."""

from __future__ import annotations

import sys
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio

from fdpool import Executor, open_pool
from fdpool.errors import RemoteTraceback
from fdpool.memory.tracebacks import has_tblib
from tests.support import error_tasks as tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fdpool import Pool


@pytest.fixture(params=["exec", "zygote"])
def start(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


@pytest.fixture
async def pool(start: str) -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(1, start=start) as pool:
            yield pool


def functions(error: BaseException | None) -> list[str]:
    """Return the names of the functions in an exception's traceback."""
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def test_an_exception_comes_back_as_itself_with_its_own_traceback_and_its_causes(pool: Pool) -> None:
    with pytest.raises(LookupError) as caught:
        await pool.run_sync(tasks.raise_from)
    assert functions(caught.value)[-2:] == ["call", "raise_from"]
    assert functions(caught.value.__cause__) == ["raise_from", "parse"]
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.count("return int(text)") == 1
    assert "fdpool/worker/loop.py" not in printed
    assert "RemoteTraceback" not in printed


async def test_async_calls_and_groups_have_their_tracebacks(pool: Pool) -> None:
    with pytest.raises(LookupError) as caught:
        await pool.run(tasks.raise_async)
    assert functions(caught.value)[-2:] == ["raise_async", "raise_from"]
    assert functions(caught.value.__cause__) == ["raise_from", "parse"]
    with pytest.raises(ExceptionGroup) as group:
        await pool.run_sync(tasks.raise_group)
    assert functions(group.value.exceptions[0].exceptions[1]) == ["raise_group", "raise_with_note"]


@pytest.mark.parametrize("return_exceptions", [True, False])
async def test_items_of_a_map_have_their_tracebacks(pool: Pool, return_exceptions: bool) -> None:
    outcomes: list[Any] = []
    async with pool.map_sync(tasks.item, [1, 0, 1], chunksize=3, return_exceptions=return_exceptions) as results:
        while len(outcomes) < 3:
            try:
                outcomes.append(await anext(results))
            except ZeroDivisionError as exc:
                outcomes.append(exc)
    first, error, last = outcomes
    assert (first, last) == (1, 1)
    assert functions(error)[-1] == "item"


def test_a_future_has_the_traceback(start: str) -> None:
    with Executor(1, start=start) as executor:
        with pytest.raises(LookupError) as caught:
            executor.submit(tasks.raise_from).result(30)
        assert functions(caught.value)[-1] == "raise_from"
        error = executor.submit(tasks.raise_during).exception(30)
        assert functions(error)[-1] == "raise_during"
        assert error is not None
        assert functions(error.__context__) == ["raise_during", "parse"]


async def test_an_exception_raised_while_another_is_handled_has_both_histories(pool: Pool) -> None:
    try:
        try:
            raise KeyError("here")
        except KeyError:
            await pool.run_sync(tasks.raise_during)
    except LookupError as exc:
        error: BaseException = exc
    assert functions(error.__context__) == ["raise_during", "parse"]
    assert error.__context__ is not None
    assert repr(error.__context__.__context__) == "KeyError('here')"


async def test_an_exception_that_is_kept_does_not_keep_what_others_returned(pool: Pool) -> None:
    pytest.importorskip("numpy")
    async with pool.map_sync(tasks.array_or_error, [1, 0], chunksize=2, return_exceptions=True) as results:
        array = await anext(results)
        error: Any = await anext(results)
    assert isinstance(error, RecursionError)
    seen = weakref.ref(array)
    del array, results
    assert seen() is None


@pytest.mark.parametrize("missing", ["in the worker", "here"])
async def test_without_tblib_an_exception_has_its_traceback_as_text(
    start: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    initializer = tasks.hide_tblib if missing == "in the worker" else None
    if missing == "here":
        monkeypatch.setitem(sys.modules, "tblib", None)
    has_tblib.cache_clear()
    try:
        with trio.fail_after(60):
            async with open_pool(1, start=start, initializer=initializer) as pool:
                with pytest.raises(ValueError, match="of the worker") as caught:
                    await pool.run_sync(tasks.raise_with_note)
                with pytest.raises(LookupError) as during:
                    await pool.run_sync(tasks.raise_during)
    finally:
        has_tblib.cache_clear()
    assert caught.value.__notes__ == ["a note"]
    assert functions(caught.value)[-1] == "outcome"
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert 'tests/support/error_tasks.py", line' in str(cause)
    assert "fdpool/worker/loop.py" not in str(cause)
    assert "in parse" in str(during.value.__cause__)
