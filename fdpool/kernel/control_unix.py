"""Control messages of AF_UNIX sockets: descriptors, and who sent them. See unix(7)."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Final, Self

from fdpool.kernel import constants as k
from fdpool.kernel.constants import SCM_MAX_FD, SCM_RIGHTS, SOL_SOCKET
from fdpool.kernel.control import ControlItem, ControlMessage, StructMessage, pack, unpack
from fdpool.kernel.descriptor import HasFileno, OwnedFd, fd_number
from fdpool.kernel.pidfd import PidFd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

INT_BYTES: Final = struct.calcsize("i")
_INT: Final = struct.Struct("i")
# In every negated errno, and in no descriptor below 65535: to look for it is much faster than to look at each number.
MAYBE_ERRNO: Final = b"\xff\xff"
_pack_int: Final = _INT.pack
_unpack_int: Final = _INT.unpack
_new: Final = OwnedFd.__new__
_ONLY_UNIX: Final = frozenset({k.AF_UNIX})


@dataclass(frozen=True, slots=True)
class ScmRights(ControlMessage):
    """Descriptors. Lent when sent; owned when received, by the `Received` or `ControlBuffer` they came in.

    Several in one message arrive as one. See unix(7), SCM_RIGHTS.

    Attributes:
      fds: At most 253 over the whole message, delivered in this order.
    """

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SCM_RIGHTS
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_UNIX

    fds: Sequence[HasFileno | int]

    # The __init__ that dataclass would write takes twice as long.
    def __init__(self, fds: Sequence[HasFileno | int]) -> None:
        _set_fds(self, fds)

    def encode(self) -> bytes:
        """Return the descriptors' numbers.

        Raises:
          TypeError: one is not a handle.
          ValueError: one is closed; there are more than 253.
        """
        fds = self.fds
        try:
            if len(fds) == 1:
                number = fds[0].fileno()  # type: ignore[union-attr]
                return _pack_int(number) if number >= 0 else self._encode_checked()
            if len(fds) > SCM_MAX_FD:
                raise too_many(len(fds))
            data = _ints(len(fds)).pack(*[handle.fileno() for handle in fds])  # type: ignore[union-attr]
        except (AttributeError, struct.error):
            return self._encode_checked()
        # A negative number, from a handle that is closed, has a byte of all ones.
        return self._encode_checked() if 0xFF in data else data

    def _encode_checked(self) -> bytes:
        try:
            return _ints(len(self.fds)).pack(*map(fd_number, self.fds))
        except struct.error:
            raise ValueError("a number among the handles is too big for a descriptor") from None

    def wire(self) -> ControlItem:
        """Return level, type and payload."""
        return k.SOL_SOCKET, k.SCM_RIGHTS, self.encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Take ownership of the descriptors whose numbers are in *data*, which must come from a receive.

        A number that is negative, because the descriptor was denied, is left out, and so is half a number.
        """
        return cls([*map(OwnedFd, descriptors_in([(cls.LEVEL, cls.TYPE, data)]))])

    def payload_size(self) -> int:
        """Return how many bytes the payload has."""
        return INT_BYTES * len(self.fds)

    @staticmethod
    def space(count: int = 1) -> int:
        """Return the room for *count* descriptors in a control buffer. Alignment makes it room for an even number."""
        return socket.CMSG_SPACE(count * INT_BYTES)


_set_fds: Final = vars(ScmRights)["fds"].__set__


@dataclass(frozen=True, slots=True)
class ScmCredentials(StructMessage):
    """Who sent a message, vouched for by the kernel. See unix(7), SCM_CREDENTIALS.

    Comes with every message once `enable(sock, ScmCredentials)` was called on the receiving socket; with those
    sent before that, pid is 0 and both ids are 65534. To send other than one's own takes privileges.

    Attributes:
      pid: The sender's process id as the receiver sees it; 0 where it has none in the receiver's pid namespace.
      uid: Its user id.
      gid: Its group id.
    """

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SCM_CREDENTIALS
    FAMILIES: ClassVar[frozenset[int]] = frozenset({k.AF_UNIX, int(socket.AF_NETLINK)})
    WIRE: ClassVar[struct.Struct] = struct.Struct("iII")

    pid: int
    uid: int
    gid: int

    @classmethod
    def current(cls) -> Self:
        """Return the calling process's own, with the real ids."""
        return cls(os.getpid(), os.getuid(), os.getgid())


