"""The encoder's entry points: encode an original, or make another rendition of an existing base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.codec.encode.search import Encoded, Encoder
from node.codec.encode.source_image import read_source
from node.upscalers.catalogue import Catalogue
from node.upscalers.installed import Installed, installed
from storage.dicom.pixels import pixel_digest
from storage.errors import PayloadError
from storage.formats.payload import (
    Rendition,
    decode_base,
    derived_uid,
    encode_rendition,
)
from storage.records import OperatingPoint, Thresholds, Trial

Float = NDArray[np.float32]
Pixels = NDArray[np.uint16]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class EncodeRequest:
    """Encodes an original and verifies it. Without thresholds ``point`` is measured and nothing is gated.

    ``point``: the only operating point to try; None searches ``scales`` with JPEG XL at ``effort``. ``patch_share``:
    largest part of the image that repairs may cover; ``regions`` (row, column, height, width, in pixels) are stored
    exactly whatever the gate says of them; ``upscaler``: the only one of the catalogue's candidates to try, by name;
    all of them where it is empty, or is none of them.
    """

    original: Path
    original_digest: str
    original_uid: str
    thresholds: Thresholds | None
    point: OperatingPoint | None = None
    scales: tuple[int, ...] = (2, 1)
    effort: int = 5
    patch_share: float = 0.15
    regions: tuple[Box, ...] = ()
    upscaler: str = ""


@dataclass(frozen=True)
class ReverifyRequest:
    """Let the configured upscaler make a base that is there already, and measure that; fields as of EncodeRequest."""

    original: Path
    original_digest: str
    original_uid: str
    base: Path
    thresholds: Thresholds | None
    patch_share: float = 0.15
    regions: tuple[Box, ...] = ()


@dataclass(frozen=True)
class EncodeResult:
    """What was tried, and, where something passed, its rendition, base and rendition as object bytes, and the model."""

    tried: tuple[Trial, ...]
    made: Rendition | None = None
    base: bytes = b""
    rendition: bytes = b""
    model: Installed | None = None


def encode_and_verify(request: EncodeRequest, catalogue: Catalogue) -> EncodeResult:
    """Encode one file as ``request`` says. Raises NotReconstructable or PixelError where its pixels rule it out."""
    source, reference = read_source(request.original, request.original_digest)
    candidates = catalogue.candidates()
    encoder = Encoder(
        *(source, reference, [each for each in candidates if each.name == request.upscaler] or candidates),
        request.thresholds,
        scales=request.scales,
        effort=request.effort,
        share=request.patch_share,
        regions=request.regions,
    )
    made = encoder.at(request.point) if request.point else encoder.search()
    return _result(made, request.original_uid, tuple(encoder.tried))


def reverify(request: ReverifyRequest, catalogue: Catalogue) -> EncodeResult:
    """What the configured upscaler makes of an existing base, where it passes the gate; else why it does not.

    Raises PayloadError where the base is not one of this very original.
    """
    source, reference = read_source(request.original, request.original_digest)
    data = request.base.read_bytes()
    base = decode_base(data)
    if base.pixel_digest != source.pixel_digest:
        digest = hashlib.sha256(data).hexdigest()
        raise PayloadError(f"base {digest} was made of other pixels than original {request.original_digest} has")
    encoder = Encoder(
        *(source, reference, catalogue.candidates(), request.thresholds),
        share=request.patch_share,
        regions=request.regions,
    )
    return _result(encoder.of_base(base, data), request.original_uid, tuple(encoder.tried))


def _result(made: Encoded | None, original_uid: str, tried: tuple[Trial, ...]) -> EncodeResult:
    if made is None:
        return EncodeResult(tried)
    rendition = rendition_of(made, original_uid)
    return EncodeResult(tried, rendition, made.data, encode_rendition(rendition), installed(made.upscaler))


def rendition_of(made: Encoded, original_uid: str) -> Rendition:
    """What is stored beside the base."""
    upscaler, base_digest = made.upscaler, hashlib.sha256(made.data).hexdigest()
    told = hashlib.sha256(b"".join(made.parts.values())).hexdigest()
    name, weights, steps = upscaler.name, upscaler.weights_digest, upscaler.steps
    return Rendition(
        base_digest=base_digest,
        original_uid=original_uid,
        derived_uid=derived_uid(original_uid, base_digest, name, weights, steps, made.seed, told),
        upscaler=name,
        method=upscaler.method,
        generative=upscaler.generative,
        weights_digest=weights,
        numerics=upscaler.numerics,
        steps=steps,
        seed=made.seed,
        output_digest=pixel_digest(made.served),
        structure_digest=pixel_digest(made.plain),
        verdict=made.verdict,
        noise=made.parts["noise"],
        repairs=made.parts["repairs"],
        points=made.parts["points"],
        patches=made.parts["patches"],
        extra=_extremes(made),
    )


def _extremes(made: Encoded) -> dict[str, list[int]]:
    """Smallest and largest pixel value outside padding, with noise and without, for the derived header."""
    padding = made.base.padding_content()
    shown = np.ones(made.served.shape, dtype=bool) if padding is None else ~padding[0]
    return {
        name: [int(values(made.served[shown])), int(values(made.plain[shown]))]
        for name, values in (("minimum", np.min), ("maximum", np.max))
    }
