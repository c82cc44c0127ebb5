"""One worker's life, from its birth to its exit status: what it says, how it is watched, how it is ended."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.process.records import take_in_record
from fdpool.process.vitals import dump_stacks, wait_silent
from fdpool.protocol.ladder import Ladder, Step
from fdpool.protocol.lifecycle import Event, Lifecycle, State
from fdpool.protocol.limits import Limits
from fdpool.protocol.restart import Restart
from fdpool.protocol.tasks import FROM_WORKER, Operation, decode

if TYPE_CHECKING:
    from fdpool.kernel import ExitStatus
    from fdpool.process.oom import OomKills
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message


RECORDS_AT_ONCE: Final = 20
"""How many log records of one worker are taken in before other tasks may run. One at a time costs twice as much."""


class Employer(Protocol):
    """Who gives the workers work. All of it is called from the supervisor's tasks, and none of it may wait."""

    def worker_ready(self, worker: WorkerProcess) -> None:
        """*worker* waits for its first call."""

    def worker_said(self, worker: WorkerProcess, operation: Operation, call: int, message: Message) -> None:
        """*worker* sent a message, whose handles are the employer's to close.

        Raises:
          RemoteProtocolError: it had no business to say that.
        """

    def worker_lost_handles(self, worker: WorkerProcess, call: int, error: FdLimitError) -> None:
        """The answer to *call* came without its handles, for which this process has no room."""

    def worker_misbehaved(self, worker: WorkerProcess, error: RemoteProtocolError) -> None:
        """*worker* broke the rules, and is killed for it."""

    def worker_exited(self, worker: WorkerProcess, status: ExitStatus) -> bool:
        """*worker* has ended; return whether a call had begun on it, whose fault its end then is."""

    def supervisor_gave_up(self, message: str, exits: list[str]) -> None:
        """Workers died more often than the policy allows, *exits* being the last; there will be no more."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What workers are held to.

    Args:
      restart: When to replace one that died outside a call, and when to give up.
      ready_timeout: How many seconds one may take until it is ready.
      liveness: How many seconds one that is ready may give no sign of life for; None if nobody looks.
      limits: What the kernel enforces on it.
      ladder: How it is ended.
    """

    restart: Restart = field(default_factory=Restart)
    ready_timeout: float = 60.0
    liveness: float | None = None
    limits: Limits = field(default_factory=Limits)
    ladder: Ladder = field(default_factory=Ladder)

    def __post_init__(self) -> None:
        if self.ready_timeout <= 0:
            raise ValueError(f"ready_timeout is {self.ready_timeout} seconds: it must be more than 0")
        if self.liveness is not None and self.liveness <= 0:
            raise ValueError(f"liveness is {self.liveness} seconds: it must be more than 0, or None")


