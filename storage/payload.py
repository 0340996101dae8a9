"""The object formats ``base`` and ``rendition``; docs/FORMATS.md describes them byte by byte.

Both are the same container: an eight-byte magic with kind and version, named sections, and a SHA-256 over all of
it. A base is the downsampled, coded pixels plus the verbatim header bytes, free of any model. A rendition is what
one model makes of one base, and what was measured.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import coders
from storage.dicomfile import HeaderBytes
from storage.errors import PayloadError
from storage.records import Rung, RungOutcome, Verdict
from storage.resample import OPERATOR, Operator

MAGIC = b"LPACS\x00"
VERSION = 1
POSTPROCESSING = "1"
"""Version of everything between upscaler and output pixels (projection, rounding, clipping, padding)."""

NAMESPACE = uuid.UUID("6a4cbdd1-2a3e-5b0a-9f0e-94dc6f2c1b57")
_STORED, _DEFLATED = 0, 1


@dataclass(frozen=True)
class Base:
    """Downsampled, coded pixels and the header of one image.

    ``rows``, ``columns``, ``bits_stored``: of the original. ``minimum``, ``maximum``: its extreme stored values
    outside padding. ``padding``: inclusive range of stored values that mean padding (PS3.3 C.7.5.1.1.2), or None;
    ``padding_value``: the one of them that the padded pixels of ``padding_mask`` have.
    ``exponent``: coded samples are grey levels times 2**exponent. ``quantisation_rms``: root mean square of decoded
    base minus ideal base, in grey levels. ``pixel_digest``: of the original's stored values.
    """

    rung: Rung
    rows: int
    columns: int
    bits_stored: int
    minimum: int
    maximum: int
    padding: tuple[int, int] | None
    padding_value: int
    exponent: int
    quantisation_rms: float
    original_digest: str
    pixel_digest: str
    pixel_vr: str
    header: HeaderBytes
    coded: bytes
    padding_mask: bytes = b""
    operator_name: str = OPERATOR

    @property
    def operator(self) -> Operator:
        return Operator(self.rows, self.columns, self.rung.scale)

    def samples(self) -> NDArray[np.float32]:
        """The decoded base in grey levels: float32, shape (ceil(rows/scale), ceil(columns/scale))."""
        if self.operator_name != OPERATOR:
            raise PayloadError(f"base was made by operator {self.operator_name}; this release has {OPERATOR}")
        shape = (self.operator.low_rows, self.operator.low_columns)
        decoded = coders.decode(self.coded, self.rung, shape).astype(np.float32)
        decoded *= np.float32(2.0**-self.exponent)
        return decoded

    def padding_pixels(self) -> NDArray[np.bool_] | None:
        """Which pixels of the original are padding: bool, shape (rows, columns); None where none is."""
        return unpack_mask(self.padding_mask, self.rows, self.columns) if self.padding_mask else None


@dataclass(frozen=True)
class Rendition:
    """What one model made of one base, how, and how good it was measured to be.

    ``guide``, ``points`` and ``patches``: what the encoder tells the decoder of the image (the modules of these names
    in node/reconstruct). Empty means none.
    """

    base_digest: str
    original_uid: str
    derived_uid: str
    upscaler: str
    method: str
    generative: bool
    weights_digest: str
    numerics: dict[str, str]
    steps: int
    seed: int
    output_digest: str
    verdict: Verdict
    tried: tuple[RungOutcome, ...] = ()
    postprocessing: str = POSTPROCESSING
    guide: bytes = b""
    points: bytes = b""
    patches: bytes = b""
    extra: dict[str, Any] = field(default_factory=dict)


def derived_uid(
    original_uid: str,
    base_digest: str,
    upscaler: str,
    weights_digest: str,
    steps: int,
    seed: int,
    extra: str = "",
) -> str:
    """The SOP Instance UID of a reconstruction: a function of everything that decides its pixels (PS3.5 B.2).

    ``extra`` is the digest of guide, points and patches; empty where a rendition has none.
    """
    parts = [original_uid, base_digest, upscaler, weights_digest, str(steps), str(seed), POSTPROCESSING]
    name = "|".join([*parts, extra] if extra else parts)
    return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"


def seed_of(base_digest: str) -> int:
    """The seed of every random draw for a base: 31 bits of its digest."""
    return int(base_digest[:8], 16) & 0x7FFFFFFF


# --- base -----------------------------------------------------------------------------------------------------


def encode_base(base: Base) -> bytes:
    meta = {
        "operator": base.operator_name,
        "rung": asdict(base.rung),
        "rows": base.rows,
        "columns": base.columns,
        "bits_stored": base.bits_stored,
        "minimum": base.minimum,
        "maximum": base.maximum,
        "padding": list(base.padding) if base.padding else None,
        "padding_value": base.padding_value,
        "exponent": base.exponent,
        "quantisation_rms": base.quantisation_rms,
        "original_digest": base.original_digest,
        "pixel_digest": base.pixel_digest,
        "pixel_vr": base.pixel_vr,
        "transfer_syntax": base.header.transfer_syntax_uid,
    }
    sections = {
        "meta": _json(meta),
        "header": base.header.before,
        "trailer": base.header.after,
        "pixels": base.coded,
        "padding": base.padding_mask,
    }
    return _pack(b"B", sections, stored={"pixels", "padding"})


def decode_base(data: bytes) -> Base:
    """Raises PayloadError on damage, another kind of object, or a version this release does not read."""
    sections = _unpack(data, b"B")
    with _shape_errors("base"):
        meta = json.loads(sections["meta"])
        return Base(
            rung=Rung(**meta["rung"]),
            rows=meta["rows"],
            columns=meta["columns"],
            bits_stored=meta["bits_stored"],
            minimum=meta["minimum"],
            maximum=meta["maximum"],
            padding=(meta["padding"][0], meta["padding"][1]) if meta["padding"] else None,
            padding_value=meta["padding_value"],
            exponent=meta["exponent"],
            quantisation_rms=meta["quantisation_rms"],
            original_digest=meta["original_digest"],
            pixel_digest=meta["pixel_digest"],
            pixel_vr=meta["pixel_vr"],
            header=HeaderBytes(meta["transfer_syntax"], sections["header"], sections.get("trailer", b"")),
            coded=sections["pixels"],
            padding_mask=sections.get("padding", b""),
            operator_name=meta["operator"],
        )


# --- rendition ------------------------------------------------------------------------------------------------


def encode_rendition(rendition: Rendition) -> bytes:
    meta = asdict(rendition)
    parts = {name: meta.pop(name) for name in ("guide", "points", "patches")}
    return _pack(b"R", {"meta": _json(meta), **parts}, stored=set(parts))


def decode_rendition(data: bytes) -> Rendition:
    """Raises PayloadError on damage, another kind of object, or a version this release does not read."""
    sections = _unpack(data, b"R")
    with _shape_errors("rendition"):
        meta = json.loads(sections["meta"])
        meta["verdict"] = _verdict(meta["verdict"])
        meta["tried"] = tuple(
            RungOutcome(**{**outcome, "verdict": _verdict(outcome["verdict"])}) for outcome in meta["tried"]
        )
        meta |= {name: sections.get(name, b"") for name in ("guide", "points", "patches")}
        return Rendition(**meta)


def _verdict(fields: dict[str, Any]) -> Verdict:
    return Verdict(**{**fields, "failures": tuple(fields["failures"])})


# --- the padding mask -----------------------------------------------------------------------------------------


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """A bool mask as bits, each row combined by exclusive or with the one above, deflated."""
    bits = np.packbits(mask, axis=1)
    bits[1:] ^= bits[:-1].copy()
    return zlib.compress(bits.tobytes(), 9)


def unpack_mask(data: bytes, rows: int, columns: int) -> NDArray[np.bool_]:
    """The inverse of ``pack_mask``. Raises PayloadError."""
    width = (columns + 7) // 8
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(data, rows * width + 1)
    except zlib.error as error:
        raise PayloadError(f"padding mask cannot be inflated: {error}") from error
    if len(raw) != rows * width:
        raise PayloadError(f"padding mask holds {len(raw)} bytes, not {rows * width}")
    bits = np.bitwise_xor.accumulate(np.frombuffer(raw, np.uint8).reshape(rows, width), axis=0)
    return np.unpackbits(bits, axis=1, count=columns).astype(np.bool_)


# --- the container --------------------------------------------------------------------------------------------


def _pack(kind: bytes, sections: dict[str, bytes], *, stored: set[str]) -> bytes:
    parts = [MAGIC, kind, bytes([VERSION])]
    present = {name: data for name, data in sections.items() if data}
    parts.append(bytes([len(present)]))
    for name, data in present.items():
        encoding = _STORED if name in stored else _DEFLATED
        body = data if encoding == _STORED else zlib.compress(data, 9)
        parts.append(struct.pack("<B", len(name)) + name.encode("ascii"))
        parts.append(struct.pack("<BQQ", encoding, len(data), len(body)) + body)
    content = b"".join(parts)
    return content + hashlib.sha256(content).digest()


def _unpack(data: bytes, kind: bytes) -> dict[str, bytes]:
    if data[:6] != MAGIC:
        raise PayloadError("not a payload of this archive: no magic")
    if data[6:7] != kind:
        raise PayloadError(f"payload is of kind {data[6:7]!r}, not {kind!r}")
    if data[7:8] != bytes([VERSION]):
        raise PayloadError(f"payload has version {data[7:8]!r}; this release reads {VERSION}")
    if len(data) < 41 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise PayloadError("payload is damaged: its checksum does not match")
    sections: dict[str, bytes] = {}
    at = 9
    with _shape_errors("payload"):
        for _ in range(data[8]):
            size = data[at]
            name = data[at + 1 : at + 1 + size].decode("ascii")
            encoding, length, coded = struct.unpack_from("<BQQ", data, at + 1 + size)
            at += 1 + size + 17
            body = data[at : at + coded]
            sections[name] = body if encoding == _STORED else _inflate(body, length)
            if len(sections[name]) != length:
                raise PayloadError(f"payload section {name} has {len(sections[name])} bytes, not {length}")
            at += coded
        if at != len(data) - 32:
            raise PayloadError("payload has bytes after its last section")
    return sections


def _inflate(body: bytes, length: int) -> bytes:
    return zlib.decompressobj().decompress(body, length + 1)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class _shape_errors:  # noqa: N801 - reads as a statement: with _shape_errors("base")
    """Turns what malformed content raises into PayloadError."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, IndexError, OverflowError, struct.error, zlib.error)):
            raise PayloadError(f"{self.what} is malformed: {error!r}") from error
