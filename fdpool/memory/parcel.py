"""A parcel: what a message is about, as bytes and references to memory; before it is sent, and as it arrives."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fdpool.errors import RemoteProtocolError

if TYPE_CHECKING:
    from fdpool.kernel import HasFileno
    from fdpool.memory.exchange import Exchange
    from fdpool.memory.received import KeptFd, Lease, MappingMode
    from fdpool.memory.segment import Block
    from fdpool.memory.shared import Shared

PARCEL: Final = struct.Struct("<BBIIQQI")
"""Flags, mapping mode, number of extents; the extent, offset and length of a tail that is not inline; buffers."""

TAIL_IN_MEMORY: Final = 0x1
"""Flag: the tail, which follows the extents otherwise, lies in one of them."""

MODES: Final[tuple[MappingMode, ...]] = ("private", "readonly", "copy")


class Part(NamedTuple):
    """Memory that a parcel refers to, kept in use by it.

    Attributes:
      keeper: Whoever keeps it in use.
      start: Where it begins, in the segment.
      length: Bytes.
      kept_fd: The segment's descriptor, if that is another process's and is to be passed on.
    """

    keeper: Block | Lease
    start: int
    length: int
    kept_fd: KeptFd | None = None


@dataclass(slots=True)
class Packed:
    """Objects ready to travel to anybody; an `Exchange` makes a message of them.

    Attributes:
      tail: The table of buffers and the pickle, unless they lie in memory; then empty.
      tail_at: Which part they lie in, where in it, and how long they are.
      buffers: How many there are in the table.
      mode: How the buffers are to be mapped, an index of `MODES`.
      parts: The memory referred to.
      handles: Lent by their owners.
      given: What to close here once it has arrived.
      shared: The shared objects that the pickle speaks of.
    """

    tail: bytes
    tail_at: tuple[int, int, int]
    buffers: int
    mode: int
    parts: list[Part]
    handles: list[HasFileno] = field(default_factory=list)
    given: list[Any] = field(default_factory=list)
    shared: list[Shared[Any]] = field(default_factory=list)

    @property
    def flags(self) -> int:
        """The flags of the parcel's header."""
        return 0 if self.tail else TAIL_IN_MEMORY

    @property
    def nbytes(self) -> int:
        """How much it is, inline and in memory; the same number as that of the `Parcel` it becomes."""
        return len(self.tail) + sum(part.length for part in self.parts)

    def close(self) -> None:
        """Let go of the memory; the leases that were given keep what they are for."""
        self.parts.clear()
        self.shared.clear()


class Parcel:
    """What arrived: checked references to memory, held until `close`, and the tail that says what to make of them."""

    __slots__ = ("_tail", "_tail_at", "buffers", "exchange", "leases", "mode")

    def __init__(
        self,
        header: tuple[int, ...],
        leases: list[Lease],
        tail: memoryview,
        exchange: Exchange,
    ) -> None:
        flags, mode, _, extent, offset, length, self.buffers = header
        if mode >= len(MODES):
            raise RemoteProtocolError(f"mapping mode {mode} does not exist")
        self.mode: MappingMode = MODES[mode]
        self.leases = leases
        self.exchange = exchange
        self._tail = tail
        self._tail_at = (extent, offset, length) if flags & TAIL_IN_MEMORY else None

    @property
    def is_inline(self) -> bool:
        """Whether the tail came in the message itself."""
        return self._tail_at is None

    @property
    def nbytes(self) -> int:
        """How much it is, inline and in memory, until it is closed."""
        return (self._tail.nbytes if self.is_inline else 0) + sum(lease.length for lease in self.leases)

    def tail(self) -> memoryview:
        """Return the table of buffers and the pickle behind it.

        Raises:
          RemoteProtocolError: they are not inside the memory that the parcel refers to.
        """
        if self._tail_at is None:
            return self._tail
        extent, offset, length = self._tail_at
        lease = self._part(extent, offset, length)
        return lease.peek(lease.offset + offset, length)

    def buffer(self, extent: int, offset: int, length: int) -> memoryview | bytearray:
        """Return one of the buffers, mapped as the mode says.

        Raises:
          RemoteProtocolError: it is not inside the memory that the parcel refers to.
        """
        lease = self._part(extent, offset, length)
        view, may_be_kept = lease.open(lease.offset + offset, length, self.mode)
        return view if may_be_kept else bytearray(view)

    def close(self) -> None:
        """Let go; the views that were taken keep what they show."""
        self.leases.clear()

    def _part(self, extent: int, offset: int, length: int) -> Lease:
        if extent >= len(self.leases) or offset + length > self.leases[extent].length:
            raise RemoteProtocolError(f"{length} bytes at {offset} are not inside extent {extent} of the parcel")
        return self.leases[extent]
