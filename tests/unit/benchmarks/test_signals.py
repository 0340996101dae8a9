"""Proves which signals benchmarks/signals.py makes, where it plants them, and how an unchanged copy scores."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from pydicom import Dataset

from benchmarks.coded import Coded, Image, described
from benchmarks.observer import Site, laid_out, measured, planted
from benchmarks.signals import SPECKS, all_signals
from node.fidelity.breast_regions import breast_mask
from node.training.image_files import Picture
from tests.support.samples import breast


@pytest.fixture(scope="module")
def image() -> Image:
    pixels, header = breast(1400, 1000), Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    picture = Picture("samples/breast.dcm", pixels, 12, header, False, breast_mask(pixels, "MONOCHROME2"))
    return replace(described(picture, "samples"), spacing_mm=0.1)


@pytest.mark.parametrize("kind", all_signals(), ids=lambda kind: kind.name)
def test_signals(kind) -> None:
    stamp = kind.draw(np.random.default_rng(1), 0.1)
    assert stamp.pattern.max() == pytest.approx(1, abs=0.05)
    assert stamp.pattern.min() >= 0
    rim = stamp.reach - stamp.extent
    assert rim > 0
    outer = stamp.pattern.copy()
    outer[rim:-rim, rim:-rim] = 0
    assert outer.max() < 0.03
    channels = stamp.channels()
    assert channels.shape[1:] == stamp.pattern.shape
    assert np.linalg.matrix_rank(channels.reshape(len(channels), -1)) == len(channels)
    norms = np.sqrt(np.square(channels).sum(axis=(1, 2)))
    seen = np.tensordot(channels, stamp.pattern, 2) / norms
    assert np.sqrt(np.square(seen).max()) > 0.4 * np.sqrt(np.square(stamp.pattern).sum())


def test_a_cluster_has_five_specks() -> None:
    [kind] = [kind for kind in all_signals() if kind.name == "cluster 200 um"]
    pattern = kind.draw(np.random.default_rng(2), 0.1).pattern
    assert (pattern > 0.99).sum() == SPECKS


@pytest.mark.slow
def test_no_signal_lies_in_the_channels_of_another(image: Image) -> None:
    kinds = all_signals()
    sites = [site for site in laid_out(image, kinds, 12, np.random.default_rng(1)) if site.copy >= 0]
    assert {site.signal for site in sites} == set(range(len(kinds)))
    for one, other in combinations(sites, 2):
        if one.copy == other.copy:
            apart = max(abs(one.row - other.row), abs(one.column - other.column))
            assert apart > max(one.stamp.reach + other.stamp.extent, other.stamp.reach + one.stamp.extent)
    one: list[Site] = [site for site in sites if site.copy == 0]
    changed = planted(image, one, [5.0] * len(kinds)).picture.pixels != image.picture.pixels
    assert changed.any()
    for site in one:
        site.square(changed)[:] = False
    assert not changed.any()


@pytest.mark.slow
def test_what_is_not_coded_is_seen_whole(image: Image) -> None:
    def nothing(image: Image) -> Coded:
        pixels = image.picture.pixels
        return Coded("", pixels, pixels.astype(np.float32), pixels, image.window, image.breast, 1, "", [], 0.0)

    report = measured(image, 12, 2.5, 1, nothing)
    rows = [row for row in report["signals"] if row["ratio"] is not None]
    assert len(rows) > 8
    for row in rows:
        assert row["ratio"] == row["contrast"] == 1
        assert row["d_original"] == pytest.approx(2.5, abs=0.4)
    assert report["below"] == []
