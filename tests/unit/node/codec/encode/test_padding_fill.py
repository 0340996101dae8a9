"""Proves which values stand in for padding while an image is downsampled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.codec.encode.padding_fill import filled
from storage.formats.resample import Operator
from tests.support.samples import breast


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
    top=st.booleans(),
)
def test_only_padding_changes_and_the_range_holds(rows: int, columns: int, share: float, seed: int, top: bool) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(60000 if top else 100, 65536 if top else 300, (rows, columns)).astype(np.uint16)
    mask = random.random((rows, columns)) < share
    mask.flat[int(random.integers(mask.size))] = False
    pixels[mask] = 0
    result = filled(pixels, mask)
    assert (result.dtype, result.shape) == (np.uint16, pixels.shape)
    assert np.array_equal(result[~mask], pixels[~mask])
    assert pixels[~mask].min() <= result.min()
    assert result.max() <= pixels[~mask].max()


def test_it_goes_on_from_what_is_beside_it() -> None:
    """The fill follows a slope along the border of the padding, which one value for all padding would not."""
    pixels = np.tile(np.linspace(500, 3500, 800).astype(np.uint16)[:, None], (1, 600))
    mask = np.zeros(pixels.shape, dtype=bool)
    mask[:, 300:] = True
    truth = pixels.copy()
    pixels[mask] = 0
    result = filled(pixels, mask)
    assert np.abs(result[:, 300:308].astype(int) - truth[:, 300:308]).max() < 40
    assert len(np.unique(result[:, 300 + 100 :])) == 1, "far away it is one value, which need not be coded"


@pytest.mark.parametrize("scale", [2, 4])
def test_single_pixels_leave_no_trace_in_the_base(scale: int) -> None:
    pixels = breast()[200:456, :256]
    mask = np.random.default_rng(1).random(pixels.shape) < 0.002
    holed = np.where(mask, 0, pixels).astype(np.uint16)
    operator = Operator(*pixels.shape, scale)
    off = operator.down(filled(holed, mask)) - operator.down(pixels)
    assert np.sqrt(np.mean(np.square(off))) < 5
    assert np.abs(operator.down(holed) - operator.down(pixels)).max() > 100
