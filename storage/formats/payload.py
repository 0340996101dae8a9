"""The object formats ``base`` and ``rendition``; docs/FORMATS.md describes them byte by byte.

Both use the container of storage/formats/container.py. A base holds the encoded, downsampled pixels and the verbatim
header bytes; it does not depend on a model. A rendition describes what one model makes of one base: the side
information for the decoder, and the measured figures.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.dicom.dicomfile import HeaderBytes
from storage.errors import PayloadError
from storage.formats import coders
from storage.formats.container import malformed_is_payload_error, pack, unpack
from storage.formats.metadata import Level, Metadata, Side
from storage.formats.padding import unpack_padding
from storage.formats.resample import OPERATOR, Operator
from storage.records import OperatingPoint, Verdict

POSTPROCESSING = "1"
"""Version of all steps between upscaler and output pixels: residuals, points, noise, rounding, clipping, padding."""

_REGION = "<5I"
"""Encoding of a CodedRegion."""
CURVE_KNOTS = 33
"""Number of knots of the companding curve."""

NAMESPACE = uuid.UUID("6a4cbdd1-2a3e-5b0a-9f0e-94dc6f2c1b57")
"""Namespace of the UIDs of reconstructions."""


class CodedRegion(NamedTuple):
    """The part of a base's samples that is encoded. All other samples have the value ``beyond``, in grey levels."""

    row: int
    column: int
    rows: int
    columns: int
    beyond: int

    @classmethod
    def whole(cls, rows: int, columns: int) -> CodedRegion:
        """The region of all samples of that shape."""
        return cls(0, 0, rows, columns, beyond=0)

    @property
    def part(self) -> tuple[slice, slice]:
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)

    def within(self, rows: int, columns: int) -> bool:
        """Whether the region lies inside samples of that shape."""
        down = 0 <= self.row < self.row + self.rows <= rows
        return down and 0 <= self.column < self.column + self.columns <= columns


@dataclass(frozen=True)
class Base:
    """Downsampled, encoded pixels and the header of one image.

    ``rows``, ``columns``, ``bits_stored``: of the original. ``minimum``, ``maximum``: its smallest and largest stored
    value outside padding. ``padding``: inclusive range of stored values that mean padding (PS3.3 C.7.5.1.1.2), or None.
    ``padding_bytes``: mask and values of padding (storage/formats/padding.py). Encoded samples are ``(grey levels -
    offset) * gain``, then mapped by ``curve`` if there is one. The gain is negative for MONOCHROME1, so that
    the image is encoded as it is displayed. ``curve``: the companding curve at evenly spaced samples, as CURVE_KNOTS
    ascending values from 0 to 65535, uint16, little endian. ``quantisation_rms``: root mean square of decoded base
    minus ideal base, in grey levels. ``pixel_digest``: of the original's stored values. ``region``: the encoded part;
    None means all.
    """

    point: OperatingPoint
    rows: Side
    columns: Side
    bits_stored: Annotated[int, Field(ge=1, le=16)]
    minimum: Level
    maximum: Level
    padding: tuple[Level, Level] | None
    offset: float
    gain: float
    quantisation_rms: float
    original_digest: str
    pixel_digest: str
    pixel_vr: str
    header: HeaderBytes
    coded: bytes
    padding_bytes: bytes = b""
    operator_name: Annotated[str, Field(alias="operator")] = OPERATOR
    region: CodedRegion | None = None
    curve: bytes = b""

    @property
    def operator(self) -> Operator:
        return Operator(self.rows, self.columns, self.point.scale)

    def samples(self) -> NDArray[np.float32]:
        """The decoded base in grey levels: float32, shape (ceil(rows/scale), ceil(columns/scale)). Raises
        PayloadError."""
        if self.operator_name != OPERATOR:
            raise PayloadError(f"base needs operator {self.operator_name}; this release has {OPERATOR}")
        shape = (self.operator.low_rows, self.operator.low_columns)
        region = self.region or CodedRegion.whole(*shape)
        if not region.within(*shape):
            raise PayloadError(f"region {tuple(region)} of a base reaches beyond its {shape} samples")
        decoded = coders.decode(self.coded, self.point, (region.rows, region.columns)).astype(np.float32)
        if self.curve:
            decoded = unmapped(decoded, self.curve)
        decoded *= np.float32(1 / self.gain)
        decoded += np.float32(self.offset)
        if self.region is None:
            return decoded
        try:
            whole = np.full(shape, region.beyond, dtype=np.float32)
        except MemoryError as error:
            raise PayloadError(f"base of {shape} samples does not fit into memory") from error
        whole[region.part] = decoded
        return whole

    def padding_content(self) -> tuple[NDArray[np.bool_], NDArray[np.uint16]] | None:
        """The mask of the original's padding, bool (rows, columns), and the padding pixels' values in raster order."""
        return unpack_padding(self.padding_bytes, self.rows, self.columns) if self.padding_bytes else None


@dataclass(frozen=True)
class Rendition:
    """One model's reconstruction of one base: how to decode it, and its measured figures.

    ``noise``, ``repairs``, ``points`` and ``patches``: side information (node/codec); empty means none.
    ``output_digest``: of the pixels with drawn noise. ``structure_digest``: of the pixels without it. ``fingerprint``:
    of the measured pixels with noise (node/codec/fingerprint.py). ``measured_uid``: the derived UID of the rendition
    whose pixels were measured; empty if it is this rendition. Another numerics gives other pixels, and another UID.
    """

    base_digest: str
    original_uid: str
    derived_uid: str
    upscaler: str
    method: str
    generative: bool
    weights_digest: str
    numerics: dict[str, str]
    steps: Annotated[int, Field(ge=0, le=2**31)]
    seed: Annotated[int, Field(ge=0, le=2**31)]
    output_digest: str
    structure_digest: str
    verdict: Verdict
    postprocessing: str = POSTPROCESSING
    noise: bytes = b""
    repairs: bytes = b""
    points: bytes = b""
    patches: bytes = b""
    fingerprint: bytes = b""
    measured_uid: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def structure_uid(self) -> str:
        """The SOP Instance UID of the same reconstruction without drawn noise."""
        return structure_uid(self.derived_uid)


