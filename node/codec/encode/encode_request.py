"""Requests to a worker: encode an original, or make another rendition of an existing base; and their results."""

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
    """Encode an original, and verify the result against it. Without ``thresholds``, ``point`` is measured, not gated.

    ``point``: the only operating point to try; None searches ``scales`` with JPEG XL at ``effort``. ``patch_share``:
    largest share of the image that repairs may cover. ``regions`` (row, column, height, width, in pixels) are stored
    exactly, whatever the gate finds there. ``upscaler``: name of the only candidate of the catalogue to use; the
    encoder chooses among all of them if it is empty or not one of them.
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

    def answer(self, catalogue: Catalogue) -> EncodeResult:
        """Raises NotReconstructable or PixelError if the pixels cannot be encoded."""
        began = time.monotonic()
        source, reference = read_source_and_reference(self.original, self.original_digest)
        candidates = catalogue.candidates()
        encoder = Encoder(
            *(source, reference, [each for each in candidates if each.name == self.upscaler] or candidates),
            self.thresholds,
            scales=self.scales,
            effort=self.effort,
            share=self.patch_share,
            regions=self.regions,
        )
        made = encoder.encode_at(self.point) if self.point else encoder.search()
        return EncodeResult.of(encoder, made, self.original_uid, began)


@dataclass(frozen=True)
class ReverifyRequest:
    """Upscale an existing base with the configured upscaler and with the baseline, measure both, and keep the smaller
    result that passes; fields as in EncodeRequest."""

    original: Path
    original_digest: str
    original_uid: str
    base: Path
    thresholds: Thresholds | None
    patch_share: float = 0.15
    regions: tuple[Box, ...] = ()

    def answer(self, catalogue: Catalogue) -> EncodeResult:
        """Raises PayloadError if the base was made from another original."""
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
    """A rendition and its model. ``base`` and ``data``: the bytes of its two objects, base and rendition."""

    rendition: Rendition
    point: OperatingPoint
    base: bytes
    data: bytes
    model: Installed


@dataclass(frozen=True)
class EncodeResult:
    """``tried``: every operating point that was measured. ``made``: the cheapest that passed, None if none did.

    ``seconds``: how long all of it took.
    """

    tried: tuple[Trial, ...]
    made: EncodedRendition | None
    seconds: float = 0.0

    @classmethod
    def of(cls, encoder: Encoder, made: Encoded | None, original_uid: str, began: float) -> EncodeResult:
        """What an encoder found, with UIDs, digests and the bytes to store; it began at that ``time.monotonic``."""
        encoded = None
        if made is not None:
            rendition, model = rendition_of(made, original_uid), Installed.of(made.upscaler)
            encoded = EncodedRendition(rendition, made.base.point, made.data, encode_rendition(rendition), model)
        return cls(tuple(encoder.tried), encoded, round(time.monotonic() - began, 2))


def rendition_of(made: Encoded, original_uid: str) -> Rendition:
    """The rendition of an encoding, as it is stored beside the base."""
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
