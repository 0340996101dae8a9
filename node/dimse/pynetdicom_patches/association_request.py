"""Repair association requests and responses before pynetdicom decodes them (PS3.8 9.3.1 to 9.3.3).

pynetdicom 3.0: ``PDU.decode``, the items in pdu_items and ``to_primitive`` raise, and the association is aborted with a
traceback, although the standard says otherwise:

1. An unknown item or sub-item is to be ignored (PS3.8 9.3.1). So is a user information sub-item that cannot be read:
   each is optional except the Maximum Length.
2. An AE title may be padded with spaces; NUL is common too. An invalid title is to be rejected.
3. A presentation context without abstract or transfer syntax is to be rejected alone.
4. Without a Maximum Length there is no limit. One that leaves no room for data is to be rejected.
5. Only bit 0 of the protocol version is to be tested (PS3.8 table 9-11).
6. An application context other than DICOM's is to be rejected (PS3.8 table 9-21); pynetdicom accepts any.

Upstream: for 2 pynetdicom#921, #646, #963 (closed: the peer is at fault), for 3 #86, #342 (closed). The others are not
reported.
Remove when pynetdicom follows the standard in all six.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_items import PDU_ITEM_TYPES

REQUEST, RESPONSE = 0x01, 0x02
"""PDU types of A-ASSOCIATE-RQ and A-ASSOCIATE-AC."""

_FIXED = 74
"""Bytes of an A-ASSOCIATE PDU before its variable items."""
_APPLICATION, _USER = 0x10, 0x50
_CONTEXT = {REQUEST: 0x20, RESPONSE: 0x21}
_ABSTRACT, _TRANSFER = 0x30, 0x40
_MAXIMUM_LENGTH = 0x51
_USER_SUB_ITEMS = {REQUEST: range(0x52, 0x59), RESPONSE: (0x52, 0x53, 0x54, 0x55, 0x56, 0x59)}

_AE_TITLE = re.compile(rb"[ -\[\]-~]{1,16}")
"""AE (PS3.5 6.2): no control characters, no backslash; ISO 646."""
_UID = re.compile(rb"[0-9.]{1,64}")
_DICOM = b"1.2.840.10008.3.1.1.1"
"""The application context name of DICOM (PS3.7 A.2.1)."""
_NO_SYNTAX = b"2.25.317062983047129458210447590126385540251.1"
"""Replaces a missing syntax; nobody supports it."""
_NOT_SUPPORTED = 4
"""Result of a presentation context: transfer syntaxes not supported (PS3.8 table 9-18)."""
_PDV_HEADER = 6
"""Bytes of a PDU's variable field before the first byte of data: length, context ID, control header (PS3.8 9.3.5.1)."""


class MalformedPdu(ValueError):
    """An A-ASSOCIATE-RQ or -AC contradicts itself. The message quotes no text of the peer."""


