"""Contract tests for the counters of the out-of-memory killer, on trees of files like those the kernel shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdpool.process.oom import OomKills

VERSION_2 = "0::/pods/one\n"
VERSION_2_MOUNT = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = "4:cpu,cpuacct:/\n3:memory:/pods/one\n1:name=systemd:/\n0::/\n"
HYBRID_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
IN_CONTAINER_MOUNT = "35 31 0:32 /pods /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


class Tree:
    """A machine's /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def machine(self, kills: int) -> None:
        self.write("proc/vmstat", f"pgmajfault 7\noom_kill {kills}\nnr_free_pages 3\n")

    def member(self, groups: str, mounts: str) -> None:
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", mounts)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def version_2(tree: Tree, kills: int) -> None:
    tree.member(VERSION_2, VERSION_2_MOUNT)
    tree.write("sys/fs/cgroup/pods/one/memory.events", f"low 0\nhigh 0\nmax 3\noom 1\noom_kill {kills}\n")


def version_1(tree: Tree, kills: int) -> None:
    tree.member(HYBRID, HYBRID_MOUNTS)
    tree.write("sys/fs/cgroup/unified/cgroup.procs", "")
    tree.write("sys/fs/cgroup/memory/pods/one/memory.oom_control", f"oom_kill_disable 0\noom_kill {kills}\n")


def version_1_in_a_container(tree: Tree, kills: int) -> None:
    tree.member(HYBRID, IN_CONTAINER_MOUNT)
    tree.write("sys/fs/cgroup/memory/one/memory.oom_control", f"oom_kill_disable 0\noom_kill {kills}\n")


@pytest.mark.parametrize("group", [version_2, version_1, version_1_in_a_container])
def test_a_kill_in_the_own_control_group_is_told(tree: Tree, group: object) -> None:
    assert callable(group)
    tree.machine(20)
    group(tree, 4)
    kills = OomKills(100, tree.root)
    tree.machine(22)
    group(tree, 5)
    assert kills.explain_kill(135.2, 3 << 20) == (
        "killed, but not by this program: out of memory? The kernel's out-of-memory killer struck 1 time meanwhile "
        "(35 seconds) in this program's control group; its memory peaked at 3.0 MiB"
    )


def test_a_kill_elsewhere_on_the_machine_is_told_as_such(tree: Tree) -> None:
    tree.machine(20)
    version_2(tree, 4)
    kills = OomKills(0, tree.root)
    tree.machine(22)
    words = kills.explain_kill(9, None)
    assert words.endswith("The kernel's out-of-memory killer struck 2 times meanwhile (9 seconds) on this machine")


def test_no_kill_is_told_as_well(tree: Tree) -> None:
    tree.machine(20)
    kills = OomKills(0, tree.root)
    assert kills.explain_kill(9, None).endswith("out-of-memory killer did not strike meanwhile (9 seconds)")


def test_a_kill_is_told_of_the_deaths_of_one_moment_and_not_of_later_ones(tree: Tree) -> None:
    tree.machine(0)
    kills = OomKills(0, tree.root)
    tree.machine(2)
    for now in (100, 100.5):
        assert "struck 2 times meanwhile" in kills.explain_kill(now, None)
    tree.machine(3)
    assert "struck 3 times meanwhile (101 seconds)" in kills.explain_kill(101.2, None)
    assert "did not strike meanwhile (99 seconds)" in kills.explain_kill(200, None)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"pods/one": "536870912", "pods": "max"}, "; the control group may use 512.0 MiB"),
        ({"pods/one": "max", "pods": str(3 << 30)}, "; the control group may use 3.0 GiB"),
        ({"pods/one": str(4 << 30), "pods": str(3 << 30)}, "; the control group may use 3.0 GiB"),
        ({"pods/one": "max", "pods": "max"}, "(9 seconds)"),
        ({"pods/one": "9223372036854771712"}, "(9 seconds)"),
        ({}, "(9 seconds)"),
    ],
)
def test_the_smallest_limit_of_the_control_group_and_those_above_it_is_told(
    tree: Tree, limits: dict[str, str], says: str
) -> None:
    tree.machine(0)
    version_2(tree, 0)
    for path, limit in limits.items():
        tree.write(f"sys/fs/cgroup/{path}/memory.max", f"{limit}\n")
    assert OomKills(0, tree.root).explain_kill(9, None).endswith(says)


def test_the_limit_of_version_1_is_told(tree: Tree) -> None:
    version_1(tree, 0)
    tree.write("sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes", f"{1 << 29}\n")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert OomKills(0, tree.root).explain_kill(9, None).endswith("the control group may use 512.0 MiB")


@pytest.mark.parametrize(
    ("groups", "mounts"),
    [
        (VERSION_2, VERSION_2_MOUNT),
        (HYBRID, HYBRID_MOUNTS),
        (HYBRID, ""),
        ("", VERSION_2_MOUNT),
        (HYBRID, IN_CONTAINER_MOUNT.replace("/pods ", "/other ")),
        ("not like this\n", "at all\n"),
    ],
)
def test_where_nothing_can_be_read_nothing_is_claimed(tree: Tree, groups: str, mounts: str) -> None:
    tree.member(groups, mounts)
    tree.write("proc/vmstat", "no numbers in here\n")
    words = OomKills(0, tree.root).explain_kill(9, None)
    assert words.endswith("There is no counter here that tells whether the kernel's out-of-memory killer struck")


def test_counters_that_go_away_are_no_evidence(tree: Tree) -> None:
    tree.machine(5)
    kills = OomKills(0, tree.root)
    (tree.root / "proc/vmstat").unlink()
    assert "There is no counter here" in kills.explain_kill(9, None)


def test_the_counters_of_this_machine_can_be_read() -> None:
    """Linux counts since 4.13, and the control group is there wherever memory is accounted for."""
    assert OomKills(0)._last.on_machine is not None
