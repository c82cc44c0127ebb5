"""Use a disk that QEMU's storage daemon serves: fill it with a file, read it back, measure.

    python examples/vhost_user_disk.py [FILE]

The daemon reads and writes our memory directly: a memfd that it was handed, with two eventfds to ring.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from examples.vhost_user.disk import MAX_TRANSFER, SECTOR, Disk, open_disk, start_daemon

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

IMAGE_BYTES = 64 << 20
BLOCK = 4096


async def run_all(offsets: Iterable[int], job: Callable[[int], Awaitable[None]], in_flight: int) -> float:
    """Run *job* for each of *offsets*, *in_flight* of them at a time; return how many seconds that took."""
    waiting = iter(offsets)

    async def work() -> None:
        for offset in waiting:
            await job(offset)

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(work)
    return time.perf_counter() - start


async def use(disk: Disk, content: bytes, console: Console) -> Table:
    """Write all of *content*, read it back; then single blocks at random, one at a time and many at a time."""
    results = Table("request", "size", "in flight", "rate")

    def jobs(size: int, progress: Progress) -> dict[str, Callable[[int], Awaitable[None]]]:
        bars = {name: progress.add_task(name, total=disk.size) for name in ("write", "read") if size > BLOCK}

        async def write(offset: int) -> None:
            await disk.write(offset // SECTOR, content[offset : offset + size])
            if bars:
                progress.advance(bars["write"], size)

        async def read(offset: int) -> None:
            if await disk.read(offset // SECTOR, size) != content[offset : offset + size]:
                raise ValueError(f"the disk returned other bytes than were written, at {offset}")
            if bars:
                progress.advance(bars["read"], size)

        return {"write": write, "read": read}

    columns = (TextColumn("{task.description:5}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=console) as progress:
        for name, job in jobs(MAX_TRANSFER, progress).items():
            seconds = await run_all(range(0, disk.size, MAX_TRANSFER), job, in_flight=16)
            results.add_row(f"sequential {name}", "128 KiB", "16", f"{disk.size / seconds / 1e6:,.0f} MB/s")
            await disk.flush()
        offsets = [random.randrange(disk.size // BLOCK) * BLOCK for _ in range(4000)]
        for name, job in jobs(BLOCK, progress).items():
            for in_flight in (1, 32):
                seconds = await run_all(offsets, job, in_flight)
                results.add_row(f"random {name}", "4 KiB", str(in_flight), f"{len(offsets) / seconds:,.0f} IOPS")
    return results


def main(file: Path) -> None:
    """Do all of it in a directory that is gone afterwards."""
    console = Console(highlight=False)
    # The file from the start of the disk on, as far as it fits; noise behind it.
    content = file.read_bytes()[:IMAGE_BYTES]
    size = f"{len(content) / 1e6:,.1f} MB"
    console.print(f"{file.name} ({size}) goes to a new disk of {IMAGE_BYTES >> 20} MiB, with noise behind it")
    content += random.randbytes(IMAGE_BYTES - len(content))

    async def use_disk(image: Path, path: Path) -> Table:
        async with start_daemon(image, path) as daemon, open_disk(path) as disk:
            agreed, offered = disk.front_end.features, disk.front_end.offered
            console.print(f"qemu-storage-daemon, process {daemon.pid}: features {offered:#x}, used {agreed:#x}")
            return await use(disk, content, console)

    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "disk.img")
        image.write_bytes(bytes(IMAGE_BYTES))
        console.print(trio.run(use_disk, image, Path(directory, "vu.sock")))
        if image.read_bytes() != content:
            sys.exit("the image differs from what was written")
    console.print("Every byte was read back as it was written, and the image file has them all.")


if __name__ == "__main__":
    daemon_program = shutil.which("qemu-storage-daemon")
    if daemon_program is None:
        sys.exit("qemu-storage-daemon is not installed (Debian: apt-get install qemu-system-common)")
    main(Path(sys.argv[1] if len(sys.argv) > 1 else daemon_program))
