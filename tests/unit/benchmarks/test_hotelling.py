"""Proves that the channels of benchmarks/hotelling.py are orthonormal, and that d' has its theoretical value."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.hotelling import Responses, compared, detectability, hermite_gauss, laguerre_gauss


def distances(reach: int) -> np.ndarray:
    return np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])


def test_channels_are_orthonormal() -> None:
    round_ones = laguerre_gauss(distances(60), 20.0, 6).reshape(6, -1)
    assert round_ones @ round_ones.T == pytest.approx(np.eye(6), abs=1e-3)
    line = hermite_gauss(np.arange(-40, 41), 5.0, 5)
    assert line @ line.T == pytest.approx(np.eye(5), abs=1e-3)


def white(places: int, amplitude: float, seed: int) -> tuple[Responses, float]:
    """Responses to white noise of deviation 2, without and with a Gaussian signal, and d' in theory."""
    random = np.random.default_rng(seed)
    width, reach = 10.0, 16
    kernels = laguerre_gauss(distances(reach), width, 6).reshape(6, -1)
    signal = amplitude * np.exp(-np.pi * np.square(distances(reach) / width)).ravel()
    absent = 2.0 * random.standard_normal((places, signal.size)) @ kernels.T
    present = 2.0 * random.standard_normal((places, signal.size)) @ kernels.T + kernels @ signal
    return Responses(absent, present), float(np.sqrt(np.square(signal).sum()) / 2.0)


def test_white_noise() -> None:
    found = [detectability(white(200, 0.7, seed)[0])[0] for seed in range(8)]
    assert np.mean(found) == pytest.approx(white(1, 0.7, 0)[1], rel=0.04)  # 2.47


def test_it_sees_nothing_where_nothing_is() -> None:
    assert np.mean([detectability(white(200, 0.0, seed)[0])[0] for seed in range(8)]) == pytest.approx(0, abs=0.1)


def test_it_learns_the_noise() -> None:
    """Two channels share most of their noise. Their difference, in which only the signal is left, counts."""
    random = np.random.default_rng(3)
    common = 10 * random.standard_normal((400, 1))
    absent = common + random.standard_normal((400, 2))
    present = absent + np.array([2.0, 0.0])
    assert detectability(Responses(absent, present))[0] == pytest.approx(2 / np.sqrt(2), rel=0.1)


def test_equals_compare_as_equal() -> None:
    first = white(150, 0.7, 1)[0]
    same = compared(first, first)
    assert same.ratio == same.low == same.high == 1
    other = compared(first, white(150, 0.7, 2)[0])  # other noise of the same kind
    assert other.low < 1 < other.high
    assert other.high - other.low < 0.6
    half = compared(first, Responses(first.absent, (first.absent + first.present) / 2))
    assert half.ratio == pytest.approx(0.5, abs=0.2)
    assert half.high < 0.8


def test_few_places_and_much_background() -> None:
    found = []
    for seed in range(20):
        few, theory = white(16, 0.7, seed)
        many, _ = white(200, 0.0, 100 + seed)
        signal = white(2, 0.7, 0)[0].present - white(2, 0.0, 0)[0].present
        found.append(detectability(Responses(few.absent, few.absent + signal[0], many.absent))[0])
    assert np.mean(found) == pytest.approx(theory, rel=0.1)


@pytest.mark.slow
def test_the_interval_holds_the_truth() -> None:
    """Of 40 pairs of equally good images, about 38 should have 1 in the interval of their ratio."""
    held = 0
    for seed in range(40):
        many = white(150, 0.0, 500 + seed)[0].absent
        pair = [white(24, 0.7, 1000 + 2 * seed + which)[0] for which in (0, 1)]
        ratio = compared(*(Responses(each.absent, each.present, many) for each in pair))
        held += ratio.low <= 1 <= ratio.high
    assert held >= 34
