"""The zygote: a process that has loaded what workers need, and forks them: `python -m fdpool.worker zygote`.

It has one thread, runs no task, and forks siblings: its workers are its parent's children, and outlive it.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import socket
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from fdpool.errors import FdLimitError
from fdpool.kernel import PidFd
from fdpool.kernel.clone import can_fork_sibling, fork_sibling
from fdpool.kernel.process_control import die_with_parent, name_process
from fdpool.protocol.zygote import TO_ZYGOTE, ZygoteOperation, decode, encode, encode_integer
from fdpool.worker.channel import BlockingChannel, SupervisorGone
from fdpool.worker.ending import end_process, write_out
from fdpool.worker.loop import apply_settings, run_worker

if TYPE_CHECKING:
    from fdpool.transport import Handle, Message


class Unfit(Exception):  # noqa: N818 - a verdict, which the supervisor turns into an error
    """This process must not fork; the message says why."""


class Zygote:
    """Loads, then forks on request, for the supervisor at the other end of *channel*.

    Args:
      channel: Given up to the zygote.
      lifeline: Held, and closed in the workers, which have their own.
      supervisor: The process that started this one, and will be the parent of the workers. Given up as well.
    """

    def __init__(self, channel: BlockingChannel, lifeline: socket.socket, supervisor: PidFd) -> None:
        self._channel = channel
        self._lifeline = lifeline
        self._supervisor = supervisor
        self._environment: dict[str, str] = {}

    def serve(self) -> Birth | None:
        """Serve requests; return what a worker needs, in each worker, and None once the supervisor is gone."""
        try:
            self._load()
            while True:
                birth = self._serve_one()
                if birth is not None:
                    return birth
        except Unfit as exc:
            self._channel.send_bytes(encode(ZygoteOperation.UNFIT, body=str(exc).encode()))
            # The supervisor ends this process once it has read that.
            with suppress(SupervisorGone):
                self._channel.receive()
        except SupervisorGone:
            pass
        return None

    def _load(self) -> None:
        # Blocks freed by a collection while loading would be written to by every worker, and so copied for each.
        gc.disable()
        with self._channel.receive() as message:
            _, _, body = decode(message.payload, frozenset({ZygoteOperation.SETUP}))
        settings = pickle.loads(body)
        apply_settings(settings["worker"])
        if settings["worker"]["records"] is not None:
            # Loaded here once for all workers, each of which sends its own records.
            import fdpool.worker.records  # noqa: F401
        self._environment = dict(os.environ)
        if not can_fork_sibling():
            raise Unfit("this kernel or machine is not known to fork siblings; start='exec' works everywhere")
        for name in settings["preload"]:
            self._channel.send_bytes(encode(ZygoteOperation.LOADING, body=name.encode()))
            _preload(name)
        gc.freeze()
        self._channel.send_bytes(encode(ZygoteOperation.LOADED))

    def _serve_one(self) -> Birth | None:
        try:
            message = self._channel.receive()
        except FdLimitError as exc:
            _, request, _ = decode(exc.data, TO_ZYGOTE)
            self._refuse(request, exc)
            return None
        with message:
            _, request, body = decode(message.payload, frozenset({ZygoteOperation.FORK}))
            if threads := _threads():
                raise Unfit(f"threads run in it, which do not survive a fork: {', '.join(threads)}")
            # What lies in the buffers would be written once by each worker.
            write_out()
            try:
                pidfd = fork_sibling()
            except OSError as exc:
                self._refuse(request, exc)
                return None
            if pidfd is None:
                return self._become_worker(message, pickle.loads(body))
            with pidfd:
                answer = encode_integer(ZygoteOperation.FORKED, request, pidfd.pid)
                self._channel.send(self._channel.outgoing(answer, [pidfd]))
            return None

    def _refuse(self, request: int, error: OSError) -> None:
        self._channel.send_bytes(encode_integer(ZygoteOperation.NOT_FORKED, request, error.errno or 0))

    def _become_worker(self, message: Message, now: dict[str, Any]) -> Birth:
        """Make this process what a fresh one would be, started just now by the supervisor."""
        # First of all: until then a supervisor that dies would leave it behind.
        die_with_parent(self._supervisor)
        self._channel.close()
        self._lifeline.close()
        handles = message.handles
        birth = Birth(handles[:3], self._supervisor)
        del handles[:3]
        os.fchdir(handles[0].fileno())
        for number, handle in zip(now["stdio"], handles[1:], strict=True):
            os.dup2(handle.fileno(), number)
        _update_environment(self._environment, now["environment"])
        if os.getpriority(os.PRIO_PROCESS, 0) != now["niceness"]:
            # Only root may be nicer to itself than the zygote was to it.
            with suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, now["niceness"])
        # Python reseeds its own generator in a fork; NumPy's global one would be the same in all workers.
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        gc.enable()
        return birth


class Birth:
    """What a forked process needs to be a worker: its channel's end, control page and lifeline, and a parent."""

    def __init__(self, handles: list[Handle], supervisor: PidFd) -> None:
        self._handles = handles
        self._supervisor = supervisor

    def live(self) -> NoReturn:
        """Be the worker, then exit."""
        channel, page, lifeline = (handle.detach() for handle in self._handles)
        code = run_worker(channel, page, lifeline, self._supervisor.detach())
        # Taking all modules apart would write to every page shared with the zygote: with NumPy, 15 ms for each worker
        # (Linux 6.18). What an interpreter does at its end for its user has been done.
        end_process(code)


