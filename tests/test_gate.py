"""The gate tile by tile: each figure against a plain one, and that what was done to an image is seen where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from node.fidelity.gate import (
    Box,
    Reference,
    Survey,
    failing,
    judge,
    measure,
    mends,
    noisy_errors,
    resurvey,
    survey,
    tile_scores,
    with_similarity,
)
from node.fidelity.regions import Pixels
from storage.records import Thresholds
from tests import plain_gate
from tests.samples import mammogram

OPEN = Thresholds(0.0, 0.0, 0.0)
TIGHT = Thresholds(
    0.93,
    0.90,
    28.42,
    fsim_worst=0.85,
    error_p999=6.0,
    error_max=12.0,
    shift=0.002,
    outside=0.05,
    speck=6.0,
    speck_near=4.0,
    speck_kept=0.9,
    speck_new=6.0,
)
NOISE = 12.0


def tissue(rows: int = 640, columns: int = 600, seed: int = 0) -> Pixels:
    """Half an ellipse of smooth tissue with white noise on black, so that its noise is known."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    inside = ((y - rows / 2) / (rows * 0.46)) ** 2 + (x / (columns * 0.7)) ** 2 < 1
    image = 1500 + 300 * np.sin(y / 90) * np.cos(x / 70) + NOISE * random.standard_normal((rows, columns))
    return np.where(inside, image, 0).astype(np.uint16)


def with_specks(pixels: Pixels, places: list[tuple[int, int]], peak: float, sigma: float = 1.2) -> Pixels:
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    image = pixels.astype(np.float64)
    for row, column in places:
        image += peak * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2))
    return np.asarray(np.rint(image), dtype=np.uint16)


def reference_of(pixels: Pixels) -> Reference:
    return Reference(pixels, mammogram(pixels, WindowCenter=1024, WindowWidth=2048))


def noisier(pixels: Pixels, by: float, seed: int = 5) -> Pixels:
    noise = by * np.random.default_rng(seed).standard_normal(pixels.shape)
    return np.where(pixels > 0, np.clip(np.rint(pixels + noise), 1, 4095), 0).astype(np.uint16)


def tile_at(found: Survey, row: int, column: int) -> set[int]:
    """Tiles that a pixel lies in."""
    return {
        number
        for number, (top, left) in enumerate(found.corners)
        if top <= row < top + 256 and left <= column < left + 256
    }


def test_identical_images_pass_everything() -> None:
    pixels = with_specks(tissue(), [(300, 100), (310, 120)], 300)
    reference = reference_of(pixels)
    found = survey(reference, pixels.copy())
    assert (found.kept[:, 2] >= 6).sum() >= 2
    assert failing(found, replace(TIGHT, speck_kept=1.0)) == {}
    assert mends(found, replace(TIGHT, speck_kept=1.0)) == []
    assert judge(found, replace(TIGHT, speck_kept=1.0)).passed
    assert found.error_max.max() == found.outside_max.max() == 0


def test_figures_equal_the_plain_ones() -> None:
    pixels = with_specks(tissue(), [(300, 100), (200, 210), (400, 60)], 150)
    candidate = noisier(pixels, 10.0)
    reference = reference_of(pixels)
    found = survey(reference, candidate)
    step = 2048 / 256
    inside = [number for number in range(len(found)) if found.breast[number]]
    assert [tuple(found.corners[number]) for number in inside] == reference.tiles
    scores, squares = tile_scores(reference, candidate)
    np.testing.assert_allclose(found.fsim[inside], scores)
    np.testing.assert_allclose(found.squares[inside], squares)
    for number in inside[:4]:
        tile = (int(found.corners[number][0]), int(found.corners[number][1]))
        error = plain_gate.inner(candidate.astype(np.float64) - pixels, tile)
        grain = plain_gate.grain(reference, tile, step)
        blocks = np.isfinite(grain)
        noisy = np.abs(error) / grain
        sorted_errors = sorted(noisy[blocks])
        rank = len(sorted_errors) - 1 - len(sorted_errors) // 1000
        assert found.error_p999[number] == pytest.approx(sorted_errors[rank], rel=1e-3)
        assert found.error_max[number] == pytest.approx(sorted_errors[-1], rel=1e-3)
        assert found.outside_max[number] == pytest.approx(np.abs(error[~blocks]).max(initial=0) / 2048, rel=1e-5)
        assert found.shift[number] == pytest.approx(error.mean() / 2048, abs=1e-7)


