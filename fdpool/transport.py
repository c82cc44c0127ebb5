"""Messages with handles over one datagram socket, never waiting by itself.

The core that the trio `Channel` and the workers' blocking channel share: it packs and checks, and leaves
it to its caller when to try again.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Final, Self

from fdpool.errors import FdLimitError, RemoteProtocolError, fd_limit_error
from fdpool.kernel import HandleKind, HasFileno, MemFd, OwnedFd, handle_kind, recv_with_fds, send_with_fds
from fdpool.kernel.buffers import bytes_of
from fdpool.kernel.descriptor import fd_number
from fdpool.kernel.kind import into_typed
from fdpool.protocol.datagram import (
    INTERJECTED_HEADER,
    MAX_DATAGRAM_BYTES,
    MAX_INLINE_BYTES,
    Assembler,
    Datagram,
    Parts,
    bare_header,
    bare_payload,
    datagrams_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from fdpool.kernel import PidFd, Sender

Handle = OwnedFd | socket.socket
"""What a received handle is: `EventFd`, `MemFd`, `PidFd`, `socket.socket`, or a plain `OwnedFd` for all else."""

TRY_LATER: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS})
"""Errors of sendmsg(2) that pass by themselves and that no poll event announces: sleep, then try again."""

PEER_GONE: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE})
"""Errors that say that nobody holds the other end any more. On `SOCK_DGRAM` the first send after that gets
ECONNREFUSED, and every further one ENOTCONN."""

# As plain ints: each `|` of the socket module's enums costs a microsecond.
DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_TRUNC: Final = int(socket.MSG_TRUNC)
_NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)

_SOCKET_TYPES: Final = (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
_READ_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Message:
    """A message as received. The handles are the receiver's to close; `close()` or a `with` block closes them all.

    Attributes:
      payload: The bytes as they were sent.
      handles: In the order they were sent, each of the class for its kind. Whoever takes one out of the list owns it.
      sender: Who sent it, on a channel that identifies; its pidfd is closed with the message unless it was taken.
          None on every other channel.
    """

    payload: bytes
    handles: list[Handle] = field(default_factory=list)
    sender: Sender | None = None

    def take_pidfd(self) -> PidFd | None:
        """Return the sender's process, which the caller owns from here on; None where there is none to take."""
        sender = self.sender
        if sender is None:
            return None
        self.sender = replace(sender, pidfd=None)
        return sender.pidfd

    def close(self) -> None:
        """Close every handle that is still in the list, and the sender's process if nobody took it."""
        close_all(self.handles)
        if self.sender is not None:
            self.sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Outgoing:
    """A message on its way out. Handles are lent until it is closed.

    They are asked for their numbers once more as each datagram leaves, so that one that was closed in the
    meantime is an error, and never a stranger's descriptor that got its number.
    """

    __slots__ = ("_spill", "pending")

    def __init__(self, message_id: int, payload: Buffer, handles: Sequence[HasFileno]) -> None:
        view = bytes_of(payload)
        self._spill: MemFd | None = None
        lent = [*handles]
        kinds = bytes(handle_kind(fd_number(handle)) for handle in lent)
        try:
            if view.nbytes > MAX_INLINE_BYTES:
                self._spill = MemFd.from_bytes(view, name="fdpool-message")
                view = view[:0]
                lent.insert(0, self._spill)
                kinds = bytes([HandleKind.MEMFD]) + kinds
            self.pending: list[Datagram[HasFileno]] = datagrams_for(
                message_id, view, lent, kinds, spilled=self._spill is not None
            )
        except BaseException:
            self.close()
            raise
        self.pending.reverse()

    def close(self) -> None:
        """Let go of the memory a long payload was put in."""
        if self._spill is not None:
            self._spill.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport:
    """One end of a datagram socketpair, owned. Used by one task or thread in each direction at a time.

    A timeout of the socket's own is taken off.

    Raises:
      ValueError: *sock* is not AF_UNIX of type `SOCK_DGRAM` or `SOCK_SEQPACKET`; it stays the caller's.
    """

    __slots__ = ("_assembler", "_buffer", "_ids", "_view", "socket")

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.type not in _SOCKET_TYPES:
            raise ValueError(
                "a channel needs an AF_UNIX socket of type SOCK_DGRAM or SOCK_SEQPACKET, "
                f"not {sock.family!r} of type {sock.type!r}"
            )
        if sock.gettimeout():
            # Python would wait that long by itself, whatever the flags say. One is there if somebody has called
            # socket.setdefaulttimeout; the descriptor does not block already.
            sock.settimeout(0)
        self.socket = sock
        self._ids = count()
        self._assembler: Assembler[OwnedFd] = Assembler()
        self._buffer = bytearray(MAX_DATAGRAM_BYTES)
        self._view = memoryview(self._buffer)

    def outgoing(self, payload: Buffer, handles: Sequence[HasFileno] = ()) -> Outgoing:
        """Prepare a message for sending.

        Raises:
          TypeError, ValueError: something in *handles* has no descriptor, or is closed.
          OSError: a descriptor is not open (EBADF), or there is no memory for a long payload.
        """
        return Outgoing(next(self._ids), payload, handles)

    def send_bare(self, payload: Buffer, flags: int = 0) -> bool:
        """Send a message that has no handles and is not long; return False if it is long, and was not sent."""
        if memoryview(payload).nbytes > MAX_INLINE_BYTES:
            return False
        self.socket.sendmsg((bare_header(next(self._ids)), payload), (), flags | _NOSIGNAL)
        return True

    def send_next(self, outgoing: Outgoing, flags: int = 0) -> None:
        """Send the next datagram of *outgoing*, which has one. May raise whatever sendmsg(2) does."""
        datagram = outgoing.pending[-1]
        send_with_fds(self.socket, datagram.pieces, datagram.handles, flags)
        outgoing.pending.pop()

    def receive_next(self, flags: int = 0) -> Message | None:
        """Receive one datagram; return the message it completes, or None if more chunks are to come.

        Raises:
          BlockingIOError: nothing is there.
          EOFError: the peer of a `SOCK_SEQPACKET` pair closed its end. On `SOCK_DGRAM` nothing ever says so.
          FdLimitError: handles were lost because this process may open no more; its `data` is the message's payload,
              but for a payload over 64 KiB whose memfd is among what was lost.
          RemoteProtocolError: the message is malformed. The socket can go on being used.
        """
        damaged = False
        try:
            nbytes, fds = recv_with_fds(self.socket, (self._buffer,), flags=flags | _TRUNC)
            data = bytes(self._view[:nbytes])
            if not fds and nbytes == len(data) and self._assembler.is_idle:
                payload = bare_payload(data)
                if payload is not None:
                    return Message(payload)
        except FdLimitError as exc:
            nbytes, fds, data, damaged = len(exc.data), [], exc.data, True
        return self._assemble(nbytes, data, fds, damaged=damaged)

    def _assemble(self, nbytes: int, data: bytes, fds: list[OwnedFd], *, damaged: bool) -> Message | None:
        """Take in one datagram; return the message it completes. Owns *fds*, and closes them if this raises."""
        try:
            if nbytes > MAX_DATAGRAM_BYTES:
                raise RemoteProtocolError(f"a datagram of {nbytes} bytes: at most {MAX_DATAGRAM_BYTES} are sent", data)
            if not (nbytes or fds or damaged) and self.socket.type == socket.SOCK_SEQPACKET:
                raise EOFError("the peer closed its end")
            parts, stale = self._assembler.feed(data, fds, damaged=damaged)
        except BaseException:
            close_all(fds)
            raise
        close_all(stale)
        return None if parts is None else _finish(parts)

    def close(self) -> None:
        """Close the socket, and the handles of a message that was only half there."""
        close_all(self._assembler.clear())
        self.socket.close()


