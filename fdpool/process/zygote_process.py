"""One zygote process, as its parent sees it: what is asked of it, what it says, what it leaves behind."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
from contextlib import ExitStack, suppress
from itertools import count
from typing import TYPE_CHECKING

import trio

from fdpool.channel import Channel
from fdpool.errors import FdLimitError, RemoteProtocolError, describe_exit
from fdpool.kernel import OwnedFd, PidFd
from fdpool.process.launch import start_interpreter
from fdpool.process.outfit import Outfit, tie
from fdpool.process.own_stderr import is_inherited
from fdpool.protocol.zygote import FROM_ZYGOTE, ZygoteOperation, decode, decode_integer, encode

if TYPE_CHECKING:
    from fdpool.kernel import HasFileno
    from fdpool.process.stderr import StderrPipes
    from fdpool.transport import Message


class _Request:
    """A worker that was asked for. One task waits for it, unless it was cancelled."""

    __slots__ = ("answered", "error", "is_abandoned", "pid", "pidfd")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.pid = 0
        self.pidfd: PidFd | None = None
        self.error: OSError | None = None
        self.is_abandoned = False


class ZygoteProcess:
    """One zygote from its start to its end.

    Attributes:
      loaded: Set once it can fork.
      loading: What it was loading when it was last heard of, in words.
      verdict: Why neither it nor another one like it can fork, if so.
      last_words: How it ended, in words.
      stderr: What it writes there. Outlives it: whoever sees it off reads on, and closes it.
    """

    def __init__(self, setup: bytes, pipes: StderrPipes) -> None:
        self.loaded = trio.Event()
        self._loaded_at: float | None = None
        self.loading = "the interpreter"
        self.verdict: str | None = None
        self.last_words = "was killed"
        self._requests: dict[int, _Request] = {}
        self._numbers = count(1)
        self._sending = trio.Lock()
        with ExitStack() as always, ExitStack() as on_failure:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            always.callback(theirs.close)
            self._channel = Channel(ours)
            on_failure.callback(self._channel.close)
            self._lifeline, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            always.callback(lifeline.close)
            on_failure.callback(self._lifeline.close)
            supervisor = always.enter_context(PidFd.current())
            self.stderr = pipes.open_pipe()
            always.callback(self.stderr.close_writer)
            on_failure.callback(self.stderr.close)
            try:
                self._channel.send_nowait(setup)
            except trio.WouldBlock:
                # The queue is empty, so what is missing is memory; whoever starts the zygote tries again later.
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)) from None
            inherited = (theirs, lifeline, supervisor)
            self.pid, self._pidfd = start_interpreter("zygote", *inherited, stderr=self.stderr.writer)
            tie(lifeline, self.pid)
            on_failure.pop_all()

    async def fork(self, outfit: Outfit) -> tuple[int, PidFd] | None:
        """Have a worker forked, born with *outfit*; return its pid and pidfd, or None if the zygote died over it."""
        number, request = next(self._numbers), _Request()
        self._requests[number] = request
        try:
            with ExitStack() as lent:
                now, handles = _circumstances(lent, outfit.stderr.writer)
                payload = encode(ZygoteOperation.FORK, number, now)
                async with self._sending:
                    await self._channel.send(payload, (*outfit.handles, *handles))
            await request.answered.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # It is dead, and whoever attends to it is about to learn that.
            with trio.CancelScope(shield=True):
                await request.answered.wait()
        except BaseException:
            request.is_abandoned = True
            if request.pidfd is not None:
                _end(request.pid, request.pidfd)
            raise
        if request.error is not None:
            raise request.error
        return None if request.pidfd is None else (request.pid, request.pidfd)

    @trio.lowlevel.enable_ki_protection
    async def attend(self) -> None:
        """Take in what it says until it has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await trio.lowlevel.wait_readable(self._pidfd)
            nursery.cancel_scope.cancel()

    def ready_for(self) -> float:
        """How many seconds it has been able to fork."""
        return 0.0 if self._loaded_at is None else trio.current_time() - self._loaded_at

    def give_up(self, complaint: str) -> None:
        """Kill it, because there is no hope."""
        self.verdict = complaint if complaint.startswith("preloading") else f"the zygote {complaint}"
        self._pidfd.send_signal(signal.SIGKILL)

    def bury(self) -> None:
        """Kill it if it lives, answer all requests, and collect it with the workers that nobody knows of."""
        self._listen_nowait()
        # A worker is moved out of the zygote's process group when this process learns of it: whoever is left there,
        # nobody knows. The group's number cannot be anybody else's until the zygote is collected.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while (status := os.waitid(os.P_PGID, self.pid, os.WEXITED)) is not None:
                if status.si_pid == self.pid:
                    self.last_words = _describe(status.si_code, status.si_status, self.loading, self.loaded.is_set())
        self.stderr.drain()
        self.last_words += self.stderr.last_words
        for request in self._requests.values():
            request.answered.set()
        self._requests.clear()
        self._channel.close()
        self._lifeline.close()
        self._pidfd.close()

    @trio.lowlevel.enable_ki_protection
    async def _listen(self) -> None:
        while True:
            try:
                message = await self._channel.receive()
            except FdLimitError as exc:
                self._lost_pidfd(exc)
            except RemoteProtocolError as exc:
                self._distrust(exc)
            except OSError as exc:
                self.loading = f"something, and it cannot be received what: {exc}"
                self._pidfd.send_signal(signal.SIGKILL)
                await trio.sleep_forever()
            else:
                self._hear(message)

    def _listen_nowait(self) -> None:
        """Take in what it said before it ended: workers it forked have lives of their own."""
        with suppress(trio.WouldBlock, OSError):
            while True:
                try:
                    message = self._channel.receive_nowait()
                except FdLimitError as exc:
                    self._lost_pidfd(exc)
                except RemoteProtocolError:
                    continue
                else:
                    self._hear(message)

    def _hear(self, message: Message) -> None:
        with message:
            try:
                operation, number, body = decode(message.payload, FROM_ZYGOTE)
                if operation is ZygoteOperation.FORKED:
                    self._welcome(number, decode_integer(body), message)
                elif operation is ZygoteOperation.NOT_FORKED:
                    code = decode_integer(body)
                    self._answer(number, error=OSError(code, f"the zygote could not fork: {os.strerror(code)}"))
                elif operation is ZygoteOperation.LOADING:
                    self.loading = repr(str(body, "utf-8", "replace"))
                elif operation is ZygoteOperation.LOADED:
                    self._loaded_at = trio.current_time()
                    self.loaded.set()
                else:
                    self.give_up(str(body, "utf-8", "replace"))
            except RemoteProtocolError as exc:
                self._distrust(exc)

    def _welcome(self, number: int, pid: int, message: Message) -> None:
        """Take in that a worker was born."""
        if len(message.handles) != 1 or not isinstance(message.handles[0], PidFd):
            raise RemoteProtocolError("a worker came without its pidfd", message.payload)
        pidfd = message.handles.pop()
        assert isinstance(pidfd, PidFd)
        # Out of the zygote's process group and into its own: known from here on. Until it was waited for, which only
        # this process can do, the number is the worker's.
        with suppress(ProcessLookupError):
            os.setpgid(pid, pid)
        self._answer(number, pid, pidfd)

    def _lost_pidfd(self, error: FdLimitError) -> None:
        """End a worker whose pidfd this process had no room for."""
        operation, number, body = decode(error.data, FROM_ZYGOTE)
        if operation is ZygoteOperation.FORKED:
            pid = decode_integer(body)
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED)
            self._answer(number, error=error)

    def _answer(self, number: int, pid: int = 0, pidfd: PidFd | None = None, error: OSError | None = None) -> None:
        request = self._requests.pop(number, None)
        if request is None or request.is_abandoned:
            if pidfd is not None:
                _end(pid, pidfd)
            return
        request.pid, request.pidfd, request.error = pid, pidfd, error
        request.answered.set()

    def _distrust(self, error: RemoteProtocolError) -> None:
        self.loading = f"something else, and broke the rules: {error}"
        self._pidfd.send_signal(signal.SIGKILL)


def _circumstances(lent: ExitStack, stderr: HasFileno | None) -> tuple[bytes, list[OwnedFd]]:
    """Return what a process would inherit now, started with that stderr: a pickle, and handles that *lent* closes."""
    directory = lent.enter_context(OwnedFd(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
    sources = {number: number for number in range(3) if is_inherited(number)}
    if stderr is not None:
        sources[2] = stderr.fileno()
    copies = [lent.enter_context(OwnedFd(os.dup(number))) for number in sources.values()]
    now = {
        "environment": dict(os.environ),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "stdio": list(sources),
    }
    return pickle.dumps(now), [directory, *copies]


def _end(pid: int, pidfd: PidFd) -> None:
    """Kill and collect a worker that nobody wants any more, before it was told anything."""
    with pidfd:
        with suppress(ProcessLookupError):
            pidfd.send_signal(signal.SIGKILL)
        # It has run nothing of the user's yet, so that this takes no time.
        with suppress(ChildProcessError):
            pidfd.wait_exit()


def _describe(code: int, status: int, loading: str, is_loaded: bool) -> str:
    how = describe_exit(status, None) if code == os.CLD_EXITED else describe_exit(None, status)
    return how if is_loaded else f"{how} while it loaded {loading}"
