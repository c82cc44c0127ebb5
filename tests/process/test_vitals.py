"""Contract tests for looking at a worker, where looking is not possible."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from fdpool import open_pool
from fdpool.process.vitals import own_memory, wait_silent
from tests.support import tasks

if TYPE_CHECKING:
    import pytest


def refuse(*_: object, **__: object) -> str:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_where_nobody_can_look_no_worker_is_silent_or_too_big(monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(30):
        async with open_pool(1) as pool:
            await pool.run_sync(tasks.pid)
            [worker] = pool._supervisor.workers
            monkeypatch.setattr(Path, "read_text", refuse)
            assert own_memory(worker) == 0
            with trio.move_on_after(0.05) as scope:
                await wait_silent(worker, 0.001)
            assert scope.cancelled_caught
            monkeypatch.undo()


async def test_an_answer_comes_though_the_workers_memory_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(30):
        async with open_pool(1, max_rss=1 << 30) as pool:
            worker = await pool.run_sync(tasks.pid)
            monkeypatch.setattr(Path, "read_text", refuse)
            assert await pool.run_sync(tasks.add, 1) == 2
            monkeypatch.undo()
            assert await pool.run_sync(tasks.pid) == worker
