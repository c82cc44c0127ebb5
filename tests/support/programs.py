"""Running programs of this repository, on whatever interpreter runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return an environment in which fdpool can be imported, installed or not."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "COLUMNS": "100"}


def run_python(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run *program* to its end and return what it printed."""
    command = [sys.executable, "-X", "dev", "-W", "error", program, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
