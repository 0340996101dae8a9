"""The noise power spectrum (node/fidelity/spectrum.py)."""

from __future__ import annotations

import numpy as np
import pytest

from node.fidelity.spectrum import BANDS, band_edges, closer_in_every_band, power_spectrum, relative_power
from storage.resample import Operator

INSIDE = np.ones((48, 48), dtype=bool)


def white(seed: int = 1, strength: float = 100) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((768, 768)) * strength
    return np.clip(np.rint(2000 + noise), 0, 4095).astype(np.uint16)


def test_white_noise_has_the_same_power_everywhere_per_frequency() -> None:
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    count = np.bincount(np.minimum((frequency * 128).astype(int), 64).ravel(), minlength=65)[:64]
    density = power_spectrum(white(), INSIDE) / count
    assert density[4:].std() / density[4:].mean() < 0.15
    louder = power_spectrum(white(strength=200), INSIDE)
    assert louder[4:].sum() == pytest.approx(4 * power_spectrum(white(), INSIDE)[4:].sum(), rel=0.05)


def test_only_tiles_wholly_inside_count() -> None:
    mask = INSIDE.copy()
    mask[0, 0] = False
    pixels = white()
    whole, part = power_spectrum(pixels, INSIDE), power_spectrum(pixels, mask)
    assert 0 < part.sum() < whole.sum()
    assert power_spectrum(pixels, np.zeros_like(INSIDE)).sum() == 0


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_bands_start_at_half_the_payloads_nyquist_frequency(scale: int) -> None:
    edges = band_edges(scale)
    assert len(edges) == BANDS + 1
    assert edges[0] / 128 == pytest.approx(0.25 / scale)
    assert edges[-1] / 128 == 0.5
    assert (np.diff(edges) > 0).all()


def test_downsampling_loses_power_above_nyquist_and_noise_brings_it_back() -> None:
    truth = white()
    operator = Operator(768, 768, 2)
    smooth = np.clip(np.rint(operator.lift(operator.down(truth))), 0, 4095).astype(np.uint16)
    powers = [power_spectrum(pixels, INSIDE) for pixels in (truth, smooth)]
    relative = relative_power(powers[1], powers[0], 2)
    assert relative[0] > 0.8
    assert relative[-1] < 0.05
    hidden = np.random.default_rng(9).standard_normal((768, 768)).astype(np.float32) * 100
    hidden -= operator.lift(operator.down(hidden))
    textured = np.clip(np.rint(smooth + 0.9 * hidden), 0, 4095).astype(np.uint16)
    power = power_spectrum(textured, INSIDE)
    assert closer_in_every_band(power, powers[1], powers[0], 2)
    assert not closer_in_every_band(powers[1], power, powers[0], 2)
    assert not closer_in_every_band(power, power, powers[0], 2)
    assert np.array_equal(relative_power(powers[0], powers[0], 2), np.ones(BANDS))
