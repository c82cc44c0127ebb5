"""Which workers there are: started, watched, replaced by rule, and gone when their supervisor is."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from fdpool.errors import FdLimitError, RemoteProtocolError, WorkerStartError, ZygoteError
from fdpool.protocol.restart import Restart, RestartHistory
from fdpool.protocol.tasks import FROM_WORKER, Operation, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdpool.kernel import ExitStatus
    from fdpool.process.launch import Launcher
    from fdpool.process.worker_process import WorkerProcess
    from fdpool.transport import Message


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
class Watch:
    """How workers are watched.

    Args:
      restart: When to replace one that died outside a call, and when to give up.
      ready_timeout: How many seconds one may take until it is ready.
    """

    restart: Restart = field(default_factory=Restart)
    ready_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.ready_timeout <= 0:
            raise ValueError(f"ready_timeout is {self.ready_timeout} seconds: it must be more than 0")


class Supervisor:
    """Keeps a number of workers running. Learns every death from a pidfd.

    Args:
      size: How many workers there should be.
      settings: What each is told first; see `encode_settings`.
      watch: How they are watched, and replaced.
      employer: Who gives them work.
      launcher: What starts one; the seam for tests.
    """

    def __init__(
        self,
        size: int,
        settings: bytes,
        watch: Watch,
        employer: Employer,
        launcher: Launcher,
    ) -> None:
        self.workers: set[WorkerProcess] = set()
        self._size = size
        self._settings = settings
        self._watch = watch
        self._employer = employer
        self._launcher = launcher
        self._stopping = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the workers running until `stop`, or until cancelled, which kills them. None is left afterwards."""
        async with trio.open_nursery() as background:
            background.start_soon(self._launcher.run)
            async with trio.open_nursery() as nursery:
                for _ in range(self._size):
                    nursery.start_soon(self._fill_place)
            background.cancel_scope.cancel()

    async def stop(self, grace_seconds: float) -> None:
        """Have every worker exit once idle, kill those that have not after *grace_seconds*, wait for all.

        Cancellation: kills what is left at once, and still waits until it is gone.
        """
        self._stopping.set()
        for worker in self.workers:
            worker.ask_to_stop()
        try:
            with trio.move_on_after(grace_seconds):
                await self._wait_all_exited()
        finally:
            for worker in self.workers:
                worker.kill()
            with trio.CancelScope(shield=True):
                await self._wait_all_exited()

    async def _wait_all_exited(self) -> None:
        for worker in list(self.workers):
            await worker.exited.wait()

    async def _fill_place(self) -> None:
        """Keep one worker running, one after the other."""
        history = RestartHistory(self._watch.restart)
        exits: deque[str] = deque(maxlen=self._watch.restart.intensity + 1)
        while not self._stopping.is_set():
            ready_for, in_call = 0.0, False
            try:
                worker = await self._launcher.launch(self._settings)
            except ZygoteError as exc:
                self._give_up(f"no worker can be started: {exc.args[0]}", list(exc.exits))
                break
            except (OSError, WorkerStartError) as exc:
                exits.append(f"could not be started: {exc}")
            else:
                life = _Life(worker, self._employer, self._watch)
                self.workers.add(worker)
                try:
                    in_call = await life.attend()
                finally:
                    self.workers.discard(worker)
                ready_for = life.ready_for()
                exits.append(life.last_words())
            if in_call or self._stopping.is_set():
                continue
            wait = history.record_death(trio.current_time(), ready_for=ready_for)
            if wait is None:
                policy = self._watch.restart
                self._give_up(
                    f"a worker died {len(exits)} times within {policy.period:g} seconds outside of any call, and the "
                    f"restart policy allows {policy.intensity}; the last times, it",
                    list(exits),
                )
                break
            with trio.move_on_after(wait):
                await self._stopping.wait()

    def _give_up(self, message: str, exits: list[str]) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        for worker in self.workers:
            worker.kill()
        self._employer.supervisor_gave_up(message, exits)


class _Life:
    """One worker from its start to its end."""

    def __init__(self, worker: WorkerProcess, employer: Employer, watch: Watch) -> None:
        self._worker = worker
        self._watch = watch
        self._ready = trio.Event()
        self._employer = employer
        self._ready_at: float | None = None
        self._complaint = ""

    def ready_for(self) -> float:
        """How many seconds it has been ready."""
        return 0.0 if self._ready_at is None else trio.current_time() - self._ready_at

    def last_words(self) -> str:
        """How it ended, in words."""
        when = "before it was ready" if self._ready_at is None else "while it was idle"
        return f"{self._worker.status} {when}{f': {self._complaint}' if self._complaint else ''}"

    async def attend(self) -> bool:
        """Pass on what it says until it has ended; return whether a call had begun.

        Cancellation: it is killed, and waited for.
        """
        worker = self._worker
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._await_ready)
                await worker.wait_exit()
                nursery.cancel_scope.cancel()
        finally:
            if worker.status is None:
                worker.kill()
                with trio.CancelScope(shield=True):
                    await worker.wait_exit()
            # What it sent before its end is still in the queue, and counts.
            self._listen_nowait()
            assert worker.status is not None
            in_call = self._employer.worker_exited(worker, worker.status)
            worker.close()
        return in_call

    async def _await_ready(self) -> None:
        with trio.move_on_after(self._watch.ready_timeout):
            await self._ready.wait()
            return
        self._complaint = f"it was not ready within {self._watch.ready_timeout:g} seconds"
        self._worker.kill()

    async def _listen(self) -> None:
        while True:
            with self._bad_messages():
                self._hear(await self._worker.channel.receive())

    def _listen_nowait(self) -> None:
        with suppress(trio.WouldBlock):
            while True:
                with self._bad_messages():
                    self._hear(self._worker.channel.receive_nowait())

    def _hear(self, message: Message) -> None:
        try:
            operation, _, call, body = decode(message.payload, FROM_WORKER)
        except RemoteProtocolError:
            message.close()
            raise
        if operation is Operation.READY:
            message.close()
            self._ready_at = trio.current_time()
            self._ready.set()
            self._employer.worker_ready(self._worker)
        elif operation is Operation.NOT_READY:
            message.close()
            self._complaint = str(body, "utf-8", "replace")
        else:
            self._employer.worker_said(self._worker, operation, call, message)

    @contextmanager
    def _bad_messages(self) -> Iterator[None]:
        """Report a message that lost its handles; end the life of a worker whose message is malformed."""
        try:
            try:
                yield
            except FdLimitError as exc:
                _, _, call, _ = decode(exc.data, FROM_WORKER)
                self._employer.worker_lost_handles(self._worker, call, exc)
        except RemoteProtocolError as exc:
            # Whoever breaks the rules once cannot be believed again.
            self._complaint = str(exc)
            self._worker.kill()
            self._employer.worker_misbehaved(self._worker, exc)
