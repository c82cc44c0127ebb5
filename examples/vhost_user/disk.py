"""A disk behind vhost-user: sectors, read, written and flushed; and QEMU's daemon that serves one."""

from __future__ import annotations

import socket
import struct
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from examples.vhost_user.device import Device, open_device
from examples.vhost_user.protocol import BLK_FLUSH, FrontEnd
from fdpool import PidFd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECTOR = 512
MAX_TRANSFER = 128 << 10
READ, WRITE, FLUSH = 0, 1, 4


class Disk:
    """Sectors of 512 bytes, at any of which as many as `MAX_TRANSFER` holds can be read or written at once."""

    def __init__(self, device: Device, front_end: FrontEnd) -> None:
        self.front_end = front_end
        (sectors,) = struct.unpack_from("<Q", device.config)
        self.size: int = sectors * SECTOR
        self._device = device

    async def read(self, sector: int, nbytes: int) -> bytes:
        """Return *nbytes* bytes, from the start of a sector on."""
        return (await self._ask(READ, sector, b"", nbytes))[0]

    async def write(self, sector: int, data: bytes) -> None:
        """Write *data*, from the start of a sector on."""
        await self._ask(WRITE, sector, data)

    async def flush(self) -> None:
        """Wait until everything written is on the medium."""
        await self._ask(FLUSH, 0)

    async def _ask(self, kind: int, sector: int, data: bytes = b"", *into: int) -> list[bytes]:
        header = struct.pack("<IIQ", kind, 0, sector)
        *answer, status = await self._device.transfer([header, data] if data else [header], [*into, 1])
        if status != b"\0":
            raise OSError(f"the disk refused request {kind} at sector {sector}: status {status[0]}")
        return answer


@asynccontextmanager
async def open_disk(path: Path) -> AsyncIterator[Disk]:
    """Use the disk whose back end listens at *path*."""
    async with open_device(str(path), features=BLK_FLUSH, config_bytes=60) as (device, front_end):
        yield Disk(device, front_end)


@asynccontextmanager
async def start_daemon(image: Path, path: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Have qemu-storage-daemon serve *image* to whoever connects to *path*, and end it behind the block."""
    # The daemon inherits a socket that listens already, so nobody has to wait until it does.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={image}"]
        command += ["--blockdev", "driver=raw,node-name=disk,file=file", "--export"]
        address = f"addr.type=fd,addr.str={listener.fileno()}"
        command += [f"type=vhost-user-blk,id=export,node-name=disk,writable=on,{address}"]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])  # noqa: ASYNC220 - takes a millisecond
    with PidFd(process.pid) as ended:
        try:
            yield process
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(5):
                    await trio.lowlevel.wait_readable(ended.fileno())
                process.kill()
                await trio.lowlevel.wait_readable(ended.fileno())
            process.wait()
