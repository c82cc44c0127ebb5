"""Calls: what one is asked to do, how it may be treated, and what came of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import trio

from fdpool.errors import RemoteError, RemoteProtocolError
from fdpool.memory.exceptions import OwnContext, rebuild, tell
from fdpool.memory.parcel import MODES
from fdpool.memory.pickling import unpack
from fdpool.protocol.tasks import Operation
from fdpool.protocol.window import STREAM_BYTES, STREAM_ITEMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.memory.context import Variable
    from fdpool.memory.exchange import Wrapped
    from fdpool.memory.parcel import Packed, Parcel
    from fdpool.memory.received import MappingMode
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message

OnCancel = Literal["interrupt", "kill", "wait"]


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a call is treated.

    Args:
      on_cancel: What cancelling does to a call that runs. `"interrupt"` raises `TaskCancelled` in it, so that its
          `finally` blocks run and the worker stays warm, and kills the worker after *grace_period*. `"kill"` kills
          it at once. `"wait"` lets the call finish: it cannot be cancelled, and returns its result.
      grace_period: Seconds an interrupted call has to end.
      retries: How often the call is run again if its worker dies, which only its caller can know to be harmless.
      mapping: How its big buffers arrive.
      stream_items: How many items of a stream may wait for their consumer.
      stream_bytes: From how many bytes on no further item of a stream is made while others wait.
      context: The context variables that have their caller's values while it runs.
    """

    on_cancel: OnCancel = "interrupt"
    grace_period: float = 1.0
    retries: int = 0
    mapping: MappingMode = "private"
    stream_items: int = STREAM_ITEMS
    stream_bytes: int = STREAM_BYTES
    context: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        if self.on_cancel not in ("interrupt", "kill", "wait"):
            raise ValueError(f"on_cancel is {self.on_cancel!r}: it is one of 'interrupt', 'kill', 'wait'")
        if self.mapping not in MODES:
            raise ValueError(f"mapping is {self.mapping!r}, and not one of {', '.join(MODES)}")
        if self.grace_period < 0:
            raise ValueError(f"grace_period is {self.grace_period} seconds: it cannot be negative")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}: it cannot be negative")
        if self.stream_items < 1:
            raise ValueError(f"stream_items is {self.stream_items}: at least 1 item must be allowed under way")
        if self.stream_bytes < 1:
            raise ValueError(f"stream_bytes is {self.stream_bytes}: at least 1 byte must be allowed under way")


