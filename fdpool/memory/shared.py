"""Shared: an object that was pickled once, for any number of calls in any number of workers."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from fdpool.errors import RemoteProtocolError
from fdpool.memory.segment import segment_numbers

if TYPE_CHECKING:
    from fdpool.memory.parcel import Packed

T = TypeVar("T")


class Shared(Generic[T]):
    """An object in the arena, to be passed to calls in its stead; made by `Pool.share`.

    The task gets the object itself. It is loaded in each worker when it is first used there, and then the same
    object for every call of that worker, so tasks had better not change it. When the last reference to this is gone,
    and the calls under way that were given it are done, it is freed everywhere.

    Attributes:
      nbytes: What it takes in the arena.
    """

    def __init__(self, packed: Packed, nbytes: int) -> None:
        self.nbytes = nbytes
        self.number = next(segment_numbers)
        self.packed = packed
        self.peers: weakref.WeakSet[SharedPeer] = weakref.WeakSet()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Shared is an argument of a pool's calls, and nothing else can carry it")

    def __del__(self) -> None:
        for peer in list(self.peers) if hasattr(self, "peers") else ():
            peer.drop_shared(self.number)

    def __repr__(self) -> str:
        return f"<Shared {self.number}, {self.nbytes} bytes>"


class SharedPeer(Protocol):
    """Somebody who was told of shared objects."""

    def drop_shared(self, number: int) -> None:
        """Tell it, with the next message, to forget the object of this number."""


def shared_object(_number: int) -> Any:
    """Stand in a pickle for a shared object; whoever loads it puts its own way to find it in this one's place.

    Raises:
      RemoteProtocolError: it was loaded by something else.
    """
    raise RemoteProtocolError("a shared object is only known to the workers it was sent to")
