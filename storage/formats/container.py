"""The container of payloads and packed originals: magic, kind, version, named sections, and a SHA-256 over all.

docs/FORMATS.md describes it byte by byte.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from storage.errors import PayloadError

MAGIC = b"LPACS\x00"
VERSION = 1
MAX_SECTION = 1 << 30
"""Maximum inflated bytes of a section."""
_MAX_OUTLINED = 1 << 20
"""Maximum inflated bytes of the section that ``outline`` reads."""
_STORED, _DEFLATED = 0, 1
DICTIONARY = (
    b'{"bits_stored":12,"columns":,"gain":,"maximum":,"minimum":0,"offset":,"operator":"torchvision-bicubic-antialias/1",'
    b'"original_digest":"","padding":null,"pixel_digest":"","pixel_vr":"OW","point":{"coder":"jpegxl","companded":false,'
    b'"distance":0.,"effort":5,"scale":2},"quantisation_rms":,"rows":,"transfer_syntax":"1.2.840.10008.1.2.1"}'
    b'{"base_digest":"","derived_uid":"2.25.","extra":{"maximum":[,],"minimum":[0,0]},"generative":false,'
    b'"method":"LPACS_BICUBIC","numerics":{"device":"cpu","dtype":"float32","imagecodecs":"2026.","kernels":"AVX2",'
    b'"machine":"x86_64","scipy":"1.","torch":"2."},"original_uid":"","output_digest":"","postprocessing":"1","seed":,'
    b'"steps":0,"structure_digest":"","upscaler":"bicubic","verdict":{"failures":[],"figures":{"lines_1.2":3.,'
    b'"lines_2.5":1.,"lines_5":0.,"lines_most_1.2":,"lines_most_2.5":,"lines_most_5":,"lost_1":0.9,"lost_2":0.,'
    b'"lost_3":0.,"lost_4":0.0,"outside":0.0,"periodic":0.00,"quiet":0.0,"repeat":0.00,"shift":0.000,"slow":0.000,'
    b'"specks_invented":0.0,"specks_lost":0.0,"spectrum_db_1":0.,"spectrum_db_2":-0.0,"spectrum_db_3":-0.0,'
    b'"spectrum_db_4":-0.00,"spectrum_tile_db":0.,"structure_fsim_mean":0.9,"structure_fsim_p5":0.9,'
    b'"structure_psnr_db":4,"window_width":},"fsim_mean":0.9,"fsim_p5":0.9,"gated":true,"psnr_db":4,"tiles":24},'
    b'"weights_digest":""}'
)
"""Preset dictionary (RFC 1950) of deflated sections: the metadata of a base and of a rendition without their values.

It takes 500 bytes off each pair of objects, 2% of the payload of a clean digital image. Stored objects depend on it.
"""
_MALFORMED = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError),
    *(MemoryError, RecursionError, struct.error, zlib.error),
)
"""Errors that malformed content can raise while it is parsed."""


def pack(kind: bytes, sections: dict[str, bytes], *, stored: set[str]) -> bytes:
    """Pack sections into an object. ``kind``: one byte. Sections not in ``stored`` are deflated; empty ones are left
    out."""
    parts = [MAGIC, kind, bytes([VERSION])]
    present = {name: data for name, data in sections.items() if data}
    parts.append(bytes([len(present)]))
    for name, data in present.items():
        encoding = _STORED if name in stored else _DEFLATED
        body = data if encoding == _STORED else _deflate(data)
        parts.append(struct.pack("<B", len(name)) + name.encode("ascii"))
        parts.append(struct.pack("<BQQ", encoding, len(data), len(body)) + body)
    content = b"".join(parts)
    return content + hashlib.sha256(content).digest()


def unpack(data: bytes, kind: bytes) -> dict[str, bytes]:
    """Unpack the sections of an object of that kind. Raises PayloadError."""
    _check_start(data[:8], kind)
    if len(data) < 41 or hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
        raise PayloadError("payload is damaged: its checksum does not match")
    sections: dict[str, bytes] = {}
    at = 9
    with malformed_is_payload_error("payload"):
        for _ in range(data[8]):
            size = data[at]
            name = data[at + 1 : at + 1 + size].decode("ascii")
            encoding, length, coded = struct.unpack_from("<BQQ", data, at + 1 + size)
            at += 1 + size + 17
            if length > MAX_SECTION:
                raise PayloadError(f"payload section {name} would inflate to {length} bytes")
            body = data[at : at + coded]
            sections[name] = body if encoding == _STORED else _inflate(body, length)
            if len(sections[name]) != length:
                raise PayloadError(f"payload section {name} has {len(sections[name])} bytes, not {length}")
            at += coded
        if at != len(data) - 32:
            raise PayloadError("payload has bytes after its last section")
    return sections


def outline(file: BinaryIO, kind: bytes, wanted: str) -> tuple[dict[str, int], bytes]:
    """The inflated length of each section, and the content of the section ``wanted``, without reading the others.

    The content is empty if there is no such section, or if it is too long. The checksum is not verified. Raises
    PayloadError.
    """
    start = file.read(9)
    _check_start(start[:8], kind)
    lengths: dict[str, int] = {}
    content = b""
    with malformed_is_payload_error("payload"):
        for _ in range(start[8]):
            name = file.read(file.read(1)[0]).decode("ascii")
            encoding, lengths[name], coded = struct.unpack("<BQQ", file.read(17))
            if name == wanted and lengths[name] <= _MAX_OUTLINED:
                body = file.read(coded)
                content = body if encoding == _STORED else _inflate(body, lengths[name])
            else:
                file.seek(coded, os.SEEK_CUR)
    return lengths, content


def _check_start(start: bytes, kind: bytes) -> None:
    """Raises PayloadError unless the first 8 bytes are those of an object of that kind."""
    if start[:6] != MAGIC:
        raise PayloadError("not a payload of this archive: no magic")
    if start[6:7] != kind:
        raise PayloadError(f"payload is of kind {start[6:7]!r}, not {kind!r}")
    if start[7:8] != bytes([VERSION]):
        raise PayloadError(f"payload has version {start[7:8].hex()}; this release reads {VERSION:02x}")


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zdict=DICTIONARY)
    return deflater.compress(data) + deflater.flush()


def _inflate(body: bytes, length: int) -> bytes:
    return zlib.decompressobj(zdict=DICTIONARY).decompress(body, length + 1)


@contextmanager
def malformed_is_payload_error(what: str) -> Iterator[None]:
    """Raise PayloadError in place of errors that malformed content raises. ``what``: name of the content."""
    try:
        yield
    except _MALFORMED as error:
        raise PayloadError(f"{what} is malformed: {str(repr(error))[:200]}") from error
