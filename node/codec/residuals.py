"""Codes the residual of cells of 16 x 16 pixels in which the base lost more than noise.

The residual (original minus structure) of those cells is laid out as one image, companded by an inverse hyperbolic
sine so that noise is coded evenly and large errors still fit, and coded by JPEG XL. The remaining error is below the
local noise, except beside the sharpest edges. No noise is drawn in these cells, since their residual contains it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import PayloadError
from storage.formats import coders
from storage.formats.geometry import CELL, Cells, cell_grid, cell_pixels
from storage.formats.padding import pack_mask, unpack_mask
from storage.records import OperatingPoint

Float = NDArray[np.float32]
_ACROSS = 16
"""Cells side by side in the coded image."""
DISTANCE = 1.5
"""JPEG XL distance. It leaves an error of half the standard deviation of detector noise, and up to half of a large
error beside an edge. A third of the distance leaves a fifth of the standard deviation and 3% of a large error, for two
to three times the bytes."""
_LINEAR = 4.0
"""Size of residuals up to which companding is nearly linear, in standard deviations of noise. Chosen, not measured."""
_GAIN = 4600.0
"""Coded levels per unit of the inverse hyperbolic sine: 1000 standard deviations reach 28,600 of 32,767."""
_MIDDLE = 32768
"""Coded level of a residual of 0."""
_HEADER = struct.Struct("<BHHfI")
_FORMAT = 1


@dataclass(frozen=True)
class CodedResiduals:
    """The residuals of some cells of an image of ``rows`` x ``columns`` pixels.

    ``unit``: the noise's standard deviation, in grey levels. ``cells``: which cells are coded. ``coded``: the JPEG XL
    codestream.
    """

    rows: int
    columns: int
    unit: float
    cells: Cells
    coded: bytes

    @classmethod
    def of(cls, residual: Float, cells: Cells, unit: float) -> CodedResiduals:
        """Code the residual (float32, grey levels) of the marked cells."""
        rows, columns = residual.shape
        padded = np.pad(residual, ((0, -rows % CELL), (0, -columns % CELL)), mode="edge")
        places = np.argwhere(cells)
        tall = -(-len(places) // _ACROSS)
        sheet = np.zeros((tall * _ACROSS, CELL, CELL), dtype=np.float32)
        for number, (row, column) in enumerate(places):
            sheet[number] = padded[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        samples = _MIDDLE + _GAIN * np.arcsinh(sheet / (_LINEAR * unit))
        image = np.clip(np.rint(samples), 0, 65535).astype(np.uint16)
        image = image.reshape(tall, _ACROSS, CELL, CELL).transpose(0, 2, 1, 3).reshape(tall * CELL, _ACROSS * CELL)
        return cls(rows, columns, unit, cells, coders.encode(image, _point()))

    def field(self) -> Float:
        """The residuals to add: float32 (rows, columns), grey levels; 0 in all other cells. Raises PayloadError."""
        places = np.argwhere(self.cells)
        tall = -(-len(places) // _ACROSS)
        image = coders.decode(self.coded, _point(), (tall * CELL, _ACROSS * CELL)).astype(np.float32)
        sheet = image.reshape(tall, CELL, _ACROSS, CELL).transpose(0, 2, 1, 3).reshape(-1, CELL, CELL)
        sheet = np.sinh((sheet - _MIDDLE) / np.float32(_GAIN)) * np.float32(_LINEAR * self.unit)
        whole = np.zeros((self.cells.shape[0] * CELL, self.cells.shape[1] * CELL), dtype=np.float32)
        for number, (row, column) in enumerate(places):
            whole[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = sheet[number]
        return whole[: self.rows, : self.columns]

    @property
    def pixels(self) -> NDArray[np.bool_]:
        """Pixels that lie in these cells: bool (rows, columns)."""
        return cell_pixels(self.cells, self.rows, self.columns)


def _point() -> OperatingPoint:
    return OperatingPoint(1, "jpegxl", distance=DISTANCE, effort=7)


def encode_residuals(repairs: CodedResiduals) -> bytes:
    """Residuals as bytes: header, mask of cells, codestream."""
    mask = pack_mask(repairs.cells)
    return _HEADER.pack(_FORMAT, repairs.rows, repairs.columns, repairs.unit, len(mask)) + mask + repairs.coded


def decode_residuals(data: bytes) -> CodedResiduals:
    """The inverse of ``encode_residuals``. Raises PayloadError."""
    try:
        form, rows, columns, unit, size = _HEADER.unpack_from(data)
    except struct.error as error:
        raise PayloadError(f"repairs are malformed: {error}") from error
    if form != _FORMAT or not 0 < unit < float("inf"):
        raise PayloadError(f"repairs have format {form} and unit {unit}; this release reads format {_FORMAT}")
    cells = unpack_mask(data[_HEADER.size : _HEADER.size + size], *cell_grid(rows, columns))
    if not cells.any():
        raise PayloadError("repairs are malformed: no cell is marked")
    return CodedResiduals(rows, columns, unit, cells, data[_HEADER.size + size :])
