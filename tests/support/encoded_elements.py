"""Encodes single data elements, among them such as no toolkit writes."""

from __future__ import annotations

import struct

from pydicom.uid import (
    UID,
)


def element(tag: int, vr: str, value: bytes, syntax: UID, *, undefined: bool = False) -> bytes:
    """One encoded element. The value of an undefined length must contain its delimiter."""
    order = "<" if syntax.is_little_endian else ">"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    length = 0xFFFFFFFF if undefined else len(value)
    if syntax.is_implicit_VR or tag >> 16 == 0xFFFE:
        return head + struct.pack(order + "I", length) + value
    if vr in {"SQ", "OB", "OW", "UN", "UT"}:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "I", length) + value
    return head + vr.encode() + struct.pack(order + "H", length) + value


def item(content: bytes, syntax: UID, *, undefined: bool = False) -> bytes:
    end = element(0xFFFEE00D, "", b"", syntax) if undefined else b""
    return element(0xFFFEE000, "", content + end, syntax, undefined=undefined)


def sequence(tag: int, items: bytes, syntax: UID, *, vr: str = "SQ", inner: UID | None = None) -> bytes:
    """A sequence of undefined length."""
    end = element(0xFFFEE0DD, "", b"", inner or syntax)
    return element(tag, vr, items + end, syntax, undefined=True)