class Life:
    """One worker from its start to its end."""

    def __init__(
        self, worker: WorkerProcess, employer: Employer, terms: Terms, lifecycle: Lifecycle, oom_kills: OomKills
    ) -> None:
        self.worker = worker
        self._oom_kills = oom_kills
        self._employer = employer
        self._terms = terms
        self._lifecycle = lifecycle
        self._ready = trio.Event()
        self._ready_at: float | None = None
        self._is_ending = False
        self._is_believed = True

    def ready_for(self) -> float:
        """How many seconds it has been ready."""
        return 0.0 if self._ready_at is None else trio.current_time() - self._ready_at

    def last_words(self) -> str:
        """How it ended, in words."""
        when = "before it was ready" if self._ready_at is None else "while it was idle"
        complaint = f": {self.worker.complaint}" if self.worker.complaint else ""
        return f"{self.worker.status} {when}{complaint}{self.worker.stderr.last_words}"

    async def attend(self) -> bool:
        """Pass on what it says until it has ended; return whether a call had begun.

        Cancellation: it is killed, and waited for.
        """
        worker = self.worker
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._watch)
                nursery.start_soon(worker.stderr.read)
                await worker.wait_exit()
                nursery.cancel_scope.cancel()
        finally:
            if worker.status is None:
                self.kill()
                with trio.CancelScope(shield=True):
                    await worker.wait_exit()
            # What it sent before its end is still in the queue, and counts. What it left behind could go on for ever.
            worker.channel.refuse_more()
            self._listen_nowait()
            worker.stderr.drain()
            assert worker.status is not None
            self._lifecycle.on(Event.EXIT)
            if not worker.complaint:
                worker.complaint = self._explain(worker.status)
            in_call = self._employer.worker_exited(worker, worker.status)
            worker.close()
        return in_call

    @trio.lowlevel.enable_ki_protection
    async def end(self, ladder: Ladder) -> None:
        """Take it down step by step, each with its deadline, until it has ended. The second time, wait for the first.

        Cancellation: it is killed at once, and waited for.
        """
        worker = self.worker
        try:
            if self._is_ending:
                await worker.exited.wait()
            self._is_ending = True
            for step, seconds in ladder.steps:
                if worker.status is not None:
                    return
                self._lifecycle.on(Event.DRAIN if step is Step.DRAIN else Event.SIGNAL)
                worker.take_step(step)
                with trio.move_on_after(seconds):
                    await worker.exited.wait()
        finally:
            self.kill()
            with trio.CancelScope(shield=True):
                await worker.exited.wait()

    def _explain(self, status: ExitStatus) -> str:
        """Say why it was ended, if it was neither itself nor somebody here."""
        if status.signal == signal.SIGKILL and not self.worker.was_killed_here:
            return self._oom_kills.explain_kill(trio.current_time(), status.peak_rss_bytes)
        return self._terms.limits.explain_signal(status.signal) or ""

    def kill(self) -> None:
        """Kill it now, if it lives."""
        if self.worker.status is None:
            self._lifecycle.on(Event.SIGNAL)
            self.worker.kill()

    @trio.lowlevel.enable_ki_protection
    async def _watch(self) -> None:
        """Wait for a reason to kill it; write down what it was doing, and do so."""
        reason = await self._wait_silent()
        if not self._lifecycle.allows(Event.SILENCE):
            # Somebody is taking it down already.
            return
        self._lifecycle.on(Event.SILENCE)
        # It may go on in the meantime, woken by the very signal that asks for its stacks; its end is decided.
        self.worker.is_condemned = True
        stacks = await dump_stacks(self.worker)
        self.worker.complaint = f"{reason}; its stacks then:\n{stacks}" if stacks else reason
        if self._lifecycle.state is State.STUCK:
            self.kill()

    async def _wait_silent(self) -> str:
        with trio.move_on_after(self._terms.ready_timeout):
            await self._ready.wait()
        if not self._ready.is_set():
            return f"it was not ready within {self._terms.ready_timeout:g} seconds"
        if self._terms.liveness is None:
            await trio.sleep_forever()
        return await wait_silent(self.worker, self._terms.liveness)

    @trio.lowlevel.enable_ki_protection
    async def _listen(self) -> None:
        while True:
            await self.worker.channel.wait_readable()
            try:
                if self._receive() is Operation.LOG:
                    self._receive_more()
            except trio.WouldBlock:
                continue
            except OSError as exc:
                # No memory, most likely. What it says is lost, and so is it; the others may be luckier.
                self.worker.complaint = f"what it says cannot be received: {exc}"
                self.kill()
                await trio.sleep_forever()

    def _listen_nowait(self) -> None:
        with suppress(trio.WouldBlock, OSError):
            while True:
                self._receive()

    def _receive_more(self) -> None:
        """Take in what has come behind a log record: they come in bursts, unlike answers."""
        for _ in range(RECORDS_AT_ONCE - 1):
            if self._receive() is not Operation.LOG:
                return

    def _hear(self, message: Message) -> Operation:
        """Take in one message; return what it was."""
        try:
            operation, _, call, body = decode(message.payload, FROM_WORKER)
        except RemoteProtocolError:
            message.close()
            raise
        if operation is Operation.READY:
            message.close()
            self._ready_at = trio.current_time()
            self._ready.set()
            if self._lifecycle.allows(Event.READY):
                self._lifecycle.on(Event.READY)
            self._employer.worker_ready(self.worker)
        elif operation is Operation.NOT_READY:
            message.close()
            self.worker.complaint = str(body, "utf-8", "replace")
        elif operation is Operation.LOG:
            message.close()
            take_in_record(body)
        else:
            self._employer.worker_said(self.worker, operation, call, message)
        return operation

    def _receive(self) -> Operation | None:
        """Take in one message; report one that lost its handles, and end the life of a worker that sends a bad one.

        Returns:
          What it was, if there was nothing wrong with it.

        Raises:
          trio.WouldBlock: there is none.
        """
        try:
            try:
                return self._hear(self.worker.channel.receive_nowait())
            except FdLimitError as exc:
                _, _, call, _ = decode(exc.data, FROM_WORKER)
                self._employer.worker_lost_handles(self.worker, call, exc)
        except RemoteProtocolError as exc:
            # Whoever breaks the rules once cannot be believed again, and has no second call to spoil.
            if self._is_believed:
                self._is_believed = False
                self.worker.complaint = str(exc)
                self.kill()
                self._employer.worker_misbehaved(self.worker, exc)
        return None
