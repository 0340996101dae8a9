"""Points: spots that restore what a base lost of single specks (node/codec/points.py, spotting.py)."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from node.codec.points import (
    REACH,
    SIGMAS,
    Point,
    Points,
    decode_points,
    encode_points,
    grey_levels,
    level_of,
    profile,
)
from node.codec.spotting import spots_for
from node.fidelity.gate import Reference, Spots, Thresholds, spots, survey
from storage.errors import PayloadError
from tests.samples import breast

LISTED = Thresholds(0.0, 0.0, 0.0, speck=4.0, speck_near=4.0, speck_kept=1.0)


@st.composite
def some_points(draw: st.DrawFn) -> Points:
    rows, columns = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    place = st.tuples(
        st.integers(0, rows - 1), st.integers(0, columns - 1), st.integers(0, len(SIGMAS) - 1), st.integers(-127, 127)
    )
    return Points(rows, columns, tuple(sorted(Point(*each) for each in draw(st.lists(place, max_size=40)))))


@given(some_points())
def test_bytes_and_back(points: Points) -> None:
    assert decode_points(encode_points(points)) == points


@given(some_points(), st.data())
def test_damage_is_an_error_or_other_points(points: Points, data: st.DataObject) -> None:
    """Bytes from a peer's disk are hostile: PayloadError, never another exception."""
    whole = bytearray(encode_points(points))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(PayloadError):
        decode_points(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.floats(0.25, 60_000) | st.floats(-60_000, -0.25))
def test_heights_are_near(grey: float) -> None:
    assert grey_levels(level_of(grey)) == pytest.approx(grey, rel=0.055)


def test_next_to_nothing_is_nothing() -> None:
    assert level_of(0.1) == 0
    assert grey_levels(0) == 0.0


def test_spots_add_up_and_end_at_the_border() -> None:
    one = Points(40, 30, (Point(0, 0, 2, level_of(100.0)),)).field()
    assert one.shape == (40, 30)
    assert one[0, 0] == pytest.approx(100, rel=0.055)
    assert one[REACH + 1 :, :].max() == 0
    two = Points(40, 30, (Point(0, 0, 2, 50), Point(0, 0, 2, 50))).field()
    np.testing.assert_allclose(two, 2 * Points(40, 30, (Point(0, 0, 2, 50),)).field(), rtol=1e-6)


def test_of_an_unknown_size_or_place() -> None:
    with pytest.raises(PayloadError, match="outside"):
        decode_points(encode_points(Points(10, 10, (Point(3, 10, 0, 5),))))
    with pytest.raises(PayloadError, match="size"):
        decode_points(encode_points(Points(10, 10, (Point(3, 3, len(SIGMAS), 5),))))
    with pytest.raises(PayloadError, match="format"):
        decode_points(b"\x09" + encode_points(Points(10, 10, ()))[1:])


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_what_was_taken_away_is_put_back(photometric: str) -> None:
    """Planted specks, removed again: the gate says lost, and points restore at least 95 % of their contrast."""
    smooth = breast(512, 512)
    random = np.random.default_rng(3)
    places = random.integers(150, 360, size=(12, 2))
    pixels = smooth.astype(np.float32)
    for row, column in places:
        pixels[row - REACH : row + REACH + 1, column - REACH : column + REACH + 1] += 400 * profile(1)
    header = Dataset()
    header.PhotometricInterpretation = photometric
    top = 4095 if photometric == "MONOCHROME1" else 0

    def stored(values: np.ndarray) -> np.ndarray:
        return np.abs(top - np.clip(values, 0, 4095)).astype(np.uint16)

    reference, without = Reference(stored(pixels), header), stored(smooth.astype(np.float32))
    found = spots(survey(reference, without), LISTED)
    near = [np.abs(found.lost[:, :2] - place).max(axis=1).min() <= 2 for place in places]
    assert all(near), "every planted speck is listed as lost"
    points = Points(512, 512, tuple(sorted(spots_for(reference, without, found))))
    mended = np.clip(without + points.field(), 0, 4095).astype(np.uint16)
    left = spots(survey(reference, mended), LISTED).lost
    worst = left[:, 3].min() if len(left) else 1.0
    assert worst >= 0.95


def test_nothing_to_mend() -> None:
    reference = Reference(breast(512, 512), Dataset())
    nothing = Spots(np.zeros((0, 5)), np.zeros((0, 5)), [])
    assert spots_for(reference, reference.pixels, nothing) == []
