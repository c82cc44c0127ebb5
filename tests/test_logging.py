"""End-to-end tests of log records on their way from workers to the loggers of the supervisor."""

from __future__ import annotations

import enum
import io
import logging
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio

from fdpool import Doorbell, WorkerDied, open_pool
from fdpool.errors import RemoteProtocolError
from tests.support import logging_tasks as tasks
from tests.support.tasks import pid, use_a_pool_of_its_own

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(autouse=True, params=["exec", "zygote"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with workers made in either way."""
    made: str = request.param
    monkeypatch.setitem(open_pool.__wrapped__.__kwdefaults__, "start", made)
    return made


class Kept(logging.Handler):
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextmanager
def kept(name: str = tasks.NAME) -> Iterator[Kept]:
    """Keep what arrives at the logger of that name, which others do not get."""
    handler, logger = Kept(), logging.getLogger(name)
    logger.addHandler(handler)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.propagate = True


@pytest.fixture
async def records() -> AsyncIterator[Kept]:
    with kept() as handler, trio.fail_after(60):
        yield handler


async def test_a_record_arrives_with_all_there_is_to_it(records: Kept) -> None:
    before = time.time()
    async with open_pool(1) as pool:
        worker, thread = await pool.run_sync(tasks.log_everything)
    [record] = records.records
    assert (record.name, record.levelname, record.msg) == (tasks.NAME, "ERROR", "part of 3")
    assert (record.process, record.processName, record.thread) == (worker, "fdpool-worker", thread)
    assert (record.funcName, record.module, record.threadName) == ("log_everything", "logging_tasks", "MainThread")
    assert record.pathname == tasks.__file__
    assert before < record.created < time.time()
    # Counted from the start of this process, as those of its own records.
    own = logging.makeLogRecord({})
    assert own.relativeCreated - record.relativeCreated == pytest.approx((own.created - record.created) * 1000, abs=2)
    assert record.exc_text is not None
    assert record.exc_text.endswith("LookupError: not there")
    assert 'in log_everything\n    raise LookupError("not there")' in record.exc_text
    assert record.stack_info is not None
    assert "in log_everything" in record.stack_info
    assert record.__dict__["request"] == {"id": 7}
    assert record.__dict__["lock"].startswith("<unlocked _thread.lock object at")
    assert logging.Formatter("%(process)d %(message)s").format(record).startswith(f"{worker} part of 3\nTraceback")


async def test_records_arrive_from_threads_async_calls_and_the_initializer(records: Kept) -> None:
    async with open_pool(1, initializer=tasks.log, initargs=("initializer",)) as pool:
        await pool.run_sync(tasks.log_in_thread, "thread")
        await pool.run(tasks.log_async, "async")
        async with pool.map_sync(tasks.log, ["map"]) as results:
            await anext(results)
    assert records.messages == ["initializer", "thread", "async", "map"]
    assert records.records[1].threadName == "the task's own"


async def test_without_forwarding_workers_log_as_they_like(records: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_pool(1, forward_logging=False) as pool:
        await pool.run_sync(tasks.log, "to standard error")
        assert await pool.run_sync(tasks.root_handlers) == []
    assert records.messages == []
    assert capfd.readouterr().err == "to standard error\n"


async def test_a_worker_knows_what_would_be_dropped_when_it_starts(
    records: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["root", "tests", tasks.NAME, "tests.other"]
    caplog.set_level(logging.ERROR, "tests")
    caplog.set_level(logging.INFO, tasks.NAME)
    async with open_pool(1) as pool:
        assert await pool.run_sync(tasks.levels, *names) == [logging.root.level, 40, 20, 40, 0]
        await pool.run_sync(tasks.log, "dropped", logging.DEBUG)
        await pool.run_sync(tasks.log, "kept", logging.INFO)
        # What is changed later counts here at once, and in workers that start from then on.
        caplog.set_level(logging.DEBUG, tasks.NAME)
        caplog.set_level(logging.CRITICAL, "tests")
        logging.disable(5)
        try:
            await pool.run_sync(tasks.log, "still not sent", logging.DEBUG)
            with pytest.raises(WorkerDied):
                await pool.run_sync(tasks.log_and_die, "last words")
            assert await pool.run_sync(tasks.levels, *names) == [logging.root.level, 50, 10, 50, 5]
            await pool.run_sync(tasks.log, "sent now", logging.DEBUG)
        finally:
            logging.disable(logging.NOTSET)
        caplog.set_level(logging.ERROR, tasks.NAME)
        await pool.run_sync(tasks.log, "sent and dropped here", logging.WARNING)
    assert records.messages == ["kept", "last words", "sent now"]


async def test_what_a_worker_logs_before_it_is_killed_arrives(records: Kept) -> None:
    async with open_pool(1) as pool:
        for number in range(5):
            with pytest.raises(WorkerDied):
                await pool.run_sync(tasks.log_and_die, f"{number}")
    assert records.messages == ["0", "1", "2", "3", "4"]


async def test_a_record_that_cannot_be_formatted_is_reported_and_the_others_arrive(
    records: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_pool(1) as pool:
        await pool.run_sync(tasks.log_sulky)
    assert records.messages == ["before", "after"]
    said = capfd.readouterr().err
    assert said.startswith("--- Logging error ---")
    assert "ValueError: no" in said
    assert "Message: 'sulky: %s'" in said


async def test_of_100_000_records_in_a_burst_none_is_lost_and_each_workers_are_in_order(records: Kept) -> None:
    workers = set()

    async def one() -> None:
        workers.add(await pool.run_sync(tasks.log_many, 50_000))

    async with open_pool(2) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    arrived: dict[int | None, list[str]] = {}
    for record in records.records:
        arrived.setdefault(record.process, []).append(record.msg)
    assert set(arrived) == workers
    assert all(messages == [f"{number}" for number in range(50_000)] for messages in arrived.values())
    assert len(workers) == 2


async def test_a_record_too_large_for_a_datagram_arrives_cut(records: Kept) -> None:
    async with open_pool(1) as pool:
        await pool.run_sync(tasks.log, "x" * 1_000_000)
    [message] = records.messages
    kept, note = message.split(" [… ")
    assert kept == "x" * len(kept)
    assert note == f"{1_000_000 - len(kept)} more characters are missing: a record travels in 65526 bytes]"
    assert len(kept) > 64_000


class Defect(logging.Filter):
    """What a user's filter or handler may do."""

    def filter(self, _record: logging.LogRecord) -> NoReturn:
        raise ZeroDivisionError("in a filter")


async def test_a_filter_that_raises_here_is_reported_and_the_pool_goes_on(
    records: Kept, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect = Defect()
    async with open_pool(1) as pool:
        records.addFilter(defect)
        worker = await pool.run_sync(tasks.log, "reported")
        monkeypatch.setattr(logging, "raiseExceptions", False)
        await pool.run_sync(tasks.log, "not even reported")
        records.removeFilter(defect)
        assert await pool.run_sync(tasks.log, "arrives") == worker
    assert records.messages == ["arrives"]
    said = capfd.readouterr().err
    assert said.count("--- Logging error ---") == 1
    assert "ZeroDivisionError: in a filter" in said
    assert "Message: 'reported'" in said


async def test_a_record_factory_is_used_and_may_raise(
    records: Kept, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = logging.LogRecord(*arguments, **more)
        record.tenant = 4 // len(missing)
        return record

    missing = [1]
    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    async with open_pool(1) as pool:
        await pool.run_sync(tasks.log, "first")
        missing.clear()
        await pool.run_sync(tasks.log, "second")
        missing.append(1)
        await pool.run_sync(tasks.log, "third")
    assert [(record.msg, record.__dict__["tenant"]) for record in records.records] == [("first", 4), ("third", 4)]
    said = capfd.readouterr().err
    assert "ZeroDivisionError" in said
    assert "Message: 'second'" in said


async def test_logging_while_handles_return_in_several_datagrams_confuses_nobody(records: Kept) -> None:
    async with open_pool(1) as pool:
        workers = {await pool.run_sync(pid)}
        for _ in range(20):
            for event in await pool.run_sync(tasks.log_while_handles_return, 300):
                assert event.read() == 1
                event.close()
        workers.add(await pool.run_sync(pid))
    assert len(workers) == 1
    assert records.messages == [f"{number}" for number in range(len(records.messages))]
    assert records.messages


async def test_interrupting_a_task_that_logs_in_a_loop_costs_neither_records_nor_the_worker(records: Kept) -> None:
    async with open_pool(1, grace_period=30) as pool:
        worker = await pool.run_sync(pid)
        for _ in range(200):
            async with Doorbell() as bell:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(pool.run_sync, tasks.ring_and_log_for_ever, bell._event)
                        await bell.wait()
                        scope.cancel()
        # Also from another thread: no lock was left behind.
        await pool.run_sync(tasks.log_in_thread, "thread")
        assert await pool.run_sync(pid) == worker
    *messages, last = records.messages
    assert last == "thread"
    assert set(messages) == {"in a loop"}


async def test_what_is_logged_at_the_end_of_a_worker_arrives(records: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_pool(1, max_tasks_per_worker=2) as pool:
        for number in range(3):
            await pool.run_sync(tasks.log_at_exit, f"at exit {number}")
            await pool.run_sync(tasks.log, f"{number}")
    assert set(records.messages) == {"0", "at exit 0", "1", "at exit 1", "2", "at exit 2"}
    assert capfd.readouterr().err == ""


async def test_a_thread_that_logs_through_the_end_of_its_worker_does_no_harm(
    records: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_pool(2) as pool:
        for _ in range(2):
            await pool.run_sync(tasks.log_for_ever_in_a_daemon)
        workers = pool._supervisor.workers
    assert {worker.status.exitcode for worker in workers if worker.status is not None} == {0}
    assert len(workers) == 2
    assert set(records.messages) == {"from a daemon"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("body", [b"", b"garbage"])
async def test_what_is_no_record_costs_the_worker_and_says_so(body: bytes) -> None:
    with trio.fail_after(60):
        async with open_pool(1) as pool:
            with pytest.raises(RemoteProtocolError, match="a log record cannot be loaded"):
                await pool.run_sync(tasks.send_as_record, body)
            assert await pool.run_sync(tasks.root_handlers) == ["RecordSender"]


async def test_a_child_that_a_task_forks_logs_as_well(records: Kept) -> None:
    async with open_pool(1) as pool:
        child = await pool.run_sync(tasks.log_in_forked_child, "from a child")
        process = await pool.run_sync(tasks.log_in_a_process, "from a process")
    assert [(record.msg, record.process) for record in records.records] == [
        ("from a child", child),
        ("from a process", process),
    ]
    assert records.records[1].processName == "the task's own"


async def test_records_of_a_pool_in_a_worker_come_all_the_way(records: Kept) -> None:
    async with open_pool(1) as pool:
        innermost = await pool.run(tasks.log_in_a_pool, "from far away")
        assert await pool.run_sync(use_a_pool_of_its_own, 1) == 2
    assert [(record.msg, record.process) for record in records.records] == [("from far away", innermost)]


async def test_warnings_that_are_captured_here_are_captured_in_workers() -> None:
    with kept("py.warnings") as records, warnings.catch_warnings(), trio.fail_after(60):
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        try:
            async with open_pool(1) as pool:
                await pool.run_sync(tasks.warn, "careful")
        finally:
            logging.captureWarnings(False)
    [message] = records.messages
    assert "logging_tasks.py" in message
    assert "UserWarning: careful" in message


@pytest.mark.parametrize("start", ["zygote"], indirect=True)
async def test_a_preloaded_module_that_sets_logging_up_does_not_double_records(
    records: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    with kept("tests.preload") as preloaded:
        async with open_pool(1, preload=["tests.support.logging_preload"]) as pool:
            assert await pool.run_sync(tasks.root_handlers) == ["RecordSender"]
            await pool.run_sync(tasks.log, "once")
    assert records.messages == ["once"]
    assert preloaded.messages == ["from a preloaded module's atexit"]
    assert capfd.readouterr().err == ""


async def test_a_level_may_be_an_enum_of_the_programs_own() -> None:
    class Level(enum.IntEnum):
        LOUD = logging.WARNING

    logger = logging.getLogger("fdpool.tests.of-an-enum")
    logger.setLevel(Level.LOUD)
    try:
        with trio.fail_after(30):
            async with open_pool(1) as pool:
                assert await pool.run_sync(tasks.log, "heard") == await pool.run_sync(pid)
    finally:
        logger.setLevel(logging.NOTSET)


async def test_a_handler_that_raises_where_stderr_is_closed_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raises(logging.Handler):
        def handle(self, _record: logging.LogRecord) -> NoReturn:
            raise ValueError("of the handler")

    closed = io.StringIO()
    closed.close()
    handler = Raises()
    logging.getLogger(tasks.NAME).addHandler(handler)
    monkeypatch.setattr("sys.stderr", closed)
    try:
        with trio.fail_after(30):
            async with open_pool(1, stderr="inherit") as pool:
                await pool.run_sync(tasks.log, "nobody hears")
                await pool.run_sync(tasks.log, "nobody hears")
    finally:
        monkeypatch.undo()
        logging.getLogger(tasks.NAME).removeHandler(handler)
