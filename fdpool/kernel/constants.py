"""Numbers the kernel dictates and CPython has no name for, each with the header it comes from.

Those of `SOL_SOCKET` are the generic ones (x86, ARM, RISC-V, …); alpha, mips, parisc and sparc number them
differently. Names that only newer Pythons have (`IP_PKTINFO`, `SO_INCOMING_CPU`, …) are here as well, so that
every version sends the same.
"""

from __future__ import annotations

import socket
from typing import Final

# Python's own are enum members, whose `|` and `&` cost a microsecond each; these are plain ints.
SOL_SOCKET: Final = int(socket.SOL_SOCKET)
SCM_RIGHTS: Final = int(socket.SCM_RIGHTS)
SCM_CREDENTIALS: Final = int(socket.SCM_CREDENTIALS)
MSG_CTRUNC: Final = int(socket.MSG_CTRUNC)
MSG_TRUNC: Final = int(socket.MSG_TRUNC)
MSG_NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)
MSG_CMSG_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
AF_UNIX: Final = int(socket.AF_UNIX)
SOCK_STREAM: Final = int(socket.SOCK_STREAM)

# linux/socket.h
SCM_SECURITY: Final = 3
SCM_PIDFD: Final = 4  # Linux 6.5
SOL_UDP: Final = 17
SOL_TLS: Final = 282
SOL_ALG: Final = 279

# net/scm.h
SCM_MAX_FD: Final = 253

# asm-generic/socket.h
SO_PASSCRED: Final = 16
SO_PEERCRED: Final = 17
SO_TIMESTAMP: Final = 29
SO_PASSSEC: Final = 34
SO_TIMESTAMPNS: Final = 35
SO_MARK: Final = 36
SO_TIMESTAMPING: Final = 37
SO_RXQ_OVFL: Final = 40
SO_TXTIME: Final = 61  # Linux 4.19
SO_TIMESTAMP_NEW: Final = 63  # Linux 5.1
SO_TIMESTAMPNS_NEW: Final = 64
SO_TIMESTAMPING_NEW: Final = 65
SO_RCVMARK: Final = 75  # Linux 5.19
SO_PASSPIDFD: Final = 76  # Linux 6.5
SO_PEERPIDFD: Final = 77  # Linux 6.5
SO_PASSRIGHTS: Final = 83  # Linux 6.16
SO_INQ: Final = 84  # Linux 6.17

# linux/in.h
IP_TOS: Final = 1
IP_TTL: Final = 2
IP_PKTINFO: Final = 8
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_RECVORIGDSTADDR: Final = 20

# linux/in6.h
IPV6_RECVERR: Final = 25
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_RECVHOPLIMIT: Final = 51
IPV6_HOPLIMIT: Final = 52
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
IPV6_RECVORIGDSTADDR: Final = 74

# linux/udp.h
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

# linux/net_tstamp.h, for SO_TIMESTAMPING
SOF_TIMESTAMPING_RX_HARDWARE: Final = 1 << 2
SOF_TIMESTAMPING_RX_SOFTWARE: Final = 1 << 3
SOF_TIMESTAMPING_SOFTWARE: Final = 1 << 4
SOF_TIMESTAMPING_RAW_HARDWARE: Final = 1 << 6

# linux/tls.h
TLS_SET_RECORD_TYPE: Final = 1
TLS_GET_RECORD_TYPE: Final = 2

# linux/if_alg.h
ALG_SET_IV: Final = 2
ALG_SET_OP: Final = 3
ALG_SET_AEAD_ASSOCLEN: Final = 4
