"""Proves that exact patches (node/codec/patches.py) restore their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.codec.patches import (
    cells_under,
    cut,
    decode_patches,
    encode_patches,
    pasted,
)
from storage.errors import PayloadError
from storage.formats.geometry import CELL, TILE, cell_grid, cell_pixels
from tests.support.samples import breast


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_bytes_and_back(rows: int, columns: int, share: float, seed: int) -> None:
    """Patched cells are bit-exact after coding and decoding; all other pixels are unchanged."""
    random = np.random.default_rng(seed)
    original = random.integers(0, 65536, (rows, columns)).astype(np.uint16)
    cells = random.random(cell_grid(rows, columns)) < share
    if not cells.any():
        cells[0, 0] = True
    other = (original + 1).astype(np.uint16)
    got = pasted(other, decode_patches(encode_patches(cut(original, cells))))
    inside = cell_pixels(cells, rows, columns)
    assert np.array_equal(got[inside], original[inside])
    assert np.array_equal(got[~inside], other[~inside])


def test_cells_under_boxes() -> None:
    cells = cells_under([(15, 15, 2, 2), (48, 0, 16, 16)], 64, 64)
    assert np.argwhere(cells).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [3, 0]]
    assert not cells_under([], 64, 64).any()


@given(st.binary(max_size=60))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_patches(data)


def test_damage_is_an_error() -> None:
    cells = np.ones(cell_grid(64, 64), dtype=bool)
    whole = encode_patches(cut(breast(64, 64), cells))
    for end in range(0, len(whole) - 1, 7):
        with pytest.raises(PayloadError):
            decode_patches(whole[:end])


def test_of_another_size() -> None:
    patches = cut(breast(64, 64), np.ones(cell_grid(64, 64), dtype=bool))
    with pytest.raises(PayloadError, match="64 x 64"):
        pasted(breast(64, 96), patches)


def test_the_gates_tiles_consist_of_whole_cells() -> None:
    assert TILE % CELL == 0
