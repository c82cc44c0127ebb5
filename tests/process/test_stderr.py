"""Contract tests for the pipe that a process's stderr is."""

from __future__ import annotations

import os
import resource
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import assert_checkpoints

from fdpool.process.outfit import Outfit
from fdpool.process.stderr import StderrPipe, StderrPipes
from tests.support.attempts import cancel_at_every_step
from tests.support.leaks import descriptor_count, open_descriptors
from tests.support.own_stderr import bytes_in, fill, open_pipe, read_exactly, stderr_is

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdpool.kernel import OwnedFd
    from tests.support.sweep import CancellationPoint


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, pipes: StderrPipes) -> tuple[StderrPipe, OwnedFd]:
    """Open a pipe; return it and the end that a process would have."""
    pipe = pipes.open_pipe()
    stack.callback(pipe.close)
    assert pipe.writer is not None
    writer = stack.enter_context(pipe.writer.duplicate())
    pipe.close_writer()
    return pipe, writer


async def test_what_is_written_is_passed_on_unchanged_and_the_end_remembered(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        pipe, writer = opened(stack, StderrPipes("tail"))
    text = b"first \xff\n" + bytes(range(256)) * 1000 + b"\nlast"
    thread = threading.Thread(target=write_and_close, args=(writer, text))
    thread.start()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.read)
            assert await read_exactly(ours, len(text)) == text
    thread.join()
    assert pipe.tail.endswith("\nlast")
    assert len(pipe.tail) <= 4096


def write_and_close(writer: OwnedFd, text: bytes) -> None:
    with writer.into_file("wb", buffering=0) as file:
        while text:
            text = text[file.write(text) :]


async def test_what_is_captured_is_not_passed_on(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        pipe, writer = opened(stack, StderrPipes("capture"))
    write_and_close(writer, b"between us")
    with assert_checkpoints():
        await pipe.read()
    assert pipe.tail == "between us"
    assert bytes_in(ours) == 0


async def test_of_what_is_inherited_nothing_is_known() -> None:
    pipe = StderrPipes("inherit").open_pipe()
    assert pipe.writer is None
    pipe.drain()
    with assert_checkpoints():
        await pipe.read_on()
    assert pipe.tail == pipe.last_words == ""


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="stderr is 'keep': it is one of 'tail', 'inherit', 'capture'"):
        StderrPipes("keep")  # type: ignore[arg-type]


def test_draining_takes_in_what_is_there_and_waits_for_nothing(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        pipe, writer = opened(stack, StderrPipes("tail"))
    pipe.drain()
    assert pipe.tail == ""
    os.write(writer.fileno(), b"one\n")
    pipe.drain()
    assert pipe.tail == "one"
    os.write(writer.fileno(), b"two\n" + b"x" * 60_000)
    writer.close()
    pipe.drain()
    assert pipe.tail.startswith("one\ntwo\nxxx")
    assert os.read(ours.fileno(), 100_000) == b"one\ntwo\n" + b"x" * 60_000
    assert pipe._reader is None


def test_draining_ends_however_fast_others_write(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, writer = opened(stack, StderrPipes("capture"))
    read = os.read

    def read_and_write(number: int, size: int) -> bytes:
        data = read(number, size)
        os.write(writer.fileno(), bytes(1000))
        return data

    os.write(writer.fileno(), bytes(1000))
    monkeypatch.setattr(os, "read", read_and_write)
    pipe.drain()
    assert pipe._reader is not None


async def test_the_bytes_of_one_reading_stay_together(stack: ExitStack) -> None:
    """While one waits for room in the middle of its words, another one does not put its own in between."""
    ours, theirs = stack.enter_context(open_pipe())
    pipes = StderrPipes("tail")
    with stderr_is(theirs):
        (first, first_writer), (second, second_writer) = opened(stack, pipes), opened(stack, pipes)
    size = fill(theirs)
    os.write(first_writer.fileno(), b"1" * 50_000)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.read)
            await trio.testing.wait_all_tasks_blocked()
            os.write(second_writer.fileno(), b"2" * 50_000)
            second.drain()
            nursery.start_soon(second.read)
            assert await read_exactly(ours, size + 100_000) == bytes(size) + b"1" * 50_000 + b"2" * 50_000
            first_writer.close()
            second_writer.close()


async def test_whoever_writes_waits_while_nothing_can_be_passed_on(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        pipe, writer = opened(stack, StderrPipes("tail"))
    size = fill(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.read)
        written = 0
        for _ in range(5):
            written += fill(writer)
            await trio.testing.wait_all_tasks_blocked()
        # What was read once, and what the pipe holds; no more, however long nobody reads on.
        assert written == 2 * 65536
        assert await read_exactly(ours, size + written) == bytes(size + written)
        nursery.cancel_scope.cancel()


async def test_cancelling_at_any_point_loses_nothing(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    pipes = StderrPipes("tail")

    async def attempt(point: CancellationPoint) -> None:
        with ExitStack() as each, stderr_is(theirs):
            pipe, writer = opened(each, pipes)
            size = fill(theirs)
            os.write(writer.fileno(), b"words")
            writer.close()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_exactly, ours, size)
                with point:
                    await pipe.read()
            await pipe.read_on()
        assert await read_exactly(ours, 5) == b"words"

    assert await cancel_at_every_step(attempt) > 2


async def test_reading_on_ends_with_the_last_who_has_it_open(stack: ExitStack) -> None:
    pipe, writer = opened(stack, StderrPipes("capture"))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.read_on)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer.fileno(), b"from somebody it left behind")
            writer.close()
    assert pipe.tail == "from somebody it left behind"


