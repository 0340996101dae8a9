"""Proves FSIM and PSNR against piq and their definitions, with regions and windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from node.fidelity.breast_regions import breast_mask, breast_tiles
from node.fidelity.fsim import _lower_median, features, similarity
from node.fidelity.gate import EXACT_PSNR_DB, paper_figures
from node.fidelity.reference import Reference
from node.fidelity.windows import display_window
from tests.support.samples import breast, mammogram


@pytest.fixture(autouse=True)
def _fsim_of_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_figures, "__defaults__", (10**6,))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", range(6))
def test_fsim_equals_piq(seed: int) -> None:
    import piq

    torch.manual_seed(seed)
    x = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 258, 258), 3, 1)[0, 0] if seed % 2 else torch.rand(256, 256)
    y = (x * (0.7 + 0.1 * seed) + 0.04 * seed * torch.randn(256, 256)).clamp(0, 1)
    theirs = float(piq.fsim(x[None, None], y[None, None], data_range=1.0, chromatic=False))
    assert similarity(features(x), features(y)) == pytest.approx(theirs, abs=2e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.sampled_from(["even", "ties", "tail", "waves"]))
def test_the_median_is_exact(seed: int, size: int, kind: str) -> None:
    """This holds however well a sample of the values locates the median."""
    rng = np.random.default_rng(seed)
    values = rng.random(size)
    if kind == "ties":
        values = np.round(4 * values)
    elif kind == "tail":
        values = np.exp(20 * values)
    elif kind == "waves":  # every value of the sample is the same
        values = np.sin(np.arange(size) * 2 * np.pi / 61)
    values = values.astype(np.float32)
    assert _lower_median(values) == np.sort(values)[(size - 1) // 2]


def test_fsim_of_flat_tiles() -> None:
    flat = torch.full((256, 256), 0.3)
    assert similarity(features(flat), features(flat)) == pytest.approx(1.0)


def test_breast_is_found_in_either_polarity() -> None:
    pixels = breast(640, 512)
    pixels[:60, 400:480] = 4095  # a lead marker is bright and no breast
    mask = breast_mask(pixels, "MONOCHROME2")
    truth = breast(640, 512) > 0
    blocks = truth.reshape(40, 16, 32, 16).mean(axis=(1, 3)) > 0.5
    assert (mask & blocks).sum() / blocks.sum() > 0.97
    assert mask.sum() < 1.3 * blocks.sum()
    assert not mask[:3, 26:29].any()
    inverted = breast_mask((4095 - pixels).astype(np.uint16), "MONOCHROME1")
    assert (inverted == mask).mean() > 0.98


def test_what_cannot_be_segmented_is_measured_everywhere() -> None:
    assert breast_mask(np.full((512, 512), 77, np.uint16), "MONOCHROME2").all()


@pytest.mark.parametrize("shape", [(256, 256), (640, 512), (641, 700), (257, 999)])
def test_tiles_cover_every_pixel_of_the_breast(shape: tuple[int, int]) -> None:
    mask = np.ones((-(-shape[0] // 16), -(-shape[1] // 16)), dtype=bool)
    covered = np.zeros(shape, dtype=bool)
    for row, column in breast_tiles(mask, *shape):
        assert row + 256 <= shape[0]
        assert column + 256 <= shape[1]
        covered[row : row + 256, column : column + 256] = True
    assert covered.all()


def test_display_window() -> None:
    pixels = breast()
    mask = breast_mask(pixels, "MONOCHROME2")
    own = display_window(mammogram(WindowCenter=[1000, 5], WindowWidth=[200, 1]), pixels, mask)
    assert (own.low, own.high) == (900, 1100)
    scaled = display_window(
        mammogram(WindowCenter=1000, WindowWidth=200, RescaleSlope=2, RescaleIntercept=-100), pixels, mask
    )
    assert (scaled.low, scaled.high) == (500, 600)
    none = display_window(mammogram(WindowCenter=None, WindowWidth=None), pixels, mask)
    assert 0 <= none.low < none.high <= 4095


def reference() -> Reference:
    return Reference(breast(), mammogram())


def test_identical_images() -> None:
    scores, psnr = paper_figures(reference(), breast())
    assert psnr == EXACT_PSNR_DB
    assert set(scores) == {1.0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_figures_of_a_whole_image_equal_piq() -> None:
    """The figures are computed tile by tile through the display window, for a structure in float32 and for stored
    values."""
    import piq

    header = mammogram(WindowCenter=1600, WindowWidth=1800)
    original = Reference(breast(), header)
    structure = breast() + 25 * np.random.default_rng(0).standard_normal(breast().shape).astype(np.float32)
    scores, psnr = paper_figures(original, structure)
    assert len(scores) == len(original.tiles) > 2
    error = []
    for score, (row, column) in zip(scores, original.tiles, strict=True):
        place = np.s_[row : row + 256, column : column + 256]
        shown = [torch.from_numpy(original.window.show(image[place]))[None, None] for image in (breast(), structure)]
        theirs = float(piq.fsim(shown[0], shown[1], data_range=1.0, chromatic=False))
        assert score == pytest.approx(theirs, abs=2e-6)
        error.append(np.square(structure[place].astype(np.float64) - breast()[place]).mean())
    assert psnr == pytest.approx(10 * np.log10(original.window.width**2 / np.mean(error)), abs=1e-6)


def test_air_is_not_measured() -> None:
    pixels = breast(1536, 1280)
    changed = pixels.copy()
    changed[:200, 1100:] = 900
    scores, psnr = paper_figures(Reference(pixels, mammogram(pixels)), changed)
    assert psnr == EXACT_PSNR_DB
    assert set(scores) == {1.0}


def test_one_ruined_corner_shows_in_the_percentile() -> None:
    """A mean over many tiles forgives a few; the 5th percentile does not."""
    pixels = breast(1536, 1280)
    ruined = pixels.copy()
    ruined[512:768, 0:512] = ruined[512:768, 0:512].mean()
    scores, _ = paper_figures(Reference(pixels, mammogram(pixels)), ruined)
    assert np.mean(scores) > 0.9
    assert np.percentile(scores, 5) < 0.99


def test_empty_header_is_measurable() -> None:
    assert Reference(breast(), Dataset()).tiles
