"""Proves that points restore what a base lost of single specks (node/codec/points.py), and where the encoder sets them
(point_fitting.py)."""

from __future__ import annotations

import contextlib
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from node.codec.encode.point_fitting import points_for
from node.codec.points import (
    PROFILES,
    REACH,
    Point,
    Points,
    decode_points,
    encode_points,
    grey_levels,
    joined,
    level_of,
)
from node.fidelity.gate import cell_any, speck_lists, specks_of, wrong_specks
from node.fidelity.reference import Reference
from storage.errors import PayloadError
from storage.formats.geometry import CELL
from storage.records import Thresholds
from tests.support.samples import breast

LIMITS = Thresholds()


@st.composite
def some_points(draw: st.DrawFn) -> Points:
    rows, columns = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    place = st.tuples(
        st.integers(0, rows - 1), st.integers(0, columns - 1), st.integers(0, PROFILES - 1), st.integers(-255, 255)
    )
    return Points(rows, columns, tuple(sorted(Point(*each) for each in draw(st.lists(place, max_size=40)))))


@given(some_points())
def test_bytes_and_back(points: Points) -> None:
    assert decode_points(encode_points(points)) == points


@given(some_points(), st.data())
def test_damage_is_an_error_or_other_points(points: Points, data: st.DataObject) -> None:
    """The bytes are hostile. Decoding raises PayloadError and never another exception."""
    whole = bytearray(encode_points(points))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(PayloadError):
        decode_points(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.floats(0.25, 60_000) | st.floats(-60_000, -0.25))
def test_heights_are_near(grey: float) -> None:
    assert grey_levels(level_of(grey)) == pytest.approx(grey, rel=0.026)


def test_next_to_nothing_is_nothing() -> None:
    assert level_of(0.1) == 0
    assert grey_levels(0) == 0.0


def test_spots_add_up_and_end_at_the_border() -> None:
    one = Points(40, 30, (Point(0, 0, 2, level_of(100.0)),)).field()
    assert one.shape == (40, 30)
    assert one[0, 0] == pytest.approx(100, rel=0.026)
    assert one[REACH + 1 :, :].max() == 0
    two = Points(40, 30, (Point(0, 0, 2, 50), Point(0, 0, 2, 50))).field()
    np.testing.assert_allclose(two, 2 * Points(40, 30, (Point(0, 0, 2, 50),)).field(), rtol=1e-6)


def test_of_an_unknown_size_or_place() -> None:
    with pytest.raises(PayloadError, match="outside"):
        decode_points(encode_points(Points(10, 10, (Point(3, 10, 0, 5),))))
    with pytest.raises(PayloadError, match="profile"):
        decode_points(encode_points(Points(10, 10, (Point(3, 3, PROFILES, 5),))))
    with pytest.raises(PayloadError, match="format"):
        decode_points(b"\x09" + encode_points(Points(10, 10, ()))[1:])


def with_specks(photometric: str, sigma: float) -> tuple[Reference, np.ndarray, list[tuple[int, int]]]:
    """The reference of a breast with planted specks, the image without them as a structure, and their places."""
    smooth = breast(512, 512).astype(np.float32)
    places, peak = (
        [(row, column) for row in (170, 220, 270, 320) for column in (60, 130, 200)],
        400 * max(sigma - 0.4, 1.0),
    )
    pixels, y, x = smooth.copy(), *np.mgrid[0:512, 0:512]
    for row, column in places:
        pixels += peak * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2)).astype(np.float32)
    header = Dataset()
    header.PhotometricInterpretation = photometric
    top = 4095 if photometric == "MONOCHROME1" else 0
    stored, structure = (np.abs(top - np.clip(np.rint(image), 0, 4095)) for image in (pixels, smooth))
    return Reference(stored.astype(np.uint16), header), structure.astype(np.float32), places


def wrong(reference: Reference, structure: np.ndarray) -> list[tuple[int, int]]:
    lost, invented = wrong_specks(*speck_lists(specks_of(reference, np.rint(structure), reference.tiles)), LIMITS)
    return [(speck.row, speck.column) for speck in [*lost, *invented]]


