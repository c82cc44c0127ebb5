"""Contract tests for objects with a descriptor: each kind travels through a real socket and works on arrival."""

from __future__ import annotations

import array
import io
import multiprocessing as mp
import os
import pickle
import socket
import ssl
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import fdpool
from fdpool.channel import Channel, open_channel_pair
from fdpool.doorbell import Doorbell
from fdpool.kernel import EventFd, MemFd, OwnedFd, PidFd
from fdpool.memory.handles import Given, close_given, give, reducer_for
from fdpool.memory.pickling import pack
from tests.support.delivery import deliver, travel
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


# Descriptors.


def test_eventfds_arrive_as_such() -> None:
    with EventFd() as event, travel(event) as arrived:
        assert type(arrived) is EventFd
        arrived.write(3)
        assert event.read() == 3


def test_memfds_and_pidfds_arrive_as_such() -> None:
    with MemFd.from_bytes(b"memory") as memory, PidFd.current() as process:
        for first, second in (travel([memory, process]), travel((memory, process))):
            with first, second:
                assert type(first) is MemFd
                assert bytes(first.map()) == b"memory"
                assert type(second) is PidFd
                assert second.pid == os.getpid()


@pytest.mark.parametrize("make", [os.eventfd, lambda _: socket.socket().detach(), lambda _: os.open("/", os.O_PATH)])
def test_an_owned_fd_arrives_as_an_owned_fd_whatever_it_is(make: Callable[[int], int]) -> None:
    with OwnedFd(make(0)) as fd, travel(fd) as arrived:
        assert type(arrived) is OwnedFd
        assert os.fstat(arrived.fileno()).st_ino == os.fstat(fd.fileno()).st_ino


def test_arrived_descriptors_are_not_inheritable() -> None:
    with EventFd() as event, socket.socket() as sock, open(__file__) as file:
        for arrived in travel([event, sock, file]):
            with arrived:
                assert not os.get_inheritable(arrived.fileno())


def test_the_same_object_twice_stays_one_object_and_one_descriptor() -> None:
    with EventFd() as event:
        packed = pack([event, {"again": event}, give(event)])
        assert len(packed.handles) == 1
        message = deliver(packed)
        first, again, given = message.open()
        assert first is again["again"] is given
        first.close()


def test_handles_and_buffers_travel_together() -> None:
    big = bytearray(os.urandom(200_000))
    with EventFd(1) as event, socket.socket() as sock:
        arrived = travel([event, big, {"socket": sock}, memoryview(big)])
        with arrived[0], arrived[2]["socket"]:
            assert arrived[0].read() == 1
            assert arrived[1] == arrived[3] == big


def test_hundreds_of_handles_travel() -> None:
    events = [EventFd(number + 1) for number in range(600)]
    with ExitStack() as stack:
        for event, arrived in zip(events, travel(events), strict=True):
            stack.enter_context(event)
            stack.enter_context(arrived)
            assert arrived.fileno() != event.fileno()
            assert os.fstat(arrived.fileno()).st_ino == os.fstat(event.fileno()).st_ino
        assert [event.read() for event in events] == [*range(1, 601)]


# Sockets.


@pytest.mark.parametrize("timeout", [None, 0.0, 2.5])
def test_a_socket_keeps_its_timeout_and_its_connection(timeout: float | None) -> None:
    with tcp_pair() as (client, server):
        client.settimeout(timeout)
        with travel(client) as arrived:
            assert type(arrived) is socket.socket
            assert arrived.gettimeout() == client.gettimeout() == timeout
            assert arrived.getpeername() == server.getsockname()
            server.sendall(b"hello")
            arrived.setblocking(True)
            assert arrived.recv(10) == b"hello"


def test_a_listening_socket_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, travel(listener) as arrived:
        with socket.create_connection(listener.getsockname()) as client:
            connection, address = arrived.accept()
            with connection:
                assert address == client.getsockname()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
def test_a_socket_keeps_family_and_type(family: int) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as sock, travel(sock) as arrived:
            assert (arrived.family, arrived.type) == (sock.family, sock.type)


