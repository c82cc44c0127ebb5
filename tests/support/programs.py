"""Running programs of this repository, on whatever interpreter runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPOSITORY = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return an environment in which fdpool can be imported, installed or not."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "COLUMNS": "100"}


def run_python(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run *program* to its end and return what it printed."""
    command = [sys.executable, "-X", "dev", "-W", "error", program, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


@asynccontextmanager
async def open_python(
    program: Path, *arguments: str | Path
) -> AsyncIterator[tuple[subprocess.Popen[bytes], trio.lowlevel.FdStream, trio.lowlevel.FdStream]]:
    """Run *program* beside the block, which gets the process, its output and its errors; kill it behind it."""
    command = [sys.executable, "-X", "dev", "-W", "error", program, *arguments]
    # Spawned by this thread, not by one that trio would keep around: nothing is left when the test ends.
    process = subprocess.Popen(  # noqa: ASYNC220
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout, process.stderr:
            stdout = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
            stderr = trio.lowlevel.FdStream(os.dup(process.stderr.fileno()))
            async with stdout, stderr:
                yield process, stdout, stderr
    finally:
        process.kill()
        process.wait()


async def read_line(stream: trio.lowlevel.FdStream) -> str:
    """Return the next line that a program writes, as far as it does before it ends."""
    line = b""
    while not line.endswith(b"\n") and (byte := await stream.receive_some(1)):
        line += byte
    return line.decode()
