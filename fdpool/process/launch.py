"""Starting processes as fresh interpreters: each worker (`start="exec"`), or the zygote."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

import fdpool
from fdpool.errors import WorkerStartError
from fdpool.kernel import PidFd
from fdpool.process.outfit import Outfit

if TYPE_CHECKING:
    from fdpool.kernel import HasFileno
    from fdpool.process.worker_process import WorkerProcess

_HOME: Final = str(Path(fdpool.__file__).resolve().parent.parent)


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
    """Starts each worker as `python -m fdpool.worker`."""

    async def run(self) -> None:
        """Wait to be cancelled: there is nothing to do between starts."""
        await trio.sleep_forever()

    async def launch(self, settings: bytes) -> WorkerProcess:
        """Start a worker. It inherits what it is born with, a pidfd of this process, and nothing else."""
        with Outfit() as outfit, PidFd.current() as supervisor:
            # Waiting there when it wakes up: it is in a process group of its own from the start.
            await outfit.channel.send(settings)
            pid, pidfd = start_interpreter("fdpool.worker", *outfit.handles, supervisor)
            return outfit.into_worker(pidfd, pid)


def start_interpreter(module: str, *inherited: HasFileno) -> tuple[int, PidFd]:
    """Start `python -m MODULE` with the numbers of *inherited* as arguments; return its pid and pidfd.

    To be called from the thread that runs trio, and only there: the kernel takes the end of the
    starting thread for the end of the parent (PR_SET_PDEATHSIG, prctl(2)).

    Raises:
      WorkerStartError: the interpreter cannot be run.
      OSError: no descriptors, processes or memory left. Nothing was started.
    """
    process = _execute(module, [handle.fileno() for handle in inherited])
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


def _execute(module: str, inherited: list[int]) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise WorkerStartError("sys.executable is empty: this interpreter does not know how to start another")
    # The same -W, -X, -O … as here; -P keeps the current directory from shadowing modules until sys.path is set.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, "-P", "-m", module, *map(str, inherited)]
    try:
        return subprocess.Popen(command, pass_fds=inherited, env=_environment(), process_group=0)
    except (FileNotFoundError, PermissionError) as exc:
        raise WorkerStartError(f"the interpreter {sys.executable} cannot be run: {exc}") from exc


def _environment() -> dict[str, str] | None:
    """Return an environment in which the worker finds this very fdpool, also one that is not installed."""
    if _HOME in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return None
    # The worker puts PYTHONPATH back to what it is here before anything of the user's runs.
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": _HOME if not before else f"{_HOME}{os.pathsep}{before}"}