async def test_reading_on_that_is_cancelled_takes_along_what_is_there(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        pipe, writer = opened(stack, StderrPipes("tail"))
    with trio.CancelScope() as scope:
        scope.cancel()
        os.write(writer.fileno(), b"at the end")
        await pipe.read_on()
    assert os.read(ours.fileno(), 100) == b"at the end"
    with pytest.raises(BrokenPipeError):
        os.write(writer.fileno(), b"too late")


async def test_the_end_does_not_wait_for_ever_for_one_that_takes_nothing(
    stack: ExitStack, autojump_clock: trio.testing.MockClock
) -> None:
    _, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        pipe, writer = opened(stack, StderrPipes("tail"))
    fill(theirs)
    os.write(writer.fileno(), b"nobody will ever know")
    started = trio.current_time()
    with trio.CancelScope() as scope:
        scope.cancel()
        await pipe.read_on()
    assert trio.current_time() - started == 1.0


async def test_many_pipes_share_one_descriptor_of_the_own_stderr(stack: ExitStack) -> None:
    _, theirs = stack.enter_context(open_pipe())
    before = descriptor_count()
    with stderr_is(theirs):
        pipes = StderrPipes("tail")
        several = [pipes.open_pipe() for _ in range(5)]
        for pipe in several:
            pipe.close_writer()
        # One that is like it may be another one tomorrow.
        assert descriptor_count() == before + 1 + 5 + 1
        for pipe in several:
            pipe.close()
        assert descriptor_count() == before + 1
        again, _ = opened(stack, pipes)
        again.close()


async def test_a_pipe_goes_on_passing_on_to_what_was_stderr_when_it_was_made(stack: ExitStack) -> None:
    ours, theirs = stack.enter_context(open_pipe())
    other_ours, other_theirs = stack.enter_context(open_pipe())
    pipes = StderrPipes("tail")
    with stderr_is(theirs):
        first, first_writer = opened(stack, pipes)
        with stderr_is(other_theirs):
            second, second_writer = opened(stack, pipes)
            write_and_close(first_writer, b"one")
            write_and_close(second_writer, b"two")
            first.drain()
            second.drain()
    assert os.read(ours.fileno(), 100) == b"one"
    assert os.read(other_ours.fileno(), 100) == b"two"


async def test_without_a_stderr_nothing_is_passed_on_and_all_remembered(stack: ExitStack) -> None:
    """The number is that of something which a program would not get: closed and used again for a file, most likely."""
    ours, theirs = stack.enter_context(open_pipe())
    with stderr_is(theirs):
        os.set_inheritable(2, False)
        pipe, writer = opened(stack, StderrPipes("tail"))
        write_and_close(writer, b"into the void")
        await pipe.read_on()
    assert pipe.tail == "into the void"
    assert bytes_in(ours) == 0


@pytest.mark.parametrize("make", [lambda pipes: pipes.open_pipe(), Outfit], ids=["pipe", "outfit"])
def test_no_room_for_a_descriptor_is_an_error_and_nothing_is_left(make: Any, stack: ExitStack) -> None:
    _, theirs = stack.enter_context(open_pipe())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    with stderr_is(theirs):
        before = open_descriptors()
        for limit in range(3, max(before) + 20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                made = make(StderrPipes("tail"))
            except OSError:
                refused += 1
            else:
                made.__exit__() if isinstance(made, Outfit) else made.close()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert open_descriptors() == before
    assert 0 < refused < max(before) + 17