def points_in(reference: Reference, structure: np.ndarray, exact: np.ndarray | None = None) -> Points | None:
    specks = specks_of(reference, np.rint(structure), reference.tiles)
    none = np.zeros((32, 32), dtype=bool)
    return points_for(reference, structure, specks, none, none if exact is None else exact, LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("sigma", [0.8, 1.4, 1.8])
def test_what_was_taken_away_is_put_back(photometric: str, sigma: float) -> None:
    """The planted specks are missing in the structure. The gate reports them as lost, and points restore each of
    them."""
    reference, structure, places = with_specks(photometric, sigma)
    lost = np.array(wrong(reference, structure))
    assert all(np.abs(lost - place).max(axis=1).min() <= 2 for place in places), "every planted speck is lost"
    points = points_in(reference, structure)
    assert points is not None
    assert wrong(reference, structure + points.field()) == []
    assert len(points.spots) >= len(places)
    sign = -1 if photometric == "MONOCHROME1" else 1
    added = points.field()
    assert all(sign * added[place] > 0 for place in places)


def test_the_edge_of_a_speck_is_put_back_with_its_middle() -> None:
    """A base of half the size has blurred grains of 6 pixels. A Gaussian at its middle restores only 90% of one
    grain."""
    smooth = breast(512, 512).astype(np.float32)
    y, x = np.mgrid[0:512, 0:512]
    places = [(row, column) for row in (170, 220, 270, 320) for column in (60, 130, 200)]
    pixels = smooth.copy()
    for row, column in places:
        pixels += 1500 * gaussian_filter((np.hypot(y - row, x - column) <= 3).astype(np.float32), 0.6)
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    reference = Reference(np.rint(pixels).astype(np.uint16), header)
    structure = gaussian_filter(reference.image, 1.2)
    points = points_in(reference, structure)
    assert points is not None

    def contrast(image: np.ndarray, place: tuple[int, int]) -> float:
        away = np.hypot(y - place[0], x - place[1])
        return float(image[away <= 3].mean() - np.median(image[(away > 8) & (away < 14)]))

    before = [contrast(structure, place) / contrast(reference.image, place) for place in places]
    after = [contrast(structure + points.field(), place) / contrast(reference.image, place) for place in places]
    assert max(before) < 0.8
    assert min(after) > 0.95


def test_what_the_encoder_measures_is_what_the_decoder_adds() -> None:
    """A height that was corrected twice is stored as one value."""
    reference, structure, _ = with_specks("MONOCHROME2", 1.4)
    half = structure + 0.5 * (reference.image - structure)
    points = points_in(reference, half)
    assert points is not None
    decoded = decode_points(encode_points(points)).field()
    assert wrong(reference, half + decoded) == []


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_specks_that_coding_invented_are_taken_away(photometric: str) -> None:
    header = Dataset()
    header.PhotometricInterpretation = photometric
    top = 4095 if photometric == "MONOCHROME1" else 0
    bright = np.abs(top - breast(512, 512).astype(np.float32))
    reference = Reference(bright.astype(np.uint16), header)
    y, x = np.mgrid[0:512, 0:512]
    sign = -1 if top else 1
    structure = reference.image + sign * 900 * np.exp(-((y - 220) ** 2 + (x - 130) ** 2) / 4).astype(np.float32)
    assert (220, 130) in wrong(reference, structure)
    points = points_in(reference, structure)
    assert points is not None
    assert sign * points.field()[220, 130] == pytest.approx(-900, rel=0.25)
    assert wrong(reference, structure + points.field()) == []


def test_specks_in_repaired_cells_are_measured_again() -> None:
    """Measurements from before the repair do not count there."""
    reference, structure, places = with_specks("MONOCHROME2", 1.4)
    before = specks_of(reference, np.rint(structure), reference.tiles)
    repaired, (row, column) = structure.copy(), places[0]
    repaired[row - 16 : row + 16, column - 16 : column + 16] = reference.image[
        row - 16 : row + 16, column - 16 : column + 16
    ]
    changed, none = cell_any(repaired != structure), np.zeros((32, 32), dtype=bool)
    points = points_for(reference, repaired, before, changed, none, LIMITS)
    assert points is not None
    assert wrong(reference, repaired + points.field()) == []
    assert places[0] not in {(spot.row, spot.column) for spot in points.spots}


def test_specks_in_cells_that_are_stored_exactly_take_no_points() -> None:
    reference, structure, _ = with_specks("MONOCHROME2", 1.4)
    left = np.ones((32, 32), dtype=bool)
    left[:, 8:10] = False
    points = points_in(reference, structure, left)
    assert points is not None
    assert {spot.column // CELL for spot in points.spots} == {8}
    assert points_in(reference, structure, np.ones((32, 32), dtype=bool)) is None


def test_only_wrong_specks_get_further_points() -> None:
    """Beside a patch, the speck that the patch has changed is corrected. All others keep their points, whatever their
    edges are like."""
    reference, structure, places = with_specks("MONOCHROME2", 1.4)
    points = points_in(reference, structure)
    assert points is not None
    repaired = structure + points.field()
    row, column = places[0]
    y, x = np.mgrid[0:512, 0:512]
    repaired -= 300 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 1.4**2)).astype(np.float32)
    specks = specks_of(reference, np.rint(repaired), reference.tiles)
    none = np.zeros((32, 32), dtype=bool)
    more = points_for(reference, repaired, specks, none, none, LIMITS, again=True)
    assert more is not None
    assert {(round(spot.row, -1), round(spot.column, -1)) for spot in more.spots} == {(row, column)}
    assert wrong(reference, repaired) == [(row, column)]
    assert wrong(reference, repaired + more.field()) == []


@given(some_points(), st.randoms())
def test_joined_points_add_up_as_the_decoder_adds_them(points: Points, random: Random) -> None:
    """The sum is the same to the last bit, because the verified pixels depend on the order of summation."""
    some = [random.random() < 0.5 for _ in points.spots]
    parts = [
        Points(points.rows, points.columns, tuple(s for s, own in zip(points.spots, some, strict=True) if own == side))
        for side in (True, False)
    ]
    assert joined(parts[0], parts[1]) == decode_points(encode_points(points))
    assert joined(parts[0], None) is joined(None, parts[0]) is parts[0]


def test_nothing_to_mend() -> None:
    reference = Reference(breast(512, 512), Dataset())
    assert points_in(reference, reference.image) is None
