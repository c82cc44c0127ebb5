"""Why control data was cut off (MSG_CTRUNC): the kernel tells that it was, and this works out the cause."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING

from fdpool.errors import ControlTruncatedError, FdLimitError, fd_limit_error
from fdpool.kernel import constants as k
from fdpool.kernel.control import StructMessage, used_space
from fdpool.kernel.control_unix import INT_BYTES, ScmRights, rights_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdpool.kernel.control import ControlItem, ControlMessage


def truncation_error(
    control: Sequence[ControlItem], capacity: int, data: bytes, messages: tuple[ControlMessage, ...]
) -> ControlTruncatedError | FdLimitError:
    """Return the error for control data that was cut off. To be asked while its descriptors are still open.

    Descriptors are the only thing the kernel withholds while there is room; so if there is room for one more,
    this process is at its limit. A security module that refuses one looks the same.

    Args:
      control: The items that did arrive, as the kernel delivered them.
      capacity: How much room there was.
      data: The bytes that came with them.
      messages: What the items were decoded to.
    """
    if _is_for_want_of_descriptors(control, capacity):
        return fd_limit_error("descriptors sent with this message did not arrive", data, messages)
    return ControlTruncatedError(capacity, _needed_bytes(control, capacity), data, messages)


def _is_for_want_of_descriptors(control: Sequence[ControlItem], capacity: int) -> bool:
    if capacity - used_space(control) >= socket.CMSG_LEN(INT_BYTES):
        return True
    # With the room used up it can be either: too few descriptors came, or they all did and the next message had
    # no room. Then the process tells whether it is at its limit.
    before = 0
    for level, kind, data in control:
        if level == k.SOL_SOCKET and kind == k.SCM_RIGHTS:
            return before + socket.CMSG_LEN(len(data) + INT_BYTES) <= capacity and _is_at_limit(rights_numbers(data)[0])
        before += socket.CMSG_SPACE(len(data))
    return False


def _is_at_limit(fd: int) -> bool:
    try:
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _needed_bytes(control: Sequence[ControlItem], capacity: int) -> int:
    from fdpool.kernel.control_table import CONTROL_MESSAGES

    # The kernel cuts the last message to the room left, and says nothing about those for which there was none.
    if not control:
        return max(capacity + 1, socket.CMSG_LEN(1))
    level, kind, data = control[-1]
    known = CONTROL_MESSAGES.get((level, kind))
    before = used_space(control[:-1])
    if known is not None and issubclass(known, StructMessage) and len(data) < known.WIRE.size:
        return before + socket.CMSG_LEN(known.WIRE.size)
    if known is ScmRights and before + socket.CMSG_LEN(len(data) + INT_BYTES) > capacity:
        return before + socket.CMSG_LEN(len(data) + INT_BYTES)
    return capacity + 1