def test_a_subclass_of_socket_arrives_as_a_socket() -> None:
    class Special(socket.socket):
        pass

    with Special() as sock, travel(sock) as arrived:
        assert type(arrived) is socket.socket


def test_tls_sockets_are_refused() -> None:
    with tcp_pair() as (client, _):
        context = ssl.create_default_context()
        with context.wrap_socket(client, server_hostname="x", do_handshake_on_connect=False) as tls:
            before = descriptor_count()
            with pytest.raises(TypeError, match="a TLS connection cannot change process: its keys live in this one"):
                pack({"deep": [tls]})
            assert descriptor_count() == before


async def test_trio_sockets_arrive_as_such() -> None:
    left, right = trio.socket.socketpair()
    with left, right, travel(left) as arrived:
        assert type(arrived) is type(left)
        await right.send(b"hello")
        assert await arrived.recv(10) == b"hello"


async def test_trio_streams_and_listeners_arrive_as_such() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, travel(listener) as arrived:
        assert type(arrived) is trio.SocketListener
        stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        async with stream, await arrived.accept() as server, travel([server])[0] as moved:
            assert type(moved) is trio.SocketStream
            await stream.send_all(b"hello")
            assert await moved.receive_some(10) == b"hello"


async def test_channels_and_doorbells_arrive_as_such() -> None:
    left, right = open_channel_pair()
    async with left, right, Doorbell() as bell:
        moved, moved_bell = travel([right, bell])
        async with moved, moved_bell:
            assert type(moved) is Channel
            await left.send(b"hello")
            assert (await moved.receive()).payload == b"hello"
            assert type(moved_bell) is Doorbell
            moved_bell.ring(4)
            assert await bell.wait() == 4


@pytest.mark.parametrize("duplex", [True, False])
def test_connections_of_multiprocessing_arrive_as_such(duplex: bool) -> None:
    reader, writer = mp.Pipe(duplex)
    with reader, writer:
        arrived_reader, arrived_writer = travel([reader, writer])
        with arrived_reader, arrived_writer:
            arrived_writer.send({"any": "object"})
            assert arrived_reader.recv() == {"any": "object"}
            assert (arrived_reader.readable, arrived_reader.writable) == (True, duplex)


# Files.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(5000)))
    return path


