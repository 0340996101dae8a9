"""The object formats ``base`` and ``rendition``; docs/FORMATS.md describes them byte by byte.

Both are the same container: an eight-byte magic with kind and version, named sections, and a SHA-256 over all of
it. A base is the downsampled, coded pixels plus the verbatim header bytes, free of any model. A rendition is what
one model makes of one base, and what was measured.
"""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage import coders
from storage.coarseness import Coarseness
from storage.container import malformed_is_payload_error, pack, unpack
from storage.dicomfile import HeaderBytes
from storage.errors import PayloadError
from storage.padding import FORMAT as PADDING_FORMAT
from storage.padding import pack_mask as pack_mask  # noqa: PLC0414 - old importers
from storage.padding import unpack_mask as unpack_mask  # noqa: PLC0414
from storage.padding import unpack_padding
from storage.records import Rung, RungOutcome, Verdict
from storage.resample import OPERATOR, Operator

POSTPROCESSING = "1"
"""Version of everything between upscaler and output pixels (projection, rounding, clipping, padding)."""

_WINDOW = "<5I"

NAMESPACE = uuid.UUID("6a4cbdd1-2a3e-5b0a-9f0e-94dc6f2c1b57")


class Window(NamedTuple):
    """The part of a base's samples that is coded; all others are ``beyond``, in grey levels."""

    row: int
    column: int
    rows: int
    columns: int
    beyond: int

    @classmethod
    def whole(cls, rows: int, columns: int) -> Window:
        """All of samples of that shape."""
        return cls(0, 0, rows, columns, beyond=0)

    @property
    def part(self) -> tuple[slice, slice]:
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)

    def within(self, rows: int, columns: int) -> bool:
        """Whether it lies in samples of that shape."""
        down = 0 <= self.row < self.row + self.rows <= rows
        return down and 0 <= self.column < self.column + self.columns <= columns


@dataclass(frozen=True)
class Base:
    """Downsampled, coded pixels and the header of one image.

    ``rows``, ``columns``, ``bits_stored``: of the original. ``minimum``, ``maximum``: its extreme stored values
    outside padding. ``padding``: inclusive range of stored values that mean padding (PS3.3 C.7.5.1.1.2), or None;
    ``padding_mask``: which pixels are padding (``pack_mask``) where all have the value ``padding_value``; where they
    have several, these too (``pack_padding``).
    ``exponent``: coded samples are grey levels times 2**exponent. ``quantisation_rms``: root mean square of decoded
    base minus ideal base, in grey levels. ``pixel_digest``: of the original's stored values. ``coarseness``: where
    samples were scaled down or up before they were coded, beyond ``exponent``; None: nowhere. ``window``: what was
    coded; None: everything.
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
    coarseness: Coarseness | None = None
    window: Window | None = None

    @property
    def operator(self) -> Operator:
        return Operator(self.rows, self.columns, self.rung.scale)

    def samples(self) -> NDArray[np.float32]:
        """The decoded base in grey levels: float32, shape (ceil(rows/scale), ceil(columns/scale))."""
        if self.operator_name != OPERATOR:
            raise PayloadError(f"base was made by operator {self.operator_name}; this release has {OPERATOR}")
        shape = (self.operator.low_rows, self.operator.low_columns)
        window = self.window or Window.whole(*shape)
        if not window.within(*shape):
            raise PayloadError(f"window {tuple(window)} of a base reaches beyond its {shape} samples")
        decoded = coders.decode(self.coded, self.rung, (window.rows, window.columns)).astype(np.float32)
        decoded *= np.float32(2.0**-self.exponent)
        if self.coarseness is not None:
            decoded /= self.coarseness.scaling(self.rung.scale)[window.part]
        if self.window is None:
            return decoded
        whole = np.full(shape, window.beyond, dtype=np.float32)
        whole[window.part] = decoded
        return whole

    def padding_pixels(self) -> NDArray[np.bool_] | None:
        """Which pixels of the original are padding: bool, shape (rows, columns); None where none is."""
        found = self.padding_content()
        return None if found is None else found[0]

    def padding_content(self) -> tuple[NDArray[np.bool_], NDArray[np.uint16] | int] | None:
        """As ``padding_pixels``, and what these hold: one value, or uint16, one for each of them in raster order."""
        if not self.padding_mask:
            return None
        if self.padding_mask[0] == PADDING_FORMAT:
            return unpack_padding(self.padding_mask, self.rows, self.columns)
        return unpack_mask(self.padding_mask, self.rows, self.columns), self.padding_value


@dataclass(frozen=True)
class Rendition:
    """What one model made of one base, how, and how good it was measured to be.

    ``guide``, ``points`` and ``patches``: what the encoder tells the decoder of the image (the modules of these names
    in node/codec). Empty means none.
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
    version = 1
    if base.coarseness is not None:
        version, sections["coarseness"] = 2, base.coarseness.pack()
    if base.window is not None:
        version, sections["window"] = 3, struct.pack(_WINDOW, *base.window)
    return pack(b"B", sections, stored={"pixels", "padding"}, version=version)


def decode_base(data: bytes) -> Base:
    """Raises PayloadError on damage, another kind of object, or a version this release does not read."""
    sections = unpack(data, b"B")
    with malformed_is_payload_error("base"):
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
            coarseness=_coarseness(sections, meta["rows"], meta["columns"]),
            window=Window(*struct.unpack(_WINDOW, sections["window"])) if "window" in sections else None,
        )


def _coarseness(sections: dict[str, bytes], rows: int, columns: int) -> Coarseness | None:
    packed = sections.get("coarseness")
    return None if packed is None else Coarseness.unpack(packed, rows, columns)


# --- rendition ------------------------------------------------------------------------------------------------


def encode_rendition(rendition: Rendition) -> bytes:
    meta = asdict(rendition)
    for outcome in meta["tried"]:
        if not outcome["coarseness"]:
            del outcome["coarseness"]
    parts = {name: meta.pop(name) for name in ("guide", "points", "patches")}
    return pack(b"R", {"meta": _json(meta), **parts}, stored=set(parts))


def decode_rendition(data: bytes) -> Rendition:
    """Raises PayloadError on damage, another kind of object, or a version this release does not read."""
    sections = unpack(data, b"R")
    with malformed_is_payload_error("rendition"):
        meta = json.loads(sections["meta"])
        meta["verdict"] = _verdict(meta["verdict"])
        meta["tried"] = tuple(
            RungOutcome(**{**outcome, "verdict": _verdict(outcome["verdict"])}) for outcome in meta["tried"]
        )
        meta |= {name: sections.get(name, b"") for name in ("guide", "points", "patches")}
        return Rendition(**meta)


def _verdict(fields: dict[str, Any]) -> Verdict:
    return Verdict(**{**fields, "failures": tuple(fields["failures"])})


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
