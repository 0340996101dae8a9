"""Proves that noise of air is not coded, and that structures in the air are (node/codec/encode/air_noise.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from node.codec.encode.air_noise import without_air_noise
from node.codec.encode.base_coding import make_base
from storage.records import OperatingPoint
from tests.support.encoder_samples import phantom, source_of

NOISE = 20.0
EVERYWHERE = np.ones((320, 320), dtype=bool)


def noise(seed: int = 1) -> NDArray[np.float32]:
    return (NOISE * np.random.default_rng(seed).standard_normal(EVERYWHERE.shape)).astype(np.float32)


def test_noise_of_air_is_taken_out() -> None:
    _, column = np.mgrid[:320, :320]
    glow = (500 + column).astype(np.float32)
    found = without_air_noise(glow + noise(), EVERYWHERE)
    assert (found - glow)[16:-16, 16:-16].std() < 0.2 * NOISE


def test_a_letter_keeps_its_edges() -> None:
    air = np.full(EVERYWHERE.shape, 500, dtype=np.float32)
    air[140:180, 100:220] += 40 * NOISE
    found = without_air_noise(air + noise(), EVERYWHERE)
    assert np.abs(found - air)[130:190, 90:230].max() < 6 * NOISE
    mean = (found - 500)[150:170, 110:210].mean()
    assert abs(mean / (40 * NOISE) - 1) < 0.01


def test_the_breast_stays_as_it_is() -> None:
    image, air = 500 + noise(), EVERYWHERE.copy()
    air[:, :100] = False
    found = without_air_noise(image, air)
    assert np.array_equal(found[:, :100], image[:, :100])
    assert not np.array_equal(found[:, 100:], image[:, 100:])


def test_air_without_noise_stays_as_it_is() -> None:
    image = np.zeros(EVERYWHERE.shape, dtype=np.float32)
    image[100:120] = 3000
    assert np.array_equal(without_air_noise(image, EVERYWHERE), image)


def test_noisy_air_takes_few_bytes() -> None:
    tissue = phantom().astype(np.float32)
    air = np.where(tissue == 0, 200, 0) + NOISE * np.random.default_rng(1).standard_normal(tissue.shape)
    pixels = np.clip(np.rint(tissue + air), 0, 4095).astype(np.uint16)
    noisy, reference = source_of(pixels)
    clean = replace(noisy, air=reference.air)
    assert reference.air.mean() > 0.2
    point = OperatingPoint(2, "jpegxl", distance=0.2, effort=5)
    assert len(make_base(clean, point).coded) < 0.8 * len(make_base(noisy, point).coded)
    lossless = replace(point, distance=0)
    assert make_base(clean, lossless).coded == make_base(noisy, lossless).coded
