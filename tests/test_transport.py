"""Contract tests for messages with handles over one socket: what is packed, what is checked, what is closed."""

from __future__ import annotations

import array
import os
import resource
import socket
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import FdLimitError, RemoteProtocolError
from fdpool.kernel import EventFd, HandleKind, MemFd, OwnedFd, PidFd
from fdpool.protocol.datagram import MAX_DATAGRAM_BYTES, MAX_INLINE_BYTES, SPILLED, VERSION
from fdpool.transport import Handle, Message, Transport, close_all
from tests.support.leaks import descriptor_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fdpool.kernel import HasFileno

HEADER = struct.Struct("<BBHIIQ")
FILE, SOCKET, MEMFD, EVENTFD = (bytes([kind]) for kind in (1, 2, 3, 4))


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seqpacket"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, Transport]]:
    left, right = map(Transport, socket.socketpair(socket.AF_UNIX, request.param))
    yield left, right
    left.close()
    right.close()


def send(transport: Transport, payload: bytes, handles: Sequence[HasFileno] = ()) -> None:
    with transport.outgoing(payload, handles) as outgoing:
        while outgoing.pending:
            transport.send_next(outgoing, socket.MSG_DONTWAIT)


def receive(transport: Transport) -> Message:
    while (message := transport.receive_next(socket.MSG_DONTWAIT)) is None:
        pass
    return message


def send_raw(transport: Transport, data: bytes, handles: Sequence[HasFileno] = ()) -> None:
    numbers = array.array("i", [handle.fileno() for handle in handles])
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
    transport.socket.sendmsg([data], control, socket.MSG_DONTWAIT)


def datagram(
    kinds: bytes, payload: bytes = b"payload", *, flags: int = 0, chunk: int = 0, chunks: int = 1, message_id: int = 9
) -> bytes:
    return HEADER.pack(VERSION, flags, len(kinds), chunk, chunks, message_id) + kinds + payload


def assert_still_works(pair: tuple[Transport, Transport]) -> None:
    with EventFd(3) as event:
        send(pair[0], b"still works", [event])
        with receive(pair[1]) as message:
            assert message.payload == b"still works"
            [arrived] = message.handles
            assert isinstance(arrived, EventFd)
            assert arrived.read() == 3


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Leave this process room for *count* more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    with EventFd() as event:
        fillers: list[OwnedFd] = [event.duplicate() for _ in range(highest - descriptor_count())]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            close_all(fillers)


@pytest.mark.parametrize("size", [0, 1, MAX_INLINE_BYTES - 1, MAX_INLINE_BYTES, MAX_INLINE_BYTES + 1, 5 << 20])
def test_a_payload_of_any_size_arrives(pair: tuple[Transport, Transport], size: int) -> None:
    payload = os.urandom(size)
    before = descriptor_count()
    send(pair[0], payload)
    with receive(pair[1]) as message:
        assert message.payload == payload
        assert message.handles == []
    assert descriptor_count() == before


def test_a_payload_may_be_any_buffer(pair: tuple[Transport, Transport]) -> None:
    left, right = pair
    for buffer in (bytearray(b"abcd"), memoryview(b"abcd"), array.array("I", [0x64636261])):
        with left.outgoing(buffer) as outgoing:
            left.send_next(outgoing)
        assert receive(right).payload == b"abcd"


@pytest.mark.parametrize("count", [1, 2, 252, 253, 254, 600])
@pytest.mark.parametrize("size", [7, MAX_INLINE_BYTES, MAX_INLINE_BYTES + 1])
def test_any_number_of_handles_arrives_in_order_and_owned(count: int, size: int) -> None:
    left, right = map(Transport, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    memfds: list[OwnedFd] = [MemFd(size=number) for number in range(count)]
    payload = os.urandom(size)
    send(left, payload, memfds)
    close_all(memfds)
    with receive(right) as message:
        assert message.payload == payload
        assert [handle.size for handle in message.handles if isinstance(handle, MemFd)] == list(range(count))
        assert not any(os.get_inheritable(handle.fileno()) for handle in message.handles)
    left.close()
    right.close()


def a_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def a_file() -> OwnedFd:
    return OwnedFd(os.open(__file__, os.O_RDONLY | os.O_CLOEXEC))


def a_directory() -> OwnedFd:
    return OwnedFd(os.open("/", os.O_PATH | os.O_CLOEXEC))


def a_pipe() -> OwnedFd:
    reader, writer = os.pipe()
    os.close(writer)
    return OwnedFd(reader)


def an_epoll() -> OwnedFd:
    import select

    with select.epoll() as epoll:
        return OwnedFd(os.dup(epoll.fileno()))


def the_handle_behind(handle: Handle) -> tuple[int, int, int]:
    status = os.fstat(handle.fileno())
    return status.st_dev, status.st_ino, status.st_mode


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (EventFd, EventFd),
        (MemFd, MemFd),
        (PidFd.current, PidFd),
        (a_socket, socket.socket),
        (a_file, OwnedFd),
        (a_directory, OwnedFd),
        (a_pipe, OwnedFd),
        (an_epoll, OwnedFd),
    ],
)
def test_each_kind_of_handle_arrives_as_its_class(
    pair: tuple[Transport, Transport], make: Callable[[], Handle], kind: type
) -> None:
    with make() as handle:
        send(pair[0], b"", [handle])
        with receive(pair[1]) as message:
            [arrived] = message.handles
            assert type(arrived) is kind
            assert arrived.fileno() != handle.fileno()
            assert the_handle_behind(arrived) == the_handle_behind(handle)


