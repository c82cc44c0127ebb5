"""How many workers there is any use for."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_workers() -> int:
    """Return how many processors this process may use: by its affinity, and by the quota of its control group.

    See sched_getaffinity(2) and the kernel's cgroup-v2 documentation, cpu.max.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _quota() -> float | None:
    """Return how many processors' worth of time the control group may use, or None if it is not limited."""
    try:
        limit, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
