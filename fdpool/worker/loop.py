"""The loop of a worker: wait for a call, run it, answer; until told to stop, or until the supervisor is gone."""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import sys
import threading
import warnings
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import FdLimitError
from fdpool.kernel import MemFd, PidFd
from fdpool.kernel.process_control import die_with_parent, name_process
from fdpool.memory.arena import IDLE_SECONDS, arena
from fdpool.memory.context import context_with
from fdpool.memory.exceptions import tell
from fdpool.memory.exchange import Exchange
from fdpool.memory.functions import set_main_loader
from fdpool.memory.pickling import pack, unpack, unpack_in_band
from fdpool.memory.received import watch_pages
from fdpool.protocol.page import ControlPage
from fdpool.protocol.tasks import REPORT_BEGUN, TO_WORKER, TRIM, Operation, decode, encode
from fdpool.protocol.window import decode_taken
from fdpool.worker.channel import BlockingChannel, SupervisorGone
from fdpool.worker.ending import write_out
from fdpool.worker.forks import leave_if_forked, part_with_forks
from fdpool.worker.interrupt import Interruptible
from fdpool.worker.limits import apply_limits, note_limit
from fdpool.worker.main_module import load_main, stand_in_for_main
from fdpool.worker.output import keep_lines_whole
from fdpool.worker.vitals import answer_dump_signal, report_crashes, start_beating
from fdpool.worker.warning_filters import apply_warning_filters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.memory.received import MappingMode
    from fdpool.transport import Message

EXIT_CHANNEL_LOST: Final = 70  # EX_SOFTWARE, sysexits.h
EXIT_NOT_INITIALIZED: Final = 78  # EX_CONFIG


def run_worker(channel_fd: int, page_fd: int, lifeline_fd: int, supervisor_fd: int) -> int:
    """Serve calls on inherited descriptors; return the exit code."""
    for number in (channel_fd, page_fd, lifeline_fd, supervisor_fd):
        # They had to survive one exec to get here; what a task executes must not get them.
        os.set_inheritable(number, False)
    code = 0
    with ExitStack() as stack:
        supervisor = stack.enter_context(PidFd.adopt(supervisor_fd))
        die_with_parent(supervisor)
        name_process("fdpool-worker")
        memory = stack.enter_context(MemFd.adopt(page_fd))
        page = ControlPage(memory.map(writable=True))
        calls = Interruptible(page)
        answer_dump_signal(memory)
        page.answers_dumps = True
        # Held, and nothing else: its owner is this process's group; see kill_group_on_close.
        stack.enter_context(socket.socket(fileno=lifeline_fd))
        channel = BlockingChannel(socket.socket(fileno=channel_fd), supervisor)
        stack.callback(channel.close)
        part_with_forks(channel, calls.forget)
        try:
            with channel.receive() as message:
                _, _, _, body = decode(message.payload, frozenset({Operation.SETTINGS}))
                settings = pickle.loads(body)
            # They are sent once this process leads a group, so that what it starts from now on dies with it.
            apply_settings(settings)
            if settings["records"] is not None:
                from fdpool.worker.records import forward_records

                stack.callback(forward_records(channel, settings["records"]).stop)
            apply_limits(settings["limits"])
            if settings["beat_interval"] is not None:
                start_beating(page, settings["beat_interval"])
            if settings["initializer"] is not None and not _initialize(channel, settings["initializer"]):
                code = EXIT_NOT_INITIALIZED
            else:
                channel.send_bytes(encode(Operation.READY))
                Server(channel, page, calls).serve()
        except SupervisorGone:
            pass
        except OSError as exc:
            print(f"fdpool worker {os.getpid()}: the channel to its supervisor is lost: {exc}", file=sys.stderr)
            # The descriptors may be somebody else's by now: leave them to the kernel.
            os._exit(EXIT_CHANNEL_LOST)
        # As long as there is a channel: what is logged meanwhile still arrives.
        end_program()
    return code