def test_arrived_handles_work(pair: tuple[Transport, Transport]) -> None:
    listener = a_socket()
    with listener, EventFd() as event, MemFd.from_bytes(b"memory") as memory, PidFd.current() as process:
        send(pair[0], b"", [event, memory, process, listener])
        with receive(pair[1]) as message:
            a, b, c, d = message.handles
            assert isinstance(a, EventFd)
            assert isinstance(b, MemFd)
            assert isinstance(c, PidFd)
            assert isinstance(d, socket.socket)
            a.write(5)
            assert event.read() == 5
            assert bytes(b.map()) == b"memory"
            assert c.pid == os.getpid()
            with socket.create_connection(listener.getsockname()) as client:
                connection, address = d.accept()
                connection.close()
                assert address == client.getsockname()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a tmpfs")
def test_a_file_on_a_tmpfs_may_be_unlinked_on_its_way(pair: tuple[Transport, Transport]) -> None:
    path = Path(f"/dev/shm/fdpool-test-{os.getpid()}")
    with path.open("w+b") as file:
        file.write(b"content")
        file.flush()
        send(pair[0], b"", [file])
        path.unlink()
    with receive(pair[1]) as message:
        [arrived] = message.handles
        assert isinstance(arrived, OwnedFd)
        assert os.pread(arrived.fileno(), 10, 0) == b"content"


def test_messages_keep_their_order_and_their_handles(pair: tuple[Transport, Transport]) -> None:
    for number in range(10):
        with EventFd(number + 1) as event:
            send(pair[0], str(number).encode(), [event] * (number % 3))
    for number in range(10):
        with receive(pair[1]) as message:
            assert message.payload == str(number).encode()
            assert len(message.handles) == number % 3


def test_a_message_that_is_closed_spares_what_was_taken_out(pair: tuple[Transport, Transport]) -> None:
    with EventFd() as event:
        send(pair[0], b"", [event, event])
    with receive(pair[1]) as message:
        taken = message.handles.pop(0)
        left = message.handles[0]
    with taken:
        assert taken.fileno() >= 0
        assert left.fileno() == -1


# What the sender gets wrong.


@pytest.mark.parametrize("size", [7, MAX_INLINE_BYTES + 1])
def test_a_closed_handle_is_refused_before_anything_is_sent(pair: tuple[Transport, Transport], size: int) -> None:
    with EventFd() as event:
        pass
    before = descriptor_count()
    with pytest.raises(ValueError, match="<EventFd closed> is closed"):
        send(pair[0], bytes(size), [event])
    with pytest.raises(TypeError, match="str has no fileno"):
        send(pair[0], bytes(size), ["3"])  # type: ignore[list-item]
    with pytest.raises(BlockingIOError):
        receive(pair[1])
    assert descriptor_count() == before


def test_a_handle_that_is_closed_while_the_message_waits_is_refused(pair: tuple[Transport, Transport]) -> None:
    left, right = pair
    event = EventFd()
    with left.outgoing(b"", [event]) as outgoing:
        event.close()
        with a_file() as stranger:  # which gets the number
            with pytest.raises(ValueError, match="<EventFd closed> is closed"):
                left.send_next(outgoing, socket.MSG_DONTWAIT)
            assert stranger.fileno() >= 0
    with pytest.raises(BlockingIOError):
        receive(right)


def test_too_many_handles_are_refused_and_the_memory_for_the_payload_let_go(
    pair: tuple[Transport, Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fdpool.protocol.datagram.MAX_HANDLES", 3)
    before = descriptor_count()
    with EventFd() as event:
        with pytest.raises(ValueError, match="4 handles in one message: at most 3 can travel"):
            pair[0].outgoing(bytes(MAX_INLINE_BYTES + 1), [event] * 3)
    assert descriptor_count() == before


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
        (socket.AF_NETLINK, socket.SOCK_DGRAM),
    ],
)
def test_other_sockets_are_refused_and_stay_the_callers(family: int, kind: int) -> None:
    with socket.socket(family, kind) as sock:
        with pytest.raises(ValueError, match="needs an AF_UNIX socket of type SOCK_DGRAM or SOCK_SEQPACKET"):
            Transport(sock)
        assert sock.fileno() >= 0


