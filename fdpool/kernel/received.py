"""Received: one message as it arrived, the owner of every descriptor in it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias, TypeVar

from fdpool.kernel import constants as k
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

_new: Final = OwnedFd.__new__


class Received:
    """One message as `recvmsg` received it. Owns its descriptors: closing it closes each that nobody took.

    Use it as a context manager. A descriptor is taken by `take_fds()` and `take_pidfd()`, or one by one with its
    own `detach()`, `into_socket()` or `into_file()`.

    Args:
      answer: An iterator that receives the message as it is asked for it: what `recvmsg_into` of a socket returns. It
          must have been called with MSG_CMSG_CLOEXEC.
      buffers: The buffers it fills.
      decode: What types the control messages that do not concern descriptors.

    Attributes:
      raw: The answer, alone in a list: length, control data, flags, address. The numbers in it are not the reader's.

    Raises:
      OSError: whatever the answer raises; nothing was received.
    """

    # Descriptors are owned in one of three ways. Each passes to the next within one bytecode, so that an interrupt
    # falls before or after, and never loses one:
    # - by number, from the receive on: they are in `raw`, while `_closing` and `_owners` are None.
    # - by the iterator `_closing`, which closes them as it goes on, and so knows which are left.
    # - by objects, once somebody asks for them: by those in `_owners`, which are those that nobody took.
    # Most messages are closed without an object ever being made, which costs more than receiving the descriptor did.
    __slots__ = ("_buffers", "_closing", "_control", "_decode", "_fds", "_made", "_owners", "_pidfd", "raw")

    def __init__(
        self, answer: Iterable[RawMessage], buffers: Sequence[Buffer], decode: Decoder = UnknownControlMessage
    ) -> None:
        self._buffers = buffers
        self._decode = decode
        self._control: tuple[ControlMessage, ...] | None = None
        self._fds: list[OwnedFd]
        self._pidfd: PidFd | None
        self._made: list[OwnedFd] | None = None
        self._owners: list[OwnedFd] | None = None
        self._closing: Iterator[object] | None = None
        self.raw: list[RawMessage] = []
        # One C call from syscall to owner, if the answer is only received when it is asked for: a signal handler that
        # raises (Ctrl-C) runs between bytecodes, and between a returning recvmsg and an assignment it would lose
        # the numbers.
        self.raw.extend(answer)

    @property
    def nbytes(self) -> int:
        """How many bytes of the buffers were filled; 0 at the end of a stream, or for an empty datagram."""
        length, _, flags, _ = self.raw[0]
        return min(length, sum(map(buffer_nbytes, self._buffers))) if flags & k.MSG_TRUNC else length

    @property
    def length(self) -> int:
        """How long the message was: more than *nbytes* where the buffers were too small for a datagram."""
        return self.raw[0][0]

    @property
    def flags(self) -> int:
        """`msg_flags`, less MSG_CMSG_CLOEXEC, which is always set."""
        return self.raw[0][2] & ~k.MSG_CMSG_CLOEXEC

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
        return bool(self.flags & k.MSG_TRUNC)

    @property
    def fds(self) -> list[OwnedFd]:
        """The descriptors of all `ScmRights`, in the order they were sent; still owned by this object."""
        return self._made_fds().copy()

    @property
    def denied(self) -> list[tuple[int, int]]:
        """Position and errno of each descriptor withheld by a security policy, on a socket with SO_RIGHTS_NOTRUNC."""
        found: list[tuple[int, int]] = []
        for level, kind, data in self.raw[0][1]:
            if 0xFF in data and MAYBE_ERRNO in data and kind == k.SCM_RIGHTS and level == k.SOL_SOCKET:
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
        fds = self._made_fds()
        # The one of ScmPidfd stays: whoever asks for descriptors that were sent need not know of it.
        self._owners = [] if self._pidfd is None else [self._pidfd]
        return fds.copy()

    def take_pidfd(self) -> PidFd | None:
        """Return the sender's process, which the caller owns from here on; None if the kernel sent none."""
        self._made_fds()
        pidfd = self._pidfd
        self._owners = [owner for owner in self._owners or () if owner is not pidfd]
        return pidfd

    def take_owners(self) -> list[OwnedFd]:
        """Return every descriptor that nobody took, the sender's process included. The caller owns them."""
        self._made_fds()
        owners, self._owners = self._owners, []
        return owners or []

    def close(self) -> None:
        """Close every descriptor that nobody took. May be called twice."""
        self.__exit__(None, None, None)

    def _made_fds(self) -> list[OwnedFd]:
        """Return the descriptors of all `ScmRights`, each owned by an object of its own from here on."""
        if self._owners is None:
            self._make_owners()
        return self._fds

    def _make_owners(self) -> None:
        """Give each descriptor to an object: here and nowhere else do numbers that were received become owners."""
        items = self.raw[0][1]
        numbers = descriptors_in(items)
        if self._closing is not None:
            # What was closed by number is born closed.
            for _ in self._closing:
                pass
            numbers = [-1] * len(numbers)
        owners = self._made
        if owners is None:
            owners = self._fds = [_new(OwnedFd) for _ in numbers]
            self._pidfd = None
            if not _is_only_rights(items) and (place := pidfd_place(items)) is not None:
                self._pidfd = PidFd.__new__(PidFd)
                self._fds = owners[:place] + owners[place + 1 :]
                owners[place] = self._pidfd
            self._made = owners
            # With its number an object becomes an owner. Those that an interrupt leaves without get theirs below.
            for owner, number in zip(owners, numbers, strict=True):
                owner._fd = number
        else:
            for owner, number in zip(owners, numbers, strict=True):
                if not hasattr(owner, "_fd"):
                    owner._fd = number
        self._owners = owners

    def _typed(self) -> Iterator[ControlMessage]:
        rights = iter(self._made_fds())
        for level, kind, data in self.raw[0][1]:
            if kind == k.SCM_RIGHTS and level == k.SOL_SOCKET:
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
        items = self.raw[0][1]
        if not items:
            return
        if self._made is None:
            closing = self._closing
            if closing is None:
                closing = self._closing = closings(descriptors_in(items))
            for _ in closing:
                pass
            return
        if self._owners is None:
            self._make_owners()
        if self._owners:
            # Closing first: were it interrupted, closing again would do the rest.
            close_all(self._owners)
            self._owners = []

    def __del__(self) -> None:
        try:
            closing, received = self._closing, self.raw
        except AttributeError:
            # Never initialised: nothing was received.
            return
        if closing is not None:
            # Does what an interrupt prevented, mostly nothing.
            for _ in closing:
                pass
        elif received and received[0][1] and self._owners is None:
            # Owners that are made and dropped say that they were forgotten.
            self._make_owners()

    def __repr__(self) -> str:
        cut = f" of {self.length}" if self.truncated else ""
        return f"<Received {self.nbytes}{cut} bytes: {list(self.control)}>"


def _is_only_rights(items: list[ControlItem]) -> bool:
    return len(items) == 1 and items[0][1] == k.SCM_RIGHTS


def gather(buffers: Sequence[Buffer], nbytes: int) -> bytes:
    """Return a copy of the first *nbytes* bytes in *buffers*."""
    return b"".join(memoryview(buffer).cast("B") for buffer in buffers)[:nbytes]


def buffer_nbytes(buffer: Buffer) -> int:
    """Return how many bytes *buffer* has."""
    return memoryview(buffer).nbytes
