"""Functions for workers to run, on memory."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
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


async def first_of(array: Any) -> float:
    return float(array[0])


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


def private_bytes() -> int:
    """Return how much of the supervisor's memory this process has written copies of."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            found = "/memfd:fdpool-arena" in line
        elif found and line.startswith("Anonymous:"):
            total += int(line.split()[1]) * 1024
    return total


def write_and_count_private_bytes(array: Any) -> int:
    array[...] = 1
    return private_bytes()


def footprint() -> dict[str, int]:
    gc.collect()
    return {
        "fds": descriptor_count(),
        "memfds": len(mapped_memfds()),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES,
        "used": arena().statistics().used_bytes,
    }


class Table:
    """Counts how often it is pickled, and, where it is loaded, how often that happens."""

    pickled = 0
    loaded = 0

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays

    def __getstate__(self) -> list[Any]:
        Table.pickled += 1
        return self.arrays

    def __setstate__(self, arrays: list[Any]) -> None:
        Table.loaded += 1
        self.arrays = arrays


def look_up(table: Table, number: int) -> tuple[int, float, int]:
    return os.getpid(), float(table.arrays[number].sum()), Table.loaded


class LoadsTheSecondTime:
    attempts = 0

    def __reduce__(self) -> Any:
        return load_second_time, ()


def load_second_time() -> str:
    LoadsTheSecondTime.attempts += 1
    if LoadsTheSecondTime.attempts < 2:
        raise ValueError("not yet")
    return "loaded"


def forge(body: bytes, wanted: str) -> None:
    """Answer the running call past the worker's loop, with a body of its own making, and wait for what follows."""
    speak(body, wanted)
    signal.pause()


def speak(body: bytes, wanted: str) -> None:
    """Say something of the running call past the worker's loop."""
    from fdpool.protocol.tasks import Operation, encode
    from tests.support.tasks import is_datagram_socket

    number = next(n for n in map(int, os.listdir("/proc/self/fd")) if is_datagram_socket(n))
    channel = next(value for value in gc.get_objects() if type(value).__name__ == "BlockingChannel")
    assert channel._fd == number
    call = next(value for value in gc.get_objects() if type(value).__name__ == "ControlPage").begun_call
    channel.send_bytes(encode(Operation[wanted], call, body))


def limit_file_size(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def limit_address_space(more: int | None) -> None:
    """Let this process map no more than *more* bytes beside what it has mapped; or as much as it likes."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if more is None else mapped + more, hard))


def summary(*values: Any) -> list[tuple[int, int]]:
    """Return length and last byte of each value."""
    return [(view.nbytes, view[-1]) for view in (memoryview(value).cast("B") for value in values)]


def make_huge(length: int) -> Any:
    memory = fdpool.allocate(length)
    memory[-1] = 9
    return memory


def megabyte(seed: int) -> bytes:
    return bytes([seed % 256]) * 1_000_000


async def async_megabyte(seed: int) -> bytes:
    return megabyte(seed)
