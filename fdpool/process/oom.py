"""What the kernel's out-of-memory killer has done, as far as its counters tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fdpool.errors import describe_size

if TYPE_CHECKING:
    from collections.abc import Iterator

SAME_MOMENT_SECONDS: Final = 1.0
"""Deaths within this time are looked at together: the killer that struck twice is evidence for both."""

# By type of file system: where a control group counts kills, and where its limit is. Kernel documentation, cgroup-v2
# and cgroup-v1/memory. Both files count processes of the group that were killed for lack of memory anywhere.
_FILES: Final = {
    "cgroup2": ("memory.events", "memory.max"),
    "cgroup": ("memory.oom_control", "memory.limit_in_bytes"),
}
_NO_LIMIT: Final = 1 << 60  # version 1 says LONG_MAX, rounded down to a page


@dataclass(frozen=True, slots=True)
class _Look:
    """What the counters were at one time; None where they cannot be read."""

    time: float
    in_group: int | None
    on_machine: int | None


class OomKills:
    """Watches the counters of this machine and of the control group that this process and its workers are in.

    Args:
      now: The time, in seconds of any clock that only goes forward.
      root: Where /proc and /sys are.
    """

    def __init__(self, now: float, root: Path = Path("/")) -> None:
        self._vmstat = root / "proc/vmstat"
        self._group = _find_group(root)
        self._base = self._last = self._look(now)

    def explain_kill(self, now: float, peak_rss_bytes: int | None) -> str:
        """Return what there is to say about a process that was killed by somebody else, in words.

        Args:
          now: The time.
          peak_rss_bytes: The most memory it had, if that is known.
        """
        if now - self._last.time > SAME_MOMENT_SECONDS:
            self._base = self._last
        self._last = self._look(now)
        evidence = [self._strikes()]
        if peak_rss_bytes is not None:
            evidence.append(f"its memory peaked at {describe_size(peak_rss_bytes)}")
        if self._group is not None and (limit := self._group.limit_bytes()) is not None:
            evidence.append(f"the control group may use {describe_size(limit)}")
        return f"killed, but not by this program: out of memory? {'; '.join(evidence)}"

    def _strikes(self) -> str:
        killer = "kernel's out-of-memory killer"
        seconds = f"{self._last.time - self._base.time:.0f} seconds"
        in_group = _rise(self._base.in_group, self._last.in_group)
        on_machine = _rise(self._base.on_machine, self._last.on_machine)
        if in_group:
            return f"The {killer} struck {_times(in_group)} meanwhile ({seconds}) in this program's control group"
        if on_machine:
            return f"The {killer} struck {_times(on_machine)} meanwhile ({seconds}) on this machine"
        if in_group is None and on_machine is None:
            return f"There is no counter here that tells whether the {killer} struck"
        return f"The {killer} did not strike meanwhile ({seconds})"

    def _look(self, now: float) -> _Look:
        in_group = None if self._group is None else self._group.kills()
        return _Look(now, in_group, _number_in(self._vmstat, "oom_kill"))


class _Group:
    """A control group, and those above it up to where the hierarchy begins. Finding the files once halves each look."""

    def __init__(self, directory: Path, top: Path, kills_name: str, limit_name: str) -> None:
        self._kills = directory / kills_name
        within = (path for path in (directory, *directory.parents) if path.is_relative_to(top))
        self._limits = [path / limit_name for path in within]

    def kills(self) -> int | None:
        return _number_in(self._kills, "oom_kill")

    def limit_bytes(self) -> int | None:
        """Return the smallest limit that it is under, its own or one of those above it; None if there is none."""
        return min((limit for path in self._limits if (limit := _limit_in(path)) is not None), default=None)


def _find_group(root: Path) -> _Group | None:
    """Return the control group that accounts for this process's memory, as far as it can be seen from here."""
    try:
        memberships = _lines_of(root / "proc/self/cgroup")
        mounts = list(_mounts(root))
    except (OSError, ValueError):
        return None
    # "4:memory:/path" in version 1; "0::/path" in version 2, where each group has all controllers that are on.
    paths = {name: path for _, names, path in (line.split(":", 2) for line in memberships) for name in names.split(",")}
    for kind, name in (("cgroup", "memory"), ("cgroup2", "")):
        for mounted_path, mounted_at, file_system, options in mounts:
            if name in paths and file_system == kind and (not name or name in options):
                # In a container the mount may show only a part of the hierarchy.
                shown = Path(paths[name])
                if shown.is_relative_to(mounted_path):
                    group = _Group(mounted_at / shown.relative_to(mounted_path), mounted_at, *_FILES[kind])
                    if group.kills() is not None:
                        return group
    return None


def _mounts(root: Path) -> Iterator[tuple[str, Path, str, list[str]]]:
    """Yield of each mount which part of its file system is where, of what type it is and its options; see proc(5)."""
    for line in _lines_of(root / "proc/self/mountinfo"):
        where, _, what = line.partition(" - ")
        _, _, _, part, mounted_at, *_ = where.split()
        file_system, _, options = what.split(maxsplit=2)
        yield part, root / mounted_at.lstrip("/"), file_system, options.split(",")


def _number_in(path: Path, name: str) -> int | None:
    """Return the number after *name* in a file of lines with a name and a number each; None if it cannot be had."""
    try:
        _, found, rest = f"\n{path.read_text(encoding='ascii')}".partition(f"\n{name} ")
        return int(rest.partition("\n")[0]) if found else None
    except (OSError, ValueError):
        return None


def _limit_in(path: Path) -> int | None:
    try:
        limit = int(_lines_of(path)[0])
    except (OSError, ValueError, IndexError):
        # Not there, or "max".
        return None
    return limit if limit < _NO_LIMIT else None


def _lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def _rise(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _times(number: int) -> str:
    return "1 time" if number == 1 else f"{number} times"
