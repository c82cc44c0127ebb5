"""One side of what two processes have lent each other: segments announced, leases given, leases taken.

There is one for each worker in the supervisor, and one in the worker. Whatever they send each other passes
through `wrap` and `take_in`, in the order it is sent and received.
"""

from __future__ import annotations

import resource
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from fdpool.errors import RemoteProtocolError
from fdpool.kernel import MemFd, Seal
from fdpool.memory.parcel import PARCEL, Packed, Parcel, Part
from fdpool.memory.received import KeptFd, Lease, ReceivedSegment, as_received
from fdpool.memory.segment import Segment
from fdpool.protocol.memory import (
    BACK,
    FORWARD,
    MAX_ENDED_PER_MESSAGE,
    NO_NEWS,
    Extent,
    News,
    decode_extents,
    decode_news,
    encode_extents,
    without_news,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from fdpool.kernel import HasFileno, OwnedFd

    Handles = list[OwnedFd | socket.socket]

_KEPT_SHARE: Final = 8
"""Descriptors of others' segments take at most one in so many of those this process may open."""

_NOTHING_NEW: Final = News()


@dataclass(slots=True)
class Wrapped:
    """A message's body and handles; what it says counts once it is sent, or has to be taken back.

    Attributes:
      body: What goes behind the message's own header.
      handles: The descriptors of announced segments, then the packed ones; lent.
      news: What it says beside the parcel.
      leases: The leases that it gives.
      parts: What has to exist until it is sent.
    """

    body: bytes
    handles: list[HasFileno]
    news: News
    leases: list[int]
    parts: Sequence[Part]


class Exchange:
    """What this process and one peer have lent each other. Used by one thread; leases may end in any.

    Args:
      keeps_fds: Whether to keep descriptors of the peer's segments, to pass on to others what lies in them.
      cleans_later: Whether pages that were written are dropped by `clean`, instead of by whoever ends a lease.
      on_news: Called when there is something to tell the peer, from any thread and at any moment.
    """

    def __init__(
        self, *, keeps_fds: bool = False, cleans_later: bool = False, on_news: Callable[[], object] | None = None
    ) -> None:
        self.keeps_fds = keeps_fds
        self.cleans_later = cleans_later
        self._on_news = on_news
        self._lease_numbers = count(1)
        self._lent: dict[int, Part] = {}
        self._known: set[int] = set()
        self._segments: dict[int, ReceivedSegment] = {}
        self._mapped: list[int] = []
        self._ended: deque[int] = deque()
        self._retired: deque[int] = deque()
        self._dropped: deque[int] = deque()
        self._unclean: deque[ReceivedSegment] = deque()
        self.shared_objects: dict[int, Any] = {}

    @property
    def lent_bytes(self) -> int:
        """Bytes that the peer may look at."""
        return sum(part.length for part in self._lent.values())

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the peer's segments that are mapped here."""
        return sum(segment.size for segment in self._segments.values())

    @property
    def has_mapped(self) -> bool:
        """Whether any segment of the peer's is mapped here."""
        return bool(self._segments)

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell the peer."""
        return bool(self._mapped or self._ended or self._retired or self._dropped)

    def wrap(self, packed: Packed | None = None) -> Wrapped:
        """Make the body of a message: the news, and *packed* with a lease for each part of memory it refers to."""
        if packed is not None and not packed.parts and not packed.shared and not self.has_news:
            # Most calls carry nothing big.
            return Wrapped(NO_NEWS + self._parcel(packed, ()), packed.handles, _NOTHING_NEW, [], ())
        segments: dict[int, tuple[Segment | ReceivedSegment, HasFileno]] = {}
        parts = packed.parts if packed is not None else ()
        extents = [self._extent(part, segments) for part in parts] if parts else []
        lent = extents
        if packed is not None and not segments and not packed.shared and not self.has_news:
            # Nor do most of the others lie in memory that the peer has not mapped yet.
            leases = [extent.lease for extent in extents if extent.lease]
            return Wrapped(NO_NEWS + self._parcel(packed, extents), packed.handles, _NOTHING_NEW, leases, parts)
        news = self._collect_news()
        for shared in packed.shared if packed is not None else ():
            if shared.number not in self._known:
                shared.peers.add(self)
                shares = [self._extent(part, segments) for part in shared.packed.parts]
                news.shares.append((shared.number, self._parcel(shared.packed, shares)))
                lent = lent + shares
        handles: list[HasFileno] = []
        if segments:
            news.segments = [(number, s.size, int(s.is_shared)) for number, (s, _) in segments.items()]
            handles += [fd for _, fd in segments.values()]
        body = news.encode()
        if packed is not None:
            body += self._parcel(packed, extents)
            handles += packed.handles
        return Wrapped(body, handles, news, [extent.lease for extent in lent if extent.lease], parts)

    def take_back(self, wrapped: Wrapped) -> None:
        """Undo `wrap`: the message could not be sent."""
        for lease in wrapped.leases:
            self._lent.pop(lease, None)
        self._put_back(wrapped.news)

    def news(self) -> Wrapped | None:
        """Make a body of the news alone, or return None if there are none."""
        return self.wrap() if self.has_news else None

    def take_in(self, body: memoryview, handles: Handles) -> Parcel | None:
        """Take in a message's news, and return the parcel behind them, if there is one.

        Args:
          body: What the peer's `wrap` made.
          handles: What came with it; the descriptors of segments are taken off it.

        Raises:
          RemoteProtocolError: it refers to something that is not there, or not its to refer to.
          OSError: no memory or address space to map what came; what it lent has been given back.
        """
        lone_parcel = without_news(body)
        if lone_parcel is not None:
            return self._open(lone_parcel) if lone_parcel.nbytes else None
        news, rest = decode_news(body)
        if news.shares and self.keeps_fds:
            raise RemoteProtocolError("a worker has nothing to share")
        try:
            self._map_announced(news, handles)
        except OSError:
            self._decline_all(news, rest)
            raise
        for number, data in news.shares:
            # Sent until it is known to have arrived, so it may come more than once.
            self.shared_objects.setdefault(number, self._open(memoryview(data)))
            self._mapped.append(number)
        parcel = self._open(rest) if rest.nbytes else None
        # After the parcel was opened: what it refers to may be what the same message says it needs no longer.
        self._settle(news)
        return parcel

    def decline(self, body: memoryview) -> None:
        """Take in the news of a message whose handles were lost, and give back what its parcel lent.

        Raises:
          RemoteProtocolError: it is malformed.
        """
        self._decline_all(*decode_news(body))

    def lease_ended(self, lease: Lease) -> None:
        """Tell the peer, with the next message, that a lease has ended. From any thread, at any moment."""
        if self.cleans_later and lease.is_private:
            self._unclean.append(lease.segment)
        self._ended.append(lease.number)
        self._notify()

    def clean(self) -> None:
        """Drop what was written into memory whose leases have ended, which the peer may know already."""
        while self._unclean:
            self._unclean.popleft().clean()

    def retire(self, number: int) -> None:
        """Tell the peer, with the next message, to unmap a segment. From any thread, at any moment."""
        self._retired.append(number)
        self._notify()

    def drop_shared(self, number: int) -> None:
        """Tell the peer, with the next message, to forget a shared object. From any thread, at any moment."""
        self._dropped.append(number)
        self._notify()

    def close(self) -> None:
        """End every lease of a dead peer. What it lent stays as long as it is looked at, but is not passed on."""
        self._on_news = None
        self._lent.clear()
        for segment in self._segments.values():
            if not segment.is_shared:
                segment.kept_fd = None
        self._segments.clear()
        self.shared_objects.clear()

    @staticmethod
    def _parcel(packed: Packed, extents: Sequence[Extent]) -> bytes:
        header = PARCEL.pack(packed.flags, packed.mode, len(extents), *packed.tail_at, packed.buffers)
        return header + (encode_extents(extents) if extents else b"") + packed.tail

    def _extent(self, part: Part, segments: dict[int, tuple[Segment | ReceivedSegment, HasFileno]]) -> Extent:
        """Refer to *part*, giving a lease for it; announce its segment unless the peer is known to have it."""
        keeper = part.keeper
        if isinstance(keeper, Lease) and keeper.exchange is self:
            return Extent(BACK, keeper.number, part.start - keeper.offset, part.length, 0)
        segment = keeper.segment
        if segment.number not in self._known:
            if isinstance(segment, Segment):
                segments[segment.number] = (segment, segment.fd)
            else:
                assert part.kept_fd is not None, "what cannot be passed on is copied when it is packed"
                segments[segment.number] = (segment, part.kept_fd.fd)
            segment.peers.add(self)
        lease = next(self._lease_numbers)
        self._lent[lease] = part
        return Extent(FORWARD, segment.number, part.start, part.length, lease)

    def _collect_news(self) -> News:
        news = News([], self._mapped, _some_of(self._ended), _some_of(self._retired), _some_of(self._dropped))
        self._mapped = []
        # A segment that is announced again later is a new one: numbers are never used twice.
        self._known.difference_update(news.retired, news.dropped)
        return news

    def _put_back(self, news: News) -> None:
        self._mapped += news.mapped
        self._ended.extend(news.ended)
        self._retired.extend(news.retired)
        self._dropped.extend(news.dropped)

    def _map_announced(self, news: News, handles: Handles) -> None:
        if not news.segments:
            return
        fds = handles[: len(news.segments)]
        del handles[: len(news.segments)]
        try:
            if len(fds) < len(news.segments):
                raise RemoteProtocolError(f"{len(news.segments)} segments were announced, and {len(fds)} came")
            for (number, size, is_shared), fd in zip(news.segments, fds, strict=True):
                # Announced until it is known to have been mapped, so it may come more than once.
                if number not in self._segments:
                    self._segments[number] = self._map_segment(fd, size, bool(is_shared))
                self._mapped.append(number)
        finally:
            for fd in fds:
                fd.close()

    def _map_segment(self, fd: OwnedFd | socket.socket, size: int, is_shared: bool) -> ReceivedSegment:
        if not isinstance(fd, MemFd) or not fd.seals & Seal.SHRINK or not 0 < size <= fd.size:
            raise RemoteProtocolError(
                "a segment is no memfd that is sealed against shrinking, of the size it should be"
            )
        try:
            segment = ReceivedSegment(fd, size, is_shared=is_shared)
        except PermissionError as exc:
            raise RemoteProtocolError("a segment that everybody may write is sealed against that") from exc
        if self.keeps_fds and (is_shared or _may_keep_fd()):
            with suppress(OSError):  # no descriptor free: what lies in it is copied to be passed on
                segment.kept_fd = KeptFd(fd.duplicate())
        return segment

    def _open(self, rest: memoryview) -> Parcel:
        header = _parcel_header(rest)
        if not header[2]:
            return Parcel(header, [], rest[PARCEL.size :], self)
        extents, tail = decode_extents(rest[PARCEL.size :], header[2])
        return Parcel(header, list(map(self._lease, extents)), tail, self)

    def _lease(self, extent: Extent) -> Lease:
        """Return the lease for what an extent refers to, having checked that it may be referred to."""
        offset, length = extent.offset, extent.length
        if extent.kind == FORWARD:
            segment = self._segments.get(extent.reference)
            if segment is not None and offset + length <= segment.size:
                return Lease(segment, offset, length, number=extent.lease, exchange=self)
        elif extent.kind == BACK:
            part = self._lent.get(extent.reference)
            if part is not None and offset + length <= part.length:
                keeper = part.keeper
                here = keeper.segment if isinstance(keeper, Lease) else as_received(keeper.segment)
                return Lease(here, part.start + offset, length, origin=keeper)
        raise RemoteProtocolError(f"{extent} is not inside anything that was announced or lent")

    def _settle(self, news: News) -> None:
        """Take in the news that need no descriptor."""
        self._known.update(news.mapped)
        for lease in news.ended:
            if self._lent.pop(lease, None) is None:
                raise RemoteProtocolError(f"lease {lease} ended, and was not given or has ended already")
        for number in news.retired:
            self._segments.pop(number, None)
        for number in news.dropped:
            self.shared_objects.pop(number, None)

    def _decline_all(self, news: News, rest: memoryview) -> None:
        """Take in what needs no descriptor, and end every lease that was given for what is not looked at."""
        self._settle(news)
        for parcel in (*(memoryview(data) for _, data in news.shares), rest):
            if parcel.nbytes:
                extents, _ = decode_extents(parcel[PARCEL.size :], _parcel_header(parcel)[2])
                self._ended.extend(extent.lease for extent in extents if extent.lease)

    def _notify(self) -> None:
        if self._on_news is not None:
            self._on_news()


def _some_of(numbers: deque[int]) -> list[int]:
    """Take as many off *numbers* as go with one message."""
    return [numbers.popleft() for _ in range(min(len(numbers), MAX_ENDED_PER_MESSAGE))] if numbers else []


def _parcel_header(rest: memoryview) -> tuple[int, ...]:
    if rest.nbytes < PARCEL.size:
        raise RemoteProtocolError(f"{rest.nbytes} bytes are too short for a parcel", bytes(rest))
    return PARCEL.unpack_from(rest)


def _may_keep_fd() -> bool:
    """Whether there is room for one more descriptor of somebody else's segment."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return KeptFd.count < limit // _KEPT_SHARE
