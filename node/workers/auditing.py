"""Audits one rendition in a worker: decodes it again, compares it with its record, and measures it if possible."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.codec.rendering import Rendering, read_pair
from node.upscalers.catalogue import Catalogue
from storage.dicom.pixels import pixel_digest
from storage.records import Thresholds, Verdict

if TYPE_CHECKING:
    from node.fidelity.reference import Reference

_OVERVIEW = 520
"""Most pixels of the longer side of a picture of the whole image."""
_DETAIL = 256
"""Pixels of the side of a detail at full resolution."""
_FULL_COLOUR = 99.0
"""Percentile of the absolute difference that is shown in full colour."""

Pixels = NDArray[np.uint16]


@dataclass(frozen=True)
class AuditRequest:
    """Decode a rendition again, and measure it against ``original``, if that is held.

    ``pictures``: whether to make pictures of both. ``model``: as in ReconstructRequest. ``thresholds``: the limits of
    today's gate; None for a rendition that was not gated.
    """

    base: Path
    rendition: Path
    original: Path | None = None
    original_digest: str = ""
    model: Path | None = None
    thresholds: Thresholds | None = None
    pictures: bool = False

    def answer(self, catalogue: Catalogue) -> Audited:
        """Raises ModelMissing or PayloadError if the rendition cannot be decoded."""
        from node.codec.encode.source_image import read_source_and_reference
        from node.fidelity.gate import judge, measure_noise, measure_structure

        base, rendition = read_pair(self.base, self.rendition)
        rendering = Rendering.of(base, rendition, catalogue, self.model)
        served, plain = rendering.pixels(draw=True), rendering.pixels(draw=False)
        digests = pixel_digest(served), pixel_digest(plain)
        same = digests == (rendition.output_digest, rendition.structure_digest)
        found = (same, digests[0], rendering.numerics, rendition.numerics, rendition.verdict)
        if self.original is None:
            return Audited(*found)
        with self.original.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.original_digest:
                return Audited(*found, original_whole=False)
        _, reference = read_source_and_reference(self.original, self.original_digest)
        structure = plain.astype(np.float32)  # rounded and with its patches, as it was verified
        noise = measure_noise(reference, structure, served)
        now = judge(reference, structure, measure_structure(reference, structure), served, noise, self.thresholds)
        pictures = _pictures(reference, served, plain) if self.pictures else None
        return Audited(*found, now=now, pictures=pictures)


@dataclass(frozen=True)
class AuditPictures:
    """Original and reconstruction (uint8, (rows, columns), grey), and structure minus original (uint8, RGB).

    ``whole`` and ``detail`` are these three pictures: of the image, scaled down, and of the surroundings of the
    greatest error. The difference should contain only noise. In it, black is zero, orange is brighter than the
    original, and blue is darker. Full colour is ``reach`` grey levels, which is ``share`` of the display window.
    """

    whole: tuple[NDArray[np.uint8], ...]
    detail: tuple[NDArray[np.uint8], ...]
    reach: float
    share: float


@dataclass(frozen=True)
class Audited:
    """The result. ``recorded``: the verdict in the rendition; ``now``: the verdict now, None without an original.

    ``same``: both objects have exactly the verified pixels; ``pixel_digest``: SHA-256 of the pixels with drawn noise.
    ``original_whole`` is False if the original's bytes have another digest; then nothing was measured against it.
    """

    same: bool
    pixel_digest: str
    numerics: dict[str, str]
    recorded_numerics: dict[str, str]
    recorded: Verdict
    now: Verdict | None = None
    original_whole: bool = True
    pictures: AuditPictures | None = None


def _pictures(reference: Reference, made: Pixels, plain: Pixels) -> AuditPictures:
    from node.fidelity.breast_regions import Window

    original, window = reference.pixels, reference.window
    difference = plain.astype(np.float32) - original
    size = np.abs(difference)
    reach = max(float(np.percentile(size, _FULL_COLOUR)), 1.0)
    near = tuple(
        slice(start, start + _DETAIL)
        for start in (
            max(0, min(int(place) - _DETAIL // 2, length - _DETAIL))
            for place, length in zip(np.unravel_index(int(size.argmax()), size.shape), size.shape, strict=True)
        )
    )
    low, high = (float(value) for value in np.percentile(original[near], [0.5, 99.5]))
    own = Window(low, high) if high - low >= 1 else window

    def grey(pixels: NDArray[np.generic], seen: Window) -> NDArray[np.uint8]:
        shown = seen.show(pixels)
        return np.asarray(((1.0 - shown if reference.inverted else shown) * 255).round(), dtype=np.uint8)

    factor = max(1, -(-max(original.shape) // _OVERVIEW))
    small = (grey(_blocks(pixels, factor).mean(axis=(1, 3)), window) for pixels in (original, made))
    whole = (*small, _coloured(_strongest(_blocks(difference, factor)) / reach))
    detail = (grey(original[near], own), grey(made[near], own), _coloured(difference[near] / reach))
    return AuditPictures(whole, detail, reach, reach / window.width)


def _blocks(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """``image`` in blocks of ``factor`` x ``factor`` pixels, in axes 1 and 3; incomplete blocks are cut off."""
    rows, columns = (length // factor for length in image.shape)
    return image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)


def _strongest(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """The difference of largest magnitude in each block; a mean would hide single pixels."""
    most, least = blocks.max(axis=(1, 3)), blocks.min(axis=(1, 3))
    return np.asarray(np.where(most > -least, most, least), dtype=np.float32)


def _coloured(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """-1 is blue, 0 black, 1 orange."""
    strength = np.clip(np.abs(share), 0.0, 1.0)[..., None]
    colour = np.where((share > 0)[..., None], (255, 160, 60), (80, 150, 255))
    return np.asarray((colour * strength).round(), dtype=np.uint8)
