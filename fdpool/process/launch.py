"""Starting a worker as a fresh interpreter (`start="exec"`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import fdpool
from fdpool.channel import Channel
from fdpool.errors import WorkerStartError
from fdpool.kernel import MemFd, PidFd, Seal
from fdpool.process.worker_process import WorkerProcess
from fdpool.protocol.page import PAGE_BYTES

_HOME: Final = str(Path(fdpool.__file__).resolve().parent.parent)


def launch_worker(settings: bytes) -> WorkerProcess:
    """Start `python -m fdpool.worker`, which will say on its channel when it is ready.

    The worker inherits its end of the channel, the control page and a pidfd of this process, and nothing
    else. To be called from the thread that runs trio, and only there: the kernel takes the end of the
    starting thread for the end of the parent (PR_SET_PDEATHSIG, prctl(2)).

    Args:
      settings: The first message the worker finds on its channel.

    Raises:
      WorkerStartError: the interpreter cannot be run.
      OSError: no descriptors, processes or memory left. Nothing was started.
    """
    with ExitStack() as always, ExitStack() as on_failure:
        # What only the worker needs is closed here in any case; the rest if it does not come to be.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        on_failure.callback(theirs.close)
        channel = Channel(ours)
        on_failure.callback(channel.close)
        memory = always.enter_context(MemFd("fdpool-page", PAGE_BYTES))
        memory.seal(Seal.SHRINK | Seal.GROW | Seal.SEAL)
        supervisor = always.enter_context(PidFd.current())
        page = memory.map(writable=True)
        channel.send_nowait(settings)
        process = _execute(theirs.fileno(), memory.fileno(), supervisor.fileno())
        try:
            # A child that nobody has waited for: the number cannot be anybody else's yet.
            pidfd = PidFd(process.pid)
        except BaseException:
            process.kill()
            process.wait()
            raise
        # From here on the pidfd does the waiting, and subprocess must not.
        process.returncode = 0
        on_failure.pop_all()
    return WorkerProcess(process.pid, pidfd, channel, theirs, page)


def _execute(*inherited: int) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise WorkerStartError("sys.executable is empty: this interpreter does not know how to start another")
    # The same -W, -X, -O … as here; -P keeps the current directory from shadowing modules until sys.path is set.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, "-P", "-m", "fdpool.worker", *map(str, inherited)]
    try:
        return subprocess.Popen(command, pass_fds=inherited, env=_environment())
    except (FileNotFoundError, PermissionError) as exc:
        raise WorkerStartError(f"the interpreter {sys.executable} cannot be run: {exc}") from exc


def _environment() -> dict[str, str] | None:
    """Return an environment in which the worker finds this very fdpool, also one that is not installed."""
    if _HOME in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return None
    # The worker puts PYTHONPATH back to what it is here before anything of the user's runs.
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": _HOME if not before else f"{_HOME}{os.pathsep}{before}"}
