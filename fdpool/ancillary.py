"""sendmsg and recvmsg with typed control messages, for trio's sockets: waiting, and cancellable.

The same names as in `fdpool.kernel`, which has the control messages, and works on sockets of the standard library.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import trio

from fdpool.kernel.constants import MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_NOSIGNAL, MSG_TRUNC, SOCK_STREAM
from fdpool.kernel.control_table import decode_control
from fdpool.kernel.message import CONTROL_BYTES, wire_items
from fdpool.kernel.received import Received, received_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from fdpool.kernel.control import ControlMessage
    from fdpool.kernel.control_buffer import ControlBuffer

# Neither ends with an event that could be waited for, so the only way is to try again: at first after the time that
# passing a message takes, then less and less often.
_FULL: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS})
_FIRST_DELAY_SECONDS: Final = 0.001
_LONGEST_DELAY_SECONDS: Final = 0.1


async def sendmsg(
    sock: trio.socket.SocketType,
    buffers: Sequence[Buffer],
    control: Iterable[ControlMessage] | ControlBuffer = (),
    flags: int = 0,
    address: Any = None,
) -> int:
    """Send *buffers* as one message, with *control* beside them; return how many bytes left.

    Waits while the peer's queue is full. While too many descriptors are in flight (ETOOMANYREFS), or the kernel has
    no room (ENOBUFS), tries again and again, for as long as the caller's cancel scope allows. Otherwise as
    `fdpool.kernel.sendmsg`.

    Args:
      sock: A socket of trio's.
      buffers: The bytes, in order.
      control: Messages, whose handles are lent until this returns.
      flags: Further flags.
      address: Where to, on a socket that is not connected.

    Raises:
      TypeError: *sock* is none of trio's; nothing was sent.
      ValueError: as for `fdpool.kernel.sendmsg`; nothing was sent.
      trio.ClosedResourceError: *sock* was closed meanwhile.
      OSError: whatever else sendmsg(2) reports; nothing was sent.

    Cancellation: always a checkpoint. After `trio.Cancelled`, nothing was sent.
    """
    _check_trio(sock, "sendmsg")
    items = wire_items(control, buffers, sock.family, sock.type)
    delay = _FIRST_DELAY_SECONDS
    while True:
        try:
            return await sock.sendmsg(buffers, items, flags | MSG_NOSIGNAL, address)
        except OSError as error:
            if error.errno not in _FULL:
                raise
        await trio.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY_SECONDS)


@trio.lowlevel.enable_ki_protection
async def recvmsg(
    sock: trio.socket.SocketType,
    buffers: Sequence[Buffer],
    *,
    flags: int = 0,
    control_bytes: int = CONTROL_BYTES,
) -> Received:
    """Receive one message into *buffers*, with its control messages typed and its descriptors owned.

    Waits until there is one. Otherwise as `fdpool.kernel.recvmsg`.

    Args:
      sock: A socket of trio's.
      buffers: Writable buffers, filled in order.
      flags: Further flags.
      control_bytes: The room for control messages.

    Raises:
      TypeError: *sock* is none of trio's; nothing was received.
      trio.ClosedResourceError: *sock* was closed meanwhile.
      ControlTruncatedError: there was too little room for the control messages.
      FdLimitError: this process has no room for the descriptors.
      OSError: whatever else recvmsg(2) reports; nothing was received.

    Cancellation: always a checkpoint. After `trio.Cancelled`, nothing was received.
    """
    _check_trio(sock, "recvmsg")
    # Trio never cancels once the syscall has answered, and with Ctrl-C kept off until this returns there is no moment
    # between the answer and the owners.
    if sock.type != SOCK_STREAM:
        flags |= MSG_TRUNC
    raw = await sock.recvmsg_into(buffers, control_bytes, flags | MSG_CMSG_CLOEXEC)
    received = received_from((raw,), buffers, decode_control)
    if raw[2] & MSG_CTRUNC:
        received.raise_truncation(control_bytes)
    return received


def _check_trio(sock: object, name: str) -> None:
    """Raise a `TypeError` for a socket of the standard library, which would act at once and return no awaitable."""
    if not isinstance(sock, trio.socket.SocketType):
        raise TypeError(f"fdpool.{name} takes sockets of trio's, not a {type(sock).__name__}; see fdpool.kernel.{name}")