def interject(sock: socket.socket, payload: Buffer, flags: int = 0) -> None:
    """Send a short message without handles, also while a transport has sent only half of another, from any thread.

    It is one datagram, which the kernel takes whole or not at all. May raise whatever sendmsg(2) does.

    Args:
      payload: At most `MAX_INLINE_BYTES`.
    """
    sock.sendmsg((INTERJECTED_HEADER, payload), (), flags | _NOSIGNAL)


def close_all(handles: list[Handle] | list[OwnedFd]) -> None:
    """Close every handle and empty the list."""
    while handles:
        handles.pop().close()


def _finish(parts: Parts[OwnedFd]) -> Message:
    """Turn a whole message's descriptors into objects of the kinds its header declares."""
    message = Message(parts.payload)
    fds = parts.handles
    try:
        if parts.spill is not None:
            message.payload = _read_spill(parts.spill)
        if parts.is_damaged:
            # The caller learns from the payload whose handles they were.
            raise fd_limit_error(
                f"a message came with {len(parts.kinds)} handles, and not all of them arrived; the others were closed",
                message.payload,
            )
        _check_kinds(parts.kinds, fds, message.payload)
        fds.reverse()
        for kind in parts.kinds:
            message.handles.append(into_typed(fds[-1], HandleKind(kind)))
            fds.pop()
    except BaseException:
        close_all(fds)
        message.close()
        raise
    return message


def _check_kinds(kinds: bytes | bytearray, fds: list[OwnedFd], payload: bytes) -> None:
    for position, (declared, fd) in enumerate(zip(kinds, fds, strict=True)):
        actual = handle_kind(fd.fileno())
        # A file on a tmpfs that is unlinked on the way cannot be told from a memfd any more.
        if declared != actual and (declared, actual) != (HandleKind.FILE, HandleKind.MEMFD):
            raise RemoteProtocolError(
                f"handle {position} is declared as {_kind_name(declared)} and is {actual.name}", payload
            )


def _kind_name(number: int) -> str:
    return HandleKind(number).name if number in HandleKind.__members__.values() else f"kind {number}"


def _read_spill(spill: OwnedFd) -> bytes:
    # Read, not mapped: a peer that shrinks it then shortens the payload instead of raising SIGBUS here.
    with spill:
        if handle_kind(spill.fileno()) is not HandleKind.MEMFD:
            raise RemoteProtocolError("the payload should be in a memfd, and something else came")
        return b"".join(_read_all(spill.fileno()))


def _read_all(fd: int) -> Iterable[bytes]:
    position = 0
    while chunk := os.pread(fd, _READ_BYTES, position):
        position += len(chunk)
        yield chunk
