"""The entrypoint of workers and of the zygote: `python -m fdpool.worker`, a role, and numbers of inherited descriptors.

What it does first needs next to nothing of Python. Everything else takes some 50 ms to load, and a process whose
supervisor was killed just before it could tie it to itself is not to live that long.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Final

_DESCRIPTORS: Final = {
    "worker": ("CHANNEL", "PAGE", "LIFELINE", "SUPERVISOR"),
    "zygote": ("CHANNEL", "LIFELINE", "SUPERVISOR"),
}


def main() -> int:
    """Play the role on the descriptors named on the command line; return the exit code."""
    role, numbers = sys.argv[1:2], sys.argv[2:]
    names = _DESCRIPTORS.get("".join(role), ())
    if not names or len(numbers) != len(names) or not all(number.isdigit() for number in numbers):
        uses = "\n       ".join(
            f"python -m fdpool.worker {role} {' '.join(names)}" for role, names in _DESCRIPTORS.items()
        )
        print(
            f"usage: {uses}\nThe numbers of inherited descriptors; fdpool.open_pool() starts processes this way.",
            file=sys.stderr,
        )
        return 2
    descriptors = list(map(int, numbers))
    leave_if_orphaned(descriptors[-1])
    if role == ["worker"]:
        from fdpool.worker.loop import run_worker

        return run_worker(*descriptors)
    from fdpool.worker.zygote import run_zygote

    return run_zygote(*descriptors)


def leave_if_orphaned(supervisor_fd: int) -> None:
    """Exit at once if the supervisor has ended."""
    poll = select.poll()
    poll.register(supervisor_fd, select.POLLIN)
    if any(events & select.POLLIN for _, events in poll.poll(0)):
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
