"""The kernel's objects, one per file: synchronous, standard library only.

Parameters lend, results own: what takes a handle accepts anything with `fileno()` and leaves it open; what
returns one returns an object that closes it. Every descriptor is close-on-exec from birth.

Most control messages are loaded on first use: together they would double what a worker pays for this import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fdpool.kernel.control import ControlMessage, UnknownControlMessage, control_space
from fdpool.kernel.control_buffer import ControlBuffer
from fdpool.kernel.control_unix import ScmCredentials, ScmInq, ScmPidfd, ScmRights, ScmSecurity
from fdpool.kernel.descriptor import HasFileno, OwnedFd
from fdpool.kernel.eventfd import MAX_EVENTFD_VALUE, EventFd
from fdpool.kernel.kind import HandleKind, handle_kind
from fdpool.kernel.memfd import IMMUTABLE, MemFd, Seal
from fdpool.kernel.message import CONTROL_BYTES, MAX_FDS_PER_MESSAGE, recvmsg, sendmsg
from fdpool.kernel.pidfd import ExitStatus, PidFd
from fdpool.kernel.received import Received
from fdpool.kernel.rights import recv_with_fd, recv_with_fds, send_with_fd, send_with_fds

if TYPE_CHECKING:
    from fdpool.kernel.control_crypto import (
        AlgOperation,
        AlgSetAeadAssoclen,
        AlgSetIv,
        AlgSetOp,
        TlsContentType,
        TlsRecordType,
    )
    from fdpool.kernel.control_error import (
        ErrorOrigin,
        Ipv4RecvErr,
        Ipv6RecvErr,
    )
    from fdpool.kernel.control_ip import (
        Ipv4OrigDstAddr,
        Ipv4PacketInfo,
        Ipv4Tos,
        Ipv4Ttl,
        Ipv6HopLimit,
        Ipv6OrigDstAddr,
        Ipv6PacketInfo,
        Ipv6TClass,
    )
    from fdpool.kernel.control_option import (
        enable,
    )
    from fdpool.kernel.control_packet import (
        RxqOvfl,
        SoMark,
        UdpGroSegments,
        UdpGsoSegments,
    )
    from fdpool.kernel.control_table import (
        CONTROL_MESSAGES,
        decode_control,
    )
    from fdpool.kernel.control_time import (
        ScmTimestamp,
        ScmTimestamping,
        ScmTimestampingNew,
        ScmTimestampNew,
        ScmTimestampNs,
        ScmTimestampNsNew,
        Timestamp,
        TxTime,
    )
    from fdpool.kernel.peer import (
        deny_handles,
        peer_credentials,
        peer_pidfd,
    )
    from fdpool.kernel.sender import Sender

_LATER = {
    "control_crypto": (
        "AlgOperation",
        "AlgSetAeadAssoclen",
        "AlgSetIv",
        "AlgSetOp",
        "TlsContentType",
        "TlsRecordType",
    ),
    "control_error": (
        "ErrorOrigin",
        "Ipv4RecvErr",
        "Ipv6RecvErr",
    ),
    "control_ip": (
        "Ipv4OrigDstAddr",
        "Ipv4PacketInfo",
        "Ipv4Tos",
        "Ipv4Ttl",
        "Ipv6HopLimit",
        "Ipv6OrigDstAddr",
        "Ipv6PacketInfo",
        "Ipv6TClass",
    ),
    "control_option": ("enable",),
    "control_packet": (
        "RxqOvfl",
        "SoMark",
        "UdpGroSegments",
        "UdpGsoSegments",
    ),
    "control_table": (
        "CONTROL_MESSAGES",
        "decode_control",
    ),
    "control_time": (
        "ScmTimestamp",
        "ScmTimestampNew",
        "ScmTimestampNs",
        "ScmTimestampNsNew",
        "ScmTimestamping",
        "ScmTimestampingNew",
        "Timestamp",
        "TxTime",
    ),
    "peer": (
        "deny_handles",
        "peer_credentials",
        "peer_pidfd",
    ),
    "sender": ("Sender",),
}
_HOME_OF = {name: home for home, names in _LATER.items() for name in names}

__all__ = [
    "CONTROL_BYTES",
    "CONTROL_MESSAGES",
    "IMMUTABLE",
    "MAX_EVENTFD_VALUE",
    "MAX_FDS_PER_MESSAGE",
    "AlgOperation",
    "AlgSetAeadAssoclen",
    "AlgSetIv",
    "AlgSetOp",
    "ControlBuffer",
    "ControlMessage",
    "ErrorOrigin",
    "EventFd",
    "ExitStatus",
    "HandleKind",
    "HasFileno",
    "Ipv4OrigDstAddr",
    "Ipv4PacketInfo",
    "Ipv4RecvErr",
    "Ipv4Tos",
    "Ipv4Ttl",
    "Ipv6HopLimit",
    "Ipv6OrigDstAddr",
    "Ipv6PacketInfo",
    "Ipv6RecvErr",
    "Ipv6TClass",
    "MemFd",
    "OwnedFd",
    "PidFd",
    "Received",
    "RxqOvfl",
    "ScmCredentials",
    "ScmInq",
    "ScmPidfd",
    "ScmRights",
    "ScmSecurity",
    "ScmTimestamp",
    "ScmTimestampNew",
    "ScmTimestampNs",
    "ScmTimestampNsNew",
    "ScmTimestamping",
    "ScmTimestampingNew",
    "Seal",
    "Sender",
    "SoMark",
    "Timestamp",
    "TlsContentType",
    "TlsRecordType",
    "TxTime",
    "UdpGroSegments",
    "UdpGsoSegments",
    "UnknownControlMessage",
    "control_space",
    "decode_control",
    "deny_handles",
    "enable",
    "handle_kind",
    "peer_credentials",
    "peer_pidfd",
    "recv_with_fd",
    "recv_with_fds",
    "recvmsg",
    "send_with_fd",
    "send_with_fds",
    "sendmsg",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
