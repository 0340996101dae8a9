"""Proves that strips along the border are not breast, and that a nipple in profile and dark fat are
(node/fidelity/breast_regions.py).
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from node.fidelity.breast_regions import breast_mask, without_strips
from node.fidelity.reference import Reference
from tests.support.samples import breast

Mask = NDArray[np.bool_]


def half_disc(rows: int = 120, columns: int = 80, radius: float = 45.0) -> Mask:
    """A breast on the left border: a mask of blocks."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.hypot(y - rows / 2, x) < radius


@pytest.mark.parametrize("turn", range(4))
def test_a_strip_along_the_border_is_taken_off(turn: int) -> None:
    mask = half_disc()
    with_strip = mask.copy()
    with_strip[:, :5] = True
    kept, wide = without_strips(np.rot90(with_strip, turn))
    lost = np.rot90(mask, turn) & ~kept
    assert lost.sum() < 0.01 * mask.sum()
    added = kept & ~np.rot90(mask, turn)
    assert added.sum() < 0.01 * mask.sum()
    assert (wide & ~kept).sum() == 0


def test_a_nipple_stays_and_is_not_wide() -> None:
    mask = half_disc()
    nipple = mask.copy()
    nipple[56:64, 40:52] = True
    kept, wide = without_strips(nipple)
    assert np.array_equal(kept, nipple)
    assert not wide[60, 50]
    assert wide[60, 30]


def test_two_breasts_stay_and_an_empty_or_full_mask() -> None:
    two = half_disc(120, 200) | half_disc(120, 200)[:, ::-1]
    assert np.array_equal(without_strips(two)[0], two)
    for mask in (np.ones((40, 30), dtype=bool), np.eye(40, dtype=bool)):
        assert np.array_equal(without_strips(mask)[0], mask)


def test_the_border_of_a_film_is_not_measured() -> None:
    """A scan has a bright border. The mask takes it for breast, but it is not measured."""
    film = np.pad(breast(640, 768), ((320, 320), (0, 0)))
    pixels = film.copy()
    pixels[:, :48] = np.maximum(pixels[:, :48], 2600)
    before, alone = breast_mask(pixels, "MONOCHROME2"), breast_mask(film, "MONOCHROME2")
    reference = Reference(pixels, Dataset())
    assert before[0, 0]
    assert not reference.mask[0, 0]
    assert (reference.mask & ~alone).sum() < 0.2 * (before & ~alone).sum()
    assert (alone & ~reference.mask).sum() < 0.01 * alone.sum()
    assert (reference.core & ~reference.breast).sum() == 0


def test_dark_fat_of_a_breast_that_fills_the_image_is_breast() -> None:
    row, column = np.mgrid[:640, :512]
    tissue = (1700 + 250 * np.sin(row / 60) * np.cos(column / 45)).astype(np.uint16)
    assert breast_mask(tissue, "MONOCHROME2").all()
    with_air = np.where(column < 320, tissue, 40 + column % 20).astype(np.uint16)
    assert np.array_equal(breast_mask(with_air, "MONOCHROME2")[0], np.arange(32) < 21)


def test_bright_air_counts_as_breast_with_all_the_rest() -> None:
    """In a raw image, values rise with the exposure. Formerly, its breast was taken for air."""
    rng = np.random.default_rng(1)
    shown = breast(1024, 768).astype(np.float64)
    exposure = 9000 * np.exp(-3 * shown / shown.max())
    raw = rng.poisson(exposure).astype(np.uint16)
    assert breast_mask(raw, "MONOCHROME2").all()
    np.testing.assert_array_less(breast_mask(raw, "MONOCHROME1").mean(), 0.6)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_an_even_background_is_no_breast_however_bright(turn: int) -> None:
    dark = np.rot90(breast(), turn)
    grey = np.where(dark == 0, np.uint16(3000), dark)
    wanted, found = (breast_mask(each, "MONOCHROME2") for each in (dark, grey))
    assert found[wanted].all()
    assert (found & ~wanted).mean() < 0.01, "but blocks that hold a bit of it"


def test_a_part_beyond_a_gap_is_breast_if_it_is_large() -> None:
    """Such a gap is a seam between detectors. A small part beyond a gap may be a label."""
    whole = breast()
    wanted = breast_mask(whole, "MONOCHROME2")
    for row, above in ((420, True), (96, False)):
        seamed = whole.copy()
        seamed[row : row + 48] = 0
        found = breast_mask(seamed, "MONOCHROME2")
        assert (wanted & ~found)[(row + 64) // 16 :].sum() == 0
        assert found[: row // 16 - 1].any() == above
