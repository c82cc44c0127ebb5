"""A device behind a vhost-user connection: a virtqueue in a memfd, eventfds to ring, and requests in flight."""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from examples.vhost_user.protocol import GUEST_BASE, FrontEnd
from fdpool import Connection, EventFd, MemFd, open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

CHAIN = 4  # descriptors for each request
NEXT, DEVICE_WRITES = 1, 2


class Request:
    """One request in flight."""

    def __init__(self, out: Sequence[bytes], into: Sequence[int]) -> None:
        self.out = b"".join(out)
        self.into = into
        self.parts = [(len(data), 0) for data in out] + [(nbytes, DEVICE_WRITES) for nbytes in into]
        self.done = trio.Event()
        self.answer: list[bytes] | None = None


class Queue:
    """A split virtqueue, from the driver's side. Each slot is a chain of descriptors, and memory for their data."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes, self.size = slots, slot_bytes, slots * CHAIN
        available = 16 * self.size
        used = available + 4 * self.size
        self.rings = (0, available, used)
        self._data = 16 * self.size * 2
        self.memory = MemFd("virtqueue", self._data + slots * slot_bytes)
        self._map = self.memory.map(writable=True)
        # struct writes "<H" byte by byte, and the device, which reads meanwhile, may see half of an index. An element
        # of a view is stored and loaded at once. (In native order, which has to be little-endian here.)
        self._words = memoryview(self._map).cast("H")
        self._submitted = self._completed = 0
        self._in_flight: dict[int, Request] = {}

    def check(self, request: Request) -> Request:
        """Return *request* if it fits in a slot."""
        if len(request.parts) > CHAIN or sum(nbytes for nbytes, _ in request.parts) > self.slot_bytes:
            raise ValueError(f"a request has at most {CHAIN} parts and {self.slot_bytes} bytes")
        return request

    def submit(self, slot: int, request: Request) -> None:
        """Show the device a request."""
        self._in_flight[slot] = request
        position = self._data + slot * self.slot_bytes
        self._map[position : position + len(request.out)] = request.out
        head, last = slot * CHAIN, slot * CHAIN + len(request.parts) - 1
        for index, (nbytes, flags) in enumerate(request.parts, start=head):
            link = (flags | NEXT, index + 1) if index < last else (flags, 0)
            struct.pack_into("<QIHH", self._map, index * 16, GUEST_BASE + position, nbytes, *link)
            position += nbytes
        struct.pack_into("<H", self._map, self.rings[1] + 4 + self._submitted % self.size * 2, head)
        # The index comes last: it is what makes the rest visible.
        self._submitted += 1
        self._words[self.rings[1] // 2 + 1] = self._submitted & 0xFFFF

    def complete(self) -> list[int]:
        """Hand the device's answers to their requests; return the slots that are free again."""
        done = self._words[self.rings[2] // 2 + 1]
        slots = []
        while self._completed & 0xFFFF != done:
            head, _ = struct.unpack_from("<II", self._map, self.rings[2] + 4 + self._completed % self.size * 8)
            self._completed += 1
            slots.append(head // CHAIN)
            request = self._in_flight.pop(slots[-1])
            position = self._data + slots[-1] * self.slot_bytes + len(request.out)
            request.answer = []
            for nbytes in request.into:
                request.answer.append(self._map[position : position + nbytes])
                position += nbytes
            request.done.set()
        return slots

    def abandon(self) -> None:
        """Let every request end without an answer."""
        for request in self._in_flight.values():
            request.done.set()

    def close(self) -> None:
        """Give up the memory."""
        self._words.release()
        self._map.close()
        self.memory.close()


class Device:
    """Does what it is asked, as many things at a time as its queue has slots."""

    def __init__(self, queue: Queue, kick: EventFd, config: bytes) -> None:
        self.config = config
        self._queue = queue
        self._kick = kick
        self._free, self._room = list(range(queue.slots)), trio.Semaphore(queue.slots)
        self.is_gone = False

    async def transfer(self, out: Sequence[bytes], into: Sequence[int]) -> list[bytes]:
        """Have the device read *out*, and write as many bytes as *into* says; return those.

        Raises:
          trio.BrokenResourceError: the device is gone. Whether it had done its work is not known.

        Cancellation: always a checkpoint. After `trio.Cancelled` the device may still do it.
        """
        request = self._queue.check(Request(out, into))
        await self._room.acquire()
        if self.is_gone:
            self._room.release()
            raise trio.BrokenResourceError("the device is gone")
        self._queue.submit(self._free.pop(), request)
        with suppress(BlockingIOError):  # the counter is full: it has been rung often enough
            self._kick.write()
        await request.done.wait()
        if request.answer is None:
            raise trio.BrokenResourceError("the device is gone, with this request in flight")
        return request.answer

    async def reap(self, call: EventFd) -> None:
        """Wake whoever's request is done, for ever."""
        while True:
            # A ring may mean nothing, as the first one often does: the used index tells.
            await trio.lowlevel.wait_readable(call.fileno())
            with suppress(BlockingIOError):
                call.read()
            for slot in self._queue.complete():
                self._free.append(slot)
                self._room.release()

    async def watch(self, connection: Connection) -> None:
        """End every request once the device is gone. It says nothing of its own accord before."""
        try:
            await connection.receive_exactly(1)
        except (trio.EndOfChannel, trio.BrokenResourceError):
            self.is_gone = True
            self._queue.abandon()
            self._room.release()
        else:
            raise OSError("the device spoke out of turn")


@asynccontextmanager
async def open_device(
    path: str, *, features: int = 0, config_bytes: int = 0, slots: int = 32, slot_bytes: int = 0x22000
) -> AsyncIterator[tuple[Device, FrontEnd]]:
    """Connect to the device at *path*, share memory and eventfds with it, and start its queue."""
    queue = Queue(slots, slot_bytes)
    try:
        async with await open_connection(path) as connection:
            with EventFd() as kick, EventFd() as call:
                front_end = FrontEnd(connection)
                await front_end.negotiate(features)
                device = Device(queue, kick, await front_end.get_config(config_bytes) if config_bytes else b"")
                await front_end.start_queue(queue.memory, queue.size, queue.rings, kick, call)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(device.reap, call)
                    nursery.start_soon(device.watch, connection)
                    yield device, front_end
                    nursery.cancel_scope.cancel()
                if not device.is_gone:
                    await front_end.stop_queue()
    finally:
        queue.close()
