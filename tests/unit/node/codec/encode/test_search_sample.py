"""Proves that the sample of a search (node/codec/encode/search_sample.py) holds no padding."""

from __future__ import annotations

import numpy as np

from node.codec.encode.search_sample import sample_of
from tests.support.encoder_samples import phantom, source_of


def test_padding_beyond_the_greatest_value_is_not_in_the_sample() -> None:
    """A base has no value beyond the extreme ones, so a sample with such padding would fail at any distance."""
    pixels = np.tile(np.minimum(phantom(), 4000), (2, 2))
    pixels[pixels == 0] = 4095
    pixels[100:1200:97, 100:1000:53] = 4095
    source, reference = source_of(pixels, PixelPaddingValue=4095)
    sample, _ = sample_of(source, reference)
    assert sample is not source
    assert sample.pixels.max() <= source.extremes[1] <= 4000