def test_specks_equal_the_plain_ones() -> None:
    places = [(300, 100), (200, 210), (400, 60), (330, 300)]
    pixels = with_specks(tissue(), places, 150)
    reference = reference_of(pixels)
    candidate = with_specks(tissue(), places, 90)
    found = survey(reference, candidate)
    after = reference_of(candidate)
    for row, column in places:
        line = next(line for line in found.kept if abs(line[0] - row) <= 1 and abs(line[1] - column) <= 1)
        tile = (int(found.corners[int(line[4])][0]), int(found.corners[int(line[4])][1]))
        place = int(line[0]) - tile[0], int(line[1]) - tile[1]
        responses, over = plain_gate.strengths(reference, tile, 8.0)
        best = int(np.argmax([each[place] for each in over]))
        assert line[2] == pytest.approx(over[best][place], rel=2e-3)
        share = plain_gate.strengths(after, tile, 8.0)[0][best][place] / responses[best][place]
        assert line[3] == pytest.approx(share, abs=2e-3)
        assert 0.5 < share < 0.75


def test_a_speck_that_went_missing_is_lost_and_mended() -> None:
    place = (330, 140)
    pixels = with_specks(tissue(), [place], 150)
    reference, smooth = reference_of(pixels), tissue()
    found = survey(reference, smooth)
    reasons = failing(found, replace(OPEN, speck=6.0, speck_kept=0.9))
    assert set(reasons) <= tile_at(found, *place)
    assert len(reasons) == 1
    assert "specks lost" in next(iter(reasons.values()))[0]
    (box,) = mends(found, replace(OPEN, speck=6.0, speck_kept=0.9))
    assert box.row <= place[0] < box.row + box.height
    assert box.column <= place[1] < box.column + box.width
    pasted = _pasted(smooth, pixels, [box])
    assert judge(resurvey(found, reference, pasted, [box]), replace(OPEN, speck=6.0, speck_kept=0.9)).passed


def test_an_added_speck_is_invented_and_mended() -> None:
    pixels, place = tissue(), (330, 140)
    reference, candidate = reference_of(pixels), with_specks(tissue(), [place], 150)
    limits = replace(OPEN, speck_new=6.0)
    found = survey(reference, candidate)
    assert len(failing(found, limits)) == 1
    assert judge(found, limits).figures["specks_invented"] == 1
    boxes = mends(found, limits)
    assert judge(survey(reference, _pasted(candidate, pixels, boxes)), limits).passed


def test_a_speck_that_was_there_is_not_invented() -> None:
    """Hysteresis: a speck just below the threshold in the original may be just above it in the candidate."""
    place = (330, 140)
    reference = reference_of(with_specks(tissue(), [place], 75))
    candidate = with_specks(tissue(), [place], 105)
    found = survey(reference, candidate)
    (strength, before), *rest = [(line[2], line[3]) for line in found.new if abs(line[0] - place[0]) <= 1]
    assert not rest
    limit = (strength + before) / 2
    assert before < limit < strength
    assert judge(found, replace(OPEN, speck_new=float(limit))).passed


@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0])
def test_a_thread_is_no_speck(slope: float) -> None:
    """Far from its ends: a ligament or a vessel of the same width and contrast is passed over."""
    pixels = tissue()
    y, x = np.mgrid[0:640, 0:600]
    away = (x - 60 - slope * (y - 200)) / np.hypot(1, slope)
    bright = np.rint(pixels + np.where((y > 200) & (y < 430), 150 * np.exp(-np.square(away) / (2 * 1.2**2)), 0))
    found = survey(reference_of(bright.astype(np.uint16)), pixels)
    rows, columns = found.kept[:, 0].astype(int), found.kept[:, 1].astype(int)
    near = (rows > 210) & (rows < 420) & (np.abs(away[rows, columns]) < 10)
    assert (found.kept[near, 2] >= 6).sum() <= 3  # of dozens of bright places on it


def test_weak_specks_count_in_a_cluster_only() -> None:
    strong, weak = [(300, 100), (300, 125)], (318, 112)
    limits = replace(OPEN, speck=8.0, speck_near=4.0, speck_kept=0.9)

    def lost(others: list[tuple[int, int]]) -> float:
        pixels = with_specks(with_specks(tissue(), others, 300), [weak], 45)
        found = survey(reference_of(pixels), with_specks(tissue(), others, 300))
        (line,) = [line for line in found.kept if abs(line[0] - weak[0]) <= 2 and abs(line[1] - weak[1]) <= 2]
        assert 4.0 <= line[2] < 8.0
        return judge(found, limits).figures["specks_lost"]

    assert lost(strong) == 1
    assert lost(strong[:1]) == 0


