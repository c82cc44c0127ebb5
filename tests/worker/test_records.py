"""Contract tests for the handler that sends a worker's log records, with a transport at the other end."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fdpool.kernel import EventFd, PidFd
from fdpool.protocol.records import decode_record
from fdpool.protocol.tasks import FROM_WORKER, Operation, decode
from fdpool.transport import Transport
from fdpool.worker.channel import BlockingChannel, SideChannel
from fdpool.worker.records import RecordSender
from tests.support.interrupts import interrupt_at

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ends:
    """A logger whose records are sent, and the other end of the channel."""

    def __init__(self, supervisor: PidFd) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel = BlockingChannel(ours, supervisor)
        self.transport = Transport(theirs)
        self.sender = RecordSender(SideChannel(self.channel))
        self.logger = logging.Logger("a")
        self.logger.addHandler(self.sender)

    def received(self) -> list[dict[str, Any]]:
        """Return the records that have arrived since."""
        fields = []
        try:
            while True:
                message = self.transport.receive_next(socket.MSG_DONTWAIT)
                assert message is not None
                operation, _, _, body = decode(message.payload, FROM_WORKER)
                assert operation is Operation.LOG
                fields.append(decode_record(body))
        except BlockingIOError:
            return fields

    def messages(self) -> list[str]:
        return [fields["msg"] for fields in self.received()]


@pytest.fixture
def ends() -> Iterator[Ends]:
    with PidFd.current() as supervisor:
        ends = Ends(supervisor)
        yield ends
        ends.sender.stop()
        ends.sender.close()
        ends.channel.close()
        ends.transport.close()


def test_the_record_itself_stays_as_it_is_for_other_handlers(ends: Ends) -> None:
    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    seen: list[logging.LogRecord] = []
    ends.logger.addHandler(Other())
    error = KeyError("key")
    ends.logger.error("%s", "text", extra={"opaque": error}, exc_info=error)
    assert seen[0].exc_info == (KeyError, error, None)
    assert seen[0].__dict__["opaque"] is error
    assert (seen[0].msg, seen[0].args, seen[0].exc_text) == ("%s", ("text",), None)
    [fields] = ends.received()
    assert (fields["msg"], fields["opaque"]) == ("text", "KeyError('key')")
    assert fields["exc_text"].endswith("KeyError: 'key'")
    assert not {"args", "exc_info", "message", "relativeCreated"} & set(fields)


def test_what_another_formatter_made_of_a_traceback_is_sent(ends: Ends) -> None:
    record = logging.makeLogRecord({"levelno": 30, "exc_info": (KeyError, KeyError(1), None), "exc_text": "in short"})
    ends.logger.handle(record)
    assert [fields["exc_text"] for fields in ends.received()] == ["in short"]


def test_a_name_that_somebody_gave_the_process_is_kept(ends: Ends) -> None:
    ends.logger.handle(logging.makeLogRecord({"levelno": 30, "processName": "the task's own"}))
    ends.logger.handle(logging.makeLogRecord({"levelno": 30, "processName": "MainProcess"}))
    assert [fields["processName"] for fields in ends.received()] == ["the task's own", "fdpool-worker"]


def test_filters_of_the_handler_count(ends: Ends) -> None:
    ends.sender.addFilter(lambda record: record.msg != "unwanted")
    ends.logger.warning("unwanted")
    ends.logger.warning("wanted")
    assert ends.messages() == ["wanted"]


def test_it_has_no_lock_that_could_be_left_locked(ends: Ends) -> None:
    assert ends.sender.lock is None
    with_lock: Any = ends.sender
    with_lock.acquire()
    thread = threading.Thread(target=ends.logger.warning, args=("went on",))
    thread.start()
    thread.join(5)
    with_lock.release()
    assert ends.messages() == ["went on"]


def test_an_exception_at_any_bytecode_of_a_log_call_sends_the_record_or_does_not(ends: Ends) -> None:
    ends.logger.warning("warm")
    assert ends.messages() == ["warm"]
    outcomes = set()
    for step in itertools.count():
        was_raised = False
        try:
            with interrupt_at(step, __file__):
                ends.logger.warning("%s", "text", extra={"opaque": ends})
        except KeyboardInterrupt:
            was_raised = True
        received = ends.messages()
        assert received in ([], ["text"])
        outcomes.add((was_raised, bool(received)))
        if not was_raised:
            break
    # Before the datagram was sent and after it, and at last not at all.
    assert outcomes == {(True, False), (True, True), (False, True)}
    thread = threading.Thread(target=ends.logger.warning, args=("still",))
    thread.start()
    thread.join(5)
    assert ends.messages() == ["still"]


def test_a_record_logged_in_the_middle_of_an_answer_stands_between_its_datagrams(ends: Ends) -> None:
    class Chatty(EventFd):
        """A handle that logs when it is asked for its number, as is done once more when its datagram leaves."""

        def fileno(self) -> int:
            ends.logger.warning("asked")
            return super().fileno()

    arrived: list[tuple[int, int]] = []
    with EventFd() as event, Chatty() as chatty:
        with ends.channel.outgoing(bytes([Operation.RESULT]), [*[event] * 299, chatty]) as outgoing:
            assert set(ends.messages()) == {"asked"}
            ends.channel.send(outgoing)
        while len(arrived) < 2:
            message = ends.transport.receive_next(socket.MSG_DONTWAIT)
            if message is not None:
                arrived.append((message.payload[0], len(message.handles)))
                message.close()
    # The record was sent after the first datagram of the answer, and arrives before the answer is whole.
    assert arrived == [(Operation.LOG, 0), (Operation.RESULT, 300)]


def test_nobody_hears_of_records_once_the_supervisor_is_gone(ends: Ends, capfd: pytest.CaptureFixture[str]) -> None:
    ends.transport.close()
    for _ in range(2):
        ends.logger.warning("to nobody")
    assert capfd.readouterr().err == ""


def test_after_the_end_nothing_is_sent_and_nothing_is_said(ends: Ends, capfd: pytest.CaptureFixture[str]) -> None:
    ends.sender.stop()
    ends.logger.warning("too late")
    ends.channel.close()
    ends.logger.warning("far too late")
    assert ends.messages() == []
    assert capfd.readouterr().err == ""


def test_a_channel_that_a_task_closed_is_reported(ends: Ends, capfd: pytest.CaptureFixture[str]) -> None:
    assert ends.sender._channel is not None
    ends.sender._channel.close()
    ends.logger.warning("nowhere to go")
    said = capfd.readouterr().err
    assert said.startswith("--- Logging error ---")
    assert "Bad file descriptor" in said
