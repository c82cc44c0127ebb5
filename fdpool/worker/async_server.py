"""Async calls, side by side in the worker's own trio loop. Loaded with the first of them, and trio with it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import trio

from fdpool.errors import TaskCancelled
from fdpool.memory.context import set_values
from fdpool.memory.pickling import unpack
from fdpool.protocol.tasks import AT_NEXT_ITEM, TO_WORKER, WHATEVER_RUNS, Operation, decode
from fdpool.worker.async_stream import AsyncStream
from fdpool.worker.channel import SupervisorGone
from fdpool.worker.forks import end_astray, is_forked, leave_if_forked
from fdpool.worker.loop import pack_error, pack_result

if TYPE_CHECKING:
    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.transport import Message
    from fdpool.worker.loop import Server


def serve_async(server: Server, first: Message) -> bool:
    """Go on serving from within trio, beginning with *first*; return whether there is more to come.

    Returns as soon as no async call is left: a plain function may then run trio itself.

    Raises:
      SupervisorGone: nobody waits for the answers any more.
    """
    loop = _Loop(server)
    with server.within_loop():
        trio.run(loop.serve, first, instruments=[_Parting()])
    if loop.is_orphaned:
        raise SupervisorGone
    return not loop.is_stopped


class _Parting(trio.abc.Instrument):
    """Keeps a process that a task forked from waiting: it would take events away from the worker.

    Both have the same epoll instance, and an event that one of them receives does not come to the other.
    """

    def before_io_wait(self, _timeout: float) -> None:
        if is_forked():
            end_astray()


class _Loop:
    """The calls under way, each with the scope that cancels it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scopes: dict[int, trio.CancelScope] = {}
        self._streams: dict[int, AsyncStream] = {}
        self._nursery: trio.Nursery
        self._patience = trio.CancelScope()
        self.is_orphaned = False
        self.is_stopped = False

    async def serve(self, first: Message) -> None:
        """Serve until no call is left, or the supervisor is gone; being told to stop ends no call."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch_supervisor)
            self._take(first)
            while self._scopes:
                with trio.CancelScope() as self._patience:
                    await trio.lowlevel.wait_readable(self._server.channel)
                if not self._scopes:
                    # What came meanwhile is taken up outside of trio.
                    break
                message = self._server.next_message(self._server.channel.receive_nowait)
                if message is not None:
                    self._take(message)
                self._server.settle()
            self._nursery.cancel_scope.cancel()

    async def _watch_supervisor(self) -> None:
        await trio.lowlevel.wait_readable(self._server.channel.supervisor)
        self.is_orphaned = True
        self._nursery.cancel_scope.cancel()

    def _take(self, message: Message) -> None:
        """Do what a message asks for."""
        operation, flags, call, body = decode(message.payload, TO_WORKER)
        if operation in (Operation.RUN_ASYNC, Operation.STREAM_ASYNC):
            self._server.report_begun(call, flags)
            parcel = self._server.parcel_of(call, body, message)
            if parcel is not None:
                self._scopes[call] = trio.CancelScope()
                if operation is Operation.STREAM_ASYNC:
                    self._streams[call] = AsyncStream(self._server, call, self._scopes[call])
                self._nursery.start_soon(self._run, call, parcel, message)
        elif operation is Operation.CANCEL:
            for number in [number for number in self._scopes if call in (number, WHATEVER_RUNS)]:
                self._cancel(number, at_next_item=bool(flags & AT_NEXT_ITEM))
        elif operation is Operation.MORE:
            taken = self._server.hear_of_more(body, message)
            # What is said of a stream that has ended may come late.
            if call in self._streams:
                self._streams[call].taken(taken)
        elif operation is Operation.MEMORY:
            self._server.hear_of_memory(flags, body, message)
        elif operation is Operation.RUN:
            # A plain function has the process to itself while it runs; the supervisor sees to it that this is rare.
            self._server.run(call, flags, body, message)
        else:
            self.is_stopped = True

    def _cancel(self, call: int, *, at_next_item: bool) -> None:
        if call in self._streams:
            self._streams[call].cancel(at_next_item=at_next_item)
        else:
            self._scopes[call].cancel()

    async def _run(self, call: int, parcel: Parcel, message: Message) -> None:
        """Run one call and send what came of it."""
        remains: list[object] = []
        had_handles = bool(message.handles) or call in self._streams
        operation, packed = await self._outcome(call, parcel, message, remains)
        self._server.answer(operation, call, packed, remains, had_handles=had_handles)
        self._server.settle()
        if not self._scopes:
            self._patience.cancel()

    async def _outcome(
        self, call: int, parcel: Parcel, message: Message, remains: list[object]
    ) -> tuple[Operation, Packed]:
        stream = self._streams.get(call)
        try:
            with self._scopes[call]:
                if stream is None:
                    function, args, kwargs, *carried = unpack(parcel, message.handles)
                    remains.append((args, kwargs, carried))
                    if carried:
                        # A task's context is its own.
                        set_values(*carried)
                    value: Any = await _awaitable(function, args, kwargs)
                    leave_if_forked()
                    remains.append(value)
                    return pack_result(function, value, parcel.mode)
                if await stream.run(parcel, message, remains):
                    return pack_result(None, None, parcel.mode)
            return Operation.ERROR, pack_error(TaskCancelled())
        except trio.Cancelled:
            # This whole loop is being cancelled, and nobody waits for the answer.
            raise
        except BaseException as exc:
            leave_if_forked(exc)
            remains.append(exc)
            return Operation.ERROR, pack_error(exc)
        finally:
            del self._scopes[call]
            self._streams.pop(call, None)


def _awaitable(function: Any, args: Any, kwargs: Any) -> Any:
    outcome = function(*args, **kwargs)
    if not inspect.isawaitable(outcome):
        raise TypeError(f"{function!r} returned a {type(outcome).__name__}, not an awaitable: call it with run_sync")
    return outcome
