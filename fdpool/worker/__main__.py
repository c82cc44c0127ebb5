"""The entrypoint of a worker: `python -m fdpool.worker` and the numbers of four inherited descriptors."""

from __future__ import annotations

import sys

from fdpool.worker.loop import run_worker


def main() -> int:
    """Run as a worker on the descriptors named on the command line; return the exit code."""
    numbers = sys.argv[1:]
    if len(numbers) != 4 or not all(number.isdigit() for number in numbers):
        print(
            "usage: python -m fdpool.worker CHANNEL PAGE LIFELINE SUPERVISOR\n"
            "The numbers of four inherited descriptors; fdpool.open_pool() starts workers this way.",
            file=sys.stderr,
        )
        return 2
    return run_worker(*map(int, numbers))


if __name__ == "__main__":
    sys.exit(main())
