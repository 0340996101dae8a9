"""Decodes a payload to pixels.

    base ── decode, upsample ──► upscaler ──► + points, + repairs ──► STRUCTURE ── round ──► served without noise
                                                                          │
                          noise model ── draw ── upscaler shapes it ──► + noise ── round ──► served

Rounding also clips to the original's extreme values, restores padding and pastes exact patches. Decoding is a pure
function: the same base, side information, upscaler and numerics give the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from node.codec.noise import NoiseModel, decode_noise
from node.codec.patches import Patches, decode_patches, pasted
from node.codec.points import Points, decode_points
from node.codec.residuals import CodedResiduals, decode_residuals
from node.upscalers.protocol import Upscaler, UpscaleTask
from storage.errors import PayloadError
from storage.formats.geometry import cell_pixels
from storage.formats.payload import Base, Rendition

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class SideInformation:
    """The parts of a rendition that the decoder needs besides the base. Each part may be missing."""

    noise: NoiseModel | None = None
    repairs: CodedResiduals | None = None
    points: Points | None = None
    patches: Patches | None = None

    @classmethod
    def of(cls, rendition: Rendition) -> SideInformation:
        """Decode the parts of a rendition. Raises PayloadError."""
        return cls(
            noise=decode_noise(rendition.noise) if rendition.noise else None,
            repairs=decode_residuals(rendition.repairs) if rendition.repairs else None,
            points=decode_points(rendition.points) if rendition.points else None,
            patches=decode_patches(rendition.patches) if rendition.patches else None,
        )

    def check(self, rows: int, columns: int) -> None:
        """Raises PayloadError if a part belongs to an image of another size."""
        for part in (self.noise, self.repairs, self.points, self.patches):
            if part is not None and (part.rows, part.columns) != (rows, columns):
                kind = type(part).__name__
                raise PayloadError(f"{kind} is of {part.rows} x {part.columns} pixels, the image of {rows} x {columns}")

    def held_pixels(self, shape: tuple[int, int]) -> Mask:
        """Pixels in cells with residuals or patches, for which no noise is needed: bool, of ``shape``."""
        mask = np.zeros(shape, dtype=bool)
        if self.repairs is not None:
            mask |= self.repairs.pixels
        if self.patches is not None:
            mask |= cell_pixels(self.patches.cells, *shape)
        return mask


@dataclass
class Decoded:
    """A decoded base, from which several images can be made.

    ``samples``: float32, low resolution. ``upsampled``: float32, full size, by consistent bicubic
    (storage/formats/resample.py). Both are in grey levels.
    """

    base: Base
    samples: Float
    upsampled: Float

    @classmethod
    def of(cls, base: Base) -> Decoded:
        """Decode and upsample a base. Raises PayloadError."""
        samples = base.samples()
        return cls(base, samples, base.operator.lift(samples))

    @cached_property
    def padding(self) -> tuple[Mask, Pixels] | None:
        """Which pixels are padding, and their values in raster order; None if no pixel is."""
        return self.base.padding_content()

    def task(self, noise: NoiseModel | None, seed: int = 0, steps: int = 0) -> UpscaleTask:
        """The input of an upscaler. Without a noise model the task's ``deviation`` is 0 everywhere."""
        deviation = _nothing(self.upsampled.shape) if noise is None else noise.deviation(self.upsampled)
        base = self.base
        return UpscaleTask(
            *(self.samples, base.operator, self.upsampled, base.point, base.quantisation_rms, deviation),
            seed=seed,
            steps=steps,
        )

    def structure(self, upscaler: Upscaler, task: UpscaleTask, side: SideInformation) -> Float:
        """The reconstruction before noise is drawn: float32, grey levels."""
        return self.with_side(self._within_range(upscaler.structure(task)), side)

    def with_side(self, image: Float, side: SideInformation) -> Float:
        """Add points and residuals to a structure (float32, modified in place) and clip it to the image's range."""
        if side.points is not None:
            image += side.points.field()
        if side.repairs is not None:
            image += side.repairs.field()
        return self._within_range(image)

    def _within_range(self, image: Float) -> Float:
        return np.clip(image, self.base.minimum, self.base.maximum, out=image)

    def drawn_noise(
        self,
        upscaler: Upscaler,
        task: UpscaleTask,
        structure: Float,
        side: SideInformation,
        deviation: Float | None = None,
    ) -> Float:
        """The drawn noise to add to the structure: float32, grey levels; 0 in cells with coded residuals.

        ``deviation``: the noise model's ``deviation(structure)``, if it is known already.
        """
        if side.noise is None:
            return np.zeros_like(structure)
        noise = upscaler.grain(task, structure, side.noise.draw(structure, task.seed, deviation))
        if side.repairs is not None:
            noise[side.repairs.pixels] = 0
        return noise

    def pixels(self, image: Float, side: SideInformation) -> Pixels:
        """The image rounded and clipped, with padding restored and patches pasted: uint16. May modify ``image``."""
        import torch

        base = self.base
        # torch rounds half to even as numpy does, but uses all cores and no float64 temporaries
        values = torch.from_numpy(image).round_().clamp_(base.minimum, base.maximum)
        pixels: Pixels = values.to(torch.int32).to(torch.uint16).numpy()
        if base.padding is not None:
            self._restore_padding(pixels, base.padding)
        return pixels if side.patches is None else pasted(pixels, side.patches)

    def rounded_structure(self, structure: Float, side: SideInformation) -> Float:
        """The pixels that are served without noise, as float32. ``structure`` is not modified."""
        return self.pixels(structure.copy(), side).astype(np.float32)

    def _restore_padding(self, pixels: Pixels, padding: tuple[int, int]) -> None:
        """Restore padding exactly, and move other pixels out of the padding range (PS3.3 C.7.5.1.1.2)."""
        low, high = padding
        accidental = (pixels >= low) & (pixels <= high)
        if accidental.any():
            pixels[accidental] = high + 1 if high < (1 << self.base.bits_stored) - 1 else max(low - 1, 0)
        if self.padding is not None:
            mask, values = self.padding
            pixels[mask] = values


def _nothing(shape: tuple[int, ...]) -> Float:
    """Zeros that take no memory: float32, read-only."""
    return np.broadcast_to(np.float32(0), shape)