def test_false_alarms_in_pure_noise_are_rare() -> None:
    """White noise passes a strength of 5 less than once in two of these 16 tiles, and 6 hardly ever."""
    random = np.random.default_rng(11)
    pixels = (2000 + NOISE * random.standard_normal((1024, 1024))).astype(np.uint16)
    found = survey(reference_of(pixels), pixels)
    assert (found.kept[:, 2] >= 5).sum() <= 8
    assert (found.kept[:, 2] >= 6).sum() <= 1


@pytest.mark.parametrize("scale", [3.0, 5.0, 8.0])
def test_smoothing_loses_planted_specks(scale: float) -> None:
    """Clusters of specks that a smoothed candidate has lost are all reported."""
    places = [(200 + 40 * i, 60 + 50 * j) for i in range(5) for j in range(4)]
    pixels = with_specks(tissue(), places, 120, sigma=scale / 3)
    from scipy.ndimage import gaussian_filter

    candidate = np.where(pixels > 0, gaussian_filter(pixels.astype(np.float32), 3.0), 0).astype(np.uint16)
    found = survey(reference_of(pixels), candidate)
    lost = found.kept[(found.kept[:, 2] >= 5.0) & (found.kept[:, 3] < 0.9)]
    for row, column in places:
        assert np.hypot(lost[:, 0] - row, lost[:, 1] - column).min() <= 2


def test_a_shift_of_the_mean_is_seen() -> None:
    pixels = tissue()
    reference = reference_of(pixels)
    shifted = pixels.copy()
    shifted[256:512, 0:256] += 8
    reasons = failing(survey(reference, shifted), replace(OPEN, shift=0.002))
    found = survey(reference, shifted)
    assert {tuple(found.corners[number]) for number in reasons} >= {(256, 0)}
    assert all("shift" in each for reason in reasons.values() for each in reason)
    limits, mended, rounds = replace(OPEN, shift=0.002, error_max=1e6, outside=1e6), shifted, 0
    while not judge(found, limits).passed:
        before, rounds = int((mended != pixels).sum()), rounds + 1
        mended = _pasted(mended, pixels, mends(found, limits))
        found = survey(reference, mended)
        assert int((mended != pixels).sum()) < before
    assert 1 <= rounds <= 4, "a tile is exact after four rounds at most"
    assert (mended != pixels).any(), "only as much of it as it takes"


def test_a_changed_marker_out_of_the_breast_is_seen() -> None:
    pixels = tissue()
    pixels[20:60, 540:580] = 4000
    changed = pixels.copy()
    changed[20:24, 540:580] = 2000
    reference = reference_of(pixels)
    found = survey(reference, changed)
    limits = replace(OPEN, outside=0.05)
    reasons = failing(found, limits)
    assert reasons
    assert set(reasons) <= tile_at(found, 22, 560) | tile_at(found, 22, 540) | tile_at(found, 22, 579)
    boxes = mends(found, limits)
    assert sum(box.height * box.width for box in boxes) < 256 * 256
    assert judge(survey(reference, _pasted(changed, pixels, boxes)), limits).passed


def test_one_ruined_spot_is_mended_by_its_squares() -> None:
    pixels = tissue()
    ruined = pixels.copy()
    ruined[300:306, 100:103] += 400
    reference = reference_of(pixels)
    found = survey(reference, ruined)
    limits = replace(OPEN, error_p999=6.0, error_max=12.0)
    boxes = mends(found, limits)
    assert boxes
    assert all(box.height <= 32 for box in boxes)
    assert judge(survey(reference, _pasted(ruined, pixels, boxes)), limits).passed


def test_after_patches_only_what_they_touch_is_measured_anew() -> None:
    pixels = with_specks(tissue(900, 700), [(300, 100), (700, 40)], 200)
    candidate = noisier(tissue(900, 700), 15.0)
    reference = reference_of(pixels)
    found = survey(reference, candidate)
    boxes = [Box(290, 90, 20, 20), Box(640, 0, 256, 256)]
    pasted = _pasted(candidate, pixels, boxes)
    anew, whole = resurvey(found, reference, pasted, boxes), survey(reference, pasted)
    assert 0 < len(found.touched(boxes)) < len(found)
    for name in ("fsim", "squares", "error_p999", "shift", "worst_error", "outside"):
        np.testing.assert_array_equal(getattr(anew, name), getattr(whole, name), err_msg=name)
    for name in ("kept", "new"):
        mine, theirs = (each[np.lexsort(each.T)] for each in (getattr(anew, name), getattr(whole, name)))
        np.testing.assert_array_equal(mine, theirs)


