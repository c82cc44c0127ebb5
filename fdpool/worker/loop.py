"""The loop of a worker: wait for a call, run it, answer; until told to stop, or until the supervisor is gone."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import traceback
import warnings
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import FdLimitError
from fdpool.kernel import MemFd, PidFd
from fdpool.kernel.process_control import die_with_parent
from fdpool.memory.arena import IDLE_SECONDS, arena
from fdpool.memory.exchange import Exchange
from fdpool.memory.functions import set_main_loader
from fdpool.memory.pickling import pack, pack_in_band, unpack
from fdpool.memory.received import watch_pages
from fdpool.protocol.page import ControlPage
from fdpool.protocol.tasks import REPORT_BEGUN, TO_WORKER, TRIM, Operation, decode, encode
from fdpool.worker.channel import BlockingChannel, SupervisorGone
from fdpool.worker.main_module import load_main

if TYPE_CHECKING:
    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.transport import Message

EXIT_CHANNEL_LOST: Final = 70  # EX_SOFTWARE, sysexits.h


def run_worker(channel_fd: int, page_fd: int, supervisor_fd: int) -> int:
    """Serve calls on inherited descriptors; return the exit code."""
    for number in (channel_fd, page_fd, supervisor_fd):
        # They had to survive one exec to get here; what a task executes must not get them.
        os.set_inheritable(number, False)
    with ExitStack() as stack:
        supervisor = stack.enter_context(PidFd.adopt(supervisor_fd))
        die_with_parent(supervisor)
        # A handler instead of SIG_IGN: that one would be inherited by every program a task executes.
        signal.signal(signal.SIGINT, _ignore_interrupt)
        with MemFd.adopt(page_fd) as memory:
            page = ControlPage(memory.map(writable=True))
        channel = BlockingChannel(socket.socket(fileno=channel_fd), supervisor)
        stack.callback(channel.close)
        try:
            with channel.receive() as message:
                _apply_settings(message)
            channel.send_bytes(encode(Operation.READY))
            _serve(channel, page)
        except SupervisorGone:
            return 0
        except OSError as exc:
            print(f"fdpool worker {os.getpid()}: the channel to its supervisor is lost: {exc}", file=sys.stderr)
            # The descriptors may be somebody else's by now: leave them to the kernel.
            os._exit(EXIT_CHANNEL_LOST)
    return 0


def _serve(channel: BlockingChannel, page: ControlPage) -> None:
    exchange = Exchange()
    arena().retain()
    watch_pages()
    while True:
        try:
            message = channel.receive()
        except FdLimitError as exc:
            # The call's handles are lost, but not the call: its payload says whose it was.
            _, _, call, body = decode(exc.data, TO_WORKER)
            page.begun_call = call
            exchange.decline(body)
            _send_packed(channel, exchange, Operation.ERROR, call, _pack_error(exc))
            continue
        operation, flags, call, body = decode(message.payload, TO_WORKER)
        if operation is Operation.STOP:
            return
        if operation is Operation.MEMORY:
            exchange.take_in(body, message.handles)
            if flags & TRIM:
                arena().trim(IDLE_SECONDS)
        else:
            page.begun_call = call
            if flags & REPORT_BEGUN:
                channel.send_bytes(encode(Operation.BEGUN, call))
            _answer(channel, exchange, call, body, message)
        if exchange.has_news:
            channel.send_bytes(encode(Operation.MEMORY, 0, exchange.wrap().body))


def _answer(channel: BlockingChannel, exchange: Exchange, call: int, body: memoryview, message: Message) -> None:
    """Run one call and send what came of it."""
    try:
        parcel = exchange.take_in(body, message.handles)
        assert parcel is not None, "every call has a parcel"
    except OSError as exc:
        message.close()
        _send_packed(channel, exchange, Operation.ERROR, call, _pack_error(exc))
        return
    had_handles = bool(message.handles)
    # What the call leaves behind stays here until it has been answered, so that it can be dropped in one place.
    remains: list[object] = []
    operation, packed = _run(parcel, message, remains)
    handles = packed.handles
    if not had_handles and not handles:
        # Arguments that end now are given back by the answer itself, which looking for the pages that were written
        # delays: by 2 ms and more for each GiB that this worker has touched there, by 8 µs for what it never did.
        remains.clear()
    try:
        _send_packed(channel, exchange, operation, call, packed)
    except (OSError, TypeError, ValueError) as exc:
        exc.add_note("raised by a handle in the result: it was closed, or there are too many")
        _send_packed(channel, exchange, Operation.ERROR, call, _pack_error(exc))
    if remains:
        with warnings.catch_warnings():
            # Handles that the task neither kept nor closed are closed here, which is what its author may expect.
            warnings.simplefilter("ignore", ResourceWarning)
            handles.clear()
            remains.clear()


def _send_packed(channel: BlockingChannel, exchange: Exchange, operation: Operation, call: int, packed: Packed) -> None:
    """Send an answer. Raises as `BlockingChannel.outgoing` does, and nothing was sent then."""
    wrapped = exchange.wrap(packed)
    try:
        outgoing = channel.outgoing(encode(operation, call, wrapped.body), wrapped.handles)
    except BaseException:
        exchange.take_back(wrapped)
        raise
    finally:
        packed.close()
    channel.send(outgoing)


def _run(parcel: Parcel, message: Message, remains: list[object]) -> tuple[Operation, Packed]:
    function: Any = None
    try:
        function, args, kwargs = unpack(parcel, message.handles)
        remains.append((args, kwargs))
        value = function(*args, **kwargs)
        remains.append(value)
    except BaseException as exc:
        remains.append(exc)
        return Operation.ERROR, _pack_error(exc)
    try:
        return Operation.RESULT, pack(value, parcel.mode)
    except BaseException as exc:
        exc.add_note(f"raised while packing the result of {_name_of(function)}, a {type(value).__name__}")
        return Operation.ERROR, _pack_error(exc)


def _pack_error(error: BaseException) -> Packed:
    """Pack an exception as text and, where it can be pickled, as itself."""
    kind = type(error)
    own_frames = error.__traceback__ and error.__traceback__.tb_next
    trace = "".join(traceback.format_exception(kind, error, own_frames))
    try:
        pickled = pack_in_band(error)
    except Exception:
        pickled = b""
    try:
        text = str(error)
    except Exception as exc:
        text = f"<its __str__ raised {type(exc).__name__}>"
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return pack((name, text, trace, pickled))


def _apply_settings(message: Message) -> None:
    _, _, _, body = decode(message.payload, frozenset({Operation.SETTINGS}))
    settings: dict[str, Any] = pickle.loads(body)
    sys.path[:] = settings["sys_path"]
    sys.argv[:] = settings["argv"]
    if settings["python_path"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = settings["python_path"]
    set_main_loader(partial(load_main, settings["main_module"], settings["main_path"]))


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _ignore_interrupt(_number: int, _frame: object) -> None:
    """Leave Ctrl-C at a terminal, which every process of the group gets, to the supervisor."""
