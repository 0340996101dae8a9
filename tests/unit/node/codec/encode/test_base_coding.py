"""Proves that a base (node/codec/encode/base_coding.py) restores clipped places at their extreme value."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from node.codec.encode.base_coding import make_base
from storage.records import OperatingPoint
from tests.support.encoder_samples import phantom, source_of, with_implant

POINT = OperatingPoint(2, "jpegxl", distance=0.5, effort=5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_inside_of_a_clipped_implant_comes_back_exactly(photometric: str) -> None:
    """The decoder clips values beyond the extreme value."""
    pixels = with_implant()
    pixels = 4095 - pixels if photometric == "MONOCHROME1" else pixels
    source, _ = source_of(pixels, PhotometricInterpretation=photometric)
    base = make_base(source, POINT)
    samples = base.samples() if photometric == "MONOCHROME2" else 4095 - base.samples()
    inside = binary_erosion(with_implant()[::2, ::2] == 4095, iterations=4)
    assert inside.mean() > 0.1
    assert (samples[inside] >= 4095).mean() > 0.95


def test_a_few_clipped_samples_leave_the_range_as_it_is() -> None:
    pixels = phantom().copy()
    pixels[300:320, 100:120] = 4095
    base = make_base(source_of(pixels)[0], POINT)
    assert base.gain == pytest.approx(65535 / (4095 - int(pixels.min())))
    assert np.abs(base.samples() - source_of(pixels)[0].lowered(2)).mean() < 20
