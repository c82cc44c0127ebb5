"""Asking for control messages: which socket option brings which, on which kind of socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fdpool.kernel import constants as k
from fdpool.kernel.control import INTERNET
from fdpool.kernel.control_crypto import AlgSetAeadAssoclen, AlgSetIv, AlgSetOp, TlsRecordType
from fdpool.kernel.control_error import Ipv4RecvErr, Ipv6RecvErr
from fdpool.kernel.control_ip import (
    ONLY_IPV6,
    Ipv4OrigDstAddr,
    Ipv4PacketInfo,
    Ipv4Tos,
    Ipv4Ttl,
    Ipv6HopLimit,
    Ipv6OrigDstAddr,
    Ipv6PacketInfo,
    Ipv6TClass,
)
from fdpool.kernel.control_packet import RxqOvfl, SoMark, UdpGroSegments, UdpGsoSegments
from fdpool.kernel.control_time import (
    ScmTimestamp,
    ScmTimestamping,
    ScmTimestampingNew,
    ScmTimestampNew,
    ScmTimestampNs,
    ScmTimestampNsNew,
    TxTime,
)
from fdpool.kernel.control_unix import ScmCredentials, ScmInq, ScmPidfd, ScmRights, ScmSecurity
from fdpool.kernel.message import family_name

if TYPE_CHECKING:
    from fdpool.kernel.control import ControlMessage

_IPV4: Final = int(socket.IPPROTO_IP)
_IPV6: Final = int(socket.IPPROTO_IPV6)
_UNIX: Final = frozenset({k.AF_UNIX})
_LOCAL: Final = frozenset({k.AF_UNIX, int(socket.AF_NETLINK)})
_PACKETS: Final = INTERNET | {int(socket.AF_PACKET)}
_ANY: Final[frozenset[int]] = frozenset()
_DATAGRAM: Final = frozenset({int(socket.SOCK_DGRAM), int(socket.SOCK_RAW), int(socket.SOCK_SEQPACKET)})
_STREAM: Final = frozenset({k.SOCK_STREAM})
_EVERY: Final = _DATAGRAM | _STREAM
_SOFTWARE_STAMPS: Final = k.SOF_TIMESTAMPING_RX_SOFTWARE | k.SOF_TIMESTAMPING_SOFTWARE


@dataclass(frozen=True, slots=True)
class _Option:
    level: int
    number: int
    families: frozenset[int]
    types: frozenset[int]
    value: int | bytes = 1
    since: str = ""


_OPTIONS: Final[dict[type[ControlMessage], _Option]] = {
    ScmCredentials: _Option(k.SOL_SOCKET, k.SO_PASSCRED, _LOCAL, _EVERY),
    ScmSecurity: _Option(k.SOL_SOCKET, k.SO_PASSSEC, _UNIX, _EVERY),
    ScmPidfd: _Option(k.SOL_SOCKET, k.SO_PASSPIDFD, _UNIX, _EVERY, since="6.5"),
    ScmInq: _Option(k.SOL_SOCKET, k.SO_INQ, _UNIX, _STREAM, since="6.17"),
    ScmTimestamp: _Option(k.SOL_SOCKET, k.SO_TIMESTAMP, _ANY, _EVERY),
    ScmTimestampNs: _Option(k.SOL_SOCKET, k.SO_TIMESTAMPNS, _ANY, _EVERY),
    ScmTimestamping: _Option(k.SOL_SOCKET, k.SO_TIMESTAMPING, _PACKETS, _EVERY, _SOFTWARE_STAMPS),
    ScmTimestampNew: _Option(k.SOL_SOCKET, k.SO_TIMESTAMP_NEW, _ANY, _EVERY, since="5.1"),
    ScmTimestampNsNew: _Option(k.SOL_SOCKET, k.SO_TIMESTAMPNS_NEW, _ANY, _EVERY, since="5.1"),
    ScmTimestampingNew: _Option(k.SOL_SOCKET, k.SO_TIMESTAMPING_NEW, _PACKETS, _EVERY, _SOFTWARE_STAMPS, "5.1"),
    RxqOvfl: _Option(k.SOL_SOCKET, k.SO_RXQ_OVFL, _PACKETS, _DATAGRAM),
    SoMark: _Option(k.SOL_SOCKET, k.SO_RCVMARK, _PACKETS, _DATAGRAM, since="5.19"),
    TxTime: _Option(k.SOL_SOCKET, k.SO_TXTIME, _PACKETS, _DATAGRAM, struct.pack("iI", time.CLOCK_MONOTONIC, 0), "4.19"),
    Ipv4PacketInfo: _Option(_IPV4, k.IP_PKTINFO, INTERNET, _DATAGRAM),
    Ipv4OrigDstAddr: _Option(_IPV4, k.IP_RECVORIGDSTADDR, INTERNET, _DATAGRAM),
    Ipv4Ttl: _Option(_IPV4, k.IP_RECVTTL, INTERNET, _DATAGRAM),
    Ipv4Tos: _Option(_IPV4, k.IP_RECVTOS, INTERNET, _DATAGRAM),
    Ipv4RecvErr: _Option(_IPV4, k.IP_RECVERR, INTERNET, _EVERY),
    Ipv6PacketInfo: _Option(_IPV6, k.IPV6_RECVPKTINFO, ONLY_IPV6, _DATAGRAM),
    Ipv6OrigDstAddr: _Option(_IPV6, k.IPV6_RECVORIGDSTADDR, ONLY_IPV6, _DATAGRAM),
    Ipv6HopLimit: _Option(_IPV6, k.IPV6_RECVHOPLIMIT, ONLY_IPV6, _DATAGRAM),
    Ipv6TClass: _Option(_IPV6, k.IPV6_RECVTCLASS, ONLY_IPV6, _DATAGRAM),
    Ipv6RecvErr: _Option(_IPV6, k.IPV6_RECVERR, ONLY_IPV6, _EVERY),
    UdpGroSegments: _Option(k.SOL_UDP, k.UDP_GRO, INTERNET, frozenset({int(socket.SOCK_DGRAM)}), since="5.0"),
}
_SENT_ONLY: Final = "is only ever sent, and sending it needs no option"
_WITHOUT: Final[dict[type[ControlMessage], str]] = {
    ScmRights: "always arrives; deny_handles() keeps it out",
    TlsRecordType: "arrives by itself on a socket that decrypts TLS",
    UdpGsoSegments: _SENT_ONLY,
    AlgSetIv: _SENT_ONLY,
    AlgSetOp: _SENT_ONLY,
    AlgSetAeadAssoclen: _SENT_ONLY,
}


def enable(sock: socket.socket, kind: type[ControlMessage], value: int | bytes | None = None) -> None:
    """Ask the kernel to add control messages of a kind to what *sock* receives (for `TxTime`: sends).

    Messages that are queued already come without it: enable before the first one can arrive. Of the timestamps
    one kind at a time comes, the last enabled; so do the others of the kernel's older and newer form.

    Args:
      sock: The socket, which stays lent.
      kind: The class of the message.
      value: What to set the option to; by default what turns it on. 0 turns it off. For `ScmTimestamping` the
          flags of the kernel's timestamping.rst, by default the system clock's time of arrival; for `TxTime` a
          struct sock_txtime, by default with CLOCK_MONOTONIC.

    Raises:
      ValueError: sockets of this family or type never get such messages; or they need no enabling.
      OSError: the kernel is too old for it (ENOPROTOOPT), or does not permit it (EPERM).
    """
    if kind not in _OPTIONS:
        reason = _WITHOUT.get(kind, "is no kind of message that the kernel could be asked for")
        raise ValueError(f"{kind.__name__} {reason}")
    option = _OPTIONS[kind]
    _check_socket(sock, kind, option)
    wanted = option.value if value is None else value
    try:
        sock.setsockopt(option.level, option.number, wanted)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT and option.since:
            reason = f"{kind.__name__} needs Linux {option.since}, and this is {os.uname().release}"
            raise OSError(error.errno, reason) from error
        raise


def _check_socket(sock: socket.socket, kind: type[ControlMessage], option: _Option) -> None:
    if option.families and sock.family not in option.families:
        wanted = " or ".join(map(family_name, sorted(option.families)))
        raise ValueError(f"{kind.__name__} comes with sockets of {wanted}, and this one is {family_name(sock.family)}")
    if sock.type not in option.types:
        what = "only streams have it" if option.types == _STREAM else "a stream has none, only messages do"
        raise ValueError(f"{kind.__name__} does not come with a socket of {sock.type.name}: {what}")
    if sock.family == k.AF_UNIX and sock.type == k.SOCK_STREAM and option.families is _ANY:
        raise ValueError(f"{kind.__name__} does not come with an AF_UNIX stream: the kernel stamps its messages only")
