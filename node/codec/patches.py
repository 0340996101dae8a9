"""Exact patches: squares of the original that are stored without loss and pasted into the reconstruction.

They keep places bit-exact that would fail the gate, such as a clip or a lead marker. Patches are cells of 16 x 16
pixels. For coding, the patched cells of each square of 256 x 256 pixels are laid out in raster order, in rows of
sixteen, so that a square that is patched wholly keeps its shape.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import LatentPacsError, PayloadError
from storage.formats import coders
from storage.formats.geometry import CELL, Cells, cell_grid
from storage.formats.padding import pack_mask, unpack_mask
from storage.records import OperatingPoint

Pixels = NDArray[np.uint16]

_ACROSS = 16
"""Cells side by side in the strip."""
_CODER = OperatingPoint(1, "jpegxl", distance=0.0, effort=7)
_HEADER = struct.Struct("<BHHI")
_FORMAT = 1


@dataclass(frozen=True)
class Patches:
    """The patches of one image of ``rows`` x ``columns`` pixels.

    ``strip``: the pixels of the patches in the layout in which they are coded: uint16, 256 pixels wide. A cell that the
    image's border cuts off is filled up by repeating its last row and column.
    """

    rows: int
    columns: int
    cells: Cells
    strip: Pixels


def cells_under(boxes: Iterable[tuple[int, int, int, int]], rows: int, columns: int) -> Cells:
    """The cells that boxes (row, column, height, width, in pixels) touch."""
    cells: Cells = np.zeros(cell_grid(rows, columns), dtype=bool)
    for row, column, height, width in boxes:
        cells[row // CELL : -(-(row + height) // CELL), column // CELL : -(-(column + width) // CELL)] = True
    return cells


def cut(original: Pixels, cells: Cells) -> Patches:
    """Cut the marked cells out of an original (uint16, rows x columns)."""
    rows, columns = original.shape
    places = _layout(cells)
    height = CELL * (1 + max((top for _, (top, _) in places), default=-1))
    strip: Pixels = np.zeros((height, _ACROSS * CELL), dtype=np.uint16)
    for (down, across), (top, left) in places:
        part = original[down * CELL : (down + 1) * CELL, across * CELL : (across + 1) * CELL]
        missing = ((0, CELL - part.shape[0]), (0, CELL - part.shape[1]))
        strip[top * CELL : (top + 1) * CELL, left * CELL : (left + 1) * CELL] = np.pad(part, missing, mode="edge")
    return Patches(rows, columns, cells, strip)


def pasted(pixels: Pixels, patches: Patches) -> Pixels:
    """A copy of ``pixels`` with the patches pasted. Raises PayloadError if the image has another size."""
    if pixels.shape != (patches.rows, patches.columns):
        raise PayloadError(f"patches are of {patches.rows} x {patches.columns} pixels, the image has {pixels.shape}")
    whole = pixels.copy()
    for (down, across), (top, left) in _layout(patches.cells):
        place = whole[down * CELL : (down + 1) * CELL, across * CELL : (across + 1) * CELL]
        part = patches.strip[top * CELL : (top + 1) * CELL, left * CELL : (left + 1) * CELL]
        place[:] = part[: place.shape[0], : place.shape[1]]
    return whole


def _layout(cells: Cells) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The (row, column) of each patched cell in the image and in the strip, counted in cells."""
    places, top = [], 0
    for down in range(0, cells.shape[0], _ACROSS):
        for across in range(0, cells.shape[1], _ACROSS):
            found = np.argwhere(cells[down : down + _ACROSS, across : across + _ACROSS])
            for number, (row, column) in enumerate(found):
                place = (top + number // _ACROSS, number % _ACROSS)
                places.append(((down + int(row), across + int(column)), place))
            top += -(-len(found) // _ACROSS)
    return places


# --- bytes ----------------------------------------------------------------------------------------------------


def encode_patches(patches: Patches) -> bytes:
    """Patches as bytes: format, size and length of the mask, the mask of cells, then the strip as lossless JPEG XL."""
    mask = pack_mask(patches.cells)
    header = _HEADER.pack(_FORMAT, patches.rows, patches.columns, len(mask))
    return header + mask + coders.encode(patches.strip, _CODER)


def decode_patches(data: bytes) -> Patches:
    """The inverse of ``encode_patches``. Raises PayloadError."""
    try:
        form, rows, columns, size = _HEADER.unpack_from(data)
    except struct.error as error:
        raise PayloadError(f"patches are malformed: {error}") from error
    if form != _FORMAT:
        raise PayloadError(f"patches have format {form}; this release reads {_FORMAT}")
    cells = unpack_mask(data[_HEADER.size : _HEADER.size + size], *cell_grid(rows, columns))
    places = _layout(cells)
    if not places:
        raise PayloadError("patches are malformed: no cell is marked")
    shape = (CELL * (1 + max(top for _, (top, _) in places)), _ACROSS * CELL)
    try:
        strip = coders.decode(data[_HEADER.size + size :], _CODER, shape)
    except LatentPacsError as error:
        raise PayloadError(f"patches cannot be decoded: {error}") from error
    return Patches(rows, columns, cells, strip)
