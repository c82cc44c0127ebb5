"""Messages as an honest peer would never send them."""

from __future__ import annotations

from fdpool.memory.parcel import PARCEL
from fdpool.protocol.memory import Extent, News, encode_extents


def parcel_of(
    *extents: Extent,
    flags: int = 0,
    mode: int = 0,
    extent_count: int | None = None,
    tail_at: tuple[int, int, int] = (0, 0, 0),
    buffers: int = 0,
    tail: bytes = b"",
) -> bytes:
    """Return a message's body without news, and with a parcel of whatever is asked for."""
    count = len(extents) if extent_count is None else extent_count
    return News().encode() + PARCEL.pack(flags, mode, count, *tail_at, buffers) + encode_extents(extents) + tail
