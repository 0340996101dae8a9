"""Octave bands of an image: how much energy lies in details of about 2, 4, 8 and 16 pixels, tile by tile.

A band is the difference of two Gaussians of standard deviations 0, 0.7, 1.4, 2.8 and 5.6 pixels. The two coarser bands
are measured on an image that is halved first, which changes their energies by little and costs a quarter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

BANDS = 4
"""Octave bands: sigma 0 to 0.7, to 1.4, to 2.8, to 5.6 pixels."""
TILE = 256
"""Side of the tiles over which energies are summed, in pixels of the full image."""
_MARGIN = 64
"""Pixels around the tiles that count which are filtered with them: the coarsest Gaussian reaches 23."""
_FIRST = 0.7
"""Standard deviation of the finest Gaussian, in pixels."""
_STEP = float(np.sqrt(1.4**2 - 0.7**2))
"""Standard deviation that takes a Gaussian of 0.7 pixels to one of 1.4; on a halved image, 1.4 to 2.8, and so on."""


def band_energies(image: Float, inside: Mask) -> NDArray[np.float64]:
    """Energy per band and tile, and what is coarser than all bands.

    ``image``: float32 (rows, columns), grey levels. ``inside``: bool, the same shape: the pixels that count.
    Returns float64 (BANDS + 1, tile rows, tile columns): sums of squares in grey levels squared, per counted pixel of
    the full image. The last plane is that of the image blurred by 5.6 pixels: for a difference image, its slow error.
    """
    rows, columns = (-(-length // TILE) for length in image.shape)
    result = np.zeros((BANDS + 1, rows, columns))
    box = _tiles_around(inside)
    if box is None:
        return result
    (top, bottom), (left, right) = box
    around = tuple(
        slice(max(low * TILE - _MARGIN, 0), min(high * TILE + _MARGIN, length))
        for (low, high), length in zip(box, image.shape, strict=True)
    )
    offsets = [low * TILE - part.start for (low, _), part in zip(box, around, strict=True)]
    mask = inside[top * TILE : bottom * TILE, left * TILE : right * TILE]
    for band, part in enumerate(octaves(image[around])):
        level = max(0, min(band, BANDS - 1) - 1)
        seen = mask[:: 1 << level, :: 1 << level]
        row, column = (offset >> level for offset in offsets)
        own = part[row : row + seen.shape[0], column : column + seen.shape[1]]
        counted = np.where(seen[: own.shape[0], : own.shape[1]], np.square(own), np.float32(0))
        sums = _tile_sums(counted, TILE >> level, bottom - top, right - left) * 4**level
        result[band, top:bottom, left:right] = sums
    return result


def _tiles_around(inside: Mask) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First and last tile, plus one, of both axes, that hold what counts; None where nothing does."""
    spans = []
    for axis in (1, 0):
        found = np.flatnonzero(inside.any(axis=axis))
        if not found.size:
            return None
        spans.append((int(found[0]) // TILE, int(found[-1]) // TILE + 1))
    return spans[0], spans[1]


def octaves(image: Float) -> list[Float]:
    """The bands, finest first, and the rest: float32 arrays, the two coarser bands and the rest at a smaller size."""
    import torch

    seen = torch.from_numpy(np.ascontiguousarray(image - image.mean(dtype=np.float64), dtype=np.float32))
    smooth = _blurred(seen, _FIRST)
    found = [seen - smooth]
    for band in range(1, BANDS):
        if band > 1:
            smooth = torch.nn.functional.avg_pool2d(smooth[None, None], 2)[0, 0]
        after = _blurred(smooth, _STEP)
        found.append(smooth - after)
        smooth = after
    return [part.numpy() for part in (*found, smooth)]


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, float32, with the border repeated."""
    import torch
    from torch.nn import functional as F  # noqa: N812 - the name everybody uses

    reach = int(np.ceil(4 * sigma))
    away = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-away * away / (2 * sigma * sigma))
    weights /= weights.sum()
    padded = F.pad(image[None, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[0, 0]


def _tile_sums(values: Float, side: int, rows: int, columns: int) -> NDArray[np.float64]:
    pad = (max(rows * side - values.shape[0], 0), max(columns * side - values.shape[1], 0))
    whole = np.pad(values, ((0, pad[0]), (0, pad[1])))[: rows * side, : columns * side]
    return np.asarray(whole.reshape(rows, side, columns, side).sum(axis=(1, 3), dtype=np.float64))
