"""Received: one message as it arrived, the owner of every descriptor in it."""

from __future__ import annotations

from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias, TypeVar, cast

from fdpool.kernel.buffers import bytes_of
from fdpool.kernel.constants import MSG_CMSG_CLOEXEC, MSG_TRUNC, SCM_RIGHTS, SOL_SOCKET
from fdpool.kernel.control import ControlItem, ControlMessage, UnknownControlMessage
from fdpool.kernel.control_unix import (
    INT_BYTES,
    MAYBE_ERRNO,
    ScmPidfd,
    ScmRights,
    denied_in,
    descriptors_in,
    is_pidfd,
    pidfd_place,
)
from fdpool.kernel.descriptor import OwnedFd, close_all, closings
from fdpool.kernel.pidfd import PidFd
from fdpool.kernel.truncation import truncation_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Buffer

# What `socket.recvmsg_into` returns: length, control items, flags, address.
RawMessage: TypeAlias = tuple[int, list[ControlItem], int, Any]
Decoder: TypeAlias = "Callable[[int, int, bytes], ControlMessage]"
Kind = TypeVar("Kind", bound=ControlMessage)

_new: Final[Callable[[type], Any]] = object.__new__


class Received:
    """One message as `recvmsg` received it. Owns its descriptors: closing it closes each that nobody took.

    Use it as a context manager. A descriptor is taken by `take_fds()` and `take_pidfd()`, or one by one with its
    own `detach()`, `into_socket()` or `into_file()`.

    Attributes:
      raw: The answer, alone in a list: length, control data, flags, address. The numbers in it are not the reader's.
    """

    # Descriptors are owned in one of three ways, of which `_owners` says which. Each passes to the next within one
    # bytecode, so that an interrupt falls before or after, and never loses one:
    # - by number, from the receive on, while it is None: they are in `raw`.
    # - by an iterator, which closes them as it goes on, and so knows which are left.
    # - by objects in a list, which are those that nobody took. They have got their numbers once there is `_fds`.
    # Most messages are closed without an object ever being made, which costs more than receiving the descriptor did.
    # `_fds` and `_pidfd` are therefore not set before somebody asks.
    __slots__ = ("_buffers", "_control", "_decode", "_fds", "_owners", "_pidfd", "raw")

    _buffers: Sequence[Buffer]
    _control: tuple[ControlMessage, ...] | None
    _decode: Decoder
    _fds: list[OwnedFd]
    _owners: list[OwnedFd] | Iterator[object] | None
    _pidfd: PidFd | None
    raw: list[RawMessage]

    @property
    def nbytes(self) -> int:
        """How many bytes of the buffers were filled; 0 at the end of a stream, or for an empty datagram."""
        length, _, flags, _ = self.raw[0]
        return min(length, sum(map(buffer_nbytes, self._buffers))) if flags & MSG_TRUNC else length

    @property
    def length(self) -> int:
        """How long the message was: more than *nbytes* where the buffers were too small for a datagram."""
        return self.raw[0][0]

    @property
    def flags(self) -> int:
        """`msg_flags`, less MSG_CMSG_CLOEXEC, which is always set."""
        return self.raw[0][2] & ~MSG_CMSG_CLOEXEC

    @property
    def address(self) -> Any:
        """Where it came from, as `socket.recvmsg` says it; None on a connected socket of most families."""
        return self.raw[0][3]

    @property
    def control(self) -> tuple[ControlMessage, ...]:
        """The control messages, in the kernel's order."""
        if self._control is None:
            self._control = tuple(self._typed())
        return self._control

    @property
    def truncated(self) -> bool:
        """Whether the buffers were too small for the datagram, whose end is lost (MSG_TRUNC)."""
        return bool(self.flags & MSG_TRUNC)

    @property
    def fds(self) -> list[OwnedFd]:
        """The descriptors of all `ScmRights`, in the order they were sent; still owned by this object."""
        return self._made_fds().copy()

    @property
    def denied(self) -> list[tuple[int, int]]:
        """Position and errno of each descriptor withheld by a security policy, on a socket with SO_RIGHTS_NOTRUNC."""
        found: list[tuple[int, int]] = []
        for level, kind, data in self.raw[0][1]:
            if 0xFF in data and MAYBE_ERRNO in data and kind == SCM_RIGHTS and level == SOL_SOCKET:
                found += denied_in(data)
        return found

    def raise_truncation(self, control_bytes: int) -> NoReturn:
        """Close what nobody took, and raise the error for control data that had only *control_bytes* of room."""
        data = gather(self._buffers, self.nbytes)
        error = truncation_error(self.raw[0][1], control_bytes, data, self.control)
        # Half a message's descriptors are of no use.
        self.close()
        raise error

    def find(self, kind: type[Kind]) -> Kind | None:
        """Return the first control message of this class, or None."""
        return next((message for message in self.control if isinstance(message, kind)), None)

    def take_fds(self) -> list[OwnedFd]:
        """Return the descriptors of all `ScmRights`, in order. The caller owns them from here on."""
        fds = self._make_owners() if self._owners is None else self._made_fds()
        # The one of ScmPidfd stays: whoever asks for descriptors that were sent need not know of it.
        self._owners = [] if self._pidfd is None else [self._pidfd]
        return fds.copy()

    def take_pidfd(self) -> PidFd | None:
        """Return the sender's process, which the caller owns from here on; None if the kernel sent none."""
        self._made_fds()
        pidfd = self._pidfd
        self._owners = [owner for owner in self._open_owners() if owner is not pidfd]
        return pidfd

    def take_owners(self) -> list[OwnedFd]:
        """Return every descriptor that nobody took, the sender's process included. The caller owns them."""
        self._made_fds()
        owners = self._open_owners()
        self._owners = []
        return owners

    def close(self) -> None:
        """Close every descriptor that nobody took. May be called twice."""
        self.__exit__(None, None, None)

    def _made_fds(self) -> list[OwnedFd]:
        """Return the descriptors of all `ScmRights`, each owned by an object of its own from here on."""
        if self._owners is None:
            return self._make_owners()
        try:
            return self._fds
        except AttributeError:
            return self._make_owners()

    def _make_owners(self) -> list[OwnedFd]:
        """Give each descriptor to an object: here and nowhere else do numbers that were received become owners."""
        items = self.raw[0][1]
        numbers = descriptors_in(items)
        owners = self._owners
        if owners is None and len(numbers) == 1 and len(items) == 1 and items[0][1] == SCM_RIGHTS:
            # Mostly, and then there is a shorter way to do what is done below.
            self._owners = fds = [_new(OwnedFd)]
            fds[0]._fd = numbers[0]
            self._pidfd = None
            self._fds = fds
            return fds
        place = pidfd_place(items)
        if owners is None:
            owners = self._owners = _blank_owners(len(numbers), place)
        elif not isinstance(owners, list):
            # What was closed by number is born closed.
            for _ in owners:
                pass
            owners = _blank_owners(len(numbers), place)
            numbers = (-1,) * len(numbers)
        # With its number an object becomes an owner. After an interrupt each gets it again: nobody has seen them yet.
        for owner, number in zip(owners, numbers, strict=True):
            owner._fd = number
        if place is None:
            self._pidfd = None
            self._fds = owners
        else:
            self._pidfd = cast(PidFd, owners[place])
            self._fds = owners[:place] + owners[place + 1 :]
        return self._fds

    def _open_owners(self) -> list[OwnedFd]:
        owners = self._owners
        return owners if isinstance(owners, list) else []

    def _typed(self) -> Iterator[ControlMessage]:
        rights = iter(self._made_fds())
        for level, kind, data in self.raw[0][1]:
            if kind == SCM_RIGHTS and level == SOL_SOCKET:
                yield ScmRights(list(islice(rights, len(data) // INT_BYTES - len(denied_in(data)))))
            elif is_pidfd(level, kind, data):
                yield ScmPidfd.of(data, self._pidfd)
            else:
                yield self._decode(level, kind, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        owners = self._owners
        if owners is None:
            items = self.raw[0][1]
            if not items:
                return
            owners = self._owners = closings(descriptors_in(items))
        elif isinstance(owners, list):
            if owners:
                self._made_fds()
                # Closing first: were it interrupted, closing again would do the rest.
                close_all(owners)
                self._owners = []
            return
        for _ in owners:
            pass

    def __del__(self) -> None:
        try:
            owners, received = self._owners, self.raw
        except AttributeError:
            # Nothing was received.
            return
        if owners is None:
            if received and received[0][1]:
                # Owners that are made and dropped say that they were forgotten.
                self._make_owners()
            return
        # Does what an interrupt prevented, mostly nothing.
        for _ in owners:
            if isinstance(owners, list):
                self._made_fds()
                break

    def __repr__(self) -> str:
        cut = f" of {self.length}" if self.truncated else ""
        return f"<Received {self.nbytes}{cut} bytes: {list(self.control)}>"


def _blank_owners(count: int, pidfd_place: int | None) -> list[OwnedFd]:
    owners: list[OwnedFd] = [*map(_new, repeat(OwnedFd, count))]
    if pidfd_place is not None:
        owners[pidfd_place] = _new(PidFd)
    return owners


def received_from(
    answer: Iterable[RawMessage], buffers: Sequence[Buffer], decode: Decoder = UnknownControlMessage
) -> Received:
    """Return the message that *answer* receives, which owns its descriptors.

    Args:
      answer: An iterator that receives the message as it is asked for it: what `recvmsg_into` of a socket returns. It
          must have been called with MSG_CMSG_CLOEXEC.
      buffers: The buffers it fills.
      decode: What types the control messages that do not concern descriptors.

    Raises:
      OSError: whatever the answer raises; nothing was received.
    """
    # Not an __init__: to call a class that has one takes 0.1 us longer.
    received: Received = _new(Received)
    received._buffers = buffers
    received._decode = decode
    received._control = None
    received._owners = None
    raw: list[RawMessage] = []
    received.raw = raw
    # One C call from syscall to owner, if the answer is only received when it is asked for: a signal handler that
    # raises (Ctrl-C) runs between bytecodes, and between a returning recvmsg and an assignment it would lose
    # the numbers.
    raw += answer
    return received


def gather(buffers: Sequence[Buffer], nbytes: int) -> bytes:
    """Return a copy of the first *nbytes* bytes in *buffers*."""
    return b"".join(map(bytes_of, buffers))[:nbytes]


def buffer_nbytes(buffer: Buffer) -> int:
    """Return how many bytes *buffer* has."""
    return memoryview(buffer).nbytes
