"""Proves which cells are stored exactly because errors show in them (node/codec/encode/repairs.py)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from node.codec.encode.repairs import even_places, extended, uneven_cells
from tests.support.encoder_samples import phantom, source_of, with_implant


def test_errors_show_where_the_original_has_one_value() -> None:
    """Errors show in a clipped implant, and in the air, where a marker causes ringing. They do not show in the grain of
    tissue."""
    pixels = with_implant()
    served = pixels.copy()
    for row, column, error in ((40, 500, 200), (600, 500, 100), (320, 50, -200), (320, 350, 200)):
        served[row, column] = int(pixels[row, column]) + error  # of a window of 4,096
    found = uneven_cells(even_places(pixels), served, source_of(pixels)[1])
    assert np.argwhere(found).tolist() == [[2, 31], [20, 3]]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_even_places_are_squares_of_one_value(rows: int, columns: int, seed: int) -> None:
    pixels = (np.random.default_rng(seed).random((rows, columns)) < 0.05).astype(np.uint16)
    expected = [
        row * columns + column
        for row in range(2, rows - 2)
        for column in range(2, columns - 2)
        if len(np.unique(pixels[row - 2 : row + 3, column - 2 : column + 3])) == 1
    ]
    assert even_places(pixels).tolist() == expected


def test_patches_stay_as_they_are_beyond_the_share() -> None:
    cells = np.zeros((40, 34), dtype=bool)
    cells[3, 4] = True
    patches = extended(phantom(), None, cells, 0.001)
    assert patches is not None
    assert np.array_equal(patches.cells, cells)
    assert extended(phantom(), patches, cells, 0.001) is None
    assert extended(phantom(), patches, ~cells, 0.001) is None
