"""End-to-end tests of Dask on fdpool's executor."""

from __future__ import annotations

import copyreg
import os
from typing import TYPE_CHECKING, Any

import pytest

from fdpool import Executor, WorkerDied
from tests.support import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="module")
def dask() -> Iterator[Any]:
    """Dask; and when these tests are done, exceptions are pickled again as they were before it was imported."""
    before = dict(copyreg.dispatch_table)
    yield pytest.importorskip("dask")
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


def test_arrays_are_computed_in_the_workers(executor: Executor) -> None:
    da = pytest.importorskip("dask.array")
    ones = da.ones((400, 400), chunks=(100, 200))
    assert (ones @ ones).sum().compute(scheduler=executor) == 400**3


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_executor_named_as_dasks_pool_is_used(dask: Any, executor: Executor, scheduler: str) -> None:
    with dask.config.set(pool=executor, scheduler=scheduler):
        pids = dask.compute(*(dask.delayed(tasks.pid_of)(number) for number in range(8)))
    assert os.getpid() not in pids
    assert 1 <= len(set(pids)) <= 2


def test_what_a_task_raises_is_raised(dask: Any, executor: Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        dask.delayed(tasks.divide)(1, 0).compute(scheduler=executor)


def test_a_worker_that_dies_fails_its_computation_and_no_later_one(dask: Any, executor: Executor) -> None:
    with pytest.raises(WorkerDied):
        dask.delayed(tasks.exit_at_once)(3).compute(scheduler=executor)
    total: Any = dask.delayed(sum)([dask.delayed(tasks.add)(number) for number in range(10)])
    assert total.compute(scheduler=executor) == 55
