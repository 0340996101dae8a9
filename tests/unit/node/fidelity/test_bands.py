"""Proves which details fall into which octave band (node/fidelity/bands.py), and how tiles add up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from node.fidelity.bands import BANDS, band_energies
from storage.formats.geometry import TILE

Float = NDArray[np.float32]


def waves(period: float, angle: float = 0.0, side: int = 512) -> Float:
    y, x = np.mgrid[0:side, 0:side]
    return (10 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)).astype(np.float32)


def whole(image: Float) -> NDArray[np.float64]:
    """The energy of each band per pixel, for the whole image."""
    return np.asarray(band_energies(image, np.ones(image.shape, dtype=bool)).sum(axis=(1, 2)) / image.size)


@pytest.mark.parametrize("angle", [0.0, np.pi / 4, np.pi / 2])
@pytest.mark.parametrize(("period", "band"), [(2.5, 0), (6.5, 1), (13, 2), (22, 3), (100, 4)])
def test_a_wave_falls_in_the_band_of_its_period(period: float, band: int, angle: float) -> None:
    assert int(whole(waves(period, angle)).argmax()) == band


@pytest.mark.parametrize("period", [3.0, 6.0, 12.0, 24.0, 60.0])
def test_energies_are_those_of_the_filters(period: float) -> None:
    """Each band passes what a difference of Gaussians passes. The coarse bands are halved first, and come close to
    it."""
    squared = (2 * np.pi / period) ** 2 / 2
    smooth = [1.0, *(np.exp(-squared * sigma**2) for sigma in (0.7, 1.4, 2.8, 5.6))]
    expected = [50 * (before - after) ** 2 for before, after in pairwise(smooth)]
    found = whole(waves(period, 0.3, 1024))
    np.testing.assert_allclose(found[:2], expected[:2], rtol=0.07, atol=0.02)
    np.testing.assert_allclose(found[2:BANDS], expected[2:], rtol=0.35, atol=0.1)
    assert found[BANDS] == pytest.approx(50 * smooth[-1] ** 2, rel=0.1, abs=0.1)


def test_a_constant_has_no_energy() -> None:
    assert whole(np.full((300, 300), 4000, dtype=np.float32)).max() < 1e-6


def test_noise_of_twice_the_strength_has_four_times_the_energy() -> None:
    noise = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    np.testing.assert_allclose(whole(2 * noise), 4 * whole(noise), rtol=1e-4)


@pytest.mark.parametrize("shape", [(512, 768), (513, 700), (300, 257), (1021, 333)])
def test_tiles_add_up_to_the_whole(shape: tuple[int, int]) -> None:
    """The energies of tiles are those of the whole image's bands, and not of bands of the single tiles."""
    random = np.random.default_rng(1)
    image = gaussian_filter(random.standard_normal(shape), 1.0).astype(np.float32)
    tiles = band_energies(image, np.ones(shape, dtype=bool))
    assert tiles.shape == (BANDS + 1, -(-shape[0] // TILE), -(-shape[1] // TILE))
    blurred = [image - image.mean()]
    blurred += [gaussian_filter(blurred[0], sigma, mode="nearest") for sigma in (0.7, 1.4)]
    for band in (0, 1):
        energy = np.square(blurred[band] - blurred[band + 1])
        assert tiles[band].sum() == pytest.approx(energy.sum(), rel=0.01)
        assert tiles[band, 0, 0] == pytest.approx(energy[:TILE, :TILE].sum(), rel=0.01)
        last = energy[(tiles.shape[1] - 1) * TILE :, (tiles.shape[2] - 1) * TILE :].sum()
        assert tiles[band, -1, -1] == pytest.approx(last, rel=0.25), "borders are repeated after each blur"


def test_only_pixels_of_the_mask_count() -> None:
    noise = np.random.default_rng(2).standard_normal((512, 512)).astype(np.float32)
    inside = np.zeros((512, 512), dtype=bool)
    inside[64:192, 300:450] = True
    found, everything = band_energies(noise, inside), band_energies(noise, np.ones_like(inside))
    assert not found[:, 0, 0].any()
    assert not found[:, 1].any()
    share = found[:2, 0, 1] / everything[:2, 0, 1]
    np.testing.assert_allclose(share, 128 * 150 / 256**2, rtol=0.05)
    noise[inside] = 0
    assert band_energies(noise, inside)[0].sum() < 0.02 * found[0].sum(), "but for what reaches in from beside"


def test_a_tile_that_no_longer_counts_keeps_no_energy() -> None:
    """This happens where exact patches cover all of the breast in a tile."""
    noise = np.random.default_rng(3).standard_normal((512, 512)).astype(np.float32)
    whole_breast, rest = np.ones(noise.shape, dtype=bool), np.ones(noise.shape, dtype=bool)
    rest[:TILE, :TILE] = False
    changed = np.zeros((32, 32), dtype=bool)
    changed[:16, :16] = True
    again = band_energies(noise, rest, band_energies(noise, whole_breast), changed)
    np.testing.assert_array_equal(again, band_energies(noise, rest))


def test_an_empty_tile_beside_a_second_part_of_the_breast_keeps_no_energy() -> None:
    noise = np.random.default_rng(4).standard_normal((TILE, 3 * TILE)).astype(np.float32)
    both = np.ones(noise.shape, dtype=bool)
    both[:, TILE : 2 * TILE] = False
    right = both.copy()
    right[:, :TILE] = False
    changed = np.zeros((16, 48), dtype=bool)
    changed[:, :16] = True
    again = band_energies(noise, right, band_energies(noise, both), changed)
    np.testing.assert_allclose(again, band_energies(noise, right), rtol=1e-6)
    assert not again[:, 0, :2].any()
