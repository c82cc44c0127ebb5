"""Streams: what a generator in a worker yields, item by item, as fast as its consumer takes it."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar

import trio

from fdpool.calls import Call, name_of
from fdpool.errors import RemoteError, TaskCancelled, WorkerDied
from fdpool.memory.context import gather_task
from fdpool.memory.exceptions import OwnContext
from fdpool.protocol.tasks import Operation, encode
from fdpool.protocol.window import ReceivingWindow, encode_taken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fdpool.caller import Caller
    from fdpool.calls import CallOptions, Reservation
    from fdpool.dispatch import Dispatcher
    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.transport import Message
    from fdpool.warehouse import Warehouse

T = TypeVar("T")

CANCELLED: Final = f"{TaskCancelled.__module__}.{TaskCancelled.__qualname__}"
"""What a worker says of a stream that has ended because it was asked to."""


class StreamCall(Call):
    """A call whose items come before its outcome, and are kept until they are taken.

    An item may have been seen before the worker dies, so that such a call is never run again once it has begun.

    Attributes:
      items: What has come: messages with their parcels, and errors in the place of those that were lost.
      window: How far the worker may be ahead.
    """

    __slots__ = ("_news", "items", "window")
    is_stream: ClassVar[bool] = True

    def __init__(
        self,
        number: int,
        name: str,
        packed: Packed,
        options: CallOptions,
        reservation: Reservation | None,
        *,
        is_async: bool,
    ) -> None:
        super().__init__(number, name, packed, options, reservation)
        self.is_async = is_async
        self.request = Operation.STREAM_ASYNC if is_async else Operation.STREAM
        self.retries = 0
        self.items: deque[tuple[Message, Parcel] | OSError] = deque()
        self.window = ReceivingWindow(options.stream_items, options.stream_bytes)
        self._news = trio.Event()

    def take_item(self, message: Message, parcel: Parcel) -> None:
        """Take in an item, and wake the consumer.

        Raises:
          RemoteProtocolError: it came beyond the window; *message* was closed.
        """
        try:
            self.window.arrived()
        except BaseException:
            message.close()
            raise
        if self.is_abandoned:
            message.close()
        else:
            self.items.append((message, parcel))
            self._news.set()

    def lose_item(self, error: OSError) -> None:
        """Take in why an item cannot be had, in its place. Raises as `take_item` does."""
        self.window.arrived()
        if not self.is_abandoned:
            self.items.append(error)
            self._news.set()

    def _drop_answer(self) -> None:
        """Keep the answer: what is raised while a stream is closed is for whoever closed it."""

    async def wait_news(self) -> None:
        """Wait for an item, the outcome, or `hurry`. Cancellation: nothing is taken."""
        if not (self.items or self.is_done):
            self._news = trio.Event()
            await self._news.wait()

    def hurry(self) -> None:
        """Wake the consumer."""
        self._news.set()

    def close(self) -> None:
        """Let go of every item that was not taken, and of the answer if it is there."""
        while self.items:
            item = self.items.popleft()
            if not isinstance(item, OSError):
                item[0].close()
        super()._drop_answer()

    def raised_while_closed(self) -> Exception | None:
        """Return what it raised since it was abandoned, if that is nobody's doing but its own."""
        try:
            self.outcome()
        except Exception as exc:
            if self.error is not None:
                # A worker that was killed for taking too long is what was asked for; one that crashed is not.
                has_crashed = self.worker is not None and not self.worker.was_killed_here
                return exc if isinstance(exc, WorkerDied) and has_crashed else None
            return None if isinstance(exc, RemoteError) and exc.type_name == CANCELLED else exc
        return None

    def _wake(self) -> None:
        super()._wake()
        self._news.set()


