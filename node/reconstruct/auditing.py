"""One rendition audited in a worker: made anew, compared with what was recorded, and measured where it can be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.reconstruct.rendering import read_pair, rendered
from node.reconstruct.upscalers.catalogue import Catalogue
from storage.dicomfile import opened
from storage.pixels import integer_pixels
from storage.records import Verdict

if TYPE_CHECKING:
    from node.fidelity.gate import Reference

_OVERVIEW, _DETAIL = 520, 256
"""Pixels: the longer side of a whole image, the side of a detail at full resolution."""

Pixels = NDArray[np.uint16]


@dataclass(frozen=True)
class AuditRequest:
    """Make a rendition anew. ``original``: to measure against, where it is held; ``pictures``: what to show of it too.

    ``model``: as of ReconstructRequest.
    """

    base: Path
    rendition: Path
    original: Path | None = None
    original_digest: str = ""
    model: Path | None = None
    pictures: bool = False


@dataclass(frozen=True)
class Sight:
    """The original, the reconstruction and their difference, for people: uint8, (rows, columns) grey, and RGB.

    In the difference black is none, orange brighter, blue darker, full colour at ``reach`` grey levels, which is
    ``share`` of the display window. ``whole`` images are scaled down; ``detail`` is around the greatest error.
    """

    whole: tuple[NDArray[np.uint8], ...]
    detail: tuple[NDArray[np.uint8], ...]
    reach: float
    share: float


@dataclass(frozen=True)
class Audited:
    """What came out. ``recorded``: what the rendition says of itself; ``now``: measured anew, None without an original.

    ``original_whole`` is False where the original's bytes have another digest: then nothing was measured against it.
    """

    pixel_digest: str
    recorded_digest: str
    numerics: dict[str, str]
    recorded_numerics: dict[str, str]
    recorded: Verdict
    now: Verdict | None = None
    original_whole: bool = True
    sight: Sight | None = None


def audit(request: AuditRequest, catalogue: Catalogue) -> Audited:
    """Raises ModelMissing or PayloadError where the rendition cannot be made."""
    from node.fidelity.gate import Reference, measure
    from node.reconstruct.engine import Original

    base, rendition = read_pair(request.base, request.rendition)
    made = rendered(base, rendition, catalogue, request.model)
    told = (made.digest, rendition.output_digest, made.numerics, rendition.numerics, rendition.verdict)
    if request.original is None:
        return Audited(*told)
    with request.original.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != request.original_digest:
            return Audited(*told, original_whole=False)
    with opened(request.original) as data_set:
        header_bytes, pixel_vr = data_set.header_bytes(), data_set.layout.pixel_vr
    header = header_bytes.dataset()
    pixels = integer_pixels(request.original)
    original = Original.of(pixels, header, header_bytes, request.original_digest, pixel_vr)
    reference = Reference(pixels, header, original.padding_pixels)
    sight = _sight(reference, made.pixels) if request.pictures else None
    return Audited(*told, now=measure(reference, made.pixels, None), sight=sight)


def _sight(reference: Reference, made: Pixels) -> Sight:
    from node.fidelity.regions import Window

    original, window = reference.pixels, reference.window
    difference = made.astype(np.float32) - original
    reach = max(float(np.percentile(np.abs(difference), 99.9)), 1.0)
    row, column = np.unravel_index(int(np.abs(difference).argmax()), difference.shape)
    top, left = (
        max(0, min(int(place) - _DETAIL // 2, size - _DETAIL))
        for place, size in zip((row, column), original.shape, strict=True)
    )
    near = (slice(top, top + _DETAIL), slice(left, left + _DETAIL))
    low, high = (float(value) for value in np.percentile(original[near], [0.5, 99.5]))
    own = Window(low, high) if high - low >= 1 else window

    def shown(view: tuple[slice, slice], seen: Window) -> tuple[NDArray[np.uint8], ...]:
        greys = [_grey(seen.show(pixels[view]), inverted=reference.inverted) for pixels in (original, made)]
        return (*greys, _coloured(difference[view] / reach))

    step = slice(None, None, max(1, -(-max(original.shape) // _OVERVIEW)))
    whole = shown((slice(None), slice(None)), window)
    small = tuple(_shrunk(image, step.step) for image in whole)
    return Sight(small, shown(near, own), reach, reach / window.width)


def _grey(shown: NDArray[np.float32], *, inverted: bool) -> NDArray[np.uint8]:
    return np.asarray(((1.0 - shown if inverted else shown) * 255).round(), dtype=np.uint8)


def _coloured(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """-1 is blue, 0 black, 1 orange."""
    strength = np.clip(np.abs(share), 0.0, 1.0)[..., None]
    colour = np.where((share > 0)[..., None], (255, 160, 60), (80, 150, 255))
    return np.asarray((colour * strength).round(), dtype=np.uint8)


def _shrunk(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Smaller by a whole factor, by means; for differences, which would vanish in a mean, by the strongest."""
    rows, columns = image.shape[0] // factor * factor, image.shape[1] // factor * factor
    blocks = image[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor, *image.shape[2:])
    smaller = blocks.max(axis=(1, 3)) if image.ndim == 3 else blocks.mean(axis=(1, 3)).round()
    return np.asarray(smaller, dtype=np.uint8)
