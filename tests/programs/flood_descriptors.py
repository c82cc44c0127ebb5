"""Sends more descriptors than may be in flight, as a user who is not exempt from the limit.

Run by the tests of the channels, in a process of its own: it cannot become root again.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading

import trio
from trio.testing import wait_all_tasks_blocked

from fdpool.channel import Channel, open_channel_pair
from fdpool.kernel import EventFd, PidFd
from fdpool.transport import Transport
from fdpool.worker.channel import BlockingChannel
from tests.support.unprivileged import own_uid

LIMIT = 64


def flood(channel: Channel, event: EventFd) -> int:
    """Send until the kernel takes no more descriptors; return how many messages that took."""
    sent = 0
    while True:
        try:
            channel.send_nowait(b"filler", [event] * 4)
        except trio.WouldBlock as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.ETOOMANYREFS:
                return sent
            raise AssertionError("the queue was full first") from exc
        sent += 1


def drain(channel: Channel) -> list[bytes]:
    payloads = []
    while True:
        try:
            with channel.receive_nowait() as message:
                payloads.append(message.payload)
        except trio.WouldBlock:
            return payloads


async def send_waits_until_descriptors_land(event: EventFd) -> None:
    left, right = open_channel_pair()
    async with left, right:
        sent = flood(left, event)
        assert sent * 4 > LIMIT

        with trio.move_on_after(0.05) as scope:
            await left.send(b"cancelled", [event])
        assert scope.cancelled_caught

        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send, b"waited", [event])
            await wait_all_tasks_blocked()
            assert drain(right) == [b"filler"] * sent
        assert drain(right) == [b"waited"]

        flood(left, event)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_while_it_waits, left, event)
            await wait_all_tasks_blocked()
            left.close()


async def closed_while_it_waits(channel: Channel, event: EventFd) -> None:
    try:
        await channel.send(b"", [event])
    except trio.ClosedResourceError:
        return
    raise AssertionError("the send went through a closed channel")


def blocking_send_waits_too(event: EventFd) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    flooder, receiver = open_channel_pair()
    with PidFd.current() as supervisor:
        flood(flooder, event)
        blocking = BlockingChannel(ours, supervisor)
        outgoing = blocking.outgoing(b"waited", [event])
        thread = threading.Thread(target=blocking.send, args=(outgoing,))
        thread.start()
        other_end = Transport(theirs)
        theirs.settimeout(0.05)
        try:
            other_end.receive_next()
        except TimeoutError:
            pass
        else:
            raise AssertionError("the kernel took descriptors over the limit")
        drain(receiver)
        theirs.settimeout(10)
        message = other_end.receive_next()
        assert message is not None
        assert message.payload == b"waited"
        message.close()
        thread.join()
    other_end.close()
    ours.close()
    flooder.close()
    receiver.close()


def main() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(own_uid())
        os.setuid(own_uid())
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    with EventFd() as event:
        trio.run(send_waits_until_descriptors_land, event)
        blocking_send_waits_too(event)
    print("all good")


if __name__ == "__main__":
    main()