class Call:
    """One call, from its arguments packed to its outcome known.

    Attributes:
      copied_bytes: Room in the budget that it takes.
      request: What asks a worker for it.
      on_done: Called once it has ended.
      is_sent: Whether all of it was put into the queue of its worker.
      is_stream: Whether there is more to come of it than an outcome.
    """

    is_stream: ClassVar[bool] = False

    __slots__ = (
        "begins",
        "copied_bytes",
        "error",
        "is_abandoned",
        "is_async",
        "is_long",
        "is_sent",
        "message",
        "name",
        "number",
        "on_done",
        "operation",
        "options",
        "packed",
        "parcel",
        "request",
        "reservation",
        "retries",
        "worker",
        "wrapped",
    )

    def __init__(
        self, number: int, name: str, packed: Packed, options: CallOptions, reservation: Reservation | None = None
    ) -> None:
        self.number = number
        self.name = name
        self.packed = packed
        self.options = options
        self.copied_bytes = 0
        self.retries = options.retries
        self.reservation = reservation
        self.on_done: Callable[[], object] | None = None
        self.request = Operation.RUN
        self.operation = Operation.RESULT
        self.message: Message | None = None
        self.parcel: Parcel | None = None
        self.worker: WorkerProcess | None = None
        self.wrapped: Wrapped | None = None
        self.error: Exception | None = None
        self.is_abandoned = False
        self.is_async = False
        self.is_long = False
        self.is_sent = False
        self.begins: Callable[[], bool] | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.message is not None or self.error is not None

    @property
    def is_exclusive(self) -> bool:
        """Whether nothing else can be on its worker as long as it is: it hears what is said to that process."""
        return self.is_stream and not self.is_async

    @property
    def answer_bytes(self) -> int:
        """How big the answer is, until it is taken."""
        return 0 if self.parcel is None else self.parcel.nbytes

    def may_begin(self) -> bool:
        """Ask, just before it is sent for the first time, whether it still should be."""
        begins, self.begins = self.begins, None
        return begins is None or begins()

    def take_item(self, message: Message, _parcel: Parcel) -> None:
        """Take in an item of a stream.

        Raises:
          RemoteProtocolError: this is no stream, or it has no room for one more; *message* was closed.
        """
        message.close()
        raise RemoteProtocolError(f"an item came for {self.name}, which is no stream")

    def lose_item(self, error: OSError) -> None:
        """Take in that an item of a stream cannot be had, and why. Raises as `take_item` does."""
        raise RemoteProtocolError(f"an item came for {self.name}, which is no stream") from error

    def finish(self, operation: Operation, message: Message, parcel: Parcel) -> None:
        """Take in the answer, and say so."""
        self.operation, self.message, self.parcel = operation, message, parcel
        if self.is_abandoned:
            self._drop_answer()
        self._wake()

    def abandon(self) -> None:
        """Note that nobody wants its outcome any more, which may be there already."""
        self.is_abandoned = True
        self._drop_answer()

    def fail(self, error: Exception) -> None:
        """Take in why there is no answer, and say so."""
        self.error = error
        self._wake()

    async def wait_done(self) -> None:
        """Wait until it has ended, in one task. Cancellation: the call goes on, and can be waited for again."""
        if self.is_done:
            return
        self.on_done = partial(trio.lowlevel.reschedule, trio.lowlevel.current_task())

        def abort(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            self.on_done = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def outcome(self) -> Any:
        """Return what the call returned, or raise what it raised. To be called once, when it is done."""
        if self.error is not None:
            raise self.error
        assert self.message is not None
        assert self.parcel is not None
        value = self.open(self.message, self.parcel)
        if self.operation is Operation.RESULT:
            return value
        error = rebuild(value)
        with OwnContext(error):
            raise error

    def open(self, message: Message, parcel: Parcel) -> Any:
        """Return the objects in a message of this call, which is closed."""
        with message:
            try:
                return unpack(parcel, message.handles)
            except RemoteProtocolError:
                # Whoever breaks the rules once cannot be believed again.
                if self.worker is not None:
                    self.worker.kill()
                raise
            except SystemExit as exc:
                # Loading runs code of the objects; exiting this program is nothing that a result may do.
                name, text, trace, *_ = tell(exc)
                raise RemoteError(name, text, trace) from None

    def _drop_answer(self) -> None:
        if self.message is not None:
            self.message.close()
            self.parcel = None

    def _wake(self) -> None:
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            on_done()


class Reservation:
    """A worker set aside, or the wish for one; with the calls that wait for it alone.

    Attributes:
      number: Its place in line, among the calls.
      worker: The worker, as long as there is one.
      granted: Set once there is one, or once there will be none.
      is_being_served: Whether calls are being sent to it just now.
      is_held: Whether whoever wished for it has taken it; until then, one that dies is replaced by another.
      refusal: Makes the error that says why there is none, or none any more.
      waiting: Calls that it has not been sent yet.
    """

    __slots__ = ("granted", "is_being_served", "is_held", "number", "refusal", "waiting", "worker")

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: WorkerProcess | None = None
        self.granted = trio.Event()
        self.is_held = False
        self.is_being_served = False
        self.refusal: Callable[[], Exception] | None = None
        self.waiting: deque[Call] = deque()


def name_of(function: Any) -> str:
    """Return how a function is called in messages to people."""
    name = getattr(function, "__qualname__", None)
    # Methods of built-in types are in no module.
    module = getattr(function, "__module__", None)
    if name is None:
        return repr(function)
    return name if module is None else f"{module}.{name}"
