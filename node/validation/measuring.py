"""Measures one image in each arm: the features for the classifier, and the fidelity to the source.

The arms are those of arXiv 2310.05299: the source, the image decompressed from the payload, and the payload at its own
low resolution. Source and decompressed images are resized to at most 1024 pixels a side, payloads of scale 2 and 4 to
512 and 256.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.fidelity.breast_regions import breast_mask, breast_tiles
from node.fidelity.fsim import features, similarity
from node.fidelity.gate import psnr
from node.fidelity.reference import Reference, cut
from node.validation.terms import MEASURES, Arm, Fidelity, Files, Measured
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import integer_pixels
from storage.formats.geometry import CELL, TILE
from storage.formats.payload import Base, decode_base

if TYPE_CHECKING:
    from node.validation.features import Backbone

Float = NDArray[np.float32]

SIDE = 1024
"""Longer side of the classifier's input for source and decompressed images, in pixels."""
_SSIM_RADIUS = 5
"""Radius of SSIM's window, in pixels."""
_ALIGN = 64
"""The image is cropped to the breast at multiples of this many pixels, which are whole pixels in every arm."""


def measured(files: Files, arms: list[Arm], backbone: Backbone) -> dict[Arm, Measured]:
    """The measurements of the given arms. Raises PixelError or PayloadError if a file cannot be decoded."""
    reference = _reference(files.original)
    box = _breast_box(reference)
    found = {}
    for arm in arms:
        if arm is Arm.SOURCE:
            shown, scale, fidelity = _shown(reference, reference.pixels), 1, None
        elif arm is Arm.DECOMPRESSED:
            candidate = integer_pixels(files.reconstructed)
            shown, scale = _shown(reference, candidate), 1
            fidelity = likeness(_shown(reference, reference.pixels), shown, reference.tiles)
        else:
            base = decode_base(files.base.read_bytes())
            samples = base.samples()
            shown, scale = _shown(reference, samples), base.point.scale
            fidelity = _of_payload(reference, base, shown)
        found[arm] = Measured(backbone.features(_input(shown, box, scale, reference.pixels.shape)), fidelity)
    return found


def likeness(source: Float, other: Float, corners: list[tuple[int, int]]) -> Fidelity:
    """PSNR, SSIM and FSIM of ``other`` against ``source``: float32, the same shape, 0..1 as displayed.

    ``corners``: the tiles to measure. FSIM of the whole frame is piq's, as in the paper. It first averages squares of
    min(rows, columns) / 256 pixels a side, so fine detail of large images has little effect.
    """
    import piq
    import torch

    one, two = (torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (source, other))
    ssim = ssim_map(source, other)
    full = [_psnr(source, other), float(ssim.mean()), float(piq.fsim(two, one, chromatic=False))]
    tiles = []
    for corner in corners:
        x, y = (np.ascontiguousarray(cut(image, corner)) for image in (source, other))
        fsim = similarity(features(torch.from_numpy(x)), features(torch.from_numpy(y)))
        row, column = corner
        inner = ssim[row : row + TILE - 2 * _SSIM_RADIUS, column : column + TILE - 2 * _SSIM_RADIUS]
        tiles.append([_psnr(x, y), float(inner.mean()), fsim])
    return Fidelity(
        np.array(full), np.array(tiles).reshape(-1, len(MEASURES)), np.array(corners, dtype=np.intp).reshape(-1, 2)
    )


def ssim_map(one: Float, two: Float) -> Float:
    """SSIM (Wang et al., IEEE TIP 13(4), 2004) with its Gaussian window of 11 x 11 pixels, sigma 1.5.

    Both images have values 0..1. The map has only the pixels whose window lies inside the image: float32 (rows - 10,
    columns - 10).
    """
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, ssim = structural_similarity(one, two, full=True, **options)
    inner = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return np.asarray(ssim[inner, inner], dtype=np.float32)


def side_by_side(files: Files, corner: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    """A tile of the source, of the reconstruction, and their difference: uint8, shape (256, 256) each.

    Source and reconstruction are shown through the display window, stretched to the range of the source's tile. The
    difference is mid-grey where it is 0; black and white stand for an eighth of the window or more.
    """
    reference = _reference(files.original)
    source = cut(_shown(reference, reference.pixels), corner)
    other = cut(_shown(reference, integer_pixels(files.reconstructed)), corner)
    low, high = (float(value) for value in np.percentile(source, [0.5, 99.5]))
    stretch = 1 / max(high - low, 1 / 64)
    pictures = [(source - low) * stretch, (other - low) * stretch, 0.5 + 4 * (other - source)]
    return tuple(np.asarray(np.rint(np.clip(one, 0, 1) * 255), dtype=np.uint8) for one in pictures)


def _reference(path: Path) -> Reference:
    with opened(path) as file:
        header = file.header()
    return Reference(integer_pixels(path), header)


def _shown(reference: Reference, values: NDArray[Any]) -> Float:
    shown = reference.window.show(values)
    return 1 - shown if reference.inverted else shown


def _of_payload(reference: Reference, base: Base, shown: Float) -> Fidelity:
    """Fidelity of the payload to the source downsampled to the same resolution, which shows the coder's error."""
    ideal = base.operator.down(reference.pixels)
    low = np.clip(np.rint(ideal), 0, 65535).astype(np.uint16)
    corners = []
    if min(low.shape) >= TILE:
        corners = breast_tiles(breast_mask(low, "MONOCHROME1" if reference.inverted else ""), *low.shape)
    return likeness(_shown(reference, ideal), shown, corners)


def _breast_box(reference: Reference) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the breast, at multiples of 64 pixels or at the image's border."""
    ends = []
    for axis, size in enumerate(reference.pixels.shape):
        there = np.flatnonzero(reference.mask.any(axis=1 - axis)) * CELL
        ends += [int(there[0]) // _ALIGN * _ALIGN, min(-(-(int(there[-1]) + CELL) // _ALIGN) * _ALIGN, size)]
    return ends[0], ends[1], ends[2], ends[3]


def _input(shown: Float, box: tuple[int, int, int, int], scale: int, size: tuple[int, ...]) -> Float:
    """The network's input: the breast, reduced, but never enlarged, by the factor that makes the frame's longer side
    SIDE / scale pixels."""
    import torch

    top, bottom, left, right = (box[0] // scale, -(-box[1] // scale), box[2] // scale, -(-box[3] // scale))
    part = shown[top:bottom, left:right]
    factor = SIDE / max(size)
    if factor >= 1:
        return part
    rows, columns = (max(round(side * factor), 1) for side in part.shape)
    tensor = torch.from_numpy(np.ascontiguousarray(part))[None, None]
    resized = torch.nn.functional.interpolate(tensor, (rows, columns), mode="bicubic", antialias=True)
    return np.asarray(resized[0, 0].clamp(0, 1).numpy())


def _psnr(one: Float, two: Float) -> float:
    """PSNR in dB for a peak of 1."""
    return psnr(float(np.mean(np.square(one.astype(np.float64) - two))), 1.0)
