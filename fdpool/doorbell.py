"""Doorbell: an eventfd that a trio task waits on and that anyone who holds it rings."""

from __future__ import annotations

import threading

import trio

from fdpool.kernel import EventFd


class Doorbell(trio.abc.AsyncResource):
    """Wakes a task from another task, thread or process. Owns its eventfd; send that to share the bell.

    Args:
      event: The eventfd to wait on, given up to the doorbell; a new one by default.
    """

    def __init__(self, event: EventFd | None = None) -> None:
        self._event = EventFd() if event is None else event
        # A thread that rings must not be overtaken by close(): its number could be somebody else's by then.
        # Reentrant, because a signal handler may ring at any moment.
        self._ringing = threading.RLock()

    def fileno(self) -> int:
        """Return the eventfd's descriptor number, or -1 once closed."""
        return self._event.fileno()

    def ring(self, n: int = 1) -> None:
        """Add *n* to what the next `wait` returns. From any thread; never blocks.

        Raises:
          ValueError: *n* is not 1 to 2**64 - 2.
          trio.ClosedResourceError: it was closed.
          BlockingIOError: 2**64 - 2 rings are waiting already.
        """
        with self._ringing:
            self._check_open()
            self._event.write(n)

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> int:
        """Wait until it was rung, and return how often since the last wait.

        Raises:
          trio.BusyResourceError: another task is waiting on it.
          trio.ClosedResourceError: it was closed, before or during the call.

        Cancellation: always a checkpoint. After `trio.Cancelled` no ring was taken.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check_open()
            try:
                rings = self._event.read()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._event)
            else:
                break
        await trio.lowlevel.cancel_shielded_checkpoint()
        return rings

    def close(self) -> None:
        """Close it; a task that waits gets `trio.ClosedResourceError`. May be called twice."""
        # Outside of trio, as in a plain function of a worker, there is nobody to wake.
        if not self._event.closed and trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._event)
        with self._ringing:
            self._event.close()

    async def aclose(self) -> None:
        """Close it, as `close` does."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __reduce__(self) -> tuple[type[Doorbell], tuple[EventFd]]:
        return type(self), (self._event,)

    def __repr__(self) -> str:
        return f"<Doorbell {'closed' if self._event.closed else f'fd={self.fileno()}'}>"

    def _check_open(self) -> None:
        if self._event.closed:
            raise trio.ClosedResourceError("this doorbell is closed")
