"""Collaboration tests for trio's sendmsg and recvmsg: waiting, cancelling, Ctrl-C, and too many in flight."""

from __future__ import annotations

import errno
import gc
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import fdpool.ancillary
from fdpool.ancillary import recvmsg, sendmsg
from fdpool.errors import ControlTruncatedError
from fdpool.kernel import (
    ControlBuffer,
    EventFd,
    Ipv4RecvErr,
    Ipv4Ttl,
    OwnedFd,
    ScmCredentials,
    ScmPidfd,
    ScmRights,
    enable,
)
from tests.support.interrupts import trace_bytecodes
from tests.support.leaks import descriptor_count
from tests.support.unprivileged import run_as_nobody

if TYPE_CHECKING:
    from types import FrameType

    from _typeshed import TraceFunction

TrioPair = tuple[trio.socket.SocketType, trio.socket.SocketType]


def trio_pair(socket_type: int = socket.SOCK_DGRAM) -> TrioPair:
    left, right = socket.socketpair(socket.AF_UNIX, socket_type)
    for kind in (ScmCredentials, ScmPidfd):
        enable(right, kind)
    return trio.socket.from_stdlib_socket(left), trio.socket.from_stdlib_socket(right)


@pytest.mark.parametrize("socket_type", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
async def test_messages_arrive_typed_and_owned(socket_type: int) -> None:
    left, right = trio_pair(socket_type)
    with left, right:
        with assert_checkpoints():
            assert await sendmsg(left, [b"pay", b"load"], [ScmRights([left, right])]) == 7
        buffer = bytearray(16)
        with assert_checkpoints():
            received = await recvmsg(right, [buffer])
        with received:
            assert buffer[: received.nbytes] == b"payload"
            assert [type(message) for message in received.control] == [ScmCredentials, ScmRights, ScmPidfd]
            assert len(received.fds) == 2
            assert not received.truncated


async def test_receiving_waits_and_a_cut_datagram_has_its_length() -> None:
    left, right = trio_pair()
    with left, right:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with await recvmsg(right, [bytearray(2)]) as received:
                    assert (received.nbytes, received.length, received.truncated) == (2, 5, True)

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await sendmsg(left, [b"12345"])


async def test_sending_waits_while_the_queue_is_full() -> None:
    left, right = trio_pair()
    with left, right:
        sent = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    nonlocal sent
                    while True:
                        await sendmsg(left, [bytes(1000)], [ScmRights([left])])
                        sent += 1

                nursery.start_soon(send)
                await wait_all_tasks_blocked()
                scope.cancel()
        # After Cancelled nothing was sent: as many arrive as were counted.
        for _ in range(sent):
            (await recvmsg(right, [bytearray(1000)])).close()
        with trio.move_on_after(0) as nothing_left:
            await recvmsg(right, [bytearray(1000)])
        assert nothing_left.cancelled_caught


async def test_cancelled_receiving_leaves_the_message() -> None:
    left, right = trio_pair()
    with left, right:
        await sendmsg(left, [b"x"], [ScmRights([left])])
        before = descriptor_count()
        with trio.CancelScope() as scope:
            scope.cancel()
            await recvmsg(right, [bytearray(1)])
        assert scope.cancelled_caught
        assert descriptor_count() == before
        with await recvmsg(right, [bytearray(1)]) as received:
            assert len(received.fds) == 1


async def test_closing_wakes_the_receiver() -> None:
    left, right = trio_pair()
    with left:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await recvmsg(right, [bytearray(1)])

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            right.close()


async def test_too_little_room_is_an_error_that_leaks_nothing() -> None:
    left, right = trio_pair()
    with left, right:
        await sendmsg(left, [b"payload"], [ScmRights([left] * 4)])
        before = descriptor_count()
        with pytest.raises(ControlTruncatedError) as caught:
            await recvmsg(right, [bytearray(7)], control_bytes=ScmCredentials.space() + ScmRights.space(2))
        assert caught.value.data == b"payload"
        assert descriptor_count() == before


async def test_the_guards_are_the_same() -> None:
    left, right = trio_pair(socket.SOCK_STREAM)
    with left, right:
        with pytest.raises(ValueError, match="the payload is empty"):
            await sendmsg(left, [b""], [ScmRights([left])])
        with pytest.raises(ValueError, match="Ipv4Ttl means nothing to a socket of AF_UNIX"):
            await sendmsg(left, [b"x"], [Ipv4Ttl(3)])
        with pytest.raises(ValueError, match="254 descriptors"):
            await sendmsg(left, [b"x"], [ScmRights([left] * 254)])
        with pytest.raises(OSError, match="Bad file descriptor"):
            await sendmsg(left, [b"x"], [ScmRights([10**6])])


async def test_a_control_buffer_is_sent_from() -> None:
    left, right = trio_pair()
    with left, right, ControlBuffer(ScmRights.space(2)) as buffer:
        buffer.add_fds([left, right])
        await sendmsg(left, [b"x"], buffer)
        with await recvmsg(right, [bytearray(1)]) as received:
            assert len(received.fds) == 2


async def test_the_error_queue_is_waited_for() -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            address = taken.getsockname()
        await sendmsg(udp, [b"knock"], (), 0, address)
        with trio.fail_after(5):
            received = await recvmsg(udp, [bytearray(5)], flags=socket.MSG_ERRQUEUE)
        with received:
            error = received.find(Ipv4RecvErr)
        assert error is not None
        assert error.errno == errno.ECONNREFUSED


def test_too_many_in_flight_are_waited_for() -> None:
    async def main() -> None:
        left, right = trio_pair()
        with left, right, EventFd() as event:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            for _ in range(68 // 4):
                await sendmsg(left, [b"x"], [ScmRights([event] * 4)])
            with trio.move_on_after(60) as impatient:
                await sendmsg(left, [b"x"], [ScmRights([event])])
            assert impatient.cancelled_caught
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sendmsg, left, [b"last"], [ScmRights([event])])
                await trio.sleep(10)
                for _ in range(68 // 4):
                    (await recvmsg(right, [bytearray(1)])).close()
            buffer = bytearray(4)
            with await recvmsg(right, [buffer]) as received:
                assert (bytes(buffer), len(received.fds)) == (b"last", 1)

    # No process is waited for in there, so the clock may jump.
    run_as_nobody(lambda: trio.run(main, clock=MockClock(autojump_threshold=0)), alone=True)


class signal_at:
    """Send this process SIGINT at the given bytecode of what recvmsg runs through."""

    FILES = (fdpool.ancillary.__file__, "/fdpool/kernel/", "/trio/_socket.py")

    def __init__(self, step: int) -> None:
        self.left = step

    def __enter__(self) -> None:
        trace_bytecodes(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        if not any(name in frame.f_code.co_filename for name in self.FILES):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if self.left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
            self.left -= 1
        return self._trace


# The owners themselves close, with a warning, what an interrupt keeps from being returned.
@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
def test_ctrl_c_at_any_bytecode_of_receiving_leaks_nothing() -> None:
    async def main(step: int) -> bool:
        left, right = trio_pair()
        with left, right:
            await sendmsg(left, [b"x"], [ScmRights([left] * 3)])
            with signal_at(step):
                received = await recvmsg(right, [bytearray(1)])
            with received:
                await trio.lowlevel.checkpoint()
            return True

    before = descriptor_count()
    step = 0
    finished = False
    while not finished:
        try:
            finished = trio.run(main, step)
        except KeyboardInterrupt:
            if descriptor_count() != before:
                # Frames of the interrupted run hold each other until the collector comes by.
                gc.collect()
            assert descriptor_count() == before, f"leaked at step {step}"
        step += 1
    assert step > 100


async def test_sockets_of_the_standard_library_are_refused_before_anything_moves() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    plain: Any = right
    with left, right, EventFd() as event:
        socket.send_fds(left, [b"still there"], [event.fileno()])
        with pytest.raises(TypeError, match=r"takes sockets of trio's, not a socket; see fdpool\.kernel\.recvmsg"):
            await recvmsg(plain, [bytearray(20)])
        with pytest.raises(TypeError, match=r"see fdpool\.kernel\.sendmsg"):
            await sendmsg(plain, [b"never"])
        data, fds, _, _ = socket.recv_fds(right, 20, 4)
        with OwnedFd(fds[0]):
            assert data == b"still there"
        with pytest.raises(BlockingIOError):
            left.recv(20, socket.MSG_DONTWAIT)
