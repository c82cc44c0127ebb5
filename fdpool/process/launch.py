"""Starting processes as fresh interpreters: each worker (`start="exec"`), or the zygote."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

import fdpool
from fdpool.errors import WorkerStartError
from fdpool.kernel import OwnedFd, PidFd
from fdpool.process.outfit import Outfit

if TYPE_CHECKING:
    from fdpool.kernel import HasFileno
    from fdpool.process.stderr import StderrPipes
    from fdpool.process.worker_process import WorkerProcess

_HOME: Final = str(Path(fdpool.__file__).resolve().parent.parent)
_LAST_STANDARD: Final = 2
_COUNTING_ERROR_BYTES: Final = 1 << 20
"""How much of the same memory the kernel may count more from one moment to the next; see docs/kernel-notes.md."""


class Launcher(Protocol):
    """What starts workers."""

    async def run(self) -> None:
        """Do what has to go on while workers are wanted, until cancelled."""

    async def launch(self, settings: bytes) -> WorkerProcess:
        """Start a worker, which will say on its channel when it is ready.

        Args:
          settings: The first message the worker finds on its channel.

        Raises:
          ZygoteError: no worker can be started, now or later.
          WorkerStartError: this one could not be started.
          OSError: no descriptors, processes or memory left. Nothing was started.

        Cancellation: no worker was started, or it is killed and waited for.
        """


class ExecLauncher:
    """Starts each worker as `python -m fdpool.worker worker`.

    Args:
      pipes: Where their stderr comes from.
    """

    def __init__(self, pipes: StderrPipes) -> None:
        self._pipes = pipes

    async def run(self) -> None:
        """Wait to be cancelled: there is nothing to do between starts."""
        await trio.sleep_forever()

    async def launch(self, settings: bytes) -> WorkerProcess:
        """Start a worker. It inherits what it is born with, a pidfd of this process, and nothing else."""
        with Outfit(self._pipes) as outfit, PidFd.current() as supervisor:
            # Waiting there when it wakes up: it is in a process group of its own from the start.
            await outfit.channel.send(settings)
            inherited = (*outfit.handles, supervisor)
            pid, pidfd = start_interpreter("worker", *inherited, stderr=outfit.stderr.writer)
            own_peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return outfit.into_worker(pidfd, pid, own_peak_bytes + _COUNTING_ERROR_BYTES)


def start_interpreter(role: str, *inherited: HasFileno, stderr: HasFileno | None = None) -> tuple[int, PidFd]:
    """Start `python -m fdpool.worker ROLE`, and the numbers of *inherited* behind it; return its pid and pidfd.

    Its stderr is *stderr*, or else this process's own.

    To be called from the thread that runs trio, and only there: the kernel takes the end of the
    starting thread for the end of the parent (PR_SET_PDEATHSIG, prctl(2)).

    Raises:
      WorkerStartError: the interpreter cannot be run.
      OSError: no descriptors, processes or memory left. Nothing was started.
    """
    with ExitStack() as lent:
        numbers = [_above_standard(handle, lent) for handle in inherited]
        process = _execute(role, numbers, None if stderr is None else _above_standard(stderr, lent))
    try:
        # A child that nobody has waited for: the number cannot be anybody else's yet.
        pidfd = PidFd(process.pid)
    except BaseException:
        process.kill()
        process.wait()
        raise
    # From here on the pidfd does the waiting, and subprocess must not.
    process.returncode = 0
    return process.pid, pidfd


def _above_standard(handle: HasFileno, lent: ExitStack) -> int:
    """Return a number for *handle* over those of stdin, stdout and stderr, which *lent* closes if it is a new one.

    Where one of those is closed in this process, anything that is opened may have its number; in the new process it is
    to be stderr's.
    """
    number = handle.fileno()
    if number > _LAST_STANDARD:
        return number
    return lent.enter_context(OwnedFd(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1))).fileno()


def _execute(role: str, inherited: list[int], stderr: int | None) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise WorkerStartError("sys.executable is empty: this interpreter does not know how to start another")
    # The same -W, -X, -O … as here; -P keeps the current directory from shadowing modules until sys.path is set.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, "-P", "-m", "fdpool.worker", role, *map(str, inherited)]
    try:
        return subprocess.Popen(command, pass_fds=inherited, stderr=stderr, env=_environment(), process_group=0)
    except (FileNotFoundError, PermissionError) as exc:
        raise WorkerStartError(f"the interpreter {sys.executable} cannot be run: {exc}") from exc


def _environment() -> dict[str, str] | None:
    """Return an environment in which the worker finds this very fdpool, also one that is not installed."""
    if _HOME in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return None
    # The worker puts PYTHONPATH back to what it is here before anything of the user's runs.
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": _HOME if not before else f"{_HOME}{os.pathsep}{before}"}