@dataclass(frozen=True)
class Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4): a sentence for our log, and its result, source and reason."""

    why: str
    result: int
    source: int
    reason: int


class RepairedNegotiation(DULServiceProvider):
    """The thread that owns a connection; it repairs association requests and responses."""

    rejection: Rejection | None = None
    """Set if the association that the peer asks for is to be rejected."""

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        if bytestream[0] not in (REQUEST, RESPONSE):
            return super()._decode_pdu(bytestream)
        repaired, self.rejection = repaired_request(bytes(bytestream))
        pdu, event = super()._decode_pdu(bytearray(repaired))
        pdu.to_primitive()  # the state machine does this too, and its thread would end with what this raises
        return pdu, event


def repaired_request(pdu: bytes) -> tuple[bytes, Rejection | None]:
    """An A-ASSOCIATE-RQ or -AC that pynetdicom can decode, and the rejection to answer it with, if any.

    Raises MalformedPdu if the PDU contradicts itself, or if a response leaves no room for data.
    """
    kind = pdu[0]
    if len(pdu) < _FIXED:
        raise MalformedPdu("it ends before its variable items")
    titles, rejection = _titles(pdu) if kind == REQUEST else (b" " * 32, None)  # not tested in an answer (table 9-17)
    items = []
    user: list[tuple[int, bytes]] = []
    for item, value in _items(pdu[_FIXED:]):
        if item == _APPLICATION:
            name = _trimmed(value)
            if kind == REQUEST and name != _DICOM:
                # permanent, by the service user, application context name not supported
                rejection, name = rejection or Rejection(f"{name[:64]!r} is not the DICOM application", 1, 1, 2), _DICOM
            items.append(_item(item, name))
        elif item == _CONTEXT[kind]:
            items += _context(kind, value)
        elif item == _USER:
            user += _items(value)
    most, others = _maximum_length(user), [(item, value) for item, value in user if item in _USER_SUB_ITEMS[kind]]
    if 0 < most <= _PDV_HEADER:
        why = f"a Maximum Length of {most} bytes leaves no room for data"
        if kind == RESPONSE:
            raise MalformedPdu(why)
        rejection, most = rejection or Rejection(why, 1, 2, 1), 0  # permanent, by the ACSE, no reason given
    readable = [raw for item, value in others if _is_readable(item, raw := _item(item, value))]
    items.append(_item(_USER, _item(_MAXIMUM_LENGTH, struct.pack(">I", most)) + b"".join(readable)))
    version = struct.pack(">H", struct.unpack(">H", pdu[6:8])[0] if not pdu[7] & 1 else 1)
    data = version + pdu[8:10] + titles + pdu[42:_FIXED] + b"".join(items)
    return bytes((kind, 0)) + struct.pack(">I", len(data)) + data, rejection


def _titles(pdu: bytes) -> tuple[bytes, Rejection | None]:
    """Called and calling AE title, without padding; a question mark in place of an invalid one."""
    titles, rejection = [], None
    for name, reason, raw in (("called", 7, pdu[10:26]), ("calling", 3, pdu[26:42])):
        title = ae_title(raw)
        if not title:
            # permanent, by the service user, (called or) calling AE title not recognized
            rejection, title = Rejection(f"{raw!r} is not a valid {name} AE title", 1, 1, reason), b"?"
        titles.append(title.ljust(16))
    return b"".join(titles), rejection


def ae_title(raw: bytes) -> bytes:
    """An AE title without padding; empty if it is invalid."""
    title = raw.strip(b" \0")
    return title if _AE_TITLE.fullmatch(title) else b""


def _context(kind: int, value: bytes) -> list[bytes]:
    """A presentation context whose syntaxes are UIDs; nothing if its ID is even, which no response could name."""
    if len(value) < 4:
        raise MalformedPdu("a presentation context ends inside its ID")
    if not value[0] & 1:
        return []
    syntaxes = [(item, _trimmed(uid)) for item, uid in _items(value[4:]) if item in (_ABSTRACT, _TRANSFER)]
    syntaxes = [(item, uid) for item, uid in syntaxes if _UID.fullmatch(uid)]
    abstract = [uid for item, uid in syntaxes if item == _ABSTRACT][:1] or [_NO_SYNTAX]
    transfer = [uid for item, uid in syntaxes if item == _TRANSFER]
    head = value[:4]
    if kind == RESPONSE:
        if not transfer and not value[2]:
            head = value[:2] + bytes((_NOT_SUPPORTED, 0))
        abstract = []
    parts = [_item(_ABSTRACT, uid) for uid in abstract] + [_item(_TRANSFER, uid) for uid in transfer or [_NO_SYNTAX]]
    return [_item(_CONTEXT[kind], head + b"".join(parts))]


def _maximum_length(user: list[tuple[int, bytes]]) -> int:
    """Maximum Length; 0, which means no limit, if it is absent."""
    lengths = [value for item, value in user if item == _MAXIMUM_LENGTH]
    if lengths and len(lengths[0]) != 4:
        raise MalformedPdu(f"a Maximum Length of {len(lengths[0])} bytes instead of 4")
    return int.from_bytes(lengths[0], "big") if lengths else 0


def _is_readable(item: int, raw: bytes) -> bool:
    try:
        made: Any = PDU_ITEM_TYPES[item]()
        made.decode(raw)
        made.to_primitive()
    except Exception:  # noqa: BLE001 - pynetdicom raises many kinds
        return False
    return True


def _trimmed(uid: bytes) -> bytes:
    """A UID without padding, which is not allowed here but occurs (PS3.8 annex F)."""
    return uid.strip(b" \0")


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each item (PS3.8 9.3.2)."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise MalformedPdu("an item ends inside its header")
        item, length = struct.unpack_from(">BxH", data, at)
        if at + 4 + length > len(data):
            raise MalformedPdu(f"an item of type {item:02X} announces {length} bytes, {len(data) - at - 4} are there")
        yield item, data[at + 4 : at + 4 + length]
        at += 4 + length


def _item(item: int, value: bytes) -> bytes:
    return struct.pack(">BxH", item, len(value)) + value
