"""The requests to encode an original and to make another rendition of an existing base, and their results."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from node.codec.encode.search import Encoded, Encoder
from node.codec.encode.source_image import read_source_and_reference
from node.codec.fingerprint import fingerprint_of
from node.codec.rendering import extremes
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Installed
from storage.dicom.pixels import pixel_digest
from storage.errors import PayloadError
from storage.formats.payload import Rendition, decode_base, encode_rendition, with_derived_uid
from storage.records import OperatingPoint, Thresholds, Trial

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class EncodeRequest:
    """Encode an original, and verify the result against it.

    ``thresholds``: limits of the gate; with None, which needs a ``point``, the result is measured but not gated.
    ``point``: the only operating point to try; None searches ``scales`` with JPEG XL at ``effort``. ``patch_share``:
    largest share of the image that repairs may cover. ``regions`` (row, column, height, width, in pixels) are stored
    exactly, whatever the gate measures there.
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

    def answer(self, catalogue: Catalogue) -> EncodeResult:
        """Encode. Raises NotReconstructable or PixelError if the pixels cannot be encoded, and ModelMissing."""
        began = time.monotonic()
        source, reference = read_source_and_reference(self.original, self.original_digest)
        encoder = Encoder(
            *(source, reference, catalogue.candidates(), self.thresholds),
            scales=self.scales,
            effort=self.effort,
            share=self.patch_share,
            regions=self.regions,
        )
        made = encoder.encode_at(self.point) if self.point else encoder.search()
        return EncodeResult.of(encoder, made, self.original_uid, began)


@dataclass(frozen=True)
class ReverifyRequest:
    """Upscale an existing base with the configured upscaler and with the baseline, and keep the smaller result that
    passes. Without ``thresholds`` only the configured upscaler is used. The fields are those of EncodeRequest."""

    original: Path
    original_digest: str
    original_uid: str
    base: Path
    thresholds: Thresholds | None
    patch_share: float = 0.15
    regions: tuple[Box, ...] = ()

    def answer(self, catalogue: Catalogue) -> EncodeResult:
        """Raises PayloadError if the base is malformed or was made from other pixels; otherwise as EncodeRequest."""
        began = time.monotonic()
        source, reference = read_source_and_reference(self.original, self.original_digest)
        data = self.base.read_bytes()
        base = decode_base(data)
        if base.pixel_digest != source.pixel_digest:
            digest = hashlib.sha256(data).hexdigest()
            raise PayloadError(f"base {digest} was not made from the pixels of original {self.original_digest}")
        encoder = Encoder(
            *(source, reference, catalogue.candidates(), self.thresholds),
            share=self.patch_share,
            regions=self.regions,
        )
        made = encoder.encode_from_base(base, data)
        return EncodeResult.of(encoder, made, self.original_uid, began)


@dataclass(frozen=True)
class EncodedRendition:
    """A rendition, its model, and the objects to store: ``base``, the base as bytes, and ``data``, the rendition."""

    rendition: Rendition
    point: OperatingPoint
    base: bytes
    data: bytes
    model: Installed


@dataclass(frozen=True)
class EncodeResult:
    """The answer to a request.

    ``tried``: the trials that ``Encoder.tried`` holds. ``made``: the smallest encoding that passed, or None.
    ``seconds``: wall time of the whole request.
    """

    tried: tuple[Trial, ...]
    made: EncodedRendition | None
    seconds: float = 0.0

    @classmethod
    def of(cls, encoder: Encoder, made: Encoded | None, original_uid: str, began: float) -> EncodeResult:
        """The result of an encoder, with the bytes to store. ``began``: ``time.monotonic()`` at the start."""
        encoded = None
        if made is not None:
            rendition, model = rendition_of(made, original_uid), Installed.of(made.upscaler)
            encoded = EncodedRendition(rendition, made.base.point, made.data, encode_rendition(rendition), model)
        return cls(tuple(encoder.tried), encoded, round(time.monotonic() - began, 2))


def rendition_of(made: Encoded, original_uid: str) -> Rendition:
    """The rendition to store beside the base of an encoding."""
    upscaler = made.upscaler
    return with_derived_uid(
        Rendition(
            base_digest=hashlib.sha256(made.data).hexdigest(),
            original_uid=original_uid,
            derived_uid="",
            upscaler=upscaler.name,
            method=upscaler.method,
            generative=upscaler.generative,
            weights_digest=upscaler.weights_digest,
            numerics=upscaler.numerics,
            steps=upscaler.steps,
            seed=made.seed,
            output_digest=pixel_digest(made.served),
            structure_digest=pixel_digest(made.plain),
            verdict=made.verdict,
            noise=made.parts["noise"],
            repairs=made.parts["repairs"],
            points=made.parts["points"],
            patches=made.parts["patches"],
            fingerprint=fingerprint_of(made.served),
            extra=extremes(made.base, made.served, made.plain),
        )
    )
