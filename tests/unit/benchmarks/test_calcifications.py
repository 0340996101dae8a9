"""Proves what benchmarks/calcifications.py plants, how it scores, and that the gate finds it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.calcifications import (
    NOISES,
    Planted,
    Score,
    Speck,
    box_strength,
    contrast,
    invented,
    local_noise,
    peaks,
    plant,
    run,
    scores_of,
)
from benchmarks.coded import Coded, code
from node.fidelity.gate import failures, measure_structure, speck_lists, wrong_specks
from node.fidelity.reference import Reference
from storage.records import Thresholds
from tests.support.calcification_samples import image


def kept_of(stored: NDArray[np.uint16], got: NDArray[np.uint16], cluster: list[Speck]) -> float:
    """The share of a cluster's contrast that is left."""
    return sum(contrast(got, speck) for speck in cluster) / sum(contrast(stored, speck) for speck in cluster)


def visible(scores: list[Score]) -> list[Score]:
    return [score for score in scores if score.visible]


def given_back(planted: Planted, structure: NDArray[np.float32]) -> Coded:
    """The result of a coder that makes this structure of the planted image, and draws no noise."""
    served = np.clip(np.rint(structure), 0, 4095).astype(np.uint16)
    breast = planted.image.breast
    return Coded("test", planted.pixels, structure, served, planted.image.window, breast, 1000, "x1", [], 0.0)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(image(), 4, np.random.default_rng(1))


def test_planting(planted: Planted) -> None:
    clean = planted.image.picture.pixels
    assert len(planted.clusters) == 4
    for cluster in planted.clusters:
        assert 5 <= len(cluster) <= 12
        for speck in cluster:
            assert NOISES[0] <= speck.noises <= NOISES[1]
            place = np.s_[speck.row - 34 : speck.row + 35, speck.column - 34 : speck.column + 35]
            added = float(planted.pixels[speck.row, speck.column]) - float(clean[speck.row, speck.column])
            noise = local_noise(clean[place].astype(np.float32))
            assert added == pytest.approx(speck.noises * noise, rel=0.2, abs=2)  # specks before it are in its noise
    again = plant(image(), 4, np.random.default_rng(1))
    assert np.array_equal(again.pixels, planted.pixels)


def test_scores(planted: Planted) -> None:
    clean = planted.image.picture.pixels
    for cluster in planted.clusters:
        assert kept_of(planted.pixels, planted.pixels, cluster) == 1.0
        assert kept_of(planted.pixels, clean, cluster) < 0.3
        half = ((planted.pixels.astype(int) + clean) // 2).astype(np.uint16)
        assert 0.4 < kept_of(planted.pixels, half, cluster) < 0.7
        assert all(contrast(planted.pixels, speck) > contrast(clean, speck) for speck in cluster)


def test_scores_of_visible_specks(planted: Planted) -> None:
    whole, clean = planted.pixels.astype(np.float32), planted.image.picture.pixels.astype(np.float32)
    strength = box_strength(planted.pixels, planted.image.picture.pixels)
    specks = [speck for cluster in planted.clusters for speck in cluster]
    same = visible(scores_of(planted, given_back(planted, whole), strength, specks))
    assert 5 <= len(same) < len(specks)
    assert all(score.kept and score.structure == 1 for score in same)
    lost = visible(scores_of(planted, given_back(planted, 0.9 * whole + 0.1 * clean), strength, specks))
    assert all(score.structure == pytest.approx(0.92, abs=0.08) for score in lost)
    gone = visible(scores_of(planted, given_back(planted, clean), strength, specks))
    assert len(gone) == len(same)
    assert not any(score.kept for score in gone)
    assert not Score(8.0, True, 500.0, 500.0, 1.06, 1.0).kept


def test_the_other_detector(planted: Planted) -> None:
    clean = planted.image.picture.pixels
    before, after = box_strength(clean, clean), box_strength(planted.pixels, clean)
    found = np.argwhere(invented(before, after))
    assert len(found) >= 5
    specks = np.array([(speck.row, speck.column) for cluster in planted.clusters for speck in cluster])
    inside = [place for place in found if np.abs(place - np.array(clean.shape) / 2).max() < 250]
    assert all(np.hypot(*(specks - place).T).min() < 6 for place in inside)
    assert not invented(after, after).any()
    assert peaks(after, 6.0).sum() > peaks(before, 6.0).sum()


@pytest.mark.slow
def test_the_gate_reports_what_smoothing_loses(planted: Planted) -> None:
    """The gate refuses a smoothed structure. If a structure has none of the planted specks, it reports most of the
    strong ones as lost."""
    reference = Reference(planted.pixels, planted.image.picture.header)
    limits = Thresholds()
    inside = planted.image.breast
    smooth = np.where(inside, gaussian_filter(planted.pixels.astype(np.float32), 1.5), planted.pixels)
    found = measure_structure(reference, np.asarray(smooth, dtype=np.float32))
    assert wrong_specks(*speck_lists(found.specks), limits)[0]
    assert any("specks whose contrast is not kept" in each for each in failures(found, {}, limits))
    gone = measure_structure(reference, planted.image.picture.pixels.astype(np.float32))
    lost = np.array([(speck.row, speck.column) for speck in wrong_specks(*speck_lists(gone.specks), limits)[0]])
    for cluster in planted.clusters:
        bright = [speck for speck in cluster if speck.noises >= 8.0]
        near = [np.hypot(*(lost - (speck.row, speck.column)).T).min() <= 3 for speck in bright]
        assert sum(near) >= 0.7 * len(bright)


def test_through_a_coder(planted: Planted) -> None:
    """A coder that returns its input keeps every speck, and a coder that loses the planted specks keeps none."""
    clean = planted.image.picture.pixels.astype(np.float32)
    same = run([planted], lambda image: given_back(planted, image.picture.pixels.astype(np.float32)))
    assert same["clusters"] == 4
    assert same["clusters_kept"] == same["clusters_visible"] > 0
    assert same["kept"] == same["visible"] > 0
    assert same["invented_in_structure"] == same["invented_in_served"] == 0
    assert same["over_planted"]["original"] == same["over_planted"]["structure"] == pytest.approx(1, abs=0.1)
    lost = run([planted], lambda _: given_back(planted, clean))
    assert (lost["visible"], lost["kept"]) == (same["visible"], 0)
    assert abs(lost["over_planted"]["structure"]) < 0.1


@pytest.mark.slow
def test_through_the_codec(planted: Planted) -> None:
    report = run([replace(planted, clusters=planted.clusters[:2])], partial(code, upscaler="bicubic"))
    assert report["clusters"] == 2
    assert report["clusters_visible"] == report["clusters_kept_in_sum"] == 2
    assert report["visible"] == 15
    assert report["kept"] >= 11, "13 when this was written"
    assert report["invented_in_structure"] == report["invented_in_served"] == 0
    assert report["payload_bytes"] == report["images"][0]["payload_bytes"] > 0
