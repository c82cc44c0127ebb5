"""A fork whose parent is the parent's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fdpool.kernel.clone import can_fork_sibling

pytestmark = pytest.mark.skipif(not can_fork_sibling(), reason="this machine or kernel is not known to fork siblings")

# It forks once; both sides say who they are, the child after a thread of its own.
PROGRAM = """
import os, sys, threading
from fdpool.kernel.clone import fork_sibling

pidfd = fork_sibling()
if pidfd is None:
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(threading.get_native_id()))
    thread.start()
    thread.join()
    os.write(1, f"child {os.getpid()} {os.getppid()} {threading.get_native_id()} {len(set(numbers))}\\n".encode())
    os._exit(7)
os.write(1, f"forker {os.getpid()} {os.getppid()} {pidfd.pid} {os.get_inheritable(pidfd.fileno())}\\n".encode())
pidfd.close()
"""


def test_the_child_is_its_grandparents_and_lives_like_any_process() -> None:
    forker = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, process_group=0)
    lines: dict[str, list[str]] = {}
    assert forker.stdout is not None
    with forker.stdout:
        for line in forker.stdout:
            name, *numbers = line.split()
            lines[name] = numbers
    child = int(lines["forker"][2])
    assert lines["child"] == [str(child), str(os.getpid()), str(child), "1"]
    assert lines["forker"] == [str(forker.pid), str(os.getpid()), str(child), "False"]
    # It can be waited for here, by number and as one of the forker's process group.
    status = os.waitid(os.P_PGID, forker.pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    assert status.si_pid in {child, forker.pid}
    status = os.waitid(os.P_PID, child, os.WEXITED)
    assert status is not None
    assert (status.si_pid, status.si_status) == (child, 7)
    assert forker.wait() == 0