# What the peer gets wrong.


@pytest.mark.parametrize(
    ("kinds", "complaint"),
    [
        (MEMFD, "handle 0 is declared as MEMFD and is EVENTFD"),
        (SOCKET, "handle 0 is declared as SOCKET and is EVENTFD"),
        (b"\x00", "handle 0 is declared as OTHER and is EVENTFD"),
        (b"\x63", "handle 0 is declared as kind 99 and is EVENTFD"),
        (EVENTFD + FILE, "handle 1 is declared as FILE and is EVENTFD"),
        (EVENTFD * 252 + SOCKET, "handle 252 is declared as SOCKET and is EVENTFD"),
    ],
)
def test_a_handle_of_another_kind_than_declared_is_refused(
    pair: tuple[Transport, Transport], kinds: bytes, complaint: str
) -> None:
    before = descriptor_count()
    with EventFd() as event:
        send_raw(pair[0], datagram(kinds), [event] * len(kinds))
    with pytest.raises(RemoteProtocolError, match=complaint) as caught:
        receive(pair[1])
    assert caught.value.data == b"payload"
    assert descriptor_count() == before
    assert_still_works(pair)


def test_every_pair_of_kinds_is_told_apart(pair: tuple[Transport, Transport]) -> None:
    makers: dict[HandleKind, Callable[[], Handle]] = {
        HandleKind.OTHER: an_epoll,
        HandleKind.FILE: a_file,
        HandleKind.SOCKET: a_socket,
        HandleKind.MEMFD: MemFd,
        HandleKind.EVENTFD: EventFd,
        HandleKind.PIDFD: PidFd.current,
    }
    assert set(makers) == set(HandleKind)
    for declared in HandleKind:
        for actual, make in makers.items():
            with make() as handle:
                send_raw(pair[0], datagram(bytes([declared])), [handle])
            if declared == actual or (declared, actual) == (HandleKind.FILE, HandleKind.MEMFD):
                receive(pair[1]).close()
            else:
                with pytest.raises(RemoteProtocolError, match=f"as {declared.name} and is {actual.name}"):
                    receive(pair[1])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_handles_than_declared_is_refused(pair: tuple[Transport, Transport], count: int) -> None:
    before = descriptor_count()
    with EventFd() as event:
        send_raw(pair[0], datagram(EVENTFD * 2), [event] * count)
    with pytest.raises(RemoteProtocolError, match=f"declares 2 handles and {count} arrived"):
        receive(pair[1])
    assert descriptor_count() == before
    assert_still_works(pair)


@pytest.mark.parametrize("data", [b"g", b"garbage", bytes(20), b"\x01" * 30])
def test_garbage_is_refused_and_its_handles_closed(pair: tuple[Transport, Transport], data: bytes) -> None:
    before = descriptor_count()
    with EventFd() as event:
        send_raw(pair[0], data, [event, event])
    with pytest.raises(RemoteProtocolError) as caught:
        receive(pair[1])
    assert caught.value.data == data
    assert descriptor_count() == before
    assert_still_works(pair)


def test_an_empty_datagram_is_garbage(pair: tuple[Transport, Transport]) -> None:
    before = descriptor_count()
    with EventFd() as event:
        send_raw(pair[0], b"", [event])
    with pytest.raises(RemoteProtocolError, match="0 bytes is shorter than the header's 20"):
        receive(pair[1])
    assert descriptor_count() == before
    assert_still_works(pair)


def test_a_datagram_too_long_is_refused_and_not_read_in_part(pair: tuple[Transport, Transport]) -> None:
    before = descriptor_count()
    with EventFd() as event:
        send_raw(pair[0], datagram(EVENTFD, bytes(MAX_DATAGRAM_BYTES)), [event])
    with pytest.raises(RemoteProtocolError, match=f"a datagram of {MAX_DATAGRAM_BYTES + 21} bytes: at most"):
        receive(pair[1])
    assert descriptor_count() == before
    assert_still_works(pair)


def test_a_chunk_out_of_order_is_refused_and_an_abandoned_message_closed(pair: tuple[Transport, Transport]) -> None:
    left, right = pair
    before = descriptor_count()
    with EventFd() as event:
        send_raw(left, datagram(EVENTFD, chunks=3), [event])
        send_raw(left, datagram(EVENTFD, b"", chunk=2, chunks=3), [event])
    assert right.receive_next() is None
    with pytest.raises(RemoteProtocolError, match="chunk 2 of 3 of message 9 is out of order"):
        right.receive_next()
    assert descriptor_count() == before + 1
    assert_still_works(pair)
    assert descriptor_count() == before


