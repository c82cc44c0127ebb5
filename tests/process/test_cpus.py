"""Contract tests of the default size of a pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fdpool.process.cpus import default_workers

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Lay out what the kernel shows a process of its control groups."""
    for name, text in {
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "workers"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
        # The quota of a group around it holds as well.
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "400000 100000\n"}, 4),
        # In a container that shows the host's path.
        ("0::/docker/0123\n", {"cpu.max": "300000 100000\n"}, 3),
        # Version 1, its hierarchy mounted under either name.
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "150000", "cpu,cpuacct/x/cpu.cfs_period_us": "50000"},
            3,
        ),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 8),
        ("4:memory:/x\n3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        # Nonsense limits nothing.
        ("0::/\n", {"cpu.max": "what?\n"}, 8),
        ("0::/\n", {"cpu.max": "100 0\n"}, 8),
        ("0::/\n", {}, 8),
    ],
)
def test_the_smallest_quota_counts(tmp_path: Path, cgroup: str, files: dict[str, str], workers: int) -> None:
    assert default_workers(machine(tmp_path, cgroup, files)) == workers


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert default_workers(tmp_path) == 8
