"""What lies at an address: how an array's memory is recognised as something another process can map."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fdpool.kernel.mapping import Mapping


class Place(Protocol):
    """Something that has mapped memory, and knows who keeps which part of it in use."""

    def keeper_at(self, offset: int, length: int) -> Any:
        """Return whoever keeps the bytes at *offset* in use, or None if nobody keeps all of them."""


_places: dict[int, tuple[int, weakref.ref[Place]]] = {}
_starts: list[int] | None = []

has_shared = False
"""Whether this process has ever had memory that everybody may write: that travels by reference however small."""


def add_place(mapping: Mapping, place: Place, *, is_shared: bool = False) -> None:
    """Take note that *mapping* belongs to *place*."""
    global _starts, has_shared
    has_shared = has_shared or is_shared
    _places[mapping.address] = (mapping.address + mapping.length, weakref.ref(place))
    _starts = None


def remove_place(address: int) -> None:
    """Forget the mapping that began at *address*. May be called from any thread, at any moment."""
    global _starts
    _places.pop(address, None)
    _starts = None


def keeper_of(address: int, length: int) -> tuple[Any, int]:
    """Return whoever keeps the *length* bytes at *address* in use, and where they are in what is mapped there.

    That is None for ordinary memory.
    """
    global _starts
    starts = _starts
    if starts is None:
        # A mapping that goes while this sorts is missed by nobody; one whose end came first is looked up in vain.
        starts = _starts = sorted(_places)
    index = bisect_right(starts, address)
    found = _places.get(starts[index - 1]) if index else None
    place = found[1]() if found is not None and address + length <= found[0] else None
    if place is None:
        return None, 0
    offset = address - starts[index - 1]
    return place.keeper_at(offset, length), offset
