"""Who sent a message, by the word of the kernel: ids, and the process itself where the kernel can give it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fdpool.kernel.control_unix import ScmCredentials, ScmPidfd

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from fdpool.kernel.pidfd import PidFd
    from fdpool.kernel.received import Received

_NOBODY = 65534  # what the kernel says of a message that was sent before it was asked to note the sender


@dataclass(frozen=True, slots=True)
class Sender:
    """The process that sent a message. See unix(7), SCM_CREDENTIALS and SO_PASSPIDFD.

    Attributes:
      pid: Its process id as seen from here. 0 where it is not known: the message was sent before the receiving
          side asked, or its sender is in a pid namespace that cannot be seen from here.
      uid: Its user id; 65534 for a message sent before the receiving side asked.
      gid: Its group id; likewise.
      pidfd: The process itself, which cannot come to mean another one as *pid* can. Owned by whoever owns the
          message. None before Linux 6.5, with a *pid* of 0, and if this process was at its descriptor limit;
          on some kernels also for a process that was gone by the time the message was received.
    """

    pid: int
    uid: int
    gid: int
    pidfd: PidFd | None = None

    def close(self) -> None:
        """Close the pidfd, if there is one. May be called twice."""
        if self.pidfd is not None:
            self.pidfd.close()


class SenderIdentity(NamedTuple):
    """What of a sender outlives its pidfd, to tell whether two datagrams are of one process."""

    ids: tuple[int, int, int]
    process: tuple[int, int] | None

    def may_be(self, other: SenderIdentity) -> bool:
        """Whether nothing that is known of both tells them apart."""
        return self.ids == other.ids and (None in (self.process, other.process) or self.process == other.process)


def identify_senders(sock: socket.socket) -> None:
    """Have the kernel note on each message that *sock* will receive who sent it, and as a process if it can.

    Raises:
      ValueError: it is no AF_UNIX socket.
    """
    # Loaded when needed: with it come the classes of all other control messages.
    from fdpool.kernel.control_option import enable

    enable(sock, ScmCredentials)
    try:
        enable(sock, ScmPidfd)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def take_sender(received: Received) -> Sender:
    """Return who sent what was received; the caller owns the pidfd in it from here on."""
    ids = sender_ids(received.control)
    return Sender(*ids, received.take_pidfd())


def sender_ids(control: Iterable[object]) -> tuple[int, int, int]:
    """Return pid, uid and gid from among the messages that came; those of nobody if they are not there."""
    for message in control:
        if isinstance(message, ScmCredentials):
            return message.pid, message.uid, message.gid
    return 0, _NOBODY, _NOBODY


def identity_of(sender: Sender) -> SenderIdentity:
    """Return what tells *sender* from other processes, even from one that gets its pid later."""
    if sender.pidfd is None:
        return SenderIdentity((sender.pid, sender.uid, sender.gid), None)
    # Each process has an inode of its own since Linux 6.9; before that all share one, and the ids decide.
    status = os.fstat(sender.pidfd.fileno())
    return SenderIdentity((sender.pid, sender.uid, sender.gid), (status.st_dev, status.st_ino))
