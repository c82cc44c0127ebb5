"""sendmsg and recvmsg with typed control messages, on any socket; every descriptor received has an owner at once."""

from __future__ import annotations

import socket
from functools import cache
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final

from fdpool.kernel.constants import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_MAX_FD,
    SCM_RIGHTS,
    SOCK_STREAM,
    SOL_SOCKET,
)
from fdpool.kernel.control import ControlItem, ControlMessage, used_space
from fdpool.kernel.control_buffer import ControlBuffer
from fdpool.kernel.control_unix import INT_BYTES, ScmRights, too_many
from fdpool.kernel.received import Decoder, Received, buffer_nbytes, received_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

MAX_FDS_PER_MESSAGE: Final = SCM_MAX_FD  # unix(7): per message, over all its SCM_RIGHTS together

# Room for every control message the kernel can add beside 253 descriptors: timestamps, credentials, a security
# label, a pidfd, addresses, an error. Then MSG_CTRUNC has one meaning left: this process is out of descriptors.
CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS_PER_MESSAGE * INT_BYTES) + 512

_CLOEXEC_AND_LENGTH: Final = MSG_CMSG_CLOEXEC | MSG_TRUNC

# The plain numbers behind `socket.family` and `socket.type`, which cost a microsecond each to become enum members.
_family: Final = vars(socket.SocketType)["family"].__get__
_type: Final = vars(socket.SocketType)["type"].__get__


def sendmsg(
    sock: socket.socket,
    buffers: Sequence[Buffer],
    control: Iterable[ControlMessage] | ControlBuffer = (),
    flags: int = 0,
    address: Any = None,
) -> int:
    """Send *buffers* as one message, with *control* beside them; return how many bytes left.

    On a stream fewer bytes may leave than were given; the control messages have left with the first of them
    and must not be sent again. No SIGPIPE is raised. See sendmsg(2).

    Args:
      sock: Any socket.
      buffers: The bytes, in order. On a stream at least one byte, if descriptors are to travel.
      control: Messages, whose handles are lent: the caller still has to close its own.
      flags: Further flags, such as `MSG_DONTWAIT`.
      address: Where to, on a socket that is not connected.

    Raises:
      ValueError: a message that the kernel would drop without a word, because this kind of socket does not
          carry it; more than 253 descriptors; one that is closed; a value out of range. Nothing was sent.
      BlockingIOError: the socket is not blocking and there is no room. Nothing was sent.
      OSError: whatever else sendmsg(2) reports: a descriptor is not open (EBADF), credentials are not ours
          (EPERM), too many descriptors are in flight (ETOOMANYREFS). Nothing was sent.
    """
    if (
        type(control) is list
        and len(control) == 1
        and type(rights := control[0]) is ScmRights
        and _family(sock) == AF_UNIX
    ):
        # Mostly, and then there is little left to refuse.
        sent = sock.sendmsg(buffers, ((SOL_SOCKET, SCM_RIGHTS, rights.encode()),), flags | MSG_NOSIGNAL, address)
        if not sent:
            # On a stream nothing at all was sent, and there is an error that says why.
            wire_items(control, buffers, AF_UNIX, _type(sock))
        return sent
    items = wire_items(control, buffers, _family(sock), _type(sock)) if control else ()
    return sock.sendmsg(buffers, items, flags | MSG_NOSIGNAL, address)


def recvmsg(
    sock: socket.socket,
    buffers: Sequence[Buffer],
    *,
    flags: int = 0,
    control_bytes: int = CONTROL_BYTES,
    control: ControlBuffer | None = None,
) -> Received:
    """Receive one message into *buffers*, with its control messages typed and its descriptors owned.

    Descriptors are close-on-exec. With `MSG_PEEK` they are duplicates, and the message keeps its own.
    See recvmsg(2), cmsg(3).

    Args:
      sock: Any socket.
      buffers: Writable buffers, filled in order.
      flags: Further flags, such as `MSG_DONTWAIT`, `MSG_PEEK` or `MSG_ERRQUEUE`.
      control_bytes: The room for control messages. By default there is enough for 253 descriptors and
          everything else.
      control: A buffer whose capacity is the room instead, and who then owns what was received; cleared first.

    Raises:
      BlockingIOError: the socket is not blocking and nothing is there.
      ControlTruncatedError: there was too little room for the control messages. It carries the bytes and the
          messages that did arrive. Descriptors among them are closed, unless they are in *control*.
      FdLimitError: this process has no room for the descriptors. As above.
      OSError: whatever else recvmsg(2) reports; nothing was received.
    """
    if control is not None:
        control.clear()
        control_bytes = control.capacity
    # MSG_TRUNC asks for a datagram's full length. On a TCP stream it would mean: throw the bytes away.
    flags |= MSG_CMSG_CLOEXEC if _type(sock) == SOCK_STREAM else _CLOEXEC_AND_LENGTH
    answer = starmap(sock.recvmsg_into, ((buffers, control_bytes, flags),))
    received = received_from(answer, buffers, typed_decoder())
    is_cut = received.raw[0][2] & MSG_CTRUNC
    if control is not None:
        used = min(used_space(received.raw[0][1]), control_bytes)
        control.fill(received.control, received.take_owners(), used, truncated=bool(is_cut))
    if is_cut:
        received.raise_truncation(control_bytes)
    return received


@cache
def typed_decoder() -> Decoder:
    """Return `decode_control`, whose classes those who only pass descriptors never load.

    Call it before a receive: at the limit of descriptors no module can be loaded.
    """
    from fdpool.kernel.control_table import decode_control

    return decode_control


def wire_items(
    control: Iterable[ControlMessage] | ControlBuffer, buffers: Sequence[Buffer], family: int, kind: int
) -> list[ControlItem]:
    """Return the *ancdata* that `socket.sendmsg` wants for *control*.

    Args:
      control: The messages.
      buffers: The bytes that they go with.
      family: The socket's address family.
      kind: The socket's type.

    Raises:
      ValueError: the kernel would drop one of the messages without a word, or refuses it whatever the peer does.
    """
    items = []
    fd_count = 0
    for message in control.messages() if isinstance(control, ControlBuffer) else control:
        if (families := message.FAMILIES) and family not in families:
            raise ValueError(_wrong_family(message, family))
        item = message.wire()
        items.append(item)
        if isinstance(message, ScmRights):
            fd_count += len(item[2]) // INT_BYTES
    if fd_count > MAX_FDS_PER_MESSAGE:
        raise too_many(fd_count)
    if fd_count and kind == SOCK_STREAM and not any(map(buffer_nbytes, buffers)):
        raise ValueError("on a stream, descriptors travel with a byte: the payload is empty")
    return items


def _wrong_family(message: ControlMessage, family: int) -> str:
    name = family_name(family)
    if isinstance(message, ScmRights):
        return f"only AF_UNIX sockets carry descriptors, and this one is {name}"
    return f"{type(message).__name__} means nothing to a socket of {name}: it would be dropped without a word"


def family_name(family: int) -> str:
    """Return the name of an address family."""
    try:
        return socket.AddressFamily(family).name
    except ValueError:
        return f"address family {family}"
