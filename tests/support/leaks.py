"""Seeing what a test left behind."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_descriptors() -> dict[int, str]:
    """Return what each descriptor of this process refers to."""
    found = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(FileNotFoundError):  # the listing's own descriptor
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def descriptor_count(pid: int | str = "self") -> int:
    """Return how many descriptors a process has open, the listing's own not counted."""
    return len(os.listdir(f"/proc/{pid}/fd")) - (pid == "self")


def children(pid: int | None = None) -> list[str]:
    """Return 'pid state name' of every child of a process, zombies included."""
    parent = os.getpid() if pid is None else pid
    return [f"{number} {state} {name}" for number, name, state, of, _ in processes() if of == parent]


def living_group(group: int) -> list[str]:
    """Return 'pid state name' of every process of a process group that has not ended."""
    return [f"{number} {state} {name}" for number, name, state, _, of in processes() if of == group and state != "Z"]


def processes() -> Iterator[tuple[int, str, str, int, int]]:
    """Yield pid, name, state, parent and process group of every process there is."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        match = re.fullmatch(r"(\d+) \((.*)\) (\S) (\d+) (\d+) .*", text.strip(), re.DOTALL)
        if match:
            yield int(match[1]), match[2], match[3], int(match[4]), int(match[5])


def mapped_memfds(pid: int | str = "self") -> list[str]:
    """Return the lines of /proc/PID/maps that map a memfd."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/memfd:" in line]