def test_closing_closes_what_is_half_there(pair: tuple[Transport, Transport]) -> None:
    left, right = pair
    before = descriptor_count()
    with EventFd() as event:
        send_raw(left, datagram(EVENTFD * 3, chunks=2), [event] * 3)
    assert right.receive_next() is None
    assert descriptor_count() == before + 3
    right.close()
    assert descriptor_count() == before - 1


@pytest.mark.parametrize("make", [EventFd, a_socket, a_file, a_pipe])
def test_a_payload_in_something_else_than_a_memfd_is_refused(
    pair: tuple[Transport, Transport], make: Callable[[], Handle]
) -> None:
    before = descriptor_count()
    with make() as handle, EventFd() as event:
        send_raw(pair[0], datagram(MEMFD + EVENTFD, b"", flags=SPILLED), [handle, event])
    with pytest.raises(RemoteProtocolError, match="should be in a memfd, and something else came"):
        receive(pair[1])
    assert descriptor_count() == before
    assert_still_works(pair)


def test_a_peer_that_shrinks_the_memory_of_a_payload_only_shortens_it(pair: tuple[Transport, Transport]) -> None:
    with MemFd("payload", 100_000) as memory:
        send_raw(pair[0], datagram(MEMFD, b"", flags=SPILLED), [memory])
        memory.resize(10)
        assert receive(pair[1]).payload == bytes(10)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_no_datagram_raises_anything_else_or_leaks(data: bytes, count: int) -> None:
    left, right = map(Transport, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    before = descriptor_count()
    with EventFd() as event:
        for forged in (data, bytes([VERSION, 0, count, 0, 0, 0, 0, 0, 1, 0, 0, 0]) + data):
            send_raw(left, forged, [event] * count)
            try:
                message = right.receive_next()
            except RemoteProtocolError:
                pass
            else:
                assert message is not None
                assert len(message.handles) == count
                message.close()
    assert descriptor_count() == before
    left.close()
    right.close()


# What the machine does.


@pytest.mark.parametrize("room", [0, 1, 3])
@pytest.mark.parametrize("size", [7, MAX_INLINE_BYTES])
def test_at_the_limit_the_error_has_the_payload_and_the_next_message_arrives(
    pair: tuple[Transport, Transport], room: int, size: int
) -> None:
    payload = os.urandom(size)
    with EventFd() as event:
        send(pair[0], payload, [event] * 4)
        before = descriptor_count()
        with room_for(room), pytest.raises(FdLimitError, match="came with 4 handles, and not all of them") as caught:
            receive(pair[1])
        assert descriptor_count() == before
    assert caught.value.data == payload
    assert caught.value.limit > 0
    assert_still_works(pair)


@pytest.mark.parametrize("room", [100, 300, 550])
def test_the_limit_may_be_met_in_any_chunk(pair: tuple[Transport, Transport], room: int) -> None:
    with EventFd() as event:
        send(pair[0], b"payload", [event] * 600)
        before = descriptor_count()
        with room_for(room), pytest.raises(FdLimitError, match="came with 600 handles") as caught:
            receive(pair[1])
        assert descriptor_count() == before
    assert caught.value.data == b"payload"
    assert_still_works(pair)


@pytest.mark.parametrize(("room", "is_saved"), [(100, False), (300, True)])
def test_a_long_payload_survives_at_the_limit_if_its_memory_arrived(
    pair: tuple[Transport, Transport], room: int, is_saved: bool
) -> None:
    payload = os.urandom(MAX_INLINE_BYTES + 1)
    with EventFd() as event:
        send(pair[0], payload, [event] * 600)
        before = descriptor_count()
        with room_for(room), pytest.raises(FdLimitError, match="came with 600 handles") as caught:
            receive(pair[1])
        assert descriptor_count() == before
    assert caught.value.data == (payload if is_saved else b"")
    assert_still_works(pair)


def test_garbage_at_the_limit_is_still_garbage(pair: tuple[Transport, Transport]) -> None:
    with EventFd() as event:
        for data in (b"", b"garbage"):
            send_raw(pair[0], data, [event] * 4)
            with room_for(0), pytest.raises(RemoteProtocolError, match="is shorter than the header"):
                receive(pair[1])
    assert_still_works(pair)


def test_the_end_of_a_seqpacket_pair_is_read() -> None:
    left, right = map(Transport, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    send(left, b"last")
    left.close()
    assert receive(right).payload == b"last"
    with pytest.raises(EOFError, match="the peer closed its end"):
        receive(right)
    right.close()
