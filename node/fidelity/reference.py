"""One original as the reference of measurements: its breast, tiles and window, each computed once."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.fidelity.bands import band_energies, tile_sums
from node.fidelity.breast_regions import Mask, Pixels, Window, all_tiles, breast_mask, breast_tiles, without_strips
from node.fidelity.fsim import Features, features
from node.fidelity.lines import LineNoise
from node.fidelity.repetition import Repetition
from node.fidelity.specks import HALO, Truth, truth_of
from node.fidelity.windows import display_window, is_inverted
from storage.dicom.padding_range import padding_mask
from storage.formats.geometry import CELL, TILE, cell_grid, cell_pixels, flat_cells

if TYPE_CHECKING:
    Tile = tuple[int, int]


_DISPLAYED = 256
"""Grey levels of a display. Noise counts as at least that of rounding to these, or to stored values if coarser."""


class Reference:
    """An original, and what measurements of its reconstructions need, most of which is computed on first use.

    ``pixels``: uint16 (rows, columns), stored values. The header says which of them are padding.
    ``mask``: bool per cell of 16 x 16 pixels, true for breast. ``counted``: bool per pixel, false for padding.
    ``tiles``: top left corners of the tiles with breast; the last ones of a row or column are moved inward, so that no
    pixel is left out. Raises ValueError if a side is shorter than a tile.
    """

    def __init__(self, pixels: Pixels, header: Dataset) -> None:
        inverted, padding = is_inverted(header), padding_mask(pixels, header)
        if padding is not None and padding.all():
            padding = None
        self.pixels = pixels
        self.mask, self._opened = without_strips(
            breast_mask(pixels, "MONOCHROME1" if inverted else "MONOCHROME2", padding)
        )
        self.window: Window = display_window(header, pixels, self.mask)
        self.tiles = breast_tiles(self.mask, *pixels.shape)
        self.counted = np.ones(pixels.shape, dtype=bool) if padding is None else ~padding
        self._sign = np.float32(-1 if inverted else 1)
        self._step = max(self.window.width / _DISPLAYED, 1.0)
        self._features: dict[Tile, Features] = {}
        self._truths: dict[Tile, Truth] = {}

    @property
    def inverted(self) -> bool:
        """Whether dense tissue is dark in stored values (``is_inverted``)."""
        return bool(self._sign < 0)

    @cached_property
    def image(self) -> NDArray[np.float32]:
        """The stored values as float32; do not modify them."""
        return self.pixels.astype(np.float32)

    @cached_property
    def breast(self) -> NDArray[np.bool_]:
        """Pixels of the breast without its rim of one cell, padding and clipped cells: bool, shape of ``pixels``.

        In a clipped cell all pixels have the same extreme value of the image, as in a bright implant. It has no noise
        in which an error can hide, so its errors are compared with the limits for pixels outside the breast.
        """
        from scipy.ndimage import binary_erosion

        inner = binary_erosion(self.mask, border_value=1)
        inner = inner if inner.any() else self.mask
        unclipped = inner & ~self._clipped
        return self._pixels_of(unclipped if unclipped.any() else inner)

    @property
    def _clipped(self) -> Mask:
        """Cells whose pixels all have the smallest, or all the largest, value of the image without padding: bool."""
        counted = self.pixels if self.counted.all() else self.pixels[self.counted]
        if not counted.size:
            return np.zeros_like(self.mask)
        ends = (counted.min(), counted.max())
        return np.asarray(flat_cells(self.pixels) & np.isin(self.pixels[::CELL, ::CELL], ends))

    @cached_property
    def core(self) -> NDArray[np.bool_]:
        """``breast`` without narrow parts, such as a nipple in profile: bool, shape of ``pixels``.

        Figures of the whole image are measured on these pixels.
        """
        core = self._pixels_of(self._opened) & self.breast
        return core if core.any() else self.breast

    @property
    def air(self) -> Mask:
        """Cells that are farther than two cells from the breast: bool, shape of ``mask``."""
        from scipy.ndimage import binary_dilation

        return np.asarray(~binary_dilation(self.mask, iterations=2))

    def _pixels_of(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The pixels of cells, without padding: bool, shape of ``pixels``."""
        rows, columns = self.pixels.shape
        whole = cell_pixels(blocks, rows, columns)
        return np.asarray(whole & self.counted)

    @cached_property
    def line_noise(self) -> LineNoise:
        """The responses of the line filters to the original's own noise."""
        return LineNoise.of(self.image, self.breast, self.window.width, self.core)

    @cached_property
    def repetition(self) -> Repetition:
        """The squares in which repeating errors are measured, with the original's energy."""
        return Repetition.of(self.image, self.core)

    @cached_property
    def bands(self) -> NDArray[np.float64]:
        """Energies of the original's octave bands per tile, as ``band_energies`` returns them."""
        return band_energies(self.image, self.core)

    @cached_property
    def tile_counts(self) -> NDArray[np.float64]:
        """Number of pixels of ``core`` per tile of the bands: float64, as ``tile_sums`` returns them."""
        return tile_sums(self.core.astype(np.float32))

    @cached_property
    def grain(self) -> float:
        """RMS of the original's finest octave band in the breast, in grey levels: the typical standard deviation of its
        noise. It is at least that of rounding."""
        finest = self.bands[0].sum() / max(int(self.core.sum()), 1)
        return max(float(np.sqrt(finest)), self._step / float(np.sqrt(12)))

    def excerpt(self, pixels: Pixels, breast: NDArray[np.bool_]) -> Reference:
        """A reference of other pixels with this window. ``breast``: bool, their shape, true where they are measured."""
        other = copy(self)
        for name in ("image", "breast", "core", "line_noise", "repetition", "bands", "tile_counts", "grain"):
            other.__dict__.pop(name, None)
        other.pixels, other.counted = pixels, np.ones(pixels.shape, dtype=bool)
        other.tiles = all_tiles(*pixels.shape)
        other.mask = other._opened = np.ones(cell_grid(*pixels.shape), dtype=bool)
        other._features, other._truths = {}, {}
        other.__dict__["breast"] = other.__dict__["core"] = breast
        return other

    def features(self, tile: Tile) -> Features:
        """The original's FSIM features at a tile, computed on first use."""
        if tile not in self._features:
            self._features[tile] = self.candidate(self.pixels, tile)
        return self._features[tile]

    def candidate(self, pixels: NDArray[np.generic], tile: Tile) -> Features:
        """FSIM features of another image at a tile, seen through the original's window."""
        import torch

        return features(torch.from_numpy(self.window.show(cut(pixels, tile))))

    def truth(self, tile: Tile) -> Truth:
        """The original's noise and specks at a tile, computed on first use."""
        if tile not in self._truths:
            self._truths[tile] = truth_of(self.bright(self.pixels, tile), self.blocks(tile), self._step)
        return self._truths[tile]

    def bright(self, pixels: NDArray[np.generic], tile: Tile) -> NDArray[np.float32]:
        """A tile with a halo of HALO pixels and bright dense tissue: float32. The image's border is repeated."""
        row, column = tile
        rows, columns = pixels.shape
        top, left = max(row - HALO, 0), max(column - HALO, 0)
        inner = pixels[top : row + TILE + HALO, left : column + TILE + HALO].astype(np.float32) * self._sign
        pad = (
            (HALO - (row - top), HALO - min(HALO, rows - row - TILE)),
            (HALO - (column - left), HALO - min(HALO, columns - column - TILE)),
        )
        return np.pad(inner, pad, mode="edge") if any(map(any, pad)) else inner

    def blocks(self, tile: Tile) -> NDArray[np.bool_]:
        """Which 16 x 16 pixels of a tile hold breast: bool (16, 16).

        The blocks of a tile that was moved inward may not coincide with cells of the mask. Each gets the value of the
        cell that contains its first pixel.
        """
        row, column = tile
        down, across = (np.arange(start, start + TILE, CELL) // CELL for start in (row, column))
        return np.asarray(self.mask[np.ix_(down, across)])


def cut(pixels: NDArray[Any], tile: tuple[int, int]) -> NDArray[Any]:
    """The pixels of a tile."""
    row, column = tile
    return pixels[row : row + TILE, column : column + TILE]
