"""ControlBuffer: control messages within a fixed room, to send from and to receive into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from fdpool.kernel.control import ControlMessage, message_space
from fdpool.kernel.control_unix import ScmCredentials, ScmRights
from fdpool.kernel.descriptor import HasFileno, OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType


class ControlBuffer:
    """Room for control messages: fill it and give it to `sendmsg`, or give it to `recvmsg` and look inside.

    Descriptors pushed into it are lent and stay open. Descriptors received into it are owned by it: closed by
    `clear()`, by `close()`, at the end of a `with` block and before the next receive, unless someone took them.

    Args:
      capacity: Its size in bytes, which `control_space` and each message's `space` compute. May be 0.
    """

    __slots__ = ("_capacity", "_messages", "_owners", "_truncated", "_used")

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"a capacity of {capacity} bytes is negative")
        self._capacity = capacity
        self._messages: list[ControlMessage] = []
        self._owners: list[OwnedFd] = []
        self._used = 0
        self._truncated = False

    @property
    def capacity(self) -> int:
        """Its size in bytes."""
        return self._capacity

    @property
    def is_empty(self) -> bool:
        """Whether there is no message in it."""
        return not self._messages

    @property
    def truncated(self) -> bool:
        """Whether the last receive had more control data than arrived; `recvmsg` raised an error that says why."""
        return self._truncated

    def __len__(self) -> int:
        """Return how many bytes are used."""
        return self._used

    def messages(self) -> tuple[ControlMessage, ...]:
        """Return what is in it, in order. Descriptors stay owned by this buffer."""
        return tuple(self._messages)

    def push(self, message: ControlMessage) -> bool:
        """Append *message* if there is room, and return whether there was.

        What cannot be sent, because a handle in it is closed or a field out of range, is refused by `sendmsg`.
        """
        space = message_space(message)
        if self._used + space > self._capacity:
            return False
        self._messages.append(message)
        self._used += space
        self._truncated = False
        return True

    def extend(self, messages: Iterable[ControlMessage]) -> int:
        """Append *messages* up to the first for which there is no room; return how many were appended."""
        count = 0
        for message in messages:
            if not self.push(message):
                break
            count += 1
        return count

    def add_fds(self, fds: Sequence[HasFileno | int]) -> bool:
        """Append one `ScmRights` with all of *fds*, lent, if there is room; return whether there was."""
        return self.push(ScmRights(fds))

    def add_credentials(self, credentials: ScmCredentials | None = None) -> bool:
        """Append *credentials*, by default this process's own, if there is room; return whether there was."""
        return self.push(ScmCredentials.current() if credentials is None else credentials)

    def take_fds(self) -> list[OwnedFd]:
        """Return the descriptors received, in order. The caller owns them from here on."""
        fds = received_fds(self._messages)
        self._owners = [owner for owner in self._owners if not any(owner is fd for fd in fds)]
        return fds

    def clear(self) -> None:
        """Remove everything, closing the descriptors that were received and that nobody took."""
        close_all(self._owners)
        self._owners = []
        self._messages = []
        self._used = 0
        self._truncated = False

    close = clear

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()

    def __repr__(self) -> str:
        return f"<ControlBuffer {self._used} of {self._capacity} bytes: {self._messages}>"

    def fill(self, messages: Sequence[ControlMessage], owners: list[OwnedFd], used: int, *, truncated: bool) -> None:
        """Hold what was received, and own what it came with; `recvmsg` calls this."""
        self._messages = list(messages)
        self._owners = owners
        self._used = used
        self._truncated = truncated


def received_fds(messages: Iterable[ControlMessage]) -> list[OwnedFd]:
    """Return the owned descriptors of all `ScmRights` among *messages*, in order."""
    return [
        fd for message in messages if isinstance(message, ScmRights) for fd in message.fds if isinstance(fd, OwnedFd)
    ]
