"""Whether a process lives: its beat, its use of the processor, its stacks."""

from __future__ import annotations

import mmap
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from fdpool.process.worker_process import WorkerProcess

CHECKS_PER_LIVENESS: Final = 4
_DUMP_SIGNAL: Final = signal.SIGUSR2
_DUMP_SECONDS: Final = 1.0
_BUSY_SHARE: Final = 0.05
"""How much of a processor counts as being busy. Waiting for the GIL alone takes about 0.1 %, for its 5 ms pauses."""
_TICKS_PER_SECOND: Final = 100  # USER_HZ, the same on every Linux machine: proc(5)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What was seen of a worker at one time."""

    time: float
    beat: int
    processor_seconds: float
    is_stopped: bool

    def is_alive_since(self, then: Pulse) -> bool:
        """Whether there was a sign of life between *then* and now: a beat, or being busy."""
        used = self.processor_seconds - then.processor_seconds
        return self.beat != then.beat or used > _BUSY_SHARE * (self.time - then.time)


def feel_pulse(worker: WorkerProcess) -> Pulse:
    """Look at a worker that was not waited for, and whose number is therefore its own.

    Raises:
      OSError: this process has no descriptor free to look (EMFILE, ENFILE), or the worker is gone.
    """
    text = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The name, in parentheses, may hold anything; after it come state, ppid, …, utime and stime as 12th and 13th.
    state, *rest = text[text.rindex(")") + 2 :].split()
    ticks = int(rest[10]) + int(rest[11])
    return Pulse(trio.current_time(), worker.page.beat, ticks / _TICKS_PER_SECOND, state in "Tt")


async def wait_silent(worker: WorkerProcess, liveness: float) -> str:
    """Wait until *worker* has given no sign of life for *liveness* seconds; return what it is then, in words."""
    last: Pulse | None = None
    while True:
        if worker.status is not None:
            await trio.sleep_forever()
        now = _try_feel_pulse(worker)
        if now is None or last is None or now.is_alive_since(last):
            # Nobody is blamed for a look that could not be taken.
            last = now
        elif now.time - last.time >= liveness:
            how = "it was stopped" if now.is_stopped else "it gave no sign of life"
            return f"{how} for {now.time - last.time:.1f} seconds"
        await trio.sleep(liveness / CHECKS_PER_LIVENESS)


def _try_feel_pulse(worker: WorkerProcess) -> Pulse | None:
    try:
        return feel_pulse(worker)
    except OSError:
        # No descriptor is free here; or the worker is gone, which its pidfd is about to tell.
        return None


def own_memory(worker: WorkerProcess) -> int:
    """Return how many bytes of memory *worker* has to itself: not what it has mapped of files or of others' memory.

    See proc(5), /proc/PID/statm.
    """
    try:
        pages = Path(f"/proc/{worker.pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        # It is gone, or this process has no descriptor free to look; there will be another time.
        return 0
    _, resident, shared, *_ = map(int, pages)
    return (resident - shared) * mmap.PAGESIZE


async def dump_stacks(worker: WorkerProcess) -> str:
    """Have *worker* write down its Python stacks, also while it holds the GIL in C; return them.

    Empty if it does not, within a second: it is only starting, or stopped, or a task has taken `SIGUSR2` for
    itself, or it has written 60 KiB of stacks before.
    """
    await trio.lowlevel.checkpoint()
    if worker.status is not None or not worker.page.answers_dumps:
        return ""
    before = len(worker.dumped())
    worker.send_signal(_DUMP_SIGNAL)
    with trio.move_on_after(_DUMP_SECONDS):
        # The kernel announces nothing when a signal handler returns.
        while worker.status is None and (  # noqa: ASYNC110
            len(worker.dumped()) == before or _is_handling(worker.pid)
        ):
            await trio.sleep(0.002)
    return "" if worker.status is not None else worker.dumped()[before:]


def _is_handling(pid: int) -> bool:
    """Whether the dump signal is on its way to the process, or its handler runs there."""
    bit = 1 << (_DUMP_SIGNAL - 1)
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:", "SigBlk:"))]
    return any(mask & bit for mask in masks)
