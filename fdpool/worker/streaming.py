"""Streams: what a generator yields goes out item by item, as far ahead of its consumer as its window allows."""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import TaskCancelled
from fdpool.memory.context import context_with
from fdpool.memory.handles import close_given
from fdpool.memory.pickling import pack, unpack
from fdpool.protocol.tasks import DURING_STREAM, WHATEVER_RUNS, Operation, decode
from fdpool.protocol.window import SendingWindow
from fdpool.worker.channel import SupervisorGone
from fdpool.worker.forks import leave_if_forked
from fdpool.worker.loop import drop_quietly, name_of, pack_error, pack_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.memory.received import MappingMode
    from fdpool.transport import Message
from fdpool.worker.loop import Server

_END: Final = object()


def run_stream(server: Server, call: int, flags: int, body: memoryview, message: Message) -> bool:
    """Run the stream of a plain function and answer when it has ended; return whether `STOP` came meanwhile."""
    server.page.begun_call = call
    server.report_begun(call, flags)
    parcel = server.parcel_of(call, body, message)
    if parcel is None:
        return False
    stream = _Stream(server, call)
    # Dropped in one place, once it is answered.
    remains: list[object] = []
    operation, packed = stream.run(parcel, message, remains)
    handles = packed.handles
    server.send(operation, call, packed)
    drop_quietly(handles, stream.errors, remains)
    return stream.is_told_to_stop


class Outlet:
    """Sends the items of one stream, and knows how far ahead of its consumer it is.

    Args:
      function: What makes the items, for people.
      mode: How the consumer maps their big buffers.
    """

    def __init__(
        self, server: Server, call: int, function: Callable[..., Any], mode: MappingMode, items: int, nbytes: int
    ) -> None:
        self.window = SendingWindow(items, nbytes)
        self._server = server
        self._call = call
        self._function = function
        self._mode = mode
        self._sent: list[object] = []

    def send(self, item: object) -> None:
        """Send an item.

        Raises:
          Exception: it cannot be packed, or one of its handles cannot travel; nothing was sent.
          SupervisorGone: nobody takes it any more.
        """
        if self._sent:
            # The generator has gone on by now, and let go of the handles it yielded before.
            drop_quietly(self._sent)
        try:
            packed = pack(item, self._mode)
        except BaseException as exc:
            exc.add_note(f"raised while packing an item of {name_of(self._function)}, a {type(item).__name__}")
            raise
        with closing(packed):
            if packed.handles:
                self._sent.append(item)
            error = self._server.try_send(Operation.ITEM, self._call, packed)
            if error is not None:
                raise error
            close_given(packed.given)
            self.window.sent(packed.nbytes)


class _Stream:
    """The stream of a plain function, which has this process to itself.

    Only the generator's own code can be interrupted: a message, once begun, is sent whole.

    Attributes:
      errors: What it raised, and what it raised when it was closed.
      is_told_to_stop: Whether this process is to exit once the stream has ended.
    """

    def __init__(self, server: Server, call: int) -> None:
        self.errors: list[BaseException] = []
        self.is_told_to_stop = False
        self._server = server
        self._call = call
        self._window = SendingWindow(1, 1)
        self._is_unwanted = False
        self._context: Context | None = None

    def run(self, parcel: Parcel, message: Message, remains: list[object]) -> tuple[Operation, Packed]:
        """Send the items, and return what came of it all; what else is left behind goes into *remains*.

        Raises:
          SupervisorGone: nobody takes them any more.
        """
        iterator: Any = None
        is_whole = False
        try:
            function, args, kwargs, items, nbytes, *carried = unpack(parcel, message.handles)
            remains.append((args, kwargs, carried))
            if carried:
                self._context = context_with(*carried)
            iterator = self._server.calls.call(self._call, self._in_context(_iterate), (function, args, kwargs), {})
            leave_if_forked()
            outlet = Outlet(self._server, self._call, function, parcel.mode, items, nbytes)
            remains.append(outlet)
            self._window = outlet.window
            advance = self._in_context(next)
            while self._wait_for_room():
                item = self._server.calls.call(self._call, advance, (iterator, _END), {})
                leave_if_forked()
                if item is _END:
                    is_whole = True
                    break
                if self._is_ending:
                    break
                outlet.send(item)
                # Not to be kept while the next one is made.
                del item
        except SupervisorGone:
            raise
        except BaseException as exc:
            leave_if_forked(exc)
            (remains if isinstance(exc, TaskCancelled) and self._is_interrupted else self.errors).append(exc)
        self._close(iterator)
        leave_if_forked()
        self._context = None
        remains.append(iterator)
        if self.errors:
            return Operation.ERROR, pack_error(self.errors[0])
        return pack_result(None, None, parcel.mode) if is_whole else (Operation.ERROR, pack_error(TaskCancelled()))

    def _in_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls *function* as the generator's code is to be called: in its context, if it has one."""
        return function if self._context is None else partial(self._context.run, function)

    @property
    def _is_interrupted(self) -> bool:
        return self._server.page.cancelled_call == self._call

    @property
    def _is_ending(self) -> bool:
        """Whether no more items are wanted."""
        return self._is_unwanted or self._is_interrupted

    def _wait_for_room(self) -> bool:
        """Take in what was said, and wait until one more item may be made; return False if none is wanted any more."""
        server = self._server
        while server.channel.is_readable:
            self._hear(server.next_message(server.channel.receive_nowait))
        while not (self._is_ending or self._window.has_room):
            server.settle()
            self._hear(server.next_message(server.channel.receive))
        return not self._is_ending

    def _hear(self, message: Message | None) -> None:
        if message is None:
            return
        operation, flags, call, body = decode(message.payload, DURING_STREAM)
        if operation is Operation.MORE:
            taken = self._server.hear_of_more(body, message)
            # What is said of an earlier stream may come late.
            if call == self._call:
                self._window.taken(taken)
        elif operation is Operation.MEMORY:
            self._server.hear_of_memory(flags, body, message)
        elif operation is Operation.STOP:
            self.is_told_to_stop = True
        elif call in (self._call, WHATEVER_RUNS):
            self._is_unwanted = True

    def _close(self, iterator: Any) -> None:
        """Have the generator clean up, if it has not ended."""
        close = getattr(iterator, "close", None)
        if close is None:
            return
        close = self._in_context(close)
        try:
            try:
                self._server.calls.call(self._call, close, (), {})
            except TaskCancelled:
                # Interrupted, now or before: what cleans up after that is left alone.
                close()
        except BaseException as exc:
            for error in self.errors:
                error.add_note(f"raised as well when the stream was closed: {exc!r}")
            self.errors.append(exc)


def _iterate(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Call *function*, and return an iterator over what it returns."""
    value = function(*args, **kwargs)
    kind = type(value).__name__
    if isinstance(value, AsyncIterable):
        raise TypeError(f"{name_of(function)} returned {kind} and is no async generator function")
    try:
        return iter(value)
    except TypeError as exc:
        raise TypeError(f"{name_of(function)} returned {kind}, which cannot be iterated over") from exc
