"""A stored base and rendition to pixels, with the model that made them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.upscalers.catalogue import Catalogue
from storage.errors import PayloadError, RenditionMismatch
from storage.payload import Base, Rendition, decode_base, decode_rendition
from storage.pixels import pixel_digest


@dataclass(frozen=True)
class Rendered:
    """What came out here and now: uint16 (rows, columns), its digest, and the numerics it was made with."""

    pixels: NDArray[np.uint16]
    digest: str
    numerics: dict[str, str]


def rendered(base: Base, rendition: Rendition, catalogue: Catalogue, model: Path | None = None) -> Rendered:
    """The pixels of a rendition, whatever they are. Raises ModelMissing, PayloadError."""
    from node.codec.engine import reconstruct
    from node.codec.guide import decode_guide
    from node.codec.patches import decode_patches
    from node.codec.points import decode_points

    upscaler = catalogue.for_rendition(rendition, model)
    guide = decode_guide(rendition.guide) if rendition.guide else None
    points = decode_points(rendition.points) if rendition.points else None
    patches = decode_patches(rendition.patches) if rendition.patches else None
    pixels = reconstruct(
        base, upscaler, seed=rendition.seed, steps=rendition.steps, guide=guide, points=points, patches=patches
    )
    return Rendered(pixels, pixel_digest(pixels), dict(upscaler.numerics))


def reconstructed(
    base: Base, rendition: Rendition, catalogue: Catalogue, model: Path | None = None
) -> NDArray[np.uint16]:
    """The verified pixels of a rendition. Raises RenditionMismatch where others come out."""
    made = rendered(base, rendition, catalogue, model)
    if made.digest != rendition.output_digest:
        raise RenditionMismatch(
            f"reconstruction of {rendition.derived_uid} gives pixels {made.digest}, verified were "
            f"{rendition.output_digest} with numerics {rendition.numerics}; now {made.numerics}"
        )
    return made.pixels


def read_pair(base_path: Path, rendition_path: Path) -> tuple[Base, Rendition]:
    """A base and its rendition from their files. Raises PayloadError where they do not belong together."""
    data = base_path.read_bytes()
    rendition = decode_rendition(rendition_path.read_bytes())
    if rendition.base_digest != hashlib.sha256(data).hexdigest():
        raise PayloadError(f"rendition {rendition_path.name} belongs to base {rendition.base_digest}")
    return decode_base(data), rendition
