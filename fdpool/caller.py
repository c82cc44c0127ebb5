"""How a call is made: taken apart, let in when there is room for it, given to the dispatcher, and waited for."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import trio

from fdpool.calls import Call, name_of
from fdpool.memory.context import gather_task
from fdpool.protocol.tasks import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.calls import CallOptions, Reservation
    from fdpool.dispatch import Dispatcher
    from fdpool.memory.pickling import Gathered
    from fdpool.warehouse import Warehouse


class Caller:
    """Makes calls that are all treated alike.

    Args:
      dispatcher: Who finds workers for them.
      memory: Whose budget they keep to.
      options: How they are treated.
      reservation: Whose worker alone runs them, if one is set aside.
    """

    def __init__(
        self, dispatcher: Dispatcher, memory: Warehouse, options: CallOptions, reservation: Reservation | None = None
    ) -> None:
        self.dispatcher = dispatcher
        self.memory = memory
        self.options = options
        self.reservation = reservation

    async def run(self, function: Callable[..., Any], args: Any, kwargs: Any, *, is_async: bool = False) -> Any:
        """Make a call; return what it returned, or raise what it raised. See `fdpool.Pool.run_sync`."""
        gathered = self.gather(function, args, kwargs, is_async=is_async)
        call = await self._perform(name_of(function), gathered, is_async)
        return call.outcome()

    async def run_chunk(self, name: str, is_async: bool, function: Callable[..., Any], *args: Any) -> tuple[Any, int]:
        """Make a call of several items, under the name of what they are for; return what came of it, and how big."""
        gathered = gather_task((function, args, {}), self.options.mapping, self.options.context)
        call = await self._perform(name, gathered, is_async)
        nbytes = call.answer_bytes
        return call.outcome(), nbytes

    async def _perform(self, name: str, gathered: Gathered, is_async: bool) -> Call:
        """Have a call run when there is room for what has to be copied, and return it when it is done."""
        if gathered.nbytes:
            await self.memory.budget.acquire(gathered.nbytes)
        call = self.make(name, gathered, is_async=is_async)
        try:
            await self._wait_for(call)
        finally:
            self.let_go(call)
        return call

    @trio.lowlevel.enable_ki_protection
    async def _wait_for(self, call: Call) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.dispatcher.submit(call)
        try:
            if self.options.on_cancel == "wait":
                with trio.CancelScope(shield=True):
                    await call.wait_done()
            else:
                await call.wait_done()
        except BaseException:
            await self.dispatcher.stop_call(call)
            raise

    # The steps of a call, for who makes one without a task that waits for it.

    def gather(self, function: Callable[..., Any], args: Any, kwargs: Any, *, is_async: bool = False) -> Gathered:
        """Take a call apart.

        Raises:
          TypeError: *function* cannot be called, or is one for the other kind of call.
          Exception: whatever pickling raises.
        """
        check_callable(function)
        if not is_async and inspect.iscoroutinefunction(function):
            raise TypeError(f"{name_of(function)} is an async function: call it with run, not with run_sync")
        return gather_task((function, args, kwargs), self.options.mapping, self.options.context)

    def make(self, name: str, gathered: Gathered, *, is_async: bool = False) -> Call:
        """Copy what has to be copied; return a call to be submitted, and to be let go of when it is done.

        The room for what it copies was acquired from the budget, and is given back if this raises.

        Raises:
          OSError: as `Gathered.pack`.
        """
        try:
            packed = gathered.pack()
        except BaseException:
            self.memory.budget.release(gathered.nbytes)
            raise
        call = Call(next(self.dispatcher.numbers), name, packed, self.options, self.reservation)
        call.copied_bytes = gathered.nbytes
        if is_async:
            call.is_async, call.request = True, Operation.RUN_ASYNC
        return call

    def let_go(self, call: Call) -> None:
        """Give back what a call took that is done."""
        call.packed.close()
        if call.copied_bytes:
            self.memory.budget.release(call.copied_bytes)


def check_callable(function: object) -> None:
    """Raise a `TypeError` if *function* cannot be called: here, rather than in a worker."""
    if not callable(function):
        raise TypeError(f"a {type(function).__name__} cannot be called: the function comes first, then its arguments")
