"""The stream of one async generator, beside the worker's other async calls. Loaded with trio, by the first of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import trio

from fdpool.memory.context import set_values
from fdpool.memory.pickling import unpack
from fdpool.worker.forks import leave_if_forked
from fdpool.worker.streaming import Outlet

if TYPE_CHECKING:
    from fdpool.memory.parcel import Parcel
    from fdpool.protocol.window import SendingWindow
    from fdpool.transport import Message
    from fdpool.worker.loop import Server


class AsyncStream:
    """Sends the items of an async generator, in one task from its beginning to its end.

    Args:
      scope: Of that task. Entered by its caller around all of it, the generator's own cleaning up included: a generator
          may yield inside a cancel scope of its own.
    """

    def __init__(self, server: Server, call: int, scope: trio.CancelScope) -> None:
        self._server = server
        self._call = call
        self._scope = scope
        self._window: SendingWindow | None = None
        self._news = trio.Event()
        self._is_waiting = False
        self._is_ending = False

    def taken(self, total: int) -> None:
        """Take in how many items the consumer has taken by now."""
        if self._window is not None:
            self._window.taken(total)
            self._news.set()

    def cancel(self, *, at_next_item: bool) -> None:
        """End it: where it waits for its consumer, and then unhurt; or else at once, unless *at_next_item*."""
        self._is_ending = True
        if self._is_waiting or at_next_item:
            self._news.set()
        else:
            self._scope.cancel()

    async def run(self, parcel: Parcel, message: Message, remains: list[object]) -> bool:
        """Send the items; what is left behind goes into *remains*.

        Returns:
          Whether there are no more, and not only nobody who wants them.

        Raises:
          Exception: what loading the arguments, the generator, or packing an item raised.
          SupervisorGone: nobody takes the items any more.
        """
        function, args, kwargs, items, nbytes, *carried = unpack(parcel, message.handles)
        remains.append((args, kwargs, carried))
        if carried:
            # A task's context is its own.
            set_values(*carried)
        outlet = Outlet(self._server, self._call, function, parcel.mode, items, nbytes)
        remains.append(outlet)
        self._window = outlet.window
        generator: Any = function(*args, **kwargs)
        leave_if_forked()
        if not inspect.isasyncgen(generator):
            raise TypeError(f"{function!r} returned a {type(generator).__name__}, not an async generator")
        try:
            while await self._wait_for_room(self._window):
                try:
                    item = await anext(generator)
                except StopAsyncIteration:
                    leave_if_forked()
                    return True
                leave_if_forked()
                if self._is_ending:
                    return False
                outlet.send(item)
                # Not to be kept while the next one is made.
                del item
            return False
        finally:
            await generator.aclose()

    async def _wait_for_room(self, window: SendingWindow) -> bool:
        """Wait until one more item may be made; return False if none is wanted any more."""
        while not (self._is_ending or window.has_room):
            self._news = trio.Event()
            self._is_waiting = True
            try:
                await self._news.wait()
            finally:
                self._is_waiting = False
        return not self._is_ending
