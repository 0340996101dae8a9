"""Contrast of specks, brought back by points (node/codec/contrasts.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from node.codec.contrasts import contrast_spots
from node.codec.engine import make_base
from node.codec.mending import mended
from node.codec.points import Points
from node.fidelity.gate import Reference, survey
from storage.records import Rung, Thresholds
from tests.samples import breast
from tests.test_engine import original_of

Image = NDArray[np.float32]
TOP = 4095
SIZES = (1.2, 2.0, 3.0, 4.4)


def disc(radius: float) -> Image:
    """A blurred disc, 31 x 31, of height 1."""
    away = np.hypot(*np.mgrid[-15:16, -15:16])
    drawn = gaussian_filter((away <= radius).astype(np.float32), 0.6)
    return np.asarray(drawn / drawn.max())


def contrast(image: NDArray[Any], place: tuple[int, int], radius: float) -> float:
    """Core less ring, measured here on the planted speck's own place and size."""
    away = np.hypot(*np.mgrid[-15:16, -15:16])
    window = image[place[0] - 15 : place[0] + 16, place[1] - 15 : place[1] + 16]
    return float(window[away <= radius].mean() - np.median(window[(away > radius + 2.5) & (away <= 14)]))


def planted(places: list[tuple[int, int]], radii: list[float], noises: list[float]) -> tuple[Image, Image, float]:
    """A noisy breast, specks in it, and its noise in grey levels."""
    random = np.random.default_rng(1)
    smooth = gaussian_filter(breast(768, 640).astype(np.float32), 4)
    noise = 20.0
    clean = smooth + noise * random.standard_normal(smooth.shape).astype(np.float32)
    image = clean.copy()
    for (row, column), radius, height in zip(places, radii, noises, strict=True):
        image[row - 15 : row + 16, column - 15 : column + 16] += height * noise * disc(radius)
    return clean, image, noise


def stored(values: Image, photometric: str) -> NDArray[np.uint16]:
    pixels = np.clip(np.rint(values), 0, TOP).astype(np.uint16)
    return pixels if photometric == "MONOCHROME2" else np.asarray(TOP - pixels)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_cluster_keeps_its_contrast(photometric: str) -> None:
    """Specks of every size, strong and faint, in a candidate that has lost a third of all and the grain: restored."""
    middle = (384, 180)
    places = [(middle[0] + 28 * i, middle[1] + 28 * j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    radii = [SIZES[number % 4] for number in range(9)]
    noises = [9.0, 8.0, 7.0, 5.0, 9.0, 5.0, 4.5, 7.0, 9.0]
    clean, image, _ = planted(places, radii, noises)
    header = Dataset()
    header.PhotometricInterpretation = photometric
    reference = Reference(stored(image, photometric), header)
    candidate = stored(gaussian_filter(clean + 0.6 * (image - clean), 1.5), photometric)
    spots = contrast_spots(reference, candidate)
    mended = np.clip(candidate + Points(768, 640, tuple(sorted(spots))).field(), 0, TOP)
    sign = 1 if photometric == "MONOCHROME2" else -1

    def total(pixels: NDArray[Any]) -> float:
        return sum(sign * contrast(pixels, place, radius) for place, radius in zip(places, radii, strict=True))

    before = total(reference.pixels.astype(np.float32))
    assert total(candidate.astype(np.float32)) < 0.5 * before
    assert 0.9 * before < total(mended) < 1.1 * before


def test_noise_is_left_alone_where_no_cluster_is() -> None:
    """Of a breast without specks that lost all its grain, next to nothing is put back."""
    clean, _, _ = planted([], [], [])
    reference = Reference(stored(clean, "MONOCHROME2"), Dataset())
    spots = contrast_spots(reference, stored(gaussian_filter(clean, 1.5), "MONOCHROME2"))
    assert len(spots) < clean.size / 2000


def test_an_image_that_is_the_original_gets_nothing() -> None:
    _, image, _ = planted([(384, 180)], [2.0], [9.0])
    reference = Reference(stored(image, "MONOCHROME2"), Dataset())
    assert contrast_spots(reference, reference.pixels) == []


def test_specks_at_the_border_are_passed_over() -> None:
    _, image, _ = planted([(384, 16)], [2.0], [9.0])
    reference = Reference(stored(image[:, 8:], "MONOCHROME2"), Dataset())
    spots = contrast_spots(reference, np.zeros_like(reference.pixels))
    assert all(spot.column >= 15 and spot.row >= 15 for spot in spots)


def test_air_has_no_specks() -> None:
    reference = Reference(np.zeros((512, 512), np.uint16), Dataset())
    assert contrast_spots(reference, reference.pixels) == []


def test_what_is_put_back_shifts_no_tile() -> None:
    """Specks that would move a tile's mean further than the gate lets it are put back in part: no exact patches."""
    places = [(row, column) for row in range(290, 500, 26) for column in range(60, 250, 26)]
    clean, image, _ = planted(places, [4.4] * len(places), [12.0] * len(places))
    reference = Reference(stored(image, "MONOCHROME2"), Dataset())
    base = make_base(original_of(reference.pixels), Rung(2, "jpegxl", 1.0, sample_bits=12))
    smooth = gaussian_filter(clean + 0.5 * (image - clean), 1.0)
    here = np.s_[256:512, :256]
    smooth[here] += (image - smooth)[here].mean()
    candidate = stored(smooth, "MONOCHROME2")
    found = survey(reference, candidate)
    everything = Points(*candidate.shape, tuple(sorted(contrast_spots(reference, candidate))))
    whole = survey(reference, np.clip(np.rint(candidate + everything.field()), 0, TOP).astype(np.uint16))
    before, after = (float(np.abs(one.shift).max()) for one in (found, whole))
    limit = (before + after) / 2
    assert before < 0.8 * limit < after
    made = mended(reference, base, candidate, found, Thresholds(0.0, 0.0, 0.0, shift=limit), 1.0)
    assert made.verdict.passed
    assert made.patches is None
    assert made.points is not None
    assert len(made.points.spots) > 0