class Server:
    """Runs the calls that come over a channel, one at a time, until it is told to stop."""

    def __init__(self, channel: BlockingChannel, page: ControlPage, calls: Interruptible) -> None:
        self.channel = channel
        self.exchange = Exchange(cleans_later=True)
        self.page = page
        self.calls = calls
        arena().retain()
        watch_pages()

    def serve(self) -> None:
        """Take one message after the other until `STOP`, or until the first async call, which brings trio along."""
        while True:
            message = self.next_message(self.channel.receive)
            if message is None:
                continue
            operation, flags, call, body = decode(message.payload, TO_WORKER)
            if operation in (Operation.RUN_ASYNC, Operation.STREAM_ASYNC):
                from fdpool.worker.async_server import serve_async

                if serve_async(self, message):
                    continue
                return
            if operation is Operation.STOP:
                return
            if operation is Operation.RUN:
                self.run(call, flags, body, message)
            elif operation is Operation.STREAM:
                from fdpool.worker.streaming import run_stream

                if run_stream(self, call, flags, body, message):
                    return
            elif operation is Operation.MEMORY:
                self.hear_of_memory(flags, body, message)
            elif operation is Operation.MORE:
                self.hear_of_more(body, message)
            self.settle()

    @contextmanager
    def within_loop(self) -> Iterator[None]:
        """Say that the calls of the block are made from within a trio loop that is not theirs."""
        self.calls.has_loop = True
        try:
            yield
        finally:
            self.calls.has_loop = False

    def next_message(self, receive: Callable[[], Message | None]) -> Message | None:
        """Return what *receive* returns; answer for a call whose handles did not arrive, and return None."""
        try:
            return receive()
        except FdLimitError as exc:
            # The call's handles are lost, but not the call: its payload says whose it was.
            _, _, call, body = decode(exc.data, TO_WORKER)
            self.page.begun_call = call
            self.exchange.decline(body)
            self.send(Operation.ERROR, call, pack_error(exc))
            return None

    def run(self, call: int, flags: int, body: memoryview, message: Message) -> None:
        """Run one call and send what came of it."""
        self.page.begun_call = call
        self.report_begun(call, flags)
        parcel = self.parcel_of(call, body, message)
        if parcel is None:
            return
        had_handles = bool(message.handles)
        # What the call leaves behind stays here until it is answered, so that it can be dropped in one place.
        remains: list[object] = []
        operation, packed = self._run(call, parcel, message, remains)
        self.answer(operation, call, packed, remains, had_handles=had_handles)

    def answer(
        self, operation: Operation, call: int, packed: Packed, remains: list[object], *, had_handles: bool
    ) -> None:
        """Send what came of a call, and drop what it leaves behind: *remains*, and the handles in the answer."""
        handles = packed.handles
        if not had_handles and not handles:
            # Arguments that end now are given back by the answer itself.
            remains.clear()
        self.send(operation, call, packed)
        if remains:
            drop_quietly(handles, remains)

    def parcel_of(self, call: int, body: memoryview, message: Message) -> Parcel | None:
        """Return what a call is about; answer for one whose memory cannot be mapped, and return None."""
        try:
            return self.exchange.take_in(body, message.handles)
        except OSError as exc:
            message.close()
            self.send(Operation.ERROR, call, pack_error(exc))
            return None

    def hear_of_memory(self, flags: int, body: memoryview, message: Message) -> None:
        """Take in news about memory."""
        self.exchange.take_in(body, message.handles)
        if flags & TRIM:
            arena().trim(IDLE_SECONDS)

    def hear_of_more(self, body: memoryview, message: Message) -> int:
        """Take in the news that come with how many items of a stream were taken; return how many that is."""
        taken, news = decode_taken(body)
        self.hear_of_memory(0, news, message)
        return taken

    def settle(self) -> None:
        """Say what memory was let go of, if no answer has said so, and drop what was written there.

        Behind the answer, because to look for the pages that were written takes 7 ms for each GiB that was read.
        """
        if self.exchange.has_news:
            self.channel.send_bytes(encode(Operation.MEMORY, 0, self.exchange.wrap().body))
        self.exchange.clean()

    def report_begun(self, call: int, flags: int) -> None:
        """Say that the call's handles have arrived, if the supervisor wants to know."""
        if flags & REPORT_BEGUN:
            self.channel.send_bytes(encode(Operation.BEGUN, call))

    def send(self, operation: Operation, call: int, packed: Packed) -> None:
        """Send an answer; one with a handle that cannot travel becomes an error. *packed* is closed."""
        with closing(packed):
            error = self.try_send(operation, call, packed)
            if error is not None:
                self.send(Operation.ERROR, call, pack_error(error))

    def try_send(self, operation: Operation, call: int, packed: Packed) -> Exception | None:
        """Send a message about a call; or return why one of its handles cannot travel, nothing having been sent."""
        wrapped = self.exchange.wrap(packed)
        payload = encode(operation, call, wrapped.body)
        if not wrapped.handles and self.channel.send_bare(payload):
            return None
        try:
            outgoing = self.channel.outgoing(payload, wrapped.handles)
        except (OSError, TypeError, ValueError) as exc:
            self.exchange.take_back(wrapped)
            exc.add_note("raised by a handle in the result: it was closed, or there are too many")
            return exc
        self.channel.send(outgoing)
        return None

    def _run(self, call: int, parcel: Parcel, message: Message, remains: list[object]) -> tuple[Operation, Packed]:
        try:
            function, args, kwargs, *carried = unpack(parcel, message.handles)
            remains.append((args, kwargs, carried))
            in_context = partial(context_with(*carried).run, function) if carried else function
            value = self.calls.call(call, in_context, args, kwargs)
            remains.append(value)
        except BaseException as exc:
            leave_if_forked(exc)
            remains.append(exc)
            return Operation.ERROR, pack_error(exc)
        leave_if_forked()
        return pack_result(function, value, parcel.mode)


