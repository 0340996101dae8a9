"""Association requests and answers, gone over before pynetdicom 3.0 decodes them (PS3.8 9.3.1 to 9.3.3).

Its decoder aborts the association, with a traceback, where the standard says what else to do:

1. Items and sub-items of unknown types are ignored (PS3.8 9.3.1; pynetdicom#646). So are user information sub-items
   that cannot be read: each is optional, but for the Maximum Length.
2. AE titles are taken without padding, be it of spaces or NUL (pynetdicom#921). One that is none then is refused.
3. A presentation context without abstract or transfer syntax is rejected, alone (pynetdicom#86, #342).
4. Without a Maximum Length there is no limit (pynetdicom#202). One that leaves no room for data is refused.
5. Of the protocol version only bit 0 is tested (PS3.8 table 9-11).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pynetdicom.pdu_items import PDU_ITEM_TYPES

REQUEST, ANSWER = 0x01, 0x02
"""PDU types of A-ASSOCIATE-RQ and A-ASSOCIATE-AC."""

_FIXED = 74
"""Bytes before the variable items."""
_APPLICATION, _USER = 0x10, 0x50
_CONTEXT = {REQUEST: 0x20, ANSWER: 0x21}
_ABSTRACT, _TRANSFER = 0x30, 0x40
_MAXIMUM_LENGTH = 0x51
_USER_SUB_ITEMS = {REQUEST: range(0x52, 0x59), ANSWER: (0x52, 0x53, 0x54, 0x55, 0x56, 0x59)}

_AE_TITLE = re.compile(rb"[ -\[\]-~]{1,16}")
"""AE (PS3.5 6.2): no control characters, no backslash; ISO 646."""
_UID = re.compile(rb"[0-9.]{1,64}")
_NO_SYNTAX = b"2.25.317062983047129458210447590126385540251.1"
"""Stands where a syntax is missing: nobody supports it."""
_NOT_SUPPORTED = 4
"""Result of a presentation context: transfer syntaxes not supported (PS3.8 table 9-18)."""
_PDV_HEADER = 6
"""Bytes of a PDU's variable field before the first byte of data: length, context ID, control header (PS3.8 9.3.5.1)."""


@dataclass(frozen=True)
class Refusal:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4): why, for our log, and its result, source and reason."""

    why: str
    result: int
    source: int
    reason: int


def checked_request(pdu: bytes) -> tuple[bytes, Refusal | None]:
    """An A-ASSOCIATE-RQ or -AC that pynetdicom can decode, and why it is to be refused, if it is.

    Raises ValueError where the PDU contradicts itself, or where an answer leaves no room for data.
    """
    kind = pdu[0]
    if len(pdu) < _FIXED:
        raise ValueError("it ends before its variable items")
    titles, refusal = _titles(pdu) if kind == REQUEST else (b" " * 32, None)  # not tested in an answer (table 9-17)
    items = []
    user: list[tuple[int, bytes]] = []
    for item, value in _items(pdu[_FIXED:]):
        if item == _APPLICATION:
            items.append(_item(item, _trimmed(value)))
        elif item == _CONTEXT[kind]:
            items += _context(kind, value)
        elif item == _USER:
            user += _items(value)
    most, others = _most(user), [(item, value) for item, value in user if item in _USER_SUB_ITEMS[kind]]
    if 0 < most <= _PDV_HEADER:
        why = f"a Maximum Length of {most} bytes leaves no room for data"
        if kind == ANSWER:
            raise ValueError(why)
        refusal, most = refusal or Refusal(why, 1, 2, 1), 0  # permanent, by the ACSE, no reason given
    readable = [raw for item, value in others if _is_readable(item, raw := _item(item, value))]
    items.append(_item(_USER, _item(_MAXIMUM_LENGTH, struct.pack(">I", most)) + b"".join(readable)))
    version = struct.pack(">H", struct.unpack(">H", pdu[6:8])[0] if not pdu[7] & 1 else 1)
    data = version + pdu[8:10] + titles + pdu[42:_FIXED] + b"".join(items)
    return bytes((kind, 0)) + struct.pack(">I", len(data)) + data, refusal


def _titles(pdu: bytes) -> tuple[bytes, Refusal | None]:
    """Called and calling AE title, without padding; a question mark for one that is none."""
    titles, refusal = [], None
    for name, reason, raw in (("called", 7, pdu[10:26]), ("calling", 3, pdu[26:42])):
        title = _title(raw)
        if not title:
            # permanent, by the service user, (called or) calling AE title not recognized
            refusal, title = Refusal(f"{raw!r} is no {name} AE title", 1, 1, reason), b"?"
        titles.append(title.ljust(16))
    return b"".join(titles), refusal


def _title(raw: bytes) -> bytes:
    """An AE title without padding; empty where it is none."""
    title = raw.strip(b" \0")
    return title if _AE_TITLE.fullmatch(title) else b""


def plain_titles(command: Dataset) -> None:
    """Take AE titles in a command set without padding, too (PS3.7 9.3.1, 9.3.4).

    What is none is a question mark as move destination, which nobody is called, and absent as move originator.
    """
    for keyword, otherwise in (("MoveDestination", "?"), ("MoveOriginatorApplicationEntityTitle", None)):
        if keyword in command:
            raw = str(command[keyword].value or "").encode("utf-8", "replace")
            setattr(command, keyword, _title(raw).decode("ascii") or otherwise)


def _context(kind: int, value: bytes) -> list[bytes]:
    """A presentation context with syntaxes that are UIDs; none where its ID is even, which no answer could name."""
    if len(value) < 4:
        raise ValueError("a presentation context ends inside its ID")
    if not value[0] & 1:
        return []
    syntaxes = [(item, _trimmed(uid)) for item, uid in _items(value[4:]) if item in (_ABSTRACT, _TRANSFER)]
    syntaxes = [(item, uid) for item, uid in syntaxes if _UID.fullmatch(uid)]
    abstract = [uid for item, uid in syntaxes if item == _ABSTRACT][:1] or [_NO_SYNTAX]
    transfer = [uid for item, uid in syntaxes if item == _TRANSFER]
    head = value[:4]
    if kind == ANSWER:
        if not transfer and not value[2]:
            head = value[:2] + bytes((_NOT_SUPPORTED, 0))
        abstract = []
    parts = [_item(_ABSTRACT, uid) for uid in abstract] + [_item(_TRANSFER, uid) for uid in transfer or [_NO_SYNTAX]]
    return [_item(_CONTEXT[kind], head + b"".join(parts))]


def _most(user: list[tuple[int, bytes]]) -> int:
    """Maximum Length; 0, which is no limit, where there is none."""
    lengths = [value for item, value in user if item == _MAXIMUM_LENGTH]
    if lengths and len(lengths[0]) != 4:
        raise ValueError(f"a Maximum Length of {len(lengths[0])} bytes instead of 4")
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
    """A UID without padding, which it should not have here (PS3.8 annex F)."""
    return uid.strip(b" \0")


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each item (PS3.8 9.3.2)."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("an item ends inside its header")
        item, length = struct.unpack_from(">BxH", data, at)
        if at + 4 + length > len(data):
            raise ValueError(f"an item of type {item:02X} announces {length} bytes, {len(data) - at - 4} are there")
        yield item, data[at + 4 : at + 4 + length]
        at += 4 + length


def _item(item: int, value: bytes) -> bytes:
    return struct.pack(">BxH", item, len(value)) + value
