"""End-to-end tests of the joblib backend."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.test_processes import ENVIRONMENT

joblib = pytest.importorskip("joblib")

PROGRAM = """
import os, signal, time
import joblib
import fdpool, fdpool.joblib
from tests.support import tasks

fdpool.joblib.register()

def slow_or_wrong(number):
    if number == 3:
        raise ZeroDivisionError("in a batch")
    time.sleep(100)

if __name__ == "__main__":
    with joblib.parallel_backend("fdpool", n_jobs=2):
        print(joblib.Parallel()(joblib.delayed(tasks.add)(n) for n in range(100)) == list(range(1, 101)))
        pids = joblib.Parallel()(joblib.delayed(tasks.pid)() for _ in range(20))
        again = joblib.Parallel()(joblib.delayed(tasks.pid)() for _ in range(20))
        print(len({*pids, *again}) <= 2, os.getpid() not in pids)
        step = 5
        print(joblib.Parallel()(joblib.delayed(lambda n: n + step)(n) for n in range(3)))
        generator = joblib.Parallel(return_as="generator")(joblib.delayed(tasks.add)(n) for n in range(5))
        print(list(generator))
        started = time.monotonic()
        try:
            joblib.Parallel(pre_dispatch="all", batch_size=1)(joblib.delayed(slow_or_wrong)(n) for n in (1, 3, 4))
        except ZeroDivisionError as exc:
            print(exc, time.monotonic() - started < 50)
        try:
            joblib.Parallel()(joblib.delayed(tasks.kill_self)() for _ in range(1))
        except fdpool.WorkerDied as exc:
            print("died")
        print(joblib.Parallel()(joblib.delayed(tasks.add)(n) for n in range(3)))
"""


def test_parallel_runs_on_the_pool(tmp_path: object) -> None:
    path = f"{tmp_path}/program.py"
    with open(path, "w") as file:
        file.write(PROGRAM)
    result = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=100, check=False,
        env={**ENVIRONMENT, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert result.stdout.splitlines() == [
        "True", "True True", "[5, 6, 7]", "[1, 2, 3, 4, 5]", "in a batch True", "died", "[1, 2, 3]",
    ], result.stderr  # fmt: skip


def test_the_number_of_jobs_is_counted_as_joblib_counts() -> None:
    from fdpool.joblib import FdpoolBackend
    from fdpool.process.cpus import default_workers

    backend = FdpoolBackend()
    assert backend.effective_n_jobs(3) == 3
    assert backend.effective_n_jobs(None) == 1
    assert backend.effective_n_jobs(-1) == default_workers()
    with pytest.raises(ValueError, match="n_jobs == 0"):
        backend.effective_n_jobs(0)
