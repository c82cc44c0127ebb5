"""Contract tests for AF_ALG and kTLS, where the kernel has them."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fdpool.kernel import (
    AlgOperation,
    AlgSetAeadAssoclen,
    AlgSetIv,
    AlgSetOp,
    TlsContentType,
    TlsRecordType,
    recvmsg,
    sendmsg,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY, IV = bytes(range(16)), bytes(range(16, 32))


@contextmanager
def cipher(kind: str, name: str, *, tag_bytes: int = 0) -> Iterator[socket.socket]:
    try:
        algorithm = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
    except OSError as error:
        pytest.skip(f"this kernel has no AF_ALG: {error.strerror}")
    with algorithm:
        try:
            algorithm.bind((kind, name))
        except OSError as error:
            pytest.skip(f"this kernel has no {name}: {error.strerror}")
        algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, KEY)
        if tag_bytes:
            algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_AEAD_AUTHSIZE, None, tag_bytes)
        operation, _ = algorithm.accept()
        with operation:
            yield operation


def test_a_cipher_encrypts_and_decrypts() -> None:
    with cipher("skcipher", "cbc(aes)") as operation:
        sendmsg(operation, [b"sixteen bytes it"], [AlgSetOp(AlgOperation.ENCRYPT), AlgSetIv(IV)])
        secret = bytearray(16)
        with recvmsg(operation, [secret]) as received:
            assert received.nbytes == 16
        assert secret != b"sixteen bytes it"
        sendmsg(operation, [secret], [AlgSetOp(AlgOperation.DECRYPT), AlgSetIv(IV)])
        plain = bytearray(16)
        recvmsg(operation, [plain]).close()
        assert plain == b"sixteen bytes it"


def test_associated_data_is_authenticated_and_not_encrypted() -> None:
    with cipher("aead", "gcm(aes)", tag_bytes=16) as operation:
        messages = [AlgSetOp(AlgOperation.ENCRYPT), AlgSetIv(IV[:12]), AlgSetAeadAssoclen(4)]
        sendmsg(operation, [b"open", b"sixteen bytes it"], messages)
        answer = bytearray(4 + 16 + 16)
        recvmsg(operation, [answer]).close()
        assert answer[:4] == b"open"
        assert answer[4:20] != b"sixteen bytes it"


def test_a_cipher_message_means_nothing_elsewhere() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(ValueError, match="AlgSetIv means nothing to a socket of AF_UNIX"):
        sendmsg(left, [b"x"], [AlgSetIv(IV)])


def test_tls_records_have_their_type_beside_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            try:
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
            except OSError as error:
                pytest.skip(f"this kernel has no kTLS: {error.strerror}")
            # struct tls12_crypto_info_aes_gcm_128 of TLS 1.2: version, cipher, iv, key, salt, sequence number
            keys = struct.pack("=HH8s16s4s8s", 0x0303, 51, bytes(8), KEY, bytes(4), bytes(8))
            client.setsockopt(282, 1, keys)  # TLS_TX
            server.setsockopt(282, 2, keys)  # TLS_RX
            sendmsg(client, [b"\1\0"], [TlsRecordType(TlsContentType.ALERT)])
            sendmsg(client, [b"data"])
            buffer = bytearray(16)
            with recvmsg(server, [buffer]) as received:
                assert received.control == (TlsRecordType(TlsContentType.ALERT),)
                assert bytes(buffer[: received.nbytes]) == b"\1\0"
            with recvmsg(server, [buffer]) as received:
                assert received.control == (TlsRecordType(TlsContentType.APPLICATION_DATA),)
                assert bytes(buffer[: received.nbytes]) == b"data"
