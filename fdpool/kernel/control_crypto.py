"""Control messages of the kernel's cryptography: AF_ALG operations and kTLS records.

See the kernel's crypto/userspace-if.rst and networking/tls.rst.
"""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from fdpool.kernel import constants as k
from fdpool.kernel.control import INTERNET, ControlMessage, StructMessage

_ONLY_ALG: Final = frozenset({int(socket.AF_ALG)})
_U32: Final = struct.Struct("I")


class AlgOperation(enum.IntEnum):
    """What an AF_ALG socket is to do with the bytes: `ALG_OP_…` of linux/if_alg.h."""

    DECRYPT = 0
    ENCRYPT = 1


class TlsContentType(enum.IntEnum):
    """What a TLS record holds, RFC 8446 section 5.1."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


@dataclass(frozen=True, slots=True)
class AlgSetIv(ControlMessage):
    """The initialisation vector of a cipher operation. Sent only."""

    LEVEL: ClassVar[int] = k.SOL_ALG
    TYPE: ClassVar[int] = k.ALG_SET_IV
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_ALG

    iv: bytes

    def encode(self) -> bytes:
        """Return the payload: its length, then the vector."""
        return _U32.pack(len(self.iv)) + self.iv

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message for this payload."""
        if len(data) < _U32.size or _U32.unpack_from(data)[0] != len(data) - _U32.size:
            raise ValueError("the payload does not hold a vector of the length it says")
        return cls(data[_U32.size :])

    @staticmethod
    def space(size_bytes: int = 16) -> int:
        """Return the room a vector of *size_bytes* takes in a control buffer."""
        return socket.CMSG_SPACE(_U32.size + size_bytes)


@dataclass(frozen=True, slots=True)
class AlgSetOp(StructMessage):
    """Which way a cipher operation goes, an `AlgOperation`. Sent only."""

    LEVEL: ClassVar[int] = k.SOL_ALG
    TYPE: ClassVar[int] = k.ALG_SET_OP
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_ALG
    WIRE: ClassVar[struct.Struct] = struct.Struct("i")

    operation: int


@dataclass(frozen=True, slots=True)
class AlgSetAeadAssoclen(StructMessage):
    """How many of the bytes sent are associated data: authenticated, not encrypted. Sent only."""

    LEVEL: ClassVar[int] = k.SOL_ALG
    TYPE: ClassVar[int] = k.ALG_SET_AEAD_ASSOCLEN
    FAMILIES: ClassVar[frozenset[int]] = _ONLY_ALG
    WIRE: ClassVar[struct.Struct] = _U32

    size_bytes: int


@dataclass(frozen=True, slots=True)
class TlsRecordType(StructMessage):
    """What the record holds that was read from, or is to be written to, a kTLS socket: a `TlsContentType`.

    Arrives under another type (TLS_GET_RECORD_TYPE) than it is sent with.
    """

    LEVEL: ClassVar[int] = k.SOL_TLS
    TYPE: ClassVar[int] = k.TLS_SET_RECORD_TYPE
    FAMILIES: ClassVar[frozenset[int]] = INTERNET
    WIRE: ClassVar[struct.Struct] = struct.Struct("B")

    record_type: int