@dataclass(frozen=True, slots=True)
class ScmPidfd(ControlMessage):
    """The process that sent a message, as a handle. Received only, since Linux 6.5. See unix(7), SO_PASSPIDFD.

    Attributes:
      fd: The process, owned by the `Received` or `ControlBuffer` it came in; None where the kernel sent an errno.
      errno: Why there is none: `EMFILE` at the descriptor limit, `ESRCH` or `EINVAL` if the sender is gone.
    """

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SCM_PIDFD
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_UNIX

    fd: PidFd | None
    errno: int = 0

    def encode(self) -> bytes:
        """Return the descriptor's number, or the errno negated."""
        return pack(self, _INT, -self.errno if self.fd is None else fd_number(self.fd))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Take ownership of the descriptor whose number is *data*, which must come from a receive."""
        unpack(cls, _INT, data)
        return cls.of(data, own_pidfd(data, []))

    @classmethod
    def of(cls, data: bytes, owner: PidFd | None) -> Self:
        """Return the message for the payload that came, and the owner of the number in it."""
        (number,) = _INT.unpack(data)
        return cls(owner) if number >= 0 else cls(None, -number)

    def payload_size(self) -> int:
        """Return how many bytes the payload has."""
        return INT_BYTES

    @staticmethod
    def space() -> int:
        """Return the room it takes in a control buffer, padding included."""
        return socket.CMSG_SPACE(INT_BYTES)


@dataclass(frozen=True, slots=True)
class ScmSecurity(ControlMessage):
    """The security label of the sender, where a security module gives one. Received only. See unix(7), SO_PASSSEC."""

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SCM_SECURITY
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_UNIX

    label: bytes

    def encode(self) -> bytes:
        """Return the label."""
        return self.label

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        return cls(data)

    @staticmethod
    def space(size_bytes: int = 255) -> int:
        """Return the room a label of *size_bytes* takes in a control buffer."""
        return socket.CMSG_SPACE(size_bytes)


@dataclass(frozen=True, slots=True)
class ScmInq(StructMessage):
    """How many bytes were left to read on a stream. Received only, since Linux 6.17 (SO_INQ)."""

    LEVEL: ClassVar[int] = k.SOL_SOCKET
    TYPE: ClassVar[int] = k.SO_INQ
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_UNIX
    WIRE: ClassVar[struct.Struct] = _INT

    remaining: int


def too_many(count: int) -> ValueError:
    """Return the error for *count* descriptors, when they are more than a message can carry."""
    return ValueError(f"{count} descriptors in one message: the kernel takes at most {SCM_MAX_FD}")


def own_pidfd(data: bytes, owners: list[OwnedFd]) -> PidFd:
    """Own the descriptor in the payload of an SCM_PIDFD, appending the owner to *owners*; an errno is born closed.

    It is appended first and gets its number second: after an interrupt, whenever it falls, `close_numbers` knows
    what to close.
    """
    fd = PidFd.__new__(PidFd)
    owners.append(fd)
    (fd._fd,) = _INT.unpack(data)
    return fd


def descriptors_in(control: Sequence[ControlItem]) -> Sequence[int]:
    """Return the numbers of all descriptors in control data, in order."""
    if len(control) == 1:
        ((level, kind, data),) = control
        if kind == SCM_RIGHTS and level == SOL_SOCKET and not (0xFF in data and MAYBE_ERRNO in data):
            # Mostly, and mostly it is one descriptor.
            return _unpack_int(data) if len(data) == INT_BYTES else rights_numbers(data)
    found: list[int] = []
    for level, kind, data in control:
        if level == SOL_SOCKET and (kind == SCM_RIGHTS or is_pidfd(level, kind, data)):
            found += rights_numbers(data)
            if 0xFF in data and MAYBE_ERRNO in data:
                found = [number for number in found if number >= 0]
    return found


def pidfd_place(control: Sequence[ControlItem]) -> int | None:
    """Return the place of the sender's process among `descriptors_in` the same control data, None if it has none."""
    for index, (level, kind, data) in enumerate(control):
        if kind == k.SCM_PIDFD and is_pidfd(level, kind, data) and descriptors_in(control[index : index + 1]):
            return len(descriptors_in(control[:index]))
    return None


def rights_numbers(data: bytes) -> tuple[int, ...]:
    """Return the numbers in the payload of an SCM_RIGHTS. A negative one is an errno; a partial one is ignored."""
    return _ints(len(data) // INT_BYTES).unpack_from(data)


@cache
def _ints(count: int) -> struct.Struct:
    return struct.Struct(f"{count}i")


def denied_in(data: bytes) -> tuple[tuple[int, int], ...]:
    """Return position and errno of each descriptor denied in the payload of an SCM_RIGHTS."""
    return tuple((position, -number) for position, number in enumerate(rights_numbers(data)) if number < 0)


def is_pidfd(level: int, kind: int, data: bytes) -> bool:
    """Whether an item of control data is a well-formed SCM_PIDFD."""
    return kind == k.SCM_PIDFD and level == k.SOL_SOCKET and len(data) == INT_BYTES


def close_numbers(control: Iterable[ControlItem], owners: Sequence[OwnedFd]) -> None:
    """Close every descriptor in *control*, of which the first have *owners*, as far as those got their number."""
    for position, number in enumerate(_numbers_in(control)):
        if position < len(owners) and hasattr(owners[position], "_fd"):
            owners[position].close()
        elif number >= 0:
            os.close(number)


def _numbers_in(control: Iterable[ControlItem]) -> Iterator[int]:
    for level, kind, data in control:
        if (kind == k.SCM_RIGHTS and level == k.SOL_SOCKET) or is_pidfd(level, kind, data):
            yield from rights_numbers(data)
