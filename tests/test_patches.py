"""Exact patches (node/codec/patches.py) and when they are made (mending.py)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from node.codec.engine import make_base, reconstruct
from node.codec.mending import mended
from node.codec.patches import (
    CELL,
    cell_grid,
    cells_under,
    cut,
    decode_patches,
    encode_patches,
    pasted,
    patched_pixels,
)
from node.fidelity.gate import Box, Reference, survey
from node.upscalers.bicubic import Bicubic
from storage.errors import PayloadError
from storage.records import Rung, Thresholds
from tests.samples import breast
from tests.test_engine import original_of

EASY = Thresholds(0.0, 0.0, 0.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_bytes_and_back(rows: int, columns: int, share: float, seed: int) -> None:
    """What is patched comes back bit-exact through the bytes; everything else is left as it was."""
    random = np.random.default_rng(seed)
    original = random.integers(0, 65536, (rows, columns)).astype(np.uint16)
    cells = random.random(cell_grid(rows, columns)) < share
    if not cells.any():
        cells[0, 0] = True
    other = (original + 1).astype(np.uint16)
    got = pasted(other, decode_patches(encode_patches(cut(original, cells))))
    inside = patched_pixels(cells, rows, columns)
    assert np.array_equal(got[inside], original[inside])
    assert np.array_equal(got[~inside], other[~inside])


def test_cells_under_boxes() -> None:
    cells = cells_under([(31, 31, 2, 2), (96, 0, 32, 32)], 128, 128)
    assert np.argwhere(cells).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [3, 0]]
    assert not cells_under([], 128, 128).any()


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


def test_a_marker_comes_back_bit_exact() -> None:
    """Lead letters beside the breast, coarse rung: patched where they were wrong, and no seam beside them."""
    pixels = breast(768, 768).copy()
    pixels[40:120:8, 660:740] = 4000
    original = original_of(pixels)
    base = make_base(original, Rung(4, "jpegxl", distance=3.0, sample_bits=12))
    reference = Reference(pixels, Dataset())
    output = reconstruct(base, Bicubic(), seed=0, steps=0)
    limits = Thresholds(0.0, 0.0, 0.0, outside=0.05)
    made = mended(reference, base, output, survey(reference, output), limits, 0.5)
    assert made.patches is not None
    assert made.verdict.passed
    assert made.bare.failures
    assert np.array_equal(made.pixels[40:120, 660:740], pixels[40:120, 660:740])
    inside = patched_pixels(made.patches.cells, 768, 768)
    assert np.array_equal(made.pixels[inside], pixels[inside])
    assert 0 < made.verdict.figures["patch_share"] < 0.2
    again = reconstruct(base, Bicubic(), seed=0, steps=0, points=made.points, patches=made.patches)
    assert np.array_equal(again, made.pixels)
    refused = mended(reference, base, output, survey(reference, output), limits, 0.0)
    assert any("exact patches would cover" in sentence for sentence in refused.verdict.failures)


def test_named_regions_are_patched_whatever_the_gate_says() -> None:
    pixels = breast(512, 512)
    base = make_base(original_of(pixels), Rung(2, "jpegxl", distance=1.0, sample_bits=12))
    output = reconstruct(base, Bicubic(), seed=0, steps=0)
    region = Box(200, 130, 40, 50)
    reference = Reference(pixels, Dataset())
    made = mended(reference, base, output, survey(reference, output), EASY, 0.0, [region])
    assert made.verdict.passed
    assert np.array_equal(made.pixels[200:240, 130:180], pixels[200:240, 130:180])
    assert not np.array_equal(made.pixels, pixels)


def test_an_image_that_misses_the_gate_as_a_whole_is_not_mended() -> None:
    pixels = breast(512, 512)
    base = make_base(original_of(pixels), Rung(4, "jpegxl", distance=6.0, sample_bits=12))
    output = reconstruct(base, Bicubic(), seed=0, steps=0)
    reference = Reference(pixels, Dataset())
    made = mended(reference, base, output, survey(reference, output), Thresholds(0.99, 0.99, 60.0), 1.0)
    assert made.patches is None
    assert made.points is None
    assert made.verdict.failures
    assert made.verdict == made.bare


def test_cells_are_a_power_of_two_of_the_gates_tiles() -> None:
    assert 256 % CELL == 0
