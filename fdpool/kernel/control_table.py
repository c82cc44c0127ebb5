"""Which class a control message is decoded to: one table, by level and type."""

from __future__ import annotations

import socket
from typing import Final

from fdpool.kernel import constants as k
from fdpool.kernel.control import ControlMessage, UnknownControlMessage
from fdpool.kernel.control_crypto import AlgSetAeadAssoclen, AlgSetIv, AlgSetOp, TlsRecordType
from fdpool.kernel.control_error import Ipv4RecvErr, Ipv6RecvErr
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

_IPV4: Final = int(socket.IPPROTO_IP)
_IPV6: Final = int(socket.IPPROTO_IPV6)

CONTROL_MESSAGES: Final[dict[tuple[int, int], type[ControlMessage]]] = {
    (k.SOL_SOCKET, k.SCM_RIGHTS): ScmRights,
    (k.SOL_SOCKET, k.SCM_CREDENTIALS): ScmCredentials,
    (k.SOL_SOCKET, k.SCM_SECURITY): ScmSecurity,
    (k.SOL_SOCKET, k.SCM_PIDFD): ScmPidfd,
    (k.SOL_SOCKET, k.SO_TIMESTAMP): ScmTimestamp,
    (k.SOL_SOCKET, k.SO_TIMESTAMPNS): ScmTimestampNs,
    (k.SOL_SOCKET, k.SO_MARK): SoMark,
    (k.SOL_SOCKET, k.SO_TIMESTAMPING): ScmTimestamping,
    (k.SOL_SOCKET, k.SO_RXQ_OVFL): RxqOvfl,
    (k.SOL_SOCKET, k.SO_TXTIME): TxTime,
    (k.SOL_SOCKET, k.SO_TIMESTAMP_NEW): ScmTimestampNew,
    (k.SOL_SOCKET, k.SO_TIMESTAMPNS_NEW): ScmTimestampNsNew,
    (k.SOL_SOCKET, k.SO_TIMESTAMPING_NEW): ScmTimestampingNew,
    (k.SOL_SOCKET, k.SO_INQ): ScmInq,
    (_IPV4, k.IP_TOS): Ipv4Tos,
    (_IPV4, k.IP_TTL): Ipv4Ttl,
    (_IPV4, k.IP_PKTINFO): Ipv4PacketInfo,
    (_IPV4, k.IP_RECVERR): Ipv4RecvErr,
    (_IPV4, k.IP_RECVORIGDSTADDR): Ipv4OrigDstAddr,
    (_IPV6, k.IPV6_RECVERR): Ipv6RecvErr,
    (_IPV6, k.IPV6_PKTINFO): Ipv6PacketInfo,
    (_IPV6, k.IPV6_HOPLIMIT): Ipv6HopLimit,
    (_IPV6, k.IPV6_TCLASS): Ipv6TClass,
    (_IPV6, k.IPV6_RECVORIGDSTADDR): Ipv6OrigDstAddr,
    (k.SOL_UDP, k.UDP_SEGMENT): UdpGsoSegments,
    (k.SOL_UDP, k.UDP_GRO): UdpGroSegments,
    (k.SOL_TLS, k.TLS_SET_RECORD_TYPE): TlsRecordType,
    (k.SOL_TLS, k.TLS_GET_RECORD_TYPE): TlsRecordType,
    (k.SOL_ALG, k.ALG_SET_IV): AlgSetIv,
    (k.SOL_ALG, k.ALG_SET_OP): AlgSetOp,
    (k.SOL_ALG, k.ALG_SET_AEAD_ASSOCLEN): AlgSetAeadAssoclen,
}


def decode_control(level: int, kind: int, data: bytes) -> ControlMessage:
    """Return the control message for an item of the *ancdata* of `socket.recvmsg`.

    Descriptors in it are owned by the message from here on, so *data* must come from a receive that nobody
    else decodes. `recvmsg` does this itself.

    Returns:
      The message; an `UnknownControlMessage` where there is no class for it, or *data* is malformed.
    """
    known = CONTROL_MESSAGES.get((level, kind))
    if known is None:
        return UnknownControlMessage(level, kind, data)
    try:
        return known.decode(data)
    except ValueError:
        return UnknownControlMessage(level, kind, data)
