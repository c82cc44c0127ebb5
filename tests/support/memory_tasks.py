"""Functions for workers to run, on memory."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import fdpool
from fdpool.kernel.mapping import PAGE_BYTES
from fdpool.memory.arena import arena
from tests.support.leaks import descriptor_count, mapped_memfds

kept: list[Any] = []


def identity(value: Any) -> Any:
    return value


def write_and_return(array: Any, value: Any) -> Any:
    array[...] = value
    return array


def write_at(array: Any, places: list[int], value: Any) -> None:
    for place in places:
        array[place] = value


def fill(view: Any, value: int) -> None:
    view[:] = bytes([value]) * len(view)


def add_to(array: Any, value: Any) -> None:
    array += value


def keep(value: Any) -> int:
    kept.append(value)
    return os.getpid()


def take_kept() -> Any:
    return kept[-1]


def write_kept(place: int, value: Any) -> None:
    kept[-1][place] = value


def drop_kept() -> None:
    kept.clear()
    gc.collect()


def digest(*values: Any) -> str:
    whole = hashlib.sha256()
    for value in values:
        whole.update(memoryview(value).cast("B"))
    return whole.hexdigest()


def make_bytes(length: int, seed: int) -> bytearray:
    return bytearray(bytes(range(seed, seed + 100)) * (length // 100 + 1))[:length]


def make_empty(length: int, value: int) -> Any:
    array = fdpool.empty(length, "u1")
    array[:] = value
    return array


def make_and_die(length: int) -> None:
    memory = fdpool.allocate(length)
    memory[: length // 2] = bytes(length // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def keep_and_die(value: Any) -> None:
    kept.append(value)
    os.kill(os.getpid(), signal.SIGKILL)


def kind(value: Any) -> tuple[str, bool]:
    view = memoryview(value)
    return type(value).__name__, view.readonly


def footprint() -> dict[str, int]:
    gc.collect()
    return {
        "fds": descriptor_count(),
        "memfds": len(mapped_memfds()),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES,
        "used": arena().statistics().used_bytes,
    }
