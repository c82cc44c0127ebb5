"""Delivery: calls go into a worker's queue, and come back out of it if it has not received them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from fdpool.protocol.tasks import BEGINS, REPORT_BEGUN, TO_WORKER, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.calls import Call
    from fdpool.memory.exchange import Wrapped
    from fdpool.seat import Seat
    from fdpool.warehouse import Warehouse


class Delivery:
    """Sends calls to workers, and keeps the account of the memory that goes with them.

    Args:
      nursery: Where it can wait for room in a worker's queue.
      memory: What the workers are lent, and lend.
      on_failure: Called with a call that was not sent after all, its seat, and why.
    """

    def __init__(
        self, nursery: trio.Nursery, memory: Warehouse, on_failure: Callable[[Call, Seat, Exception], None]
    ) -> None:
        self._nursery = nursery
        self._memory = memory
        self._on_failure = on_failure

    def send(self, call: Call, seat: Seat) -> None:
        """Send *call* to a worker that can begin it now."""
        seat.add(call)
        seat.since = trio.current_time()
        call.is_long = False
        try:
            wrapped = self._wrap(call, seat)
            seat.worker.channel.send_nowait(_payload(call, wrapped), wrapped.handles)
            call.is_sent = True
        except (trio.WouldBlock, trio.BusyResourceError):
            call.is_long = True
            self._nursery.start_soon(self._send_patiently, call, seat)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The worker is dead, and the supervisor is about to say so; the call goes to another one then.
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._fail(call, seat, exc)

    def send_ahead(self, call: Call, seat: Seat) -> bool:
        """Put *call* into the queue of a busy worker; return whether that worked.

        Raises:
          OSError, TypeError, ValueError: it cannot be sent, to this worker or any other.
        """
        try:
            wrapped = self._wrap(call, seat)
            seat.worker.channel.send_nowait(_payload(call, wrapped), wrapped.handles)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self._unwrap(call)
            return False
        except (OSError, TypeError, ValueError):
            self._unwrap(call)
            raise
        call.is_sent = True
        seat.add(call)
        return True

    def take_back(self, seat: Seat) -> list[Call]:
        """Take out of a worker's queue what it has not received; return the calls, in their order."""
        taken = []
        for payload in seat.worker.take_back():
            operation, _, number, _ = decode(payload, TO_WORKER)
            if operation in BEGINS:
                call = seat.remove(number)
                if call is not None:
                    self._unwrap(call)
                    taken.append(call)
            else:
                # News of memory that lay between the calls, for one: said again.
                self.say(seat, payload)
        return taken

    def say(self, seat: Seat, payload: bytes) -> None:
        """Send a message that is no call, as soon as there is room for it."""
        self._nursery.start_soon(self._say_patiently, seat, payload)

    @trio.lowlevel.enable_ki_protection
    async def _send_patiently(self, call: Call, seat: Seat) -> None:
        """Send a call that takes several datagrams, or has to wait for descriptors in flight to land."""
        assert call.wrapped is not None
        try:
            async with seat.worker.sending:
                await seat.worker.channel.send(_payload(call, call.wrapped), call.wrapped.handles)
            call.is_sent = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (OSError, TypeError, ValueError) as exc:
            self._fail(call, seat, exc)

    @trio.lowlevel.enable_ki_protection
    async def _say_patiently(self, seat: Seat, payload: bytes) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with seat.worker.sending:
                await seat.worker.channel.send(payload)

    def _fail(self, call: Call, seat: Seat, error: Exception) -> None:
        if seat.remove(call.number) is not None:
            self._unwrap(call)
            self._on_failure(call, seat, error)

    def _wrap(self, call: Call, seat: Seat) -> Wrapped:
        call.worker = seat.worker
        call.is_sent = False
        call.wrapped = self._memory.wrap(seat.worker, call.packed)
        return call.wrapped

    def _unwrap(self, call: Call) -> None:
        """Undo what was noted about memory for a call that was not sent, or was taken back."""
        if call.wrapped is not None and call.worker is not None:
            self._memory.take_back(call.worker, call.wrapped)
            call.wrapped = None


def _payload(call: Call, wrapped: Wrapped) -> bytes:
    flags = REPORT_BEGUN if call.packed.given else 0
    return encode(call.request, call.number, wrapped.body, flags)
