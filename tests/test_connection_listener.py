"""Contract tests for dialling, listening and serving, on real paths."""

from __future__ import annotations

import os
import re
import resource
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from fdpool.connection import Connection, Disconnected, PartialMessage
from fdpool.connection_listener import (
    ConnectionListener,
    open_connection,
    open_connection_listener,
    serve_connections,
)
from fdpool.kernel import EventFd
from tests.support.attempts import cancel_at_every_step
from tests.support.leaks import descriptor_count
from tests.support.programs import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.sweep import CancellationPoint


async def echo(connection: Connection) -> None:
    """Send back every message, a byte that tells the length of what follows, with its descriptors."""
    while True:
        try:
            header, body, fds = await connection.receive_message(1, lambda size: size[0])
        except (Disconnected, PartialMessage):
            return
        await connection.send_message(header, body, fds=fds)
        for fd in fds:
            fd.close()


async def test_messages_and_descriptors_come_back_from_a_served_path(tmp_path: Path) -> None:
    listener = await open_connection_listener(tmp_path / "echo.sock")
    async with trio.open_nursery() as nursery:
        assert await nursery.start(serve_connections, echo, listener) == [listener]
        async with await open_connection(tmp_path / "echo.sock") as first:
            async with await open_connection(str(tmp_path / "echo.sock")) as second:
                with EventFd(3) as event:
                    await first.send_message(b"\5", b"first", fds=[event])
                await second.send_message(b"\6", b"second")
                reply = await first.receive_message(1, lambda size: size[0])
                assert (reply.body, len(reply.fds)) == (b"first", 1)
                assert os.eventfd_read(reply.fds[0].fileno()) == 3
                reply.fds[0].close()
                assert (await second.receive_message(1, lambda size: size[0])).body == b"second"
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "echo.sock").exists()


async def test_a_handlers_connection_is_closed_behind_it(tmp_path: Path) -> None:
    async def greet(connection: Connection) -> None:
        await connection.send_message(b"bye")

    listener = await open_connection_listener(tmp_path / "s")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connections, greet, listener)
        async with await open_connection(tmp_path / "s") as connection:
            assert await connection.receive_exactly(3) == (b"bye", [])
            with pytest.raises(Disconnected):
                await connection.receive_exactly(1)
        nursery.cancel_scope.cancel()


async def test_what_a_handler_raises_ends_the_serving(tmp_path: Path) -> None:
    async def fail(connection: Connection) -> None:
        raise LookupError("no such device")

    listener = await open_connection_listener(tmp_path / "s")
    with pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="no such device"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connections, fail, listener)
            async with await open_connection(tmp_path / "s") as connection:
                with pytest.raises(Disconnected):
                    await connection.receive_exactly(1)


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_the_path_has_its_mode_from_birth(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o002)
    try:
        async with await open_connection_listener(tmp_path / "s", mode=mode):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    finally:
        os.umask(before)


async def test_a_path_that_is_taken_is_refused_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with await open_connection_listener(path) as first:
        with pytest.raises(OSError, match="in use"):
            await open_connection_listener(path)
        async with await open_connection_listener(path, replace=True) as second:
            async with await open_connection(path):
                (await second.accept()).close()
            await first.aclose()
            assert path.exists(), "the first listener removed what the second one had put there"
        assert not path.exists()
    path.write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        await open_connection_listener(path, replace=True)
    assert path.read_text() == "not a socket"


async def test_a_path_that_somebody_removed_is_no_trouble(tmp_path: Path) -> None:
    async with await open_connection_listener(tmp_path / "s"):
        (tmp_path / "s").unlink()


async def test_an_abstract_name_needs_no_path() -> None:
    name = f"\0fdpool-test-{os.getpid()}"
    async with await open_connection_listener(name) as listener, await open_connection(name):
        (await listener.accept()).close()


async def test_nobody_there_and_nobody_any_more_are_told_apart(tmp_path: Path) -> None:
    before = descriptor_count()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await open_connection(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "dead"))
    with pytest.raises(ConnectionRefusedError):
        await open_connection(tmp_path / "dead")
    with pytest.raises(OSError, match="too long"):
        await open_connection(tmp_path / ("x" * 108))
    with pytest.raises(OSError, match="too long"):
        await open_connection_listener(tmp_path / ("x" * 108))
    assert descriptor_count() == before


