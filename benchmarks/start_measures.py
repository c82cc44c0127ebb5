"""The measuring part of `benchmarks.start`.

Every worker has NumPy. All pools are asked for all their workers at once, and are done when every worker has
run a call, which none leaves before the last has arrived.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

import rich
import rich.table
import trio

import fdpool
from benchmarks.start_tasks import PRELOAD, arrive, arrive_at_barrier, hang, take_barrier

ROOT = Path(__file__).parent.parent


def private_dirty_kilobytes(pid: int) -> int:
    """Return what a process has in memory that is its own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


async def start_fdpool(workers: int, start: Literal["zygote", "exec"]) -> tuple[float, int]:
    """Return the seconds until all workers were ready, and their private memory together in kilobytes."""
    preload = [PRELOAD] if start == "zygote" else []
    pids: list[int] = []
    read_end, write_end = os.pipe()
    async with fdpool.Doorbell() as bell:
        started = time.perf_counter()
        async with fdpool.open_pool(workers, start=start, preload=preload, grace_period=30) as pool:

            async def one() -> None:
                pids.append(await pool.run_sync(arrive, bell._event, leave))

            with fdpool.OwnedFd(read_end) as leave:
                async with trio.open_nursery() as nursery:
                    for _ in range(workers):
                        nursery.start_soon(one)
                    arrived = 0
                    while arrived < workers:
                        arrived += await bell.wait()
                    seconds = time.perf_counter() - started
                    os.close(write_end)
            assert len(set(pids)) == workers
            return seconds, sum(map(private_dirty_kilobytes, pids))


def start_executor(workers: int, method: str) -> tuple[float, int]:
    """Do as `start_fdpool` does, with an executor."""
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([PRELOAD])
    barrier = context.Barrier(workers)
    started = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=take_barrier, initargs=(barrier,)) as executor:
        futures = [executor.submit(arrive_at_barrier) for _ in range(workers)]
        wait(futures)
        seconds = time.perf_counter() - started
        return seconds, sum(private_dirty_kilobytes(future.result()) for future in futures)


def compare_starts(workers: int) -> None:
    """Print how long each kind of worker takes, and what it weighs."""
    measured = {
        "fdpool zygote": trio.run(start_fdpool, workers, "zygote"),
        "fdpool exec": trio.run(start_fdpool, workers, "exec"),
        "executor forkserver": start_executor(workers, "forkserver"),
        "executor spawn": start_executor(workers, "spawn"),
    }
    # What is spent once, on the zygote and its preload, is also measured alone.
    first, _ = trio.run(start_fdpool, 1, "zygote")
    seconds, kilobytes = measured["fdpool zygote"]
    table = rich.table.Table(title=f"{workers} workers with NumPy")
    for heading in ("", "all ready, s", "each, ms", "zygote is faster by", "private dirty, MB", "zygote has less by"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, (taken, weight) in measured.items():
        table.add_row(
            name,
            f"{taken:.2f}", f"{1000 * taken / workers:.1f}", f"{taken / seconds:.1f} x",
            f"{weight / 1024:.0f}", f"{weight / kilobytes:.1f} x",
        )  # fmt: skip
    rich.print(table)
    each = 1000 * (seconds - first) / (workers - 1)
    rich.print(f"fdpool zygote: {first:.2f} s until the first is ready, {each:.1f} ms for each further one")


async def measure_deaths(deaths: int) -> None:
    """Print the time from SIGKILL to the caller's WorkerDied; and that to the end of a bare process, in turns."""
    latencies = []
    bare = []
    async with fdpool.open_pool(2) as pool, fdpool.Doorbell() as bell:

        async def victim() -> None:
            try:
                await pool.run_sync(hang, bell._event)
            except fdpool.WorkerDied:
                latencies.append(time.perf_counter() - killed)

        for _ in range(deaths):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
                pid = await bell.wait()
                killed = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
            bare.append(await seconds_to_kill_bare_process())
    print_latencies(f"SIGKILL to WorkerDied, {deaths} deaths", latencies)
    print_latencies("SIGKILL to the end of a bare interpreter, seen by its pidfd", bare)


async def seconds_to_kill_bare_process() -> float:
    """Return how long a child of this process takes to end that does nothing, as its pidfd tells."""
    program = "import os, signal; os.write(1, b'x'); signal.pause()"
    child = await trio.lowlevel.open_process([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    async with child.stdout:
        await child.stdout.receive_some(1)
        with fdpool.PidFd(child.pid) as pidfd:
            killed = time.perf_counter()
            child.kill()
            await trio.lowlevel.wait_readable(pidfd)
            seconds = time.perf_counter() - killed
    await child.wait()
    return seconds


def print_latencies(what: str, seconds: list[float]) -> None:
    rich.print(
        f"{what}: median {1000 * statistics.median(seconds):.2f} ms, "
        f"p99 {1000 * statistics.quantiles(seconds, n=100)[98]:.2f} ms, max {1000 * max(seconds):.2f} ms"
    )


def count_orphans(trials: int) -> None:
    """Kill supervisors at random moments; print how long they, and what they had started, lived on."""
    seconds = []
    own_seconds = []
    for trial in range(trials):
        made = ("zygote", "exec")[trial % 2]
        how = ("spin", "spawn", "sleep", "idle")[trial // 2 % 4]
        with subprocess.Popen(
            [sys.executable, ROOT / "tests/programs/supervise.py", how, made],
            stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as program:  # fmt: skip
            time.sleep(random.uniform(0, 0.6))
            with fdpool.PidFd(program.pid) as pidfd:
                program.kill()
                killed = time.perf_counter()
                select.select([pidfd], [], [])
                own_seconds.append(time.perf_counter() - killed)
            # Everything that it started, directly or not, holds the other end of this pipe.
            assert program.stdout is not None
            poll = select.poll()
            poll.register(program.stdout, 0)
            ended = bool(poll.poll(5000))
            seconds.append(time.perf_counter() - killed if ended else float("inf"))
    late = sum(taken > 0.1 for taken in seconds)
    rich.print(
        f"supervisor killed {trials} times: {late} times something was there after 100 ms; all gone after "
        f"{1000 * statistics.median(seconds):.1f} ms (median), {1000 * max(seconds):.1f} ms (max), the supervisor "
        f"itself after {1000 * statistics.median(own_seconds):.1f} ms (median), {1000 * max(own_seconds):.1f} ms (max)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--deaths", type=int, default=300)
    parser.add_argument("--orphans", type=int, default=100)
    arguments = parser.parse_args()
    compare_starts(arguments.workers)
    trio.run(measure_deaths, arguments.deaths)
    count_orphans(arguments.orphans)