def pack_result(function: Any, value: object, mode: MappingMode) -> tuple[Operation, Packed]:
    """Pack what *function* returned, or why that cannot be packed."""
    try:
        return Operation.RESULT, pack(value, mode)
    except BaseException as exc:
        exc.add_note(f"raised while packing the result of {name_of(function)}, a {type(value).__name__}")
        return Operation.ERROR, pack_error(exc)


def pack_error(error: BaseException) -> Packed:
    """Pack what a task raised; if it met a limit, the error names it."""
    note_limit(error)
    return pack(tell(error))


def drop_quietly(*lists: list[Any]) -> None:
    """Empty *lists*: handles in them that the task neither kept nor closed are closed, as its author may expect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for things in lists:
            things.clear()


def _initialize(channel: BlockingChannel, initializer: bytes) -> bool:
    """Call the user's initializer; tell the supervisor and return False if it raises."""
    try:
        function, args = unpack_in_band(initializer)
        function(*args)
    except BaseException as exc:
        _, _, trace, _, _ = tell(exc)
        channel.send_bytes(encode(Operation.NOT_READY, body=f"its initializer raised:\n{trace}".encode()))
        return False
    return True


def end_program() -> None:
    """Do what an interpreter does at its end for its user: wait for threads, call what was registered, flush."""
    # As multiprocessing does; an interpreter that ends in the ordinary way finds nothing left to do.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    write_out()


def apply_settings(settings: dict[str, Any]) -> None:
    """Make this process like the one that started it; see `worker_settings`."""
    if settings["reports_crashes"]:
        report_crashes()
    sys.path[:] = settings["sys_path"]
    sys.argv[:] = settings["argv"]
    if settings["python_path"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = settings["python_path"]
    keep_lines_whole()
    apply_warning_filters(settings["warning_filters"])
    stand_in_for_main()
    set_main_loader(partial(load_main, settings["main_module"], settings["main_path"]))


def name_of(function: Any) -> str:
    """Return how a function is called in messages to people."""
    return getattr(function, "__qualname__", None) or repr(function)
