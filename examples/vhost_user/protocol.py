"""The messages of vhost-user, as far as a front end with one queue in one piece of memory needs them."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdpool import Connection, EventFd, MemFd

HEADER = struct.Struct("<III")  # request, flags, size of the body
NUMBER = struct.Struct("<Q")
VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3
# Where the device is told that our memory lies. It maps it where it likes, so any numbers do.
GUEST_BASE, USER_BASE = 0x1_0000_0000, 0x7000_0000_0000

Request = enum.IntEnum(
    "Request",
    {
        "GET_FEATURES": 1,
        "SET_FEATURES": 2,
        "SET_OWNER": 3,
        "SET_MEM_TABLE": 5,
        "SET_VRING_NUM": 8,
        "SET_VRING_ADDR": 9,
        "SET_VRING_BASE": 10,
        "GET_VRING_BASE": 11,
        "SET_VRING_KICK": 12,
        "SET_VRING_CALL": 13,
        "GET_PROTOCOL_FEATURES": 15,
        "SET_PROTOCOL_FEATURES": 16,
        "SET_VRING_ENABLE": 18,
        "GET_CONFIG": 24,
    },
)
BLK_FLUSH, PROTOCOL_FEATURES, VERSION_1 = 1 << 9, 1 << 30, 1 << 32
REPLY_ACK, CONFIG = 1 << 3, 1 << 9


class FrontEnd:
    """Asks one device, over a connection that it is lent, one request at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.offered = self.features = self.protocol_features = 0

    async def negotiate(self, wanted: int) -> None:
        """Agree with the device on what both can do."""
        self.offered = await self._ask_number(Request.GET_FEATURES)
        self.features = self.offered & (wanted | PROTOCOL_FEATURES | VERSION_1)
        accepted = await self._ask_number(Request.GET_PROTOCOL_FEATURES) & (REPLY_ACK | CONFIG)
        await self._tell(Request.SET_PROTOCOL_FEATURES, NUMBER.pack(accepted))
        self.protocol_features = accepted
        await self._tell(Request.SET_OWNER)
        await self._tell(Request.SET_FEATURES, NUMBER.pack(self.features))

    async def get_config(self, nbytes: int) -> bytes:
        """Return the first bytes of what the device says about itself."""
        asked = struct.pack("<III", 0, nbytes, 0)
        return (await self._ask(Request.GET_CONFIG, asked + bytes(nbytes)))[len(asked) :]

    async def start_queue(
        self, memory: MemFd, size: int, rings: tuple[int, int, int], kick: EventFd, call: EventFd
    ) -> None:
        """Share *memory*, and start a queue whose descriptors, available and used ring lie at these offsets in it."""
        descriptors, available, used = (USER_BASE + offset for offset in rings)
        table = struct.pack("<II QQQQ", 1, 0, GUEST_BASE, memory.size, USER_BASE, 0)
        await self._tell(Request.SET_MEM_TABLE, table, [memory])
        await self._tell(Request.SET_VRING_NUM, struct.pack("<II", 0, size))
        await self._tell(Request.SET_VRING_BASE, struct.pack("<II", 0, 0))
        await self._tell(Request.SET_VRING_ADDR, struct.pack("<II QQQQ", 0, 0, descriptors, used, available, 0))
        await self._tell(Request.SET_VRING_CALL, NUMBER.pack(0), [call])
        await self._tell(Request.SET_VRING_KICK, NUMBER.pack(0), [kick])
        await self._tell(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 1))

    async def stop_queue(self) -> None:
        """Have the device finish what it has begun, and stop."""
        await self._ask(Request.GET_VRING_BASE, struct.pack("<II", 0, 0))

    async def _ask_number(self, request: Request) -> int:
        number: int = NUMBER.unpack(await self._ask(request))[0]
        return number

    async def _ask(self, request: Request, body: bytes = b"") -> bytes:
        await self._connection.send_message(HEADER.pack(request, VERSION, len(body)), body)
        return await self._receive_reply(request)

    async def _tell(self, request: Request, body: bytes = b"", fds: Sequence[MemFd | EventFd] = ()) -> None:
        flags = VERSION | (NEED_REPLY if self.protocol_features & REPLY_ACK else 0)
        await self._connection.send_message(HEADER.pack(request, flags, len(body)), body, fds=fds)
        if flags & NEED_REPLY and any(code := await self._receive_reply(request)):
            raise OSError(f"the device refused {request.name}: {code.hex()}")

    async def _receive_reply(self, request: Request) -> bytes:
        reply = await self._connection.receive_message(
            HEADER.size, lambda header: int(HEADER.unpack(header)[2]), max_body_size=4096, max_fds=0
        )
        answered, flags, _ = HEADER.unpack(reply.header)
        if answered != request or not flags & REPLY:
            raise OSError(f"the device answered request {answered}, where {request.name} was asked")
        return bytes(reply.body)