def _hold_standard_numbers() -> None:
    """Keep what is opened from getting the number of a stdin, stdout or stderr that is closed.

    A worker's own is put there, over whatever is. Until then reading and writing fail as if it were closed, for O_PATH.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free.
            os.open("/", os.O_PATH | os.O_CLOEXEC)


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except BaseException as exc:
        trace = "".join(traceback.format_exception(exc)).rstrip()
        raise Unfit(f"preloading {name!r} failed:\n{trace}") from None
    if threads := _threads_after_fork():
        raise Unfit(
            f"preloading {name!r} started threads, which do not survive a fork: {', '.join(threads)}; "
            "start='exec' loads it in every worker instead"
        )


def _threads() -> list[str]:
    """Return the names of all threads but this one."""
    if len(numbers := os.listdir("/proc/self/task")) == 1:
        return []
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for number in map(int, numbers):
        # A thread may end while this looks.
        with suppress(OSError):
            with open(f"/proc/self/task/{number}/comm", encoding="utf-8") as comm:
                found.append((number, names.get(number) or comm.read().strip()))
    return [repr(name) for number, name in found if number != os.getpid()]


def _threads_after_fork() -> list[str]:
    """Return the names of the threads that are still there once a fork was announced and done.

    Libraries that are prepared for forks, OpenBLAS for one, end their threads when one is announced
    (pthread_atfork(3)) and start them again when they are needed.
    """
    if not _threads():
        return []
    with warnings.catch_warnings():
        # From 3.12 on os.fork warns of just what is being found out here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED)
    return _threads()


def _update_environment(before: dict[str, str], now: dict[str, str]) -> None:
    """Take over what changed since the zygote was started, and leave alone what was changed by loading."""
    for name in before.keys() - now.keys():
        os.environ.pop(name, None)
    for name, value in now.items():
        if before.get(name) != value:
            os.environ[name] = value


def run_zygote(channel_fd: int, lifeline_fd: int, supervisor_fd: int) -> int:
    """Serve requests on inherited descriptors; return the exit code. In each worker it does not return."""
    _hold_standard_numbers()
    for number in (channel_fd, lifeline_fd, supervisor_fd):
        # They had to survive one exec to get here; what a task executes must not get them.
        os.set_inheritable(number, False)
    supervisor = PidFd.adopt(supervisor_fd)
    die_with_parent(supervisor)
    name_process("fdpool-zygote")
    channel = BlockingChannel(socket.socket(fileno=channel_fd), supervisor)
    lifeline = socket.socket(fileno=lifeline_fd)
    birth = Zygote(channel, lifeline, supervisor).serve()
    if birth is not None:
        birth.live()
    channel.close()
    lifeline.close()
    supervisor.close()
    return 0
