"""Events: what happens in a pool, told to whoever wants to know while it happens."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import ref

import trio

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

MOST_UNREAD: Final = 10_000
"""How many events are kept for a reader that does not keep up."""


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that happened. docs/pool.md lists the names, which do not change.

    Attributes:
      name: What: "call.returned", "worker.ready", "pool.resized" …
      time: When, in seconds since the epoch.
      pid: In which worker, if in one.
      call: The number of the call it is about, if it is about one. The same call keeps its number.
      function: The qualified name of that call's function.
      detail: What else there is to say, in words.
    """

    name: str
    time: float
    pid: int | None = None
    call: int | None = None
    function: str = ""
    detail: str = ""


class PoolEvents:
    """An async iterator over what happens in a pool, from when it was made until it or the pool is closed.

    Also a context manager, which closes it. One that is not referred to any more costs nothing either.
    """

    def __init__(self, source: Broadcast) -> None:
        self._unread: deque[PoolEvent] = deque()
        self._lost = 0
        self._is_closed = False
        self._news = trio.Event()
        self._source = source

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PoolEvent:
        """Return what happened next.

        One named "events.lost" stands for those that were dropped because more than 10 000 were unread.

        Cancellation: nothing is lost.
        """
        await trio.lowlevel.checkpoint()
        while not self._unread:
            if self._is_closed:
                raise StopAsyncIteration
            if self._news.is_set():
                self._news = trio.Event()
            await self._news.wait()
        if self._lost:
            count, self._lost = self._lost, 0
            return PoolEvent("events.lost", self._unread[0].time, detail=f"{count} were dropped unread")
        return self._unread.popleft()

    def close(self) -> None:
        """Listen no more; what is unread can still be read."""
        self._is_closed = True
        self._source.remove(self)
        self._news.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def add(self, event: PoolEvent) -> None:
        """Put down what happened."""
        if len(self._unread) == MOST_UNREAD:
            self._unread.popleft()
            self._lost += 1
        self._unread.append(event)
        self._news.set()


class Broadcast:
    """Where a pool says what happens. Costs next to nothing while nobody listens."""

    def __init__(self) -> None:
        self._readers: set[ref[PoolEvents]] = set()

    def open_reader(self) -> PoolEvents:
        """Return a new reader, which sees what happens from now on."""
        reader = PoolEvents(self)
        self._readers.add(ref(reader, self._readers.discard))
        return reader

    def tell(
        self, name: str, *, pid: int | None = None, call: int | None = None, function: str = "", detail: str = ""
    ) -> None:
        """Tell all readers."""
        if self._readers:
            event = PoolEvent(name, time.time(), pid, call, function, detail)
            for reader in self._living():
                reader.add(event)

    def close(self) -> None:
        """End all readers' iterations, once they have read what there is."""
        for reader in self._living():
            reader.close()

    def remove(self, reader: PoolEvents) -> None:
        """Tell *reader* nothing more."""
        self._readers.discard(ref(reader))

    @property
    def is_heard(self) -> bool:
        """Whether there is any reader."""
        return bool(self._readers)

    def _living(self) -> list[PoolEvents]:
        return [reader for found in list(self._readers) if (reader := found()) is not None]
