"""Proves that a fingerprint accepts other rounding, and no difference that a reader could see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from node.codec.fingerprint import difference, fingerprint_of

Pixels = NDArray[np.uint16]
ROWS, COLUMNS, NOISE = 700, 600, 8.0


@pytest.fixture(scope="module")
def plain() -> Pixels:
    tissue = gaussian_filter(np.random.default_rng(1).standard_normal((ROWS, COLUMNS)), 8) * 3000 + 2000
    return tissue.round().astype(np.uint16)


@pytest.fixture(scope="module")
def served(plain: Pixels) -> Pixels:
    noise = np.random.default_rng(2).standard_normal(plain.shape) * NOISE
    return (plain + noise).round().astype(np.uint16)


def test_the_verified_pixels_have_no_difference(served: Pixels, plain: Pixels) -> None:
    assert difference(fingerprint_of(served), served, plain) == ""


def test_its_sums_never_change() -> None:
    """The values are literal, because fingerprints are stored."""
    found = np.frombuffer(fingerprint_of(np.arange(600 * 20, dtype=np.uint16).reshape(20, 600)), "<u2")
    assert found.tolist() == [33780, 9410, 55822]


def test_other_rounding_passes(served: Pixels, plain: Pixels) -> None:
    """One pixel in two hundred differs by one grey level, which is ten times as many as other vector extensions
    change."""
    other = served.copy()
    places = np.random.default_rng(3).random(served.shape) < 0.005
    other[places] += np.random.default_rng(4).choice([-1, 1], int(places.sum())).astype(np.uint16)
    assert difference(fingerprint_of(served), other, plain) == ""


CHANGES: dict[str, Callable[[Pixels, Pixels], Pixels]] = {
    "other noise": lambda served, plain: (plain + np.random.default_rng(5).standard_normal(plain.shape) * NOISE).astype(
        np.uint16
    ),
    "no noise": lambda served, plain: plain,
    "brighter by half a grey level on average": lambda served, plain: (
        served + (np.arange(served.size).reshape(served.shape) % 2)
    ).astype(np.uint16),
    "shifted by one pixel": lambda served, plain: np.roll(served, 1, axis=1),
    "a square of 100 pixels has no noise": lambda served, plain: _without(served, plain, 100),
    "a cluster of specks is lost": lambda served, plain: _without(served, (plain - 400).astype(np.uint16), 10),
    "one part is from another image": lambda served, plain: np.concatenate([served[:600], served[:100]]),
}


def _without(served: Pixels, other: Pixels, side: int) -> Pixels:
    changed = served.copy()
    changed[30 : 30 + side, 40 : 40 + side] = other[30 : 30 + side, 40 : 40 + side]
    return changed


@pytest.mark.parametrize("change", CHANGES)
def test_another_picture_does_not_pass(served: Pixels, plain: Pixels, change: str) -> None:
    other = CHANGES[change](served, plain)
    found = difference(fingerprint_of(served), other, plain)
    assert "differ by more than rounding" in found, change


def test_where_no_noise_is_drawn_every_hundredth_pixel_may_differ_by_one(plain: Pixels) -> None:
    for share, passes in ((0.005, True), (0.3, False)):
        other = plain.copy()
        other[np.random.default_rng(6).random(plain.shape) < share] += 1
        assert (difference(fingerprint_of(plain), other, other) == "") is passes


@pytest.mark.parametrize("shape", [(257, 257), (258, 513), (300, 280)])
def test_a_film_one_pixel_wider_than_a_square_passes(shape: tuple[int, int]) -> None:
    """Formerly, a square of one pixel had no noise to compare with, so that other rounding did not pass."""
    rng = np.random.default_rng(7)
    film = rng.standard_normal(shape) * 300 + 30000
    for _ in range(5):
        other = film + rng.standard_normal(shape) * 1.5
        plain = np.full(shape, 30000, dtype=np.uint16)
        assert difference(fingerprint_of(film.round().astype(np.uint16)), other.round().astype(np.uint16), plain) == ""


def test_a_rendition_without_a_fingerprint_does_not_pass(served: Pixels, plain: Pixels) -> None:
    assert difference(b"", served, plain) == "no fingerprint of its verified pixels was stored"