def test_a_raw_file_shares_its_offset(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        file.read(7)
        with travel(file) as arrived:
            assert type(arrived) is io.FileIO
            assert arrived.readline() == b"line 1\n"
            assert file.readline() == b"line 2\n"


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_buffered_reader_goes_on_where_it_stood(path: Path, mode: str) -> None:
    with path.open(mode) as file:
        assert [file.readline() for _ in range(700)][-1] == b"line 699\n"
        with travel(file) as arrived:
            assert type(arrived) is type(file)
            assert arrived.readline() == b"line 700\n"


def test_a_writer_writes_out_what_it_holds_before_it_travels(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"before ")
        with travel(file) as arrived:
            assert type(arrived) is io.BufferedWriter
            arrived.write(b"after")
        assert path.read_bytes() == b"before after"


def test_what_is_read_and_written_keeps_its_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.readline()
        file.write(b"LINE")
        with travel(file) as arrived:
            arrived.write(b" one")
            arrived.seek(0)
            assert arrived.readline() == b"line 0\n"
            assert arrived.readline() == b"LINE oneine 2\n"


@pytest.mark.parametrize("mode", ["ab", "a+b"])
@pytest.mark.parametrize("buffering", [0, -1])
def test_a_file_that_appends_goes_on_appending(path: Path, mode: str, buffering: int) -> None:
    path.write_bytes(b"0123456789")
    with path.open(mode, buffering) as file:
        file.write(b"ours ")
        if mode == "a+b":
            file.seek(3)
        with travel(file) as arrived:
            if mode == "a+b":
                assert file.tell() == arrived.tell() == 3
                assert arrived.read(2) == b"34"
            arrived.write(b"theirs")
        assert path.read_bytes() == b"0123456789ours theirs"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_a_text_file_keeps_encoding_and_place(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_text("Grüße\nzweite Zeile\ndritte\n", encoding)
    with path.open(encoding=encoding, errors="replace") as file:
        assert file.readline() == "Grüße\n"
        with travel(file) as arrived:
            assert type(arrived) is io.TextIOWrapper
            assert (arrived.encoding, arrived.errors, arrived.mode) == (encoding, "replace", "r")
            assert arrived.readline() == "zweite Zeile\n"


def test_a_text_file_is_written_out_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "text"
    with path.open("w", encoding="utf-16", buffering=1) as file:
        file.write("vorher ")
        with travel(file) as arrived:
            assert (arrived.line_buffering, arrived.write_through) == (True, False)
            arrived.write("nachher")
        assert path.read_text("utf-16") == "vorher nachher"


def test_a_text_file_being_iterated_is_refused(path: Path) -> None:
    with path.open() as file:
        next(file)
        with pytest.raises(OSError, match="telling position disabled by next"):
            pack(file)


def test_a_terminal_opened_both_ways_arrives_in_the_direction_of_its_file() -> None:
    ours, theirs = os.openpty()
    with OwnedFd(ours) as terminal, OwnedFd(theirs):
        # As a shell opens them: one O_RDWR descriptor under both sys.stdin and sys.stdout.
        with open(theirs, "w", closefd=False) as output, open(theirs, closefd=False) as source:
            sent, read = travel([output, source])
            with sent, read:
                sent.write("hello\n")
                sent.flush()
                assert os.read(terminal.fileno(), 100) == b"hello\r\n"
                os.write(terminal.fileno(), b"typed\n")
                assert read.readline() == "typed\n"


def test_both_ends_of_a_pipe_travel() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as source, open(writer, "w") as sink:
        arrived_source, arrived_sink = travel([source, sink])
        sink.close()
        with arrived_source:
            with arrived_sink:
                arrived_sink.write("through the pipe")
            assert arrived_source.read() == b"through the pipe"


@pytest.mark.parametrize("mode", ["w+b", "w"])
def test_a_temporary_file_arrives_as_a_file_and_is_removed_by_its_maker_alone(mode: str) -> None:
    with tempfile.NamedTemporaryFile(mode) as temporary:
        data: Any = b"content" if "b" in mode else "content"
        temporary.write(data)
        with travel(temporary) as arrived:
            arrived.write(data)
        assert Path(temporary.name).read_bytes() == b"contentcontent"
    assert not Path(temporary.name).exists()


def test_a_file_without_a_name_travels() -> None:
    with tempfile.TemporaryFile() as temporary, travel(temporary) as arrived:
        arrived.write(b"content")
        arrived.flush()
        temporary.seek(0)
        assert temporary.read() == b"content"


@pytest.mark.parametrize("mode", ["rb", "rwb", "r"])
def test_a_file_on_top_of_a_socket_cannot_be_pickled_as_ever(mode: str) -> None:
    with tcp_pair() as (client, _), client.makefile(mode) as file:  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="cannot pickle"):
            pack(file)


@pytest.mark.parametrize(
    "make",
    [
        lambda: io.BufferedReader(io.BytesIO(b"x")),
        lambda: io.BufferedWriter(io.BytesIO(b"x")),
        lambda: io.TextIOWrapper(io.BytesIO(b"x")),
    ],
)
def test_a_file_on_top_of_memory_cannot_be_pickled_as_ever(make: Callable[[], Any], no_cloudpickle: None) -> None:
    with make() as file, pytest.raises(TypeError, match="cannot pickle") as caught:
        pack(file)
    with pytest.raises(TypeError) as usual:
        pickle.dumps(file)
    assert str(usual.value) == str(caught.value)


@pytest.fixture
def no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


# Lending and giving.


def test_what_is_lent_stays_open_here() -> None:
    with tcp_pair() as (client, server):
        packed = pack(client)
        with deliver(packed).open() as arrived:
            close_given(packed.given)
            client.sendall(b"ours")
            arrived.sendall(b" theirs")
            client.close()
            assert server.recv(20).startswith(b"ours")


def test_what_is_given_arrives_as_itself_and_is_closed_here_when_told() -> None:
    with tcp_pair() as (client, server):
        packed = pack({"deep": [give(client)]})
        arrived = deliver(packed).open()["deep"][0]
        assert type(arrived) is socket.socket
        assert client.fileno() >= 0
        close_given(packed.given)
        assert client.fileno() == -1
        assert packed.given == []
        arrived.close()
        assert server.recv(1) == b""


async def test_everything_that_travels_can_be_given(path: Path) -> None:
    left, right = open_channel_pair()
    reader, writer = mp.Pipe()
    stream_socket, peer = trio.socket.socketpair()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    handles = [
        EventFd(),
        left,
        right,
        Doorbell(),
        reader,
        writer,
        trio.SocketStream(stream_socket),
        peer,
        listener,
        path.open(),
        path.open("rb"),
        path.open("rb", buffering=0),
        tempfile.NamedTemporaryFile(),  # noqa: SIM115
    ]
    before = descriptor_count()
    packed = pack([give(handle) for handle in handles])
    close_given(packed.given)
    assert descriptor_count() == before - len(handles)


def test_giving_twice_is_giving_once() -> None:
    event = EventFd()
    packed = pack([give(give(event)), give(event)])
    close_given(packed.given)
    assert event.closed


def test_one_that_refuses_to_close_does_not_keep_the_others_open() -> None:
    class Stubborn(OwnedFd):
        def close(self) -> None:
            super().close()
            raise OSError("no")

    first, stubborn, last = EventFd(), Stubborn(os.open("/", os.O_PATH)), EventFd()
    given = [first, stubborn, last]
    with pytest.raises(OSError, match="no"):
        close_given(given)
    assert given == []
    assert first.closed
    assert last.closed


@pytest.mark.parametrize("value", [3, "text", b"bytes", object(), [], io.BytesIO()])
def test_what_has_no_descriptor_cannot_be_given(value: object) -> None:
    with pytest.raises(TypeError, match=f"a {type(value).__name__} cannot be given: it has no descriptor"):
        give(value)


def test_giving_is_on_the_front_page() -> None:
    assert fdpool.give is give


# What cannot travel.


def closed(handle: Any) -> Any:
    handle.close()
    return handle


def a_closed_channel() -> Channel:
    left, right = open_channel_pair()
    right.close()
    left.close()
    return left


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: closed(EventFd()), "<EventFd closed> is closed"),
        (lambda: closed(socket.socket()), r"<socket.socket \[closed\].* is closed"),
        (lambda: closed(Doorbell()), "<EventFd closed> is closed"),
        (a_closed_channel, r"<socket.socket \[closed\].* is closed"),
        (lambda: closed(open(__file__)), "closed file"),  # noqa: SIM115
        (lambda: closed(open(__file__, "rb")), "closed file"),  # noqa: SIM115
        (lambda: closed(open(__file__, "rb", buffering=0)), "closed file"),  # noqa: SIM115
        (lambda: closed(mp.Pipe()[0]), "handle is closed"),
    ],
)
def test_a_closed_handle_is_refused_before_anything_is_sent(make: Callable[[], Any], complaint: str) -> None:
    handle = make()
    with pytest.raises((ValueError, OSError), match=complaint):
        pack([bytes(200_000), handle])


def test_a_bare_number_is_only_a_number() -> None:
    with EventFd() as event:
        packed = pack([event.fileno()])
        assert packed.handles == []
        assert travel([event.fileno()]) == [event.fileno()]


def test_handles_travel_without_trio() -> None:
    program = """
import socket, sys
from tests.support.delivery import travel
with socket.socket() as sock:
    travel([sock])[0].close()
assert "trio" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=30
    )


def test_what_has_no_descriptor_is_not_taken_apart() -> None:
    for value in (3, "text", array.array("i"), io.StringIO(), Given):
        assert reducer_for(value) is None
