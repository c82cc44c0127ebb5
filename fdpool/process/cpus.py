"""How many workers there is any use for."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def default_workers(root: Path = Path("/")) -> int:
    """Return how many processors this process may use: by its affinity, and by the quotas of its control groups.

    See sched_getaffinity(2) and the kernel's documentation of control groups: `cpu.max` in version 2,
    `cpu.cfs_quota_us` in version 1. A group is held to the quotas of those around it as well.

    Args:
      root: Where `proc` and `sys` are found.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield how many processors' worth of time each control group that this process is in may use, if it is limited."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for group in _upwards(mounts, path):
                yield from _read_quota(group / "cpu.max")
        elif "cpu" in controllers.split(","):
            # The one hierarchy may be mounted under either of two names.
            for mount in (mounts / controllers, mounts / "cpu"):
                for group in _upwards(mount, path):
                    yield from _read_quota(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a control group, and those of the groups around it."""
    group = mount / path.lstrip("/")
    yield group
    # Inside a container the path may be the host's, which is not there; then what is mounted is the container's own.
    while group != mount and mount in group.parents:
        group = group.parent
        yield group


def _read_quota(*files: Path) -> Iterator[float]:
    """Yield the quota over the period, which stand in one file or in two, unless there is none."""
    with suppress(OSError, ValueError):
        limit, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
        if limit not in ("max", "-1") and int(period) > 0:
            yield int(limit) / int(period)
