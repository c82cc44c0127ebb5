"""Seeing what a test left behind."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


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
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        match = re.fullmatch(r"(\d+) \((.*)\) (\S) (\d+) .*", text.strip(), re.DOTALL)
        if match and int(match[4]) == parent:
            found.append(f"{match[1]} {match[3]} {match[2]}")
    return found


def mapped_memfds(pid: int | str = "self") -> list[str]:
    """Return the lines of /proc/PID/maps that map a memfd."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/memfd:" in line]
