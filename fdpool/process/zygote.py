"""Starting workers by fork from a process that has loaded everything (`start="zygote"`)."""

from __future__ import annotations

import pickle
from collections import deque
from typing import TYPE_CHECKING

import trio

from fdpool.errors import WorkerStartError, ZygoteError
from fdpool.process.outfit import Outfit
from fdpool.process.settings import current_settings
from fdpool.process.zygote_process import ZygoteProcess
from fdpool.protocol.restart import Restart, RestartHistory
from fdpool.protocol.zygote import ZygoteOperation, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fdpool.process.stderr import StderrPipes
    from fdpool.process.worker_process import WorkerProcess


class Zygote:
    """Keeps one zygote process, and has it fork the workers. They live on when it dies; then it is replaced.

    Args:
      setup: What it is told first; see `encode_setup`.
      restart: How often it may die before no worker is started any more.
      ready_timeout: How many seconds it may take to load.
      pipes: Where its stderr comes from, and that of the workers.
    """

    def __init__(self, setup: bytes, restart: Restart, ready_timeout: float, pipes: StderrPipes) -> None:
        self._setup = setup
        self._pipes = pipes
        self._restart = restart
        self._ready_timeout = ready_timeout
        self._process: ZygoteProcess | None = None
        self._failure: ZygoteError | None = None
        self._news = trio.Event()

    @property
    def pid(self) -> int | None:
        """The zygote's process id, for people; None while there is no zygote that could fork."""
        return None if self._process is None else self._process.pid

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep a zygote until cancelled, which kills it. None is left afterwards."""
        async with trio.open_nursery() as nursery:
            await self._keep_one(nursery)

    @trio.lowlevel.enable_ki_protection
    async def _keep_one(self, nursery: trio.Nursery) -> None:
        """Have one zygote after the other; what they leave behind is read on in *nursery*."""
        history = RestartHistory(self._restart)
        ends: deque[str] = deque(maxlen=self._restart.intensity + 1)
        while self._failure is None:
            ready_for = 0.0
            try:
                process = ZygoteProcess(self._setup, self._pipes)
            except (OSError, WorkerStartError) as exc:
                ends.append(f"could not be started: {exc}")
            else:
                try:
                    await self._use(process)
                finally:
                    self._process = None
                    process.bury()
                    nursery.start_soon(process.stderr.read_on)
                if process.verdict is not None:
                    self._fail(process.verdict)
                    break
                ends.append(process.last_words)
                ready_for = process.ready_for()
            wait = history.record_death(trio.current_time(), ready_for=ready_for)
            if wait is None:
                policy = self._restart
                self._fail(
                    f"the zygote died {len(ends)} times within {policy.period:g} seconds, and the restart policy "
                    f"allows {policy.intensity}; the last times, it",
                    ends,
                )
            else:
                await trio.sleep(wait)
        await trio.sleep_forever()

    async def launch(self, settings: bytes) -> WorkerProcess:
        """Have a worker forked; wait for a zygote that can do it first.

        Raises:
          ZygoteError: there is none, and there will be none.
          OSError: no descriptors, processes or memory left, here or in the zygote. Nothing was started.

        Cancellation: no worker was started, or it is killed and waited for.
        """
        while True:
            process = await self._wait_loaded()
            with Outfit(self._pipes) as outfit:
                born = await process.fork(outfit)
                if born is None:
                    # It died over this. What it had forked died with it, and the next one is asked instead.
                    continue
                pid, pidfd = born
                worker = outfit.into_worker(pidfd, pid)
            try:
                # It waits for this before it does anything: only now it is in a process group of its own.
                await worker.channel.send(settings)
            except trio.BrokenResourceError:
                # It is dead already, which whoever attends to it will learn.
                pass
            except BaseException:
                worker.kill()
                with trio.CancelScope(shield=True):
                    await worker.wait_exit()
                worker.close()
                worker.stderr.close()
                raise
            return worker

    async def _wait_loaded(self) -> ZygoteProcess:
        await trio.lowlevel.checkpoint()
        while self._process is None:
            if self._failure is not None:
                raise ZygoteError(self._failure.args[0], self._failure.exits)
            await self._news.wait()
        return self._process

    async def _use(self, process: ZygoteProcess) -> None:
        """Have *process* load and fork until it has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._await_loading, process)
            nursery.start_soon(process.stderr.read)
            await process.attend()
            nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _await_loading(self, process: ZygoteProcess) -> None:
        with trio.move_on_after(self._ready_timeout):
            await process.loaded.wait()
            self._process = process
            self._announce()
            return
        process.give_up(f"did not finish loading {process.loading} in {self._ready_timeout:g} seconds")

    def _fail(self, message: str, exits: Iterable[str] = ()) -> None:
        self._failure = ZygoteError(message, tuple(exits))
        self._announce()

    def _announce(self) -> None:
        self._news.set()
        self._news = trio.Event()


def encode_setup(worker_settings: dict[str, object], preload: list[str]) -> bytes:
    """Lay out the message that the zygote gets first.

    Args:
      worker_settings: How to be like the process that starts it.
      preload: The names of the modules to load, in order.
    """
    setup = {"worker": worker_settings | current_settings(worker_settings), "preload": preload}
    return encode(ZygoteOperation.SETUP, body=pickle.dumps(setup))
