"""One decoded original, with what several bases of it share: downsampled images, coded regions and noise curve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.codec.encode.air_noise import without_air_noise
from node.codec.encode.padding_fill import filled
from node.fidelity.windows import is_inverted
from storage.dicom.dicomfile import HeaderBytes, opened
from storage.dicom.padding_range import padding_mask, padding_range
from storage.dicom.pixels import PixelShape, integer_pixels, pixel_digest
from storage.errors import NotReconstructable
from storage.formats.geometry import CELL, DCT_BLOCK, cell_pixels
from storage.formats.padding import pack_padding
from storage.formats.payload import CURVE_KNOTS, CodedRegion
from storage.formats.resample import Operator
from storage.records import ReasonCode

if TYPE_CHECKING:
    from node.fidelity.reference import Reference

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Float = NDArray[np.float32]

SAME = 1 / 64
"""Largest difference of samples that count as equal, in grey levels: the rounding error of resampling."""
_EVERY = 4
"""Step between the rows in which the noise curve is measured. Chosen, not measured."""
_SEEN = 200
"""Least number of pixels between two knots for their noise to be used. Chosen, not measured."""
_WORTH_CUTTING = 0.9
"""Largest share of the samples in a coded region; above it the whole image is coded. Chosen, not measured."""


@dataclass(frozen=True)
class Source:
    """One decoded original: its stored values (uint16, rows x columns), its padding, its header.

    Padding (PS3.3 C.7.5.1.1.2) is every pixel whose value lies in the padding range, wherever it is. A pixel of the
    breast that has such a value by chance is padding too, as the header says and viewers assume. The decoder restores
    padding exactly and gives no other pixel a value of the range. ``padding``: the inclusive range, or None.
    ``padding_pixels``: bool (rows, columns), or None if no pixel is padding. ``inverted``: whether dense tissue is dark
    in stored values. ``air``: cells of 16 x 16 pixels whose noise is not coded, bool, or None.
    """

    pixels: Pixels
    padding: tuple[int, int] | None
    padding_pixels: Mask | None
    bits_stored: int
    digest: str
    pixel_digest: str
    pixel_vr: str
    header_bytes: HeaderBytes
    inverted: bool = False
    air: Mask | None = None
    _extremes: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    _lowered: dict[int, Float] = field(default_factory=dict, init=False, compare=False, repr=False)
    _to_code: dict[int, Float] = field(default_factory=dict, init=False, compare=False, repr=False)
    _curves: dict[str, bytes] = field(default_factory=dict, init=False, compare=False, repr=False)
    _regions: dict[int, CodedRegion | None] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def extremes(self) -> tuple[int, int]:
        """Smallest and largest stored value outside padding. An excerpt has those of the whole image."""
        if self._extremes is not None:
            return self._extremes
        shown = self.pixels if self.padding_pixels is None else self.pixels[~self.padding_pixels]
        return int(shown.min()), int(shown.max())

    @property
    def padding_bytes(self) -> bytes:
        """Which pixels are padding and their values, as ``pack_padding`` stores them; empty if none is padding."""
        return b"" if self.padding_pixels is None else pack_padding(self.pixels, self.padding_pixels)

    @property
    def counted(self) -> Mask:
        """Which pixels are not padding: bool, the shape of ``pixels``."""
        return np.ones(self.pixels.shape, dtype=bool) if self.padding_pixels is None else ~self.padding_pixels

    @property
    def noise_curve(self) -> bytes:
        """The curve of a companded base (storage/formats/payload.py): its slope is the inverse of the image's own
        noise.

        The noise at a grey level is the median absolute difference of a pixel from the mean of its left and right
        neighbours, clipped to 0.5 to 4 times the average. Computed once; an excerpt has that of the whole image.
        """
        if "noise" not in self._curves:
            self._curves["noise"] = _noise_curve(self)
        return self._curves["noise"]

    def lowered(self, scale: int) -> Float:
        """The image, with padding filled, downsampled: float32, in grey levels. Computed once; do not modify it."""
        if scale not in self._lowered:
            rows, columns = self.pixels.shape
            self._lowered[scale] = Operator(rows, columns, scale).down(without_padding(self))
        return self._lowered[scale]

    def to_code(self, scale: int) -> Float:
        """``lowered`` without the noise of the air. Computed once; do not modify it."""
        if scale not in self._to_code:
            samples = self.lowered(scale)
            if self.air is not None:
                rows, columns = samples.shape
                samples = without_air_noise(samples, cell_pixels(self.air, rows, columns, CELL // scale))
            self._to_code[scale] = samples
        return self._to_code[scale]

    def region(self, scale: int) -> CodedRegion | None:
        """The region of ``lowered`` that is coded; None means all of it. Computed once."""
        if scale not in self._regions:
            self._regions[scale] = _region(self.lowered(scale))
        return self._regions[scale]

    def excerpt(self, pixels: Pixels) -> Source:
        """A source of other pixels, none of them padding, with the extremes, noise curve and header of this image."""
        other = replace(self, pixels=pixels, padding=None, padding_pixels=None, air=None, _extremes=self.extremes)
        other._curves["noise"] = self.noise_curve
        return other

    @classmethod
    def of(cls, pixels: Pixels, header: Dataset, header_bytes: HeaderBytes, digest: str, pixel_vr: str) -> Source:
        """A source from decoded pixels. ``digest``: SHA-256 of the original's file.

        Raises NotReconstructable if a pixel has bits above Bits Stored, or if all pixels are padding.
        """
        bits_stored = PixelShape.of(header).bits_stored
        if int(pixels.max()) >> bits_stored:
            raise NotReconstructable(ReasonCode.STRAY_BITS.sentence, ReasonCode.STRAY_BITS)
        mask = padding_mask(pixels, header)
        if mask is not None and mask.all():
            raise NotReconstructable(ReasonCode.ALL_PADDING.sentence, ReasonCode.ALL_PADDING)
        return cls(
            pixels=pixels,
            padding=padding_range(header),
            padding_pixels=mask,
            bits_stored=bits_stored,
            digest=digest,
            pixel_digest=pixel_digest(pixels),
            pixel_vr=pixel_vr,
            header_bytes=header_bytes,
            inverted=is_inverted(header),
        )


def read_source_and_reference(path: Path, digest: str) -> tuple[Source, Reference]:
    """Read an original from its Part 10 file, with the reference that reconstructions are measured against.

    Raises PixelError if the pixels cannot be decoded, and NotReconstructable as ``Source.of`` does.
    """
    from node.fidelity.reference import Reference

    pixels = integer_pixels(path)
    with opened(path) as file:
        header_bytes, pixel_vr = file.header_bytes(), file.layout.pixel_vr
    header = header_bytes.dataset()
    source = Source.of(pixels, header, header_bytes, digest, pixel_vr)
    reference = Reference(pixels, header)
    return replace(source, air=reference.air), reference


def without_padding(source: Source) -> Pixels:
    """The pixels with padding filled (padding_fill.py); ``source.pixels`` itself if there is none."""
    if source.padding_pixels is None:
        return source.pixels
    return filled(source.pixels, source.padding_pixels)


def _region(samples: Float) -> CodedRegion | None:
    """The smallest region outside of which all samples have the grey level of a corner, such as black air.

    A coder would spend half of its time on such air. None if the region is hardly smaller than the whole.
    """
    best: CodedRegion | None = None
    for corner in {float(samples[row, column]) for row in (0, -1) for column in (0, -1)}:
        other = np.abs(samples - np.float32(round(corner))) > SAME
        rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
        if rows.size:
            # a multiple of the block side, so that JPEG XL's blocks lie where those of the whole image would
            row, column = (int(found[0]) // DCT_BLOCK * DCT_BLOCK for found in (rows, columns))
            region = (row, column, int(rows[-1]) + 1 - row, int(columns[-1]) + 1 - column)
            found = CodedRegion(*region, beyond=round(corner))
            if best is None or found.rows * found.columns < best.rows * best.columns:
                best = found
    return best if best is not None and best.rows * best.columns < _WORTH_CUTTING * samples.size else None


def _noise_curve(source: Source) -> bytes:
    low, high = source.extremes
    pixels = source.pixels[::_EVERY].astype(np.float32)
    fine = np.abs(pixels[:, 1:-1] - (pixels[:, :-2] + pixels[:, 2:]) / 2)
    level = (pixels[:, 1:-1] - low) * (np.float32(CURVE_KNOTS - 1) / max(high - low, 1))
    if source.inverted:
        level = CURVE_KNOTS - 1 - level
    number = np.clip(level, 0, CURVE_KNOTS - 2).astype(np.int32)
    counted = source.counted[::_EVERY, 1:-1] & (fine > 0)
    order = np.argsort(number[counted], kind="stable")
    values, groups = fine[counted][order], np.bincount(number[counted], minlength=CURVE_KNOTS - 1)
    parts = np.split(values, np.cumsum(groups)[:-1])
    noise = np.array([float(np.median(part)) if len(part) >= _SEEN else np.nan for part in parts])
    known = ~np.isnan(noise)
    if not known.any():
        noise, known = np.ones(CURVE_KNOTS - 1), np.ones(CURVE_KNOTS - 1, dtype=bool)
    typical = float(np.average(noise[known], weights=np.maximum(groups[known], 1)))
    filled_in = np.interp(np.arange(CURVE_KNOTS - 1), np.flatnonzero(known), noise[known])
    steps = 1 / np.clip(filled_in, typical / 2, typical * 4)
    knots = np.rint(np.concatenate([[0], np.cumsum(steps)]) * (65535 / steps.sum())).astype("<u2")
    return bytes(knots.tobytes())