def test_similarity_that_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tissue()
    candidate = noisier(pixels, 30.0)
    reference = reference_of(pixels)
    whole = survey(reference, candidate)
    scores = np.array(tile_scores(reference, candidate)[0])
    monkeypatch.setattr("node.fidelity.survey.similarity", lambda *_: pytest.fail("measured"))
    again = survey(reference, candidate, scores)
    assert np.allclose(again.fsim, whole.fsim, atol=1e-6)
    assert (again.fsim[~again.breast] == 1).all()
    assert np.array_equal(again.worst_error, whole.worst_error)
    assert np.array_equal(again.kept, whole.kept)


def test_patched_tiles_count_as_exact() -> None:
    pixels = with_specks(tissue(), [(330, 140)], 150)
    reference = reference_of(pixels)
    found = survey(reference, noisier(tissue(), 40.0))
    bad = failing(found, TIGHT)
    assert bad
    patched = np.isin(np.arange(len(found)), list(bad))
    verdict = judge(found, replace(TIGHT, fsim_mean=0, fsim_p5=0, psnr_db=0), patched)
    assert verdict.passed
    assert not judge(found, TIGHT).passed
    everything = judge(found, TIGHT, np.ones(len(found), dtype=bool))
    assert everything.passed
    assert everything.fsim_mean == 1.0
    assert everything.figures["rmse"] == 0


def test_every_speck_belongs_to_one_tile() -> None:
    """The last tiles are moved inward and overlap the ones before: a speck there is counted once."""
    place = (250, 100)
    pixels = with_specks(tissue(400, 300), [place], 200)
    found = survey(reference_of(pixels), tissue(400, 300))
    assert len(tile_at(found, *place)) == 4
    near = np.hypot(found.kept[:, 0] - place[0], found.kept[:, 1] - place[1]) < 2
    assert near.sum() == 1


def test_monochrome1_has_dark_specks() -> None:
    pixels = with_specks(tissue(), [(330, 140)], 150)
    inverted = mammogram((4095 - pixels).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    found = survey(Reference((4095 - pixels).astype(np.uint16), inverted), (4095 - tissue()).astype(np.uint16))
    assert judge(found, replace(OPEN, speck=6.0)).figures["specks_lost"] == 1


def test_a_verdict_counts_its_tiles() -> None:
    verdict = measure(reference_of(tissue()), noisier(tissue(), 200.0), TIGHT)
    assert any("in " in failure and "tiles" in failure for failure in verdict.failures)
    assert {"error_p999", "error_max", "shift", "outside", "specks_lost", "specks_invented"} <= set(verdict.figures)


def _pasted(candidate: Pixels, pixels: Pixels, boxes: list[Box]) -> NDArray[np.uint16]:
    pasted = candidate.copy()
    for row, column, height, width in boxes:
        pasted[row : row + height, column : column + width] = pixels[row : row + height, column : column + width]
    return pasted


def test_fsim_may_be_measured_later() -> None:
    """What mending leaves out round by round, and makes up for at the end, is what one survey measures."""
    pixels = tissue()
    reference = reference_of(pixels)
    candidate = noisier(pixels, 3.0)
    found, box = survey(reference, candidate), Box(300, 280, 20, 20)
    changed = _pasted(candidate, pixels, [box])
    without = resurvey(found, reference, changed, [box], with_fsim=False)
    assert (without.fsim == found.fsim).all()
    late, whole = with_similarity(without, reference, changed, [box]), survey(reference, changed)
    assert late.fsim == pytest.approx(whole.fsim, abs=1e-9)
    assert (late.fsim != found.fsim).any()
    assert (late.worst_error == whole.worst_error).all()


def test_errors_over_noise_alone_are_those_of_a_survey() -> None:
    pixels = tissue()
    reference = reference_of(pixels)
    candidate = noisier(pixels, 3.0)
    found = survey(reference, candidate)
    assert noisy_errors(reference, candidate) == pytest.approx(found.error_p999[found.breast])
