"""Proves that benchmarks/observer.py tells coders that keep the signals from coders that lose them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks import observer
from benchmarks.coded import Coded, Image, code
from benchmarks.observer import measured
from benchmarks.signals import Signal, all_signals
from storage.records import OperatingPoint
from tests.support.calcification_samples import image


def coder(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Image], Coded]:
    """A coder that makes its structure by ``change``, and draws no noise."""

    def made(image: Image) -> Coded:
        original = image.picture.pixels
        structure = change(original.astype(np.float32))
        served = np.clip(np.rint(structure), 0, 4095).astype(np.uint16)
        return Coded(image.name, original, structure, served, image.window, image.breast, 1000, "x1", [], 0.0)

    return made


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Signal]:
    """Use only two kinds of signals."""
    kinds = [kind for kind in all_signals() if kind.name in ("cluster 200 um", "cluster 300 um")]
    monkeypatch.setattr(observer, "all_signals", lambda: kinds)
    return kinds


@pytest.mark.slow
def test_ratios(few: list[Signal]) -> None:
    mammogram = replace(image(), spacing_mm=0.07)
    same = measured(mammogram, 30, 2.5, 1, coder(lambda pixels: pixels))
    assert same["signals"]
    for row in same["signals"]:
        assert row["ratio"] == 1
        assert row["contrast"] == 1
        assert row["d_original"] > 0
    assert not same["below"]
    smooth = measured(mammogram, 30, 2.5, 1, coder(lambda pixels: gaussian_filter(pixels, 1.5)))
    assert all(row["contrast"] < 0.95 for row in smooth["signals"])


@pytest.mark.slow
def test_an_operating_point_can_be_chosen() -> None:
    chosen = code(image(), upscaler="bicubic", point=OperatingPoint(1, "jpegxl", 25.0))
    assert chosen.point == "x1 jpegxl d25"
    assert np.abs(chosen.served.astype(float) - chosen.structure).std() > 1, "noise is drawn"
