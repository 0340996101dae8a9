"""Builds PDUs of the upper layer byte by byte (PS3.8 9.3), including those that no library would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

VERIFICATION, IMPLICIT = b"1.2.840.10008.1.1", b"1.2.840.10008.1.2"
ACCEPTED, REJECTED, DATA, ABORTED, CLOSED = 2, 3, 4, 7, -1
"""PDU types of answers. CLOSED means that the connection was closed without one."""

Context = tuple[int, bytes | None, Sequence[bytes]]


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def context(number: int, abstract: bytes | None, *transfer: bytes, extra: bytes = b"", kind: int = 0x20) -> bytes:
    named = b"" if abstract is None else item(0x30, abstract)
    return item(kind, bytes((number, 0, 0, 0)) + named + b"".join(item(0x40, one) for one in transfer) + extra)


def user_information(most: int | None = 16384, extra: bytes = b"") -> bytes:
    length = b"" if most is None else item(0x51, struct.pack(">I", most))
    return item(0x50, length + item(0x52, b"1.2.3.4") + extra)


def associate(
    *contexts: bytes,
    called: bytes = b"LATENTPACS",
    calling: bytes = b"MODALITY",
    user: bytes | None = None,
    extra: bytes = b"",
    version: int = 1,
    kind: int = 1,
) -> bytes:
    """An A-ASSOCIATE-RQ, for Verification unless contexts are given. AE titles are padded with spaces."""
    data = struct.pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    data += item(0x10, b"1.2.840.10008.3.1.1.1")
    data += b"".join(contexts) or context(1, VERIFICATION, IMPLICIT)
    data += (user_information() if user is None else user) + extra
    return pdu(kind, data)


def pdu(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(data)) + data


def echo(number: int = 1) -> bytes:
    """A C-ECHO-RQ on a presentation context."""

    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, tag, len(value)) + value

    rest = element(2, VERIFICATION + b"\0") + element(0x100, b"\x30\0") + element(0x110, b"\1\0")
    rest += element(0x800, b"\1\1")
    value = bytes((number, 3)) + element(0, struct.pack("<I", len(rest))) + rest
    return pdu(4, struct.pack(">I", len(value)) + value)


def received(connection: socket.socket) -> bytes:
    """The next PDU; empty if the connection was closed. Raises TimeoutError."""
    head = _exactly(connection, 6)
    return head + _exactly(connection, struct.unpack(">xxI", head)[0]) if head else b""


def ask(port: int, *messages: bytes, seconds: float = 20) -> list[bytes]:
    """Send messages one by one and return the answers, up to the first that is neither A-ASSOCIATE-AC nor P-DATA-TF."""
    answers: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        for message in messages:
            connection.sendall(message)
            answers.append(received(connection))
            if answers[-1][:1] not in (bytes((ACCEPTED,)), bytes((DATA,))):
                break
    return answers


def kinds(answers: Sequence[bytes]) -> list[int]:
    return [answer[0] if answer else CLOSED for answer in answers]


def results(accepted: bytes) -> dict[int, int]:
    """The result of each presentation context in an A-ASSOCIATE-AC."""
    found, at = {}, 74
    while at < len(accepted):
        kind, length = struct.unpack_from(">BxH", accepted, at)
        if kind == 0x21:
            found[accepted[at + 4]] = accepted[at + 6]
        at += 4 + length
    return found


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            more = connection.recv(count - len(data))
        except ConnectionResetError:
            more = b""
        if not more:
            return b""
        data += more
    return data
