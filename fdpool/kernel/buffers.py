"""The bytes of whatever has some."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


def bytes_of(buffer: Buffer) -> memoryview:
    """Return a flat view of the bytes of *buffer*, which is contiguous."""
    view = memoryview(buffer)
    # A view of nothing may have a shape that cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")
