"""End-to-end tests of context variables that travel with calls."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from fdpool import EventFd, Executor, Pool, WorkerDied, open_pool
from tests.support import context_tasks as tasks
from tests.support.context_tasks import NAME, other, request
from tests.support.programs import REPOSITORY, run_python
from tests.support.tasks import die_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with trio.fail_after(60):
        async with open_pool(1, context=[NAME]) as pool:
            yield pool


async def test_a_named_variable_has_its_callers_value_for_the_call_and_no_longer(pool: Pool) -> None:
    request.set({"id": 1})
    other.set("not named")
    assert await pool.run_sync(tasks.look_and_change) == {"id": 1}
    assert await pool.run_sync(tasks.look) == {"id": 1}
    assert await pool.run_sync(tasks.look_at_other) == "unset"
    assert await pool.options(context=()).run_sync(tasks.look) == "nobody's"
    assert request.get() == {"id": 1}


async def test_a_variable_that_is_not_set_stays_as_it_is_in_the_worker() -> None:
    with trio.fail_after(60):
        async with open_pool(1, context=[NAME], initializer=tasks.set_for_good, initargs=("the worker's",)) as pool:
            assert await pool.run_sync(tasks.look_and_change) == "the worker's"
            assert await pool.run_sync(tasks.look) == "the worker's"
            request.set("the caller's")
            assert await pool.run_sync(tasks.look_and_change) == "the caller's"
            assert await pool.options(context=[]).run_sync(tasks.look) == "the worker's"


async def test_each_call_has_the_value_of_its_own_task(pool: Pool) -> None:
    found: dict[int, Any] = {}

    async def one(number: int) -> None:
        request.set(number)
        found[number] = await pool.run_sync(tasks.look_and_change, number)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert found == {number: number for number in range(50)}


async def test_async_calls_side_by_side_have_a_context_each(pool: Pool) -> None:
    found: dict[str, list[Any]] = {}

    async def one(name: str, bell: EventFd | None, next_bell: EventFd | None) -> None:
        request.set(name)
        found[name] = await pool.run(tasks.look_async, bell, next_bell)

    with EventFd() as bell:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "waits", bell, None)
            nursery.start_soon(one, "rings", None, bell)
    changed = {name: [name, f"changed by {name}", f"changed by {name}"] for name in ("waits", "rings")}
    assert found == changed
    assert await pool.options(context=()).run_sync(tasks.look) == "nobody's"


async def test_a_plain_call_beside_async_ones_has_a_context_as_well(pool: Pool) -> None:
    async with trio.open_nursery() as nursery:
        with EventFd() as bell, EventFd() as begun:
            request.set("the async call's")
            nursery.start_soon(pool.run, tasks.look_async, bell, begun)
            await trio.lowlevel.wait_readable(begun)
            request.set("the plain call's")
            assert await pool.run_sync(tasks.look_and_change) == "the plain call's"
            assert await pool.run_sync(tasks.look) == "the plain call's"
            bell.write()


@pytest.mark.parametrize("chunksize", [1, 5, None])
async def test_each_item_of_a_map_has_the_value_of_where_the_map_was_begun(pool: Pool, chunksize: int | None) -> None:
    request.set("the map's")
    async with pool.map_sync(tasks.look_and_change, range(20), chunksize=chunksize) as results:
        request.set("something later")
        assert [result async for result in results] == ["the map's"] * 20


@pytest.mark.parametrize("chunksize", [1, 5])
async def test_each_item_of_an_async_map_has_it_as_well(pool: Pool, chunksize: int) -> None:
    request.set("the map's")
    async with pool.map(tasks.look_async_at, range(20), chunksize=chunksize) as results:
        assert [result async for result in results] == ["the map's"] * 20


@pytest.mark.parametrize("generator", [tasks.look_again_and_again, tasks.look_again_and_again_async])
async def test_a_stream_has_a_context_of_its_own_from_its_beginning_to_its_end(pool: Pool, generator: Any) -> None:
    request.set(1)
    async with pool.stream(generator, 2) as items:
        request.set(2)
        assert [item async for item in items] == [1, (1, 0)]
    async with pool.options(stream_items=1).stream(generator, 9) as items:
        assert await anext(items) == 2
    assert await pool.options(context=()).run_sync(tasks.look) == "nobody's"
    # What it set it finds when it is closed, too.
    whole, broken_off = await pool.run_sync(tasks.found_when_closed)
    assert whole == ((1, 0), 1)
    assert str(broken_off).lstrip("(").startswith("2")


async def test_a_worker_set_aside_takes_context_variables_as_the_pool_does(pool: Pool) -> None:
    request.set("mine")
    async with pool.worker() as worker:
        assert await worker.run_sync(tasks.look) == "mine"
        assert await worker.options(context=()).run_sync(tasks.look) == "nobody's"


async def test_handles_travel_in_context_variables_too(pool: Pool) -> None:
    with EventFd(7) as event:
        request.set(event)
        assert await pool.run_sync(tasks.read_event) == 7


async def test_a_value_arrives_again_when_its_call_is_run_again(pool: Pool) -> None:
    from fdpool import MemFd

    with MemFd(size=1) as memory:
        request.set("still there")
        assert await pool.options(retries=3).run_sync(die_until, memory, 2) == 2
        with pytest.raises(WorkerDied):
            await pool.run_sync(die_until, memory, 3)
        assert await pool.run_sync(tasks.look) == "still there"


async def test_a_value_goes_on_into_a_pool_of_the_workers_own(pool: Pool) -> None:
    request.set("far away")
    assert await pool.run(tasks.look_in_a_pool) == "far away"


async def test_a_value_that_cannot_be_pickled_fails_its_caller_and_names_the_variable(pool: Pool) -> None:
    request.set("fine")
    both = pool.options(context=[NAME, f"{tasks.__name__}:other"])
    other.set(number for number in [1])
    with pytest.raises(TypeError, match="cannot pickle 'generator' object") as caught:
        await both.run_sync(tasks.look)
    variable = "tests.support.context_tasks:other"
    assert caught.value.__notes__ == [
        f"raised while pickling the value of the context variable '{variable}', a generator"
    ]
    # An argument's fault is not a variable's.
    other.set("fine")
    with pytest.raises(TypeError) as caught:
        await both.run_sync(tasks.look, (number for number in [1]))
    assert not hasattr(caught.value, "__notes__")
    assert await both.run_sync(tasks.look) == "fine"


BAD: list[tuple[Any, type[Exception], str]] = [
    (NAME, TypeError, "context is the string 'tests.support.context_tasks:request': it takes a list"),
    ([request], TypeError, "context names <ContextVar .*>, a ContextVar, not a string"),
    ([["a:b"]], TypeError, r"context names \['a:b'\], a list, not a string"),
    (["request"], ValueError, "context names 'request', which is not of the form 'package.module:variable'"),
    ([":request"], ValueError, "not of the form"),
    (["module:"], ValueError, "not of the form"),
    (["no_such_module:x"], ValueError, "cannot be imported: No module named 'no_such_module'"),
    ([f"{tasks.__name__}:missing"], ValueError, "there is no such variable: .* has no attribute 'missing'"),
    ([f"{tasks.__name__}:not_a_variable"], TypeError, "not_a_variable', a str and not a ContextVar"),
]


@pytest.mark.parametrize(("context", "error", "says"), BAD)
async def test_what_names_no_context_variable_is_refused(
    pool: Pool, context: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        async with open_pool(1, context=context):
            pass
    with pytest.raises(error, match=says):
        pool.options(context=context)


async def test_a_variable_may_be_an_attribute(pool: Pool) -> None:
    tasks.Holder.variable.set("held")
    assert await pool.options(context=[f"{tasks.__name__}:Holder.variable"]).run_sync(tasks.look_at_held) == "held"


@pytest.mark.parametrize("start", ["exec", "zygote"])
def test_a_variable_of_the_script_travels(start: str) -> None:
    result = run_python(REPOSITORY / "tests/programs/context_of_a_script.py", start)
    assert (result.stdout, result.stderr) == ("the script's\n", "")


def test_a_variable_of_a_script_without_a_file_is_refused() -> None:
    script = """if True:
        import contextvars, fdpool, trio
        variable = contextvars.ContextVar("variable")
        async def main():
            async with fdpool.open_pool(1, context=["__main__:variable"]):
                pass
        trio.run(main)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "ValueError: context names '__main__:variable': this __main__ has no file" in result.stderr


def test_a_future_has_the_context_of_where_it_was_submitted() -> None:
    with Executor(1, context=[NAME]) as executor:
        contexts = {number: contextvars.copy_context() for number in range(3)}
        for number, context in contexts.items():
            context.run(request.set, number)
        futures = {
            number: context.run(executor.submit, tasks.look_and_change, number) for number, context in contexts.items()
        }
        assert {number: future.result(30) for number, future in futures.items()} == {0: 0, 1: 1, 2: 2}
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(executor.submit(tasks.look).result(30)))
        thread.start()
        thread.join()
        assert found == ["nobody's"]
        items = contexts[2].run(executor.map, tasks.look_and_change, range(6), chunksize=3)
        assert list(items) == [2] * 6
