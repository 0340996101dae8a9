"""One image in its three arms: what the classifier sees of each, and how near each is to the source.

The arms are those of arXiv 2310.05299: the source, what is decompressed from the payload, and the payload itself, at
its own low resolution. Nothing is resized alike: source and decompressed come to 1024 pixels a side at most, the
payload of scale 2 or 4 to 512 or 256.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.fidelity.breast_regions import breast_mask, breast_tiles
from node.fidelity.fsim import features, similarity
from node.fidelity.gate import EXACT_PSNR_DB, Reference
from node.validation.terms import MEASURES, Arm, Fidelity, Files, Measured
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import integer_pixels
from storage.formats.geometry import CELL, TILE
from storage.formats.payload import Base, decode_base

if TYPE_CHECKING:
    from node.validation.features import Backbone

Float = NDArray[np.float32]

SIDE = 1024
_REACH = 5
_ALIGN = 64
"""Air is cut off at multiples of this, so that the cut falls between pixels of every arm."""


def measured(files: Files, arms: list[Arm], backbone: Backbone) -> dict[Arm, Measured]:
    """The arms that are asked for. Raises PixelError or PayloadError."""
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
    """How near ``other`` is to ``source``: both float32, same shape, 0..1 as displayed.

    Over the whole frame FSIM is piq's, as the paper has it: it averages over squares of min(rows, columns) / 256 pixels
    first, so that it hardly sees fine detail of large images.
    """
    import piq
    import torch

    one, two = (torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (source, other))
    ssim = ssim_map(source, other)
    full = [_psnr(source, other), float(ssim.mean()), float(piq.fsim(two, one, chromatic=False))]
    tiles = []
    for corner in corners:
        x, y = (np.ascontiguousarray(_cut(image, corner)) for image in (source, other))
        fsim = similarity(features(torch.from_numpy(x)), features(torch.from_numpy(y)))
        row, column = corner
        inner = ssim[row : row + TILE - 2 * _REACH, column : column + TILE - 2 * _REACH]
        tiles.append([_psnr(x, y), float(inner.mean()), fsim])
    return Fidelity(
        np.array(full), np.array(tiles).reshape(-1, len(MEASURES)), np.array(corners, dtype=np.intp).reshape(-1, 2)
    )


def ssim_map(one: Float, two: Float) -> Float:
    """SSIM (Wang et al., IEEE TIP 13(4), 2004) where its Gaussian of 11 x 11 pixels, sigma 1.5, fits into the image:
    float32, shape (rows - 10, columns - 10), of two images of values 0..1."""
    import torch

    taps = torch.exp(-(torch.arange(-_REACH, _REACH + 1) ** 2) / (2 * 1.5**2))
    taps = (taps / taps.sum()).to(torch.float32)
    x, y = torch.from_numpy(np.ascontiguousarray(one)), torch.from_numpy(np.ascontiguousarray(two))
    stack = torch.stack([x, y, x * x, y * y, x * y])[:, None]
    blurred = torch.nn.functional.conv2d(stack, taps[None, None, None])
    mx, my, xx, yy, xy = torch.nn.functional.conv2d(blurred, taps[None, None, :, None])[:, 0]
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return np.asarray((alike * (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)).numpy())


def _cut(image: Float, corner: tuple[int, int]) -> Float:
    row, column = corner
    return image[row : row + TILE, column : column + TILE]


def side_by_side(files: Files, corner: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    """A tile of the source, of the reconstruction, and their difference: uint8, shape (256, 256) each.

    The first two through the image's own window, stretched to what the source's tile holds of it; mid-grey is no
    difference, and black or white a difference of an eighth of the window or more.
    """
    reference = _reference(files.original)
    source = _cut(_shown(reference, reference.pixels), corner)
    other = _cut(_shown(reference, integer_pixels(files.reconstructed)), corner)
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
    """The payload against the source brought to the same resolution: what its coder changed."""
    ideal = base.operator.down(reference.pixels)
    low = np.clip(np.rint(ideal), 0, 65535).astype(np.uint16)
    corners = []
    if min(low.shape) >= TILE:
        corners = breast_tiles(breast_mask(low, "MONOCHROME1" if reference.inverted else ""), *low.shape)
    return likeness(_shown(reference, ideal), shown, corners)


def _breast_box(reference: Reference) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the breast, at multiples of 64 pixels or the image's border."""
    ends = []
    for axis, size in enumerate(reference.pixels.shape):
        there = np.flatnonzero(reference.mask.any(axis=1 - axis)) * CELL
        ends += [int(there[0]) // _ALIGN * _ALIGN, min(-(-(int(there[-1]) + CELL) // _ALIGN) * _ALIGN, size)]
    return ends[0], ends[1], ends[2], ends[3]


def _input(shown: Float, box: tuple[int, int, int, int], scale: int, size: tuple[int, ...]) -> Float:
    """What the network sees: the frame at SIDE / scale pixels a side, never enlarged, air around the breast cut off."""
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
    """In dB, peak 1; EXACT_PSNR_DB where nothing differs."""
    error = float(np.mean(np.square(one.astype(np.float64) - two)))
    return min(-10 * math.log10(error), EXACT_PSNR_DB) if error else EXACT_PSNR_DB
