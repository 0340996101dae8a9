"""Renders a stored base and rendition to pixels, with the model that made them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.codec.decode import Decoded, SideInformation
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Upscaler
from storage.dicom.pixels import pixel_digest
from storage.errors import PayloadError, RenditionMismatch
from storage.formats.payload import Base, Rendition, decode_base, decode_rendition

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]


class Rendering:
    """A base decoded with its side information. The structure is computed once and serves both objects of a rendition.

    ``structure``: float32 (rows, columns), grey levels. ``numerics``: those of this process, which may differ from the
    rendition's. Raises PayloadError.
    """

    def __init__(self, base: Base, upscaler: Upscaler, side: SideInformation, *, seed: int, steps: int) -> None:
        side.check(base.rows, base.columns)
        self._side, self._upscaler = side, upscaler
        self._decoded = Decoded.of(base)
        self._task = self._decoded.task(side.noise if upscaler.needs_deviation else None, seed, steps)
        self.structure: Float = self._decoded.structure(upscaler, self._task, side)
        self.numerics = dict(upscaler.numerics)

    @classmethod
    def of(cls, base: Base, rendition: Rendition, catalogue: Catalogue, model: Path | None = None) -> Rendering:
        """Render with the model that made the rendition. Raises ModelMissing and PayloadError.

        ``model``: folder with the archive's copy of that model, or None.
        """
        side, upscaler = SideInformation.of(rendition), catalogue.for_rendition(rendition, model)
        return cls(base, upscaler, side, seed=rendition.seed, steps=rendition.steps)

    def pixels(self, *, draw: bool) -> Pixels:
        """The pixels with drawn noise or without it: uint16 (rows, columns), with no bit above Bits Stored set."""
        image = self.structure.copy()
        if draw:
            image += self._decoded.drawn_noise(self._upscaler, self._task, self.structure, self._side)
        return self._decoded.pixels(image, self._side)


def verified(rendering: Rendering, rendition: Rendition, *, draw: bool) -> Pixels:
    """The pixels of a rendering. Raises RenditionMismatch if their digest is not the verified one."""
    pixels = rendering.pixels(draw=draw)
    digest = pixel_digest(pixels)
    expected = rendition.output_digest if draw else rendition.structure_digest
    if digest != expected:
        raise RenditionMismatch(
            f"reconstruction of {rendition.derived_uid if draw else rendition.structure_uid} has pixel digest "
            f"{digest}, not {expected} as verified with numerics {rendition.numerics}; now {rendering.numerics}"
        )
    return pixels


def read_pair(base_path: Path, rendition_path: Path) -> tuple[Base, Rendition]:
    """Read a base and its rendition. Raises PayloadError if one is malformed or the rendition is of another base."""
    data = base_path.read_bytes()
    rendition = decode_rendition(rendition_path.read_bytes())
    if rendition.base_digest != hashlib.sha256(data).hexdigest():
        raise PayloadError(f"rendition {rendition_path.name} belongs to base {rendition.base_digest}")
    return decode_base(data), rendition


def extremes(base: Base, served: Pixels, plain: Pixels) -> dict[str, list[int]]:
    """Smallest and largest pixel values outside padding, each with and without drawn noise, for the derived header."""
    padding = base.padding_content()
    shown = np.ones(served.shape, dtype=bool) if padding is None else ~padding[0]
    return {
        name: [int(values(served[shown])), int(values(plain[shown]))]
        for name, values in (("minimum", np.min), ("maximum", np.max))
    }
