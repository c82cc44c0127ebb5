"""Received: one message as it arrived, the owner of every descriptor in it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from fdpool.kernel import constants as k
from fdpool.kernel.control import ControlItem, ControlMessage
from fdpool.kernel.control_unix import (
    INT_BYTES,
    ScmPidfd,
    ScmRights,
    denied_in,
    is_pidfd,
    own_pidfd,
    own_rights,
)
from fdpool.kernel.descriptor import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Buffer

    from fdpool.kernel.pidfd import PidFd

# What `socket.recvmsg_into` returns: length, control items, flags, address.
RawMessage: TypeAlias = tuple[int, list[ControlItem], int, Any]
Decoder: TypeAlias = "Callable[[int, int, bytes], ControlMessage]"
Kind = TypeVar("Kind", bound=ControlMessage)


class Received:
    """One message as `recvmsg` received it. Owns its descriptors: closing it closes each that nobody took.

    Use it as a context manager. A descriptor is taken by `take_fds()` and `take_pidfd()`, or one by one with its
    own `detach()`, `into_socket()` or `into_file()`.

    Attributes:
      nbytes: How many bytes of the buffers were filled; 0 at the end of a stream, or for an empty datagram.
    """

    __slots__ = ("_control", "_decode", "_only_rights", "_owners", "_pidfd", "_raw", "_rights", "nbytes")

    def __init__(self, raw: RawMessage, buffers: Sequence[Buffer], owners: list[OwnedFd], decode: Decoder) -> None:
        self._raw = raw
        self._owners = self._rights = owners
        self._decode = decode
        self._control: tuple[ControlMessage, ...] | None = None
        self._pidfd: PidFd | None = None
        length, items, flags, _ = raw
        self.nbytes = min(length, sum(map(buffer_nbytes, buffers))) if flags & k.MSG_TRUNC else length
        self._only_rights = True
        for level, kind, data in items:
            if kind == k.SCM_RIGHTS and level == k.SOL_SOCKET:
                if not own_rights(data, owners):
                    self._only_rights = False
            elif kind == k.SCM_PIDFD and is_pidfd(level, kind, data):
                self._pidfd = own_pidfd(data, owners)
                self._only_rights = False
        if not self._only_rights:
            # Those that were denied were born closed; later on, who is closed was closed by somebody.
            self._rights = [fd for fd in owners if fd is not self._pidfd and not fd.closed]

    @property
    def length(self) -> int:
        """How long the message was: more than *nbytes* where the buffers were too small for a datagram."""
        return self._raw[0]

    @property
    def flags(self) -> int:
        """`msg_flags`, less MSG_CMSG_CLOEXEC, which is always set."""
        return self._raw[2] & ~k.MSG_CMSG_CLOEXEC

    @property
    def address(self) -> Any:
        """Where it came from, as `socket.recvmsg` says it; None on a connected socket of most families."""
        return self._raw[3]

    @property
    def control(self) -> tuple[ControlMessage, ...]:
        """The control messages, in the kernel's order."""
        if self._control is None:
            self._control = tuple(self._typed())
        return self._control

    @property
    def truncated(self) -> bool:
        """Whether the buffers were too small for the datagram, whose end is lost (MSG_TRUNC)."""
        return bool(self.flags & k.MSG_TRUNC)

    @property
    def fds(self) -> list[OwnedFd]:
        """The descriptors of all `ScmRights`, in the order they were sent; still owned by this object."""
        return list(self._rights)

    @property
    def denied(self) -> list[tuple[int, int]]:
        """Position and errno of each descriptor withheld by a security policy, on a socket with SO_RIGHTS_NOTRUNC."""
        if self._only_rights:
            return []
        return [
            item
            for level, kind, data in self._raw[1]
            if kind == k.SCM_RIGHTS and level == k.SOL_SOCKET
            for item in denied_in(data)
        ]

    def find(self, kind: type[Kind]) -> Kind | None:
        """Return the first control message of this class, or None."""
        return next((message for message in self.control if isinstance(message, kind)), None)

    def take_fds(self) -> list[OwnedFd]:
        """Return the descriptors of all `ScmRights`, in order. The caller owns them from here on."""
        # The one of ScmPidfd stays: whoever asks for descriptors that were sent need not know of it.
        self._owners = [] if self._pidfd is None else [self._pidfd]
        return self._rights.copy()

    def take_pidfd(self) -> PidFd | None:
        """Return the sender's process, which the caller owns from here on; None if the kernel sent none."""
        message = self.find(ScmPidfd)
        self._owners = [owner for owner in self._owners if owner is not self._pidfd]
        return message.fd if message else None

    def take_owners(self) -> list[OwnedFd]:
        """Return every descriptor that nobody took, the sender's process included. The caller owns them."""
        owners, self._owners = self._owners, []
        return owners

    def close(self) -> None:
        """Close every descriptor that nobody took. May be called twice."""
        # Closing first: were it interrupted, closing again would do the rest.
        close_all(self._owners)
        self._owners = []

    def _typed(self) -> Iterator[ControlMessage]:
        rights = iter(self._rights)
        for level, kind, data in self._raw[1]:
            if kind == k.SCM_RIGHTS and level == k.SOL_SOCKET:
                yield ScmRights(list(islice(rights, len(data) // INT_BYTES - len(denied_in(data)))))
            elif self._pidfd is not None and is_pidfd(level, kind, data):
                yield ScmPidfd.of(data, self._pidfd)
            else:
                yield self._decode(level, kind, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owners:
            self.close()

    def __repr__(self) -> str:
        cut = f" of {self.length}" if self.truncated else ""
        return f"<Received {self.nbytes}{cut} bytes: {list(self.control)}>"


def gather(buffers: Sequence[Buffer], nbytes: int) -> bytes:
    """Return a copy of the first *nbytes* bytes in *buffers*."""
    return b"".join(memoryview(buffer).cast("B") for buffer in buffers)[:nbytes]


def buffer_nbytes(buffer: Buffer) -> int:
    """Return how many bytes *buffer* has."""
    return memoryview(buffer).nbytes
