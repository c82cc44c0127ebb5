"""End-to-end tests: a vhost-user front end against QEMU's disk, and against a device of our own.

The front end is the one in examples/, the device the one in workers/, so that both are run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from examples.vhost_user.device import open_device
from examples.vhost_user.disk import MAX_TRANSFER, SECTOR, open_disk, start_daemon
from examples.vhost_user.protocol import CONFIG, HEADER, NUMBER, REPLY_ACK, VERSION
from fdpool.connection import Connection, Disconnected
from fdpool.connection_listener import open_connection, open_connection_listener
from fdpool.kernel import EventFd, MemFd
from fdpool.pool import open_pool
from tests.support.leaks import descriptor_count
from tests.support.programs import REPOSITORY, open_python, read_line, run_python
from workers.vhost_echo import run_device, serve_front_end, serve_or_report

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from examples.vhost_user.device import Device
    from examples.vhost_user.disk import Disk
    from examples.vhost_user.protocol import FrontEnd

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None,
    reason="qemu-storage-daemon is not installed (Debian: qemu-system-common or qemu-utils)",
)
IMAGE_BYTES = 4 << 20


def make_image(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# QEMU's disk


@needs_qemu
async def test_a_thousand_random_reads_and_writes_agree_with_a_model(tmp_path: Path) -> None:
    dice = random.Random(1202)
    model = bytearray(dice.randbytes(IMAGE_BYTES))
    image = make_image(tmp_path / "disk.img", bytes(model))

    async def keep_busy(disk: Disk, first: int, last: int) -> None:
        """Read and write in sectors that are this task's alone, so that the order is known."""
        for _ in range(125):
            start = dice.randrange(first, last)
            nbytes = dice.randint(1, min(last - start, MAX_TRANSFER // SECTOR)) * SECTOR
            at = slice(start * SECTOR, start * SECTOR + nbytes)
            if dice.random() < 0.5:
                model[at] = data = dice.randbytes(nbytes)
                await disk.write(start, data)
            else:
                assert await disk.read(start, nbytes) == model[at]

    with trio.fail_after(60):
        async with start_daemon(image, tmp_path / "vu.sock"), open_disk(tmp_path / "vu.sock") as disk:
            assert disk.size == IMAGE_BYTES
            share = IMAGE_BYTES // SECTOR // 8
            async with trio.open_nursery() as nursery:
                for task in range(8):
                    nursery.start_soon(keep_busy, disk, task * share, (task + 1) * share)
            await disk.flush()
    assert image.read_bytes() == model


@needs_qemu
async def test_what_the_disk_refuses_is_told_and_the_next_request_works(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", b"x" * IMAGE_BYTES)
    with trio.fail_after(30):
        async with start_daemon(image, tmp_path / "vu.sock"), open_disk(tmp_path / "vu.sock") as disk:
            with pytest.raises(OSError, match=f"refused request 0 at sector {IMAGE_BYTES // SECTOR}: status 1"):
                await disk.read(IMAGE_BYTES // SECTOR, SECTOR)
            with pytest.raises(ValueError, match="at most 4 parts"):
                await disk.read(0, 1 << 20)
            assert await disk.read(7, SECTOR) == b"x" * SECTOR


@needs_qemu
async def test_a_killed_daemon_fails_every_request_in_flight(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", bytes(IMAGE_BYTES))
    failed = []

    async def expect_the_end(disk: Disk) -> None:
        try:
            await disk.read(0, SECTOR)
        except trio.BrokenResourceError as exc:
            failed.append(str(exc))

    with trio.fail_after(30):
        async with start_daemon(image, tmp_path / "vu.sock") as daemon, open_disk(tmp_path / "vu.sock") as disk:
            # Stopped, it takes no more requests: these are in flight when it dies. 40 are more than there are slots.
            stop(daemon)
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(expect_the_end, disk)
                await trio.testing.wait_all_tasks_blocked()
                daemon.kill()
            with pytest.raises(trio.BrokenResourceError, match="the device is gone"):
                await disk.read(0, SECTOR)
    assert len(failed) == 40
    assert sum("with this request in flight" in text for text in failed) == 32


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


@needs_qemu
async def test_the_daemon_answers_a_message_that_comes_byte_by_byte(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", bytes(IMAGE_BYTES))
    with trio.fail_after(30):
        async with start_daemon(image, tmp_path / "vu.sock"), await open_connection(tmp_path / "vu.sock") as connection:
            for byte in HEADER.pack(1, VERSION, 0):
                await connection.send_message(bytes([byte]))
            reply = await connection.receive_message(HEADER.size, lambda header: int(HEADER.unpack(header)[2]))
            assert HEADER.unpack(reply.header)[0] == 1
            assert NUMBER.unpack(reply.body)[0] >> 32 & 1


@needs_qemu
def test_the_example_copies_a_file_in_and_reads_it_back() -> None:
    finished = run_python(REPOSITORY / "examples" / "vhost_user_disk.py", __file__)
    assert finished.stderr == ""
    assert finished.returncode == 0
    assert "test_vhost_user.py" in finished.stdout
    assert finished.stdout.endswith("Every byte was read back as it was written, and the image file has them all.\n")
    for kind in ("sequential write", "sequential read", "random write", "random read"):
        assert kind in finished.stdout


# Our own device


@asynccontextmanager
async def open_echo(path: Path, **options: int) -> AsyncIterator[tuple[Device, FrontEnd]]:
    """An echo device in this process, behind a real path."""
    async with await open_connection_listener(path) as listener, trio.open_nursery() as nursery:

        async def serve() -> None:
            async with await listener.accept() as connection:
                await serve_front_end(connection)

        nursery.start_soon(serve)
        async with open_device(str(path), **options) as both:
            yield both


async def test_both_ends_of_the_framing_agree(tmp_path: Path) -> None:
    before = descriptor_count()
    with trio.fail_after(30):
        async with open_echo(tmp_path / "echo.sock", config_bytes=20) as (device, front_end):
            assert device.config == b"fdpool echo".ljust(20, b"\0")
            assert front_end.protocol_features == REPLY_ACK | CONFIG
            assert await device.transfer([b"head", b"data"], [2, 9]) == [b"he", b"addata\0\0\0"]
            # A long run goes past what the 16-bit indices count.
            for number in range(70_000 if os.environ.get("FDPOOL_RACE_SECONDS") else 1000):
                assert await device.transfer([NUMBER.pack(number)], [8]) == [NUMBER.pack(number)]
    assert descriptor_count() == before


async def test_requests_in_flight_are_answered_each_with_its_own(tmp_path: Path) -> None:
    async def ask(device: Device, text: bytes) -> None:
        assert await device.transfer([text], [len(text)]) == [text]

    with trio.fail_after(30):
        async with open_echo(tmp_path / "echo.sock", slots=8) as (device, _):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(ask, device, f"request {number}".encode())


async def test_a_cancelled_request_leaves_its_slot_to_the_device(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with open_echo(tmp_path / "echo.sock", slots=1) as (device, _):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.transfer, [b"nobody waits"], [12])
                nursery.cancel_scope.cancel()
            assert await device.transfer([b"somebody"], [8]) == [b"somebody"]


async def test_the_program_serves_a_path_and_removes_it_when_told_to_end(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    program = REPOSITORY / "workers" / "vhost_echo.py"
    with trio.fail_after(30):
        async with open_python(program, path) as (process, stdout, stderr):
            assert await read_line(stdout) == f"listening on {path}\n"
            for _ in range(2):
                async with open_device(str(path)) as (device, _):
                    assert await device.transfer([b"ping"], [4]) == [b"ping"]
            # A front end that breaks the rules is dropped alone.
            async with open_device(str(path)) as (device, _), await open_connection(path) as rude:
                await rude.send_message(HEADER.pack(999, VERSION, 0))
                with pytest.raises((Disconnected, trio.BrokenResourceError)):
                    await rude.receive_exactly(1)
                assert await read_line(stderr) == "a front end was dropped: request 999 is not known\n"
                assert await device.transfer([b"ping"], [4]) == [b"ping"]
            process.terminate()
            assert await read_line(stdout) == ""
            assert process.wait() == 0
    assert not path.exists()


async def test_a_supervised_worker_is_the_device_of_whoever_connects_to_the_socket_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    with trio.fail_after(30), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with open_pool(workers=1) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, run_device, listener)
            for _ in range(2):
                async with open_device(str(path)) as (device, _):
                    assert await device.transfer([b"ping"], [4]) == [b"ping"]
            nursery.cancel_scope.cancel()


async def test_a_worker_that_is_killed_fails_the_requests_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    with trio.fail_after(30):
        async with open_python(REPOSITORY / "workers" / "vhost_echo.py", path) as (process, stdout, _):
            await read_line(stdout)
            async with open_device(str(path)) as (device, _):
                stop(process)
                with pytest.RaisesGroup(pytest.RaisesExc(trio.BrokenResourceError, match="in flight")):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(device.transfer, [b"ping"], [4])
                        await trio.testing.wait_all_tasks_blocked()
                        process.kill()


def test_the_program_says_how_to_call_it() -> None:
    finished = run_python(REPOSITORY / "workers" / "vhost_echo.py")
    assert finished.returncode == 1
    assert finished.stderr.startswith("usage:")


def test_a_connected_socket_is_served_until_its_peer_leaves() -> None:
    left, right = socket.socketpair()
    with left:
        left.send(HEADER.pack(1, VERSION, 0))
        left.shutdown(socket.SHUT_WR)
        assert run_device(right) == 0
        assert len(left.recv(99)) == HEADER.size + NUMBER.size


def tell(request: int, body: bytes = b"", flags: int = VERSION) -> bytes:
    return HEADER.pack(request, flags, len(body)) + body


REGION = struct.Struct("<II QQQQ")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([tell(999)], "request 999 is not known"),
        ([tell(8, b"short")], "request 8 has a body of 5 bytes"),
        ([tell(8, struct.pack("<II", 0, 0))], "a queue of 0 descriptors"),
        ([tell(12, NUMBER.pack(0))], "0 descriptors with a request that takes one eventfd"),
        ([tell(18, struct.pack("<II", 0, 1))], "a queue was enabled that has no size or no kick"),
        ([tell(5, REGION.pack(1, 0, 0, 4096, 0, 0))], "1 regions with 0 descriptors"),
        ([tell(24, struct.pack("<III", 0, 1 << 31, 0))], "2147483648 bytes of configuration at 0"),
        ([HEADER.pack(5, VERSION, (1 << 32) - 1)], "promises a body of 4294967295 bytes, over the limit of 4096"),
        ([tell(1)[:7]], "after 7 bytes of a message"),
    ],
)
async def test_a_front_end_that_breaks_the_rules_is_dropped(
    messages: Sequence[bytes], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = descriptor_count()
    left, right = Connection.pair()
    with trio.fail_after(10):
        async with left, trio.open_nursery() as nursery:

            async def serve() -> None:
                async with right:
                    await serve_or_report(right)

            nursery.start_soon(serve)
            for message in messages:
                await left.send_message(message)
            with left.into_socket() as sock:
                sock.shutdown(socket.SHUT_WR)
                await trio.lowlevel.wait_readable(sock)
    assert problem in capsys.readouterr().err
    assert descriptor_count() == before


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (REGION.pack(1, 0, 0, 1 << 40, 0, 0), "a region of 1099511627776 bytes at 0 is not inside its memfd"),
        (REGION.pack(1, 0, 0, 4096, 0, 4096), "a region of 4096 bytes at 4096 is not inside its memfd"),
        (REGION.pack(1, 0, 0, 2048, 0, 7), "a region of 2048 bytes at 7 is not inside its memfd"),
    ],
)
async def test_memory_that_is_not_there_is_never_mapped(
    table: bytes, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = Connection.pair()
    with trio.fail_after(10), MemFd(size=4096) as memory:
        async with left, right:
            await left.send_message(tell(5, table), fds=[memory])
            await serve_or_report(right)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("descriptor", "problem"),
    [
        (struct.pack("<QIHH", 0x9999_0000, 16, 0, 0), "16 bytes at 0x99990000 are in no region"),
        (struct.pack("<QIHH", 0, 16, 1, 0), "the request at descriptor 0 has no end"),
        (struct.pack("<QIHH", 0, 16, 1, 77), "descriptor 77 of 4"),
    ],
)
async def test_a_queue_that_leads_nowhere_ends_the_connection(
    descriptor: bytes, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = Connection.pair()
    with trio.fail_after(10), MemFd(size=4096) as memory, EventFd() as kick, EventFd() as call:
        memory.write([descriptor])
        memory.write([struct.pack("<HHH", 0, 1, 0)], 1024)
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(serve_or_report, right)
            await left.send_message(tell(5, REGION.pack(1, 0, 0, 4096, 0, 0)), fds=[memory])
            await left.send_message(tell(8, struct.pack("<II", 0, 4)))
            await left.send_message(tell(9, struct.pack("<IIQQQQ", 0, 0, 0, 2048, 1024, 0)))
            await left.send_message(tell(12, NUMBER.pack(0)), fds=[kick])
            await left.send_message(tell(13, NUMBER.pack(0)), fds=[call])
            await left.send_message(tell(18, struct.pack("<II", 0, 1)))
    assert problem in capsys.readouterr().err


async def test_a_queue_that_is_stopped_before_it_has_begun_ends_nothing_else() -> None:
    left, right = Connection.pair()
    with trio.fail_after(10), MemFd(size=4096) as memory, EventFd() as kick:
        await left.send_message(tell(5, REGION.pack(1, 0, 0, 4096, 0, 0)), fds=[memory])
        await left.send_message(tell(8, struct.pack("<II", 0, 4)))
        await left.send_message(tell(9, struct.pack("<IIQQQQ", 0, 0, 0, 2048, 1024, 0)))
        await left.send_message(tell(12, NUMBER.pack(0)), fds=[kick])
        await left.send_message(tell(18, struct.pack("<II", 0, 1)))
        async with left, right:
            await left.aclose()
            assert await serve_front_end(right) == 0


async def test_a_kick_that_is_no_eventfd_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    left, right = Connection.pair()
    with trio.fail_after(10), MemFd(size=4096) as memory:
        async with left, right:
            await left.send_message(tell(12, NUMBER.pack(0)), fds=[memory])
            await serve_or_report(right)
    assert "takes an eventfd came with something else" in capsys.readouterr().err
