"""Control messages of every kind, for property tests."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from fdpool.kernel import (
    AlgSetAeadAssoclen,
    AlgSetIv,
    AlgSetOp,
    ControlMessage,
    Ipv4OrigDstAddr,
    Ipv4PacketInfo,
    Ipv4RecvErr,
    Ipv4Tos,
    Ipv4Ttl,
    Ipv6HopLimit,
    Ipv6OrigDstAddr,
    Ipv6PacketInfo,
    Ipv6RecvErr,
    Ipv6TClass,
    RxqOvfl,
    ScmCredentials,
    ScmInq,
    ScmSecurity,
    ScmTimestamp,
    ScmTimestamping,
    ScmTimestampingNew,
    ScmTimestampNew,
    ScmTimestampNs,
    ScmTimestampNsNew,
    SoMark,
    TlsRecordType,
    TxTime,
    UdpGroSegments,
    UdpGsoSegments,
)

I32 = st.integers(-(2**31), 2**31 - 1)
U8 = st.integers(0, 2**8 - 1)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NANOSECONDS = st.integers(-(2**62), 2**62)
MICROSECONDS = NANOSECONDS.map(lambda n: n - n % 1000)
IPV4 = st.builds(IPv4Address, U32)
IPV6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1))
SCOPED_IPV6 = st.builds(lambda address, scope: IPv6Address(f"{address}%{scope}"), IPV6, st.integers(1, 2**32 - 1))
TRIPLE = st.tuples(NANOSECONDS, NANOSECONDS, NANOSECONDS)

# One strategy for each class whose payload holds no descriptor.
EACH: dict[type[ControlMessage], st.SearchStrategy[ControlMessage]] = {
    ScmCredentials: st.builds(ScmCredentials, I32, U32, U32),
    ScmSecurity: st.builds(ScmSecurity, st.binary(max_size=300)),
    ScmInq: st.builds(ScmInq, I32),
    ScmTimestamp: st.builds(ScmTimestamp, MICROSECONDS),
    ScmTimestampNew: st.builds(ScmTimestampNew, MICROSECONDS),
    ScmTimestampNs: st.builds(ScmTimestampNs, NANOSECONDS),
    ScmTimestampNsNew: st.builds(ScmTimestampNsNew, NANOSECONDS),
    ScmTimestamping: TRIPLE.map(lambda times: ScmTimestamping(*times)),
    ScmTimestampingNew: TRIPLE.map(lambda times: ScmTimestampingNew(*times)),
    TxTime: st.builds(TxTime, U64),
    Ipv4PacketInfo: st.builds(Ipv4PacketInfo, I32, IPV4, IPV4),
    Ipv6PacketInfo: st.builds(Ipv6PacketInfo, IPV6, U32),
    Ipv4OrigDstAddr: st.builds(Ipv4OrigDstAddr, IPV4, U16),
    Ipv6OrigDstAddr: st.builds(Ipv6OrigDstAddr, IPV6, U16, U32, U32),
    Ipv4Ttl: st.builds(Ipv4Ttl, I32),
    Ipv6HopLimit: st.builds(Ipv6HopLimit, I32),
    Ipv4Tos: st.builds(Ipv4Tos, U8),
    Ipv6TClass: st.builds(Ipv6TClass, I32),
    Ipv4RecvErr: st.builds(Ipv4RecvErr, U32, U8, U8, U8, U32, U32, st.none() | IPV4),
    Ipv6RecvErr: st.builds(Ipv6RecvErr, U32, U8, U8, U8, U32, U32, st.none() | IPV6 | SCOPED_IPV6),
    UdpGsoSegments: st.builds(UdpGsoSegments, U16),
    UdpGroSegments: st.builds(UdpGroSegments, I32),
    RxqOvfl: st.builds(RxqOvfl, U32),
    SoMark: st.builds(SoMark, U32),
    TlsRecordType: st.builds(TlsRecordType, U8),
    AlgSetIv: st.builds(AlgSetIv, st.binary(max_size=64)),
    AlgSetOp: st.builds(AlgSetOp, I32),
    AlgSetAeadAssoclen: st.builds(AlgSetAeadAssoclen, U32),
}
MESSAGES: st.SearchStrategy[ControlMessage] = st.one_of(*EACH.values())