async def test_dialling_waits_while_the_listeners_queue_is_full(tmp_path: Path) -> None:
    """A full queue is EAGAIN with no event to wait for; taking it for success gives a socket that leads nowhere."""
    async with await open_connection_listener(tmp_path / "s", backlog=0) as listener:
        async with await open_connection(tmp_path / "s"):
            with trio.move_on_after(0) as scope:
                await open_connection(tmp_path / "s")
            assert scope.cancelled_caught
            dialled = []

            async def dial() -> None:
                dialled.append(await open_connection(tmp_path / "s"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                await trio.testing.wait_all_tasks_blocked()
                assert not dialled
                (await listener.accept()).close()
            async with dialled[0]:
                async with await listener.accept() as accepted:
                    await accepted.send_message(b"hello")
                    assert await dialled[0].receive_exactly(5) == (b"hello", [])


async def test_dialling_can_be_cancelled_anywhere(tmp_path: Path) -> None:
    async with await open_connection_listener(tmp_path / "s") as listener:

        async def attempt(scope: CancellationPoint) -> None:
            before = descriptor_count()
            connection = None
            with scope:
                connection = await open_connection(tmp_path / "s")
            if connection is not None:
                connection.close()
            assert descriptor_count() == before

        assert await cancel_at_every_step(attempt) >= 1
        assert listener is not None


async def test_accepting_can_be_cancelled_anywhere_and_the_peer_stays_in_the_queue(tmp_path: Path) -> None:
    async def attempt(scope: CancellationPoint) -> None:
        async with await open_connection_listener(tmp_path / "s") as listener, trio.open_nursery() as nursery:
            accepted = None

            async def dial() -> None:
                await trio.testing.wait_all_tasks_blocked()
                async with await open_connection(tmp_path / "s") as connection:
                    assert await connection.receive_exactly(2) == (b"hi", [])

            nursery.start_soon(dial)
            with scope:
                accepted = await listener.accept()
            async with accepted or await listener.accept() as connection:
                await connection.send_message(b"hi")

    assert await cancel_at_every_step(attempt) >= 3


async def test_closing_wakes_who_accepts_and_says_so_afterwards(tmp_path: Path) -> None:
    listener = await open_connection_listener(tmp_path / "s")

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.accept()
        with trio.testing.assert_checkpoints():
            await listener.aclose()
    listener.close()
    await expect_closed()


async def test_a_peer_for_whom_there_is_no_descriptor_stays_in_the_queue(tmp_path: Path) -> None:
    async with await open_connection_listener(tmp_path / "s") as listener, await open_connection(tmp_path / "s"):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await listener.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (await listener.accept()).close()


async def test_a_listening_socket_from_elsewhere_is_taken_over_and_its_path_left() -> None:
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_INET) as other:
        with pytest.raises(ValueError, match="does not listen"):
            ConnectionListener(idle)
        with pytest.raises(ValueError, match="AF_UNIX stream"):
            ConnectionListener(other)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # the kernel picks an abstract name
    sock.listen()
    async with ConnectionListener(sock) as listener, await open_connection(sock.getsockname()):
        (await listener.accept()).close()


async def test_the_code_in_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "connection.md").read_text(), re.DOTALL)
    assert len(code) == 1
    names: dict[str, Any] = {}
    exec(code[0], names)
    monkeypatch.chdir(tmp_path)
    async with await open_connection_listener("vu.sock") as listener, trio.open_nursery() as nursery:
        nursery.start_soon(names["main"])
        async with await listener.accept() as connection:
            header, body, fds = await connection.receive_message(12, lambda header: header[8])
            assert (header[0], body, len(fds)) == (5, b"body", 1)
            await connection.send_message(header, body, fds=fds)
            fds[0].close()


async def test_a_listener_that_somebody_shut_down_says_so(tmp_path: Path) -> None:
    async with await open_connection_listener(tmp_path / "shut") as listener:
        with socket.socket(fileno=os.dup(listener._socket.fileno())) as duplicate:
            async with trio.open_nursery() as nursery:

                async def accept() -> None:
                    with pytest.raises(OSError, match="the listener was shut down"):
                        await listener.accept()

                nursery.start_soon(accept)
                await trio.testing.wait_all_tasks_blocked()
                duplicate.shutdown(socket.SHUT_RD)


@pytest.mark.parametrize("backlog", ["many", 1 << 40])
async def test_a_listener_that_cannot_be_leaves_nothing_at_its_path(tmp_path: Path, backlog: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        await open_connection_listener(tmp_path / "refused", backlog=backlog)
    assert not (tmp_path / "refused").exists()


async def test_a_relative_path_is_removed_wherever_the_program_is_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with await open_connection_listener("relative"):
        monkeypatch.chdir("/")
        assert (tmp_path / "relative").exists()
    assert not (tmp_path / "relative").exists()