class Items(Generic[T]):
    """An async iterator over what a stream yields; made by `Pool.stream`. For one task at a time.

    Attributes:
      received: How many items were taken from it so far.
    """

    def __init__(self, call: StreamCall, memory: Warehouse) -> None:
        self.received = 0
        self._call = call
        self._memory = memory
        self._is_over = False
        self._is_closed = False
        self._is_taken = False

    def __aiter__(self) -> Self:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> T:
        """Return the next item, once it is there.

        Raises:
          StopAsyncIteration: there are no more, however often it is asked for them.
          Exception: what the generator raised, after all its items; or what loading this item raised: the next one
              can be asked for.
          WorkerDied: the worker ended, after the items that had come from it.
          FdLimitError, OSError: there is no room in this process for the item; the next one can be asked for.
          trio.BusyResourceError: another task waits for an item.
          trio.ClosedResourceError: the block of the stream was left; or the pool was closed.

        Cancellation: always a checkpoint. Nothing was taken.
        """
        if self._is_taken:
            raise trio.BusyResourceError("another task is iterating over this stream")
        self._is_taken = True
        try:
            await trio.lowlevel.checkpoint()
            return await self._next()
        finally:
            self._is_taken = False

    async def _next(self) -> T:
        call = self._call
        while not self._is_closed:
            if call.items:
                return self._take()
            if self._is_over:
                raise StopAsyncIteration
            if call.is_done:
                self._is_over = True
                call.outcome()
            elif call.window.is_due:
                await self._tell()
            else:
                await call.wait_news()
        raise trio.ClosedResourceError("the block of this stream was left")

    def _take(self) -> T:
        """Return the first item there is, or raise why it cannot be had."""
        call = self._call
        item = call.items.popleft()
        self.received += 1
        call.window.took(None if isinstance(item, OSError) else item[1].nbytes)
        if call.window.is_due and not call.is_done:
            self._tell_nowait()
        if isinstance(item, OSError):
            raise item
        value: T = call.open(*item)
        return value

    def _tell_nowait(self) -> None:
        """Tell the worker how many items were taken, unless that has to wait; then `_next` does, before it waits."""
        worker = self._call.worker
        assert worker is not None
        news = self._memory.news_for(worker)
        if news is None:
            self._call.window.told()
            return
        try:
            worker.channel.send_nowait(self._more(news.body))
        except (trio.WouldBlock, trio.BusyResourceError, OSError):
            self._memory.take_back_news(worker, news)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._memory.take_back_news(worker, news)
            self._call.window.told()
        else:
            self._call.window.told()

    async def _tell(self) -> None:
        """Tell the worker how many items were taken, as soon as there is room for it. Cancellation: it was not told."""
        worker = self._call.worker
        assert worker is not None
        async with worker.sending:
            news = self._memory.news_for(worker)
            if news is not None:
                try:
                    await worker.channel.send(self._more(news.body))
                except BaseException as exc:
                    self._memory.take_back_news(worker, news)
                    if not isinstance(exc, trio.BrokenResourceError | trio.ClosedResourceError):
                        raise
        self._call.window.told()

    def _more(self, news: bytes) -> bytes:
        return encode(Operation.MORE, self._call.number, encode_taken(self._call.window.taken, news))

    def close(self) -> None:
        """Let go of what was not taken, and of the task that waits for it."""
        self._is_closed = True
        self._call.close()
        self._call.hurry()


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_stream(
    caller: Caller, function: Callable[..., Any], args: Any, kwargs: Any, *, is_async: bool
) -> AsyncIterator[Items[Any]]:
    """Have a generator run while the block does, once there is room for its arguments; see that it has ended then.

    Raises:
      Exception: as `Pool.run_sync`, where the arguments cannot be sent.
      Exception: what the generator raised while it was closed, unless the block itself raised.

    Cancellation: always a checkpoint. The generator has ended before `trio.Cancelled` leaves.
    """
    await trio.lowlevel.checkpoint()
    dispatcher, memory, options = caller.dispatcher, caller.memory, caller.options
    name, task = name_of(function), (function, args, kwargs, options.stream_items, options.stream_bytes)
    async with memory.pack(gather_task(task, options.mapping, options.context)) as packed:
        call = StreamCall(next(dispatcher.numbers), name, packed, options, caller.reservation, is_async=is_async)
        items: Items[Any] = Items(call, memory)
        dispatcher.submit(call)
        try:
            yield items
        except BaseException as exc:
            error = await _end(dispatcher, call, items)
            if error is not None:
                exc.add_note(f"{name} raised {error!r} while it was closed")
            raise
        error = await _end(dispatcher, call, items)
    if error is not None:
        with OwnContext(error):
            raise error


@trio.lowlevel.enable_ki_protection
async def _end(dispatcher: Dispatcher, call: StreamCall, items: Items[Any]) -> Exception | None:
    """Stop the generator if it has not ended; return what it raised then."""
    was_done = call.is_done
    items.close()
    if was_done:
        return None
    try:
        await dispatcher.stop_call(call)
        return call.raised_while_closed() if call.is_done else None
    finally:
        call.close()