def mapped(samples: NDArray[np.float32], curve: bytes) -> NDArray[np.float32]:
    """Map samples from 0 to 65535 by a companding curve: float32, the same shape. Raises PayloadError."""
    knots = _knots(curve)
    return np.interp(samples, np.linspace(0, 65535, CURVE_KNOTS), knots).astype(np.float32)


def unmapped(samples: NDArray[np.float32], curve: bytes) -> NDArray[np.float32]:
    """The inverse of ``mapped``. Raises PayloadError."""
    knots = _knots(curve)
    return np.interp(samples, knots, np.linspace(0, 65535, CURVE_KNOTS)).astype(np.float32)


def _knots(curve: bytes) -> NDArray[np.float64]:
    knots = np.frombuffer(curve, "<u2").astype(np.float64) if len(curve) == 2 * CURVE_KNOTS else np.zeros(1)
    if len(knots) != CURVE_KNOTS or knots[0] != 0 or knots[-1] != 65535 or (np.diff(knots) <= 0).any():
        raise PayloadError(f"curve of a base does not rise from 0 to 65535 in {CURVE_KNOTS} knots")
    return knots


_SIDE_INFORMATION = ("noise", "repairs", "points", "patches")


def structure_uid(derived: str) -> str:
    """The SOP Instance UID of the structure, derived from that of the reconstruction with noise (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, derived + '|structure').int}"


def with_derived_uid(made: Rendition) -> Rendition:
    """The rendition with ``derived_uid`` set: a function of how it is made, and of its pixels (PS3.5 B.2)."""
    side = hashlib.sha256(b"".join(getattr(made, name) for name in _SIDE_INFORMATION)).hexdigest()
    parts = (made.original_uid, made.base_digest, made.upscaler, made.weights_digest, made.steps, made.seed)
    name = "|".join(map(str, (*parts, made.postprocessing, side, made.output_digest, made.structure_digest)))
    return replace(made, derived_uid=f"2.25.{uuid.uuid5(NAMESPACE, name).int}")


def numerics_digest(numerics: dict[str, str]) -> str:
    """SHA-256, hex, of the numerics as canonical JSON."""
    return hashlib.sha256(_json(numerics)).hexdigest()


def seed_of(base_digest: str) -> int:
    """The seed of all random numbers for a base: 31 bits of its digest."""
    return int(base_digest[:8], 16) & 0x7FFFFFFF


# --- base -----------------------------------------------------------------------------------------------------


_OF_SECTIONS = {"header", "coded", "padding_bytes", "region", "curve"}
"""Fields of a base that are sections of their own. The others are members of the metadata."""
_BASE = Metadata("base", Base, sections=_OF_SECTIONS, more=["transfer_syntax"])


def encode_base(base: Base) -> bytes:
    meta = {name: value for name, value in asdict(base).items() if name not in _OF_SECTIONS}
    meta |= {"operator": meta.pop("operator_name"), "transfer_syntax": base.header.transfer_syntax_uid}
    sections = {
        "meta": _json(meta),
        "header": base.header.before,
        "trailer": base.header.after,
        "pixels": base.coded,
        "padding": base.padding_bytes,
        "curve": base.curve,
        "region": b"" if base.region is None else struct.pack(_REGION, *base.region),
    }
    return pack(b"B", sections, stored={"pixels", "padding", "region", "curve"})


def decode_base(data: bytes) -> Base:
    """Raises PayloadError if the object is damaged, of another kind, or of a version that this release does not read.

    The pixels are decoded later (``Base.samples``).
    """
    sections = unpack(data, b"B")
    with malformed_is_payload_error("base"):
        meta = _BASE.read(sections["meta"])
        if not meta["gain"]:
            raise PayloadError("base is malformed: its gain is 0")
        return Base(
            header=HeaderBytes(meta.pop("transfer_syntax"), sections["header"], sections.get("trailer", b"")),
            coded=sections["pixels"],
            padding_bytes=sections.get("padding", b""),
            region=CodedRegion(*struct.unpack(_REGION, sections["region"])) if "region" in sections else None,
            curve=sections.get("curve", b""),
            **meta,
        )


# --- rendition ------------------------------------------------------------------------------------------------


_OF_RENDITION_SECTIONS = (*_SIDE_INFORMATION, "fingerprint")
"""Fields of a rendition that are sections of their own."""
_RENDITION = Metadata("rendition", Rendition, sections=_OF_RENDITION_SECTIONS, optional=["measured_uid"])


def encode_rendition(rendition: Rendition) -> bytes:
    meta = asdict(rendition)
    side = {name: meta.pop(name) for name in _OF_RENDITION_SECTIONS}
    if not rendition.measured_uid:
        del meta["measured_uid"]
    return pack(b"R", {"meta": _json(meta), **side}, stored=set(side))


def decode_rendition(data: bytes) -> Rendition:
    """Raises PayloadError for the reasons of ``decode_base``."""
    sections = unpack(data, b"R")
    with malformed_is_payload_error("rendition"):
        parts = {name: sections.get(name, b"") for name in _OF_RENDITION_SECTIONS}
        return Rendition(**(_RENDITION.read(sections["meta"]) | parts))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
