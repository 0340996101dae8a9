"""Proves that each planted fault fails the gate with its own reason only, and that a good image with drawn noise
passes.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from node.codec.noise import unit_noise
from node.codec.noise import white_noise as white
from node.fidelity.gate import (
    EXACT_PSNR_DB,
    broken_cells,
    burden,
    failures,
    judge,
    measure_noise,
    measure_structure,
    paper_figures,
    speck_lists,
    wrong_specks,
)
from node.fidelity.reference import Reference
from node.fidelity.specks import Speck
from storage.records import Thresholds
from tests.support.encoder_samples import soft
from tests.support.paths import ROOT
from tests.support.samples import mammogram

Float = NDArray[np.float32]
Pixels = NDArray[np.uint16]

ROWS, COLUMNS = 560, 656
BREAST = 580
"""Columns of the breast; beyond it is air of grey level 0."""
LIMITS = Thresholds()
ANY_LINE = replace(LIMITS, lines=(99.0, 99.0, 99.0))
"""A spot is an error along lines too; not to these."""
NOISE, KEPT = 14.0, 0.8
PEAK = 130
SPECKS = [(150, 100), (150, 130), (330, 300), (460, 200)]


def smooth() -> Float:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    skin = 0.5 + 0.5 * np.cos(np.pi * np.clip((x - BREAST + 280) / 280, 0, 1))
    return ((1800 + 300 * np.sin(y / 120) * np.cos(x / 90)) * skin).astype(np.float32)


def grain(seed: int) -> Float:
    return np.float32(NOISE) * unit_noise(slice(0, ROWS), slice(0, COLUMNS), soft(), seed)


def kept(noise: Float) -> Float:
    """The noise that a base preserves: all but the finest."""
    return np.asarray(gaussian_filter(noise, KEPT), dtype=np.float32)


def drawn(noise: Float) -> Float:
    """Noise with the energy that ``kept`` lacks at each frequency."""
    down, across = np.fft.fftfreq(ROWS)[:, None], np.fft.rfftfreq(COLUMNS)[None]
    passed = np.exp(-((2 * np.pi * KEPT) ** 2) * (down**2 + across**2) / 2)
    spectrum = np.fft.rfft2(noise) * np.sqrt(1 - passed**2)
    return np.asarray(np.fft.irfft2(spectrum, s=noise.shape), dtype=np.float32)


def spot(place: tuple[int, int], sigma: float = 1.4) -> Float:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    return np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * sigma**2)).astype(np.float32)


def in_air(image: Float, air: float = 0.0) -> Float:
    image = image.copy()
    image[:, BREAST:] = air
    return image


def stored(image: Float) -> Pixels:
    return np.clip(np.rint(image), 0, 4095).astype(np.uint16)


CLEAN = smooth() + sum((PEAK * spot(place) for place in SPECKS), np.float32(0))
TISSUE = CLEAN + kept(grain(3))
"""What a base keeps of the image."""
STRUCTURE = in_air(TISSUE)
ORIGINAL = stored(in_air(CLEAN + grain(3)))
DRAWN = drawn(grain(2))
SERVED = stored(in_air(TISSUE + DRAWN))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(ORIGINAL, mammogram(ORIGINAL, WindowCenter=2048, WindowWidth=4096))


def kinds(
    reference: Reference, structure: Float, served: Pixels | None = None, limits: Thresholds = LIMITS
) -> set[str]:
    """The kinds of failures."""
    found = measure_structure(reference, structure)
    noise = {} if served is None else measure_noise(reference, structure, served)
    said = failures(found, noise, limits)
    words = {
        "coherent": "lines",
        "greatest coherent": "lines",
        "lost share": "lost",
        "shift": "shift",
        "slow": "slow",
        "error out": "outside",
        "number of specks whose": "specks lost",
        "number of specks invented": "specks invented",
        "energy of octave": "spectrum",
        "energy of a band": "tiles",
        "autocorrelation of the error": "periodic",
        "autocorrelation of the drawn": "repeat",
        "noise drawn where": "quiet",
    }
    return {kind for sentence in said for start, kind in words.items() if sentence.startswith(start)}


# --- what passes ----------------------------------------------------------------------------------------------


def test_a_perfect_structure_with_drawn_noise_passes(reference: Reference) -> None:
    """The finest noise is lost and drawn again, and nothing else is wrong."""
    assert kinds(reference, STRUCTURE, SERVED) == set()
    found = measure_structure(reference, STRUCTURE)
    verdict = judge(reference, STRUCTURE, found, SERVED, measure_noise(reference, STRUCTURE, SERVED), LIMITS)
    assert verdict.passed
    assert 0.3 < burden(found, LIMITS) <= 1
    assert not broken_cells(found, LIMITS).any()


def test_the_original_itself_passes(reference: Reference) -> None:
    found = measure_structure(reference, reference.image)
    verdict = judge(
        *(reference, reference.image, found, ORIGINAL, measure_noise(reference, reference.image, ORIGINAL), LIMITS)
    )
    assert verdict.passed
    assert verdict.psnr_db == verdict.figures["structure_psnr_db"] == EXACT_PSNR_DB
    assert verdict.fsim_mean == verdict.fsim_p5 == 1.0
    assert burden(found, LIMITS) < 0.05
    assert all(verdict.figures[name] == 0 for name in ("shift", "outside", "specks_lost", "specks_invented", "quiet"))


def test_without_limits_nothing_passes(reference: Reference) -> None:
    found = measure_structure(reference, STRUCTURE)
    verdict = judge(reference, STRUCTURE, found, SERVED, measure_noise(reference, STRUCTURE, SERVED), None)
    assert (verdict.gated, verdict.passed, verdict.failures) == (False, False, ())
    assert set(verdict.figures) >= {"lines_1.2", "lines_most_5", "lost_4", "spectrum_db_1", "repeat", "window_width"}


def test_similarity_and_psnr_gate_nothing(reference: Reference) -> None:
    verdict = judge(reference, STRUCTURE, measure_structure(reference, STRUCTURE), SERVED, {}, LIMITS)
    fsim, psnr = paper_figures(reference, SERVED)
    assert (verdict.psnr_db, verdict.fsim_mean) == (round(psnr, 3), round(float(np.mean(fsim)), 5))
    assert verdict.psnr_db < verdict.figures["structure_psnr_db"] - 2
    assert verdict.passed


# --- faults of the structure ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_blurred_structure(reference: Reference) -> None:
    """Edges are smoothed away: the original has sharp septa, and the structure has none."""
    lines = np.zeros((ROWS, COLUMNS), dtype=np.float32)
    for number in range(6):
        y, x = np.mgrid[0:ROWS, 0:COLUMNS]
        across = (y - 60 - 75 * number) * np.cos(0.3) - (x - 200) * np.sin(0.3)
        lines += 60 * np.exp(-(across**2) / (2 * 1.5**2)).astype(np.float32)
    original = stored(in_air(CLEAN + lines + grain(3)))
    sharp = Reference(original, mammogram(original, WindowCenter=2048, WindowWidth=4096))
    assert "lines" not in kinds(sharp, in_air(TISSUE + lines))
    assert "lines" in kinds(sharp, in_air(TISSUE + gaussian_filter(lines, 4.0)))
    assert burden(measure_structure(sharp, in_air(TISSUE + gaussian_filter(lines, 4.0))), LIMITS) > 1.5


def test_block_artefacts(reference: Reference) -> None:
    steps = np.repeat(np.repeat(np.random.default_rng(0).standard_normal((22, 24)), 32, axis=0), 32, axis=1)[
        :ROWS, :COLUMNS
    ]
    assert kinds(reference, in_air(TISSUE + np.float32(8) * steps.astype(np.float32))) >= {"lines"}


def test_a_shifted_tile(reference: Reference) -> None:
    """One tile has a slow swelling, which is too smooth for the filters of lines."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    swelling = 20 * np.exp(-((y - 128) ** 2 + (x - 128) ** 2) / (2 * 90**2))
    structure = reference.image + in_air(swelling.astype(np.float32))
    assert kinds(reference, structure, limits=replace(LIMITS, slow=1)) == {"shift"}


def test_a_slow_error(reference: Reference) -> None:
    """The error has waves of 120 pixels, whose mean over a tile is 0."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    waves = 40 * np.sin(2 * np.pi * y / 128) * np.sin(2 * np.pi * x / 128)
    wide = replace(LIMITS, lines=(99, 99, 99), lost=(99, 99, 99, 99))
    assert kinds(reference, reference.image + in_air(waves.astype(np.float32)), limits=wide) == {"slow"}


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 2000])
def test_a_marker_lost_out_of_the_breast(value: int) -> None:
    marked = ORIGINAL.copy()
    marked[48:80, 608:640] = 2000 - value
    reference = Reference(marked, mammogram(marked, WindowCenter=2048, WindowWidth=4096))
    structure = STRUCTURE.copy()
    structure[48:80, 608:640] = 2000 - value
    assert kinds(reference, structure) == set()
    structure[48:80, 608:640] = value
    assert kinds(reference, structure) == {"outside"}
    assert {
        (row, column) for row, column in np.argwhere(broken_cells(measure_structure(reference, structure), LIMITS))
    } == {(row, column) for row in range(3, 5) for column in range(38, 40)}


@pytest.mark.parametrize(("error", "fails"), [(100, False), (101, True)])
def test_an_error_out_of_the_breast_fails_the_gate_where_its_cell_is_broken(error: int, fails: bool) -> None:
    """As a float32, a tenth of the window's width is more than 0.1. Formerly, the gate failed without a cell to
    repair."""
    reference = Reference(ORIGINAL, mammogram(ORIGINAL, WindowCenter=1500, WindowWidth=1000))
    structure = STRUCTURE.copy()
    structure[48:80, 608:640] = error
    found = measure_structure(reference, structure, specks=False)
    assert broken_cells(found, LIMITS)[3:5, 38:40].all() == fails
    assert any(each.startswith("error out") for each in failures(found, {}, LIMITS)) == fails


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "fails"), [(0.8, {"specks lost"}), (0.98, set()), (1.02, set()), (1.2, {"specks lost"})]
)
def test_a_speck_whose_contrast_is_not_kept(reference: Reference, share: float, fails: set[str]) -> None:
    """The contrast of a speck is lowered or raised by a fifth. Everything else is the structure of the original."""
    speck = in_air(np.float32(PEAK * (share - 1)) * spot(SPECKS[2]))
    assert kinds(reference, reference.image + speck) == fails
    wrong, new = wrong_specks(*specks(reference, reference.image + speck), LIMITS)
    assert [(each.row, each.column) for each in wrong] == ([SPECKS[2]] if fails else [])
    assert new == []
    if fails:
        assert wrong[0].share == pytest.approx(share, abs=0.05)


def specks(reference: Reference, structure: Float) -> tuple[Any, Any]:
    found = measure_structure(reference, structure)
    return speck_lists(found.specks)[0], speck_lists(found.specks)[1]


def test_a_speck_that_was_invented(reference: Reference) -> None:
    made = reference.image + in_air(110 * spot((420, 120)))
    assert kinds(reference, made, limits=ANY_LINE) == {"specks invented"}
    (new,) = wrong_specks(*specks(reference, made), LIMITS)[1]
    assert (new.row, new.column) == (420, 120)


@pytest.mark.slow
def test_in_monochrome1_specks_are_dark() -> None:
    inverted = (4095 - ORIGINAL).astype(np.uint16)
    header = mammogram(inverted, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
    reference = Reference(inverted, header)
    served = (4095 - SERVED).astype(np.uint16)
    assert kinds(reference, 4095 - STRUCTURE, served) == set()
    lost = reference.image + in_air(np.float32(0.2 * PEAK) * spot(SPECKS[2]))
    assert kinds(reference, lost) == {"specks lost"}
    assert kinds(reference, reference.image - in_air(110 * spot((420, 120))), limits=ANY_LINE) == {"specks invented"}


def test_weak_specks_count_near_two_strong_ones_only(reference: Reference) -> None:
    found = measure_structure(reference, STRUCTURE)
    weak = next(speck for speck in speck_lists(found.specks)[0] if 4 <= speck.strength < 5)
    lost = weak._replace(share=0.5)
    strong = [weak._replace(row=weak.row + by, strength=9.0, share=1.0) for by in (20, 30)]
    assert wrong_specks([lost, *strong], [], LIMITS)[0] == [lost]
    assert wrong_specks([lost, strong[0]], [], LIMITS)[0] == []
    far = [speck._replace(row=speck.row + 60) for speck in strong]
    assert wrong_specks([lost, *far], [], LIMITS)[0] == []


def test_padding_is_not_measured() -> None:
    padded = np.maximum(ORIGINAL, 1)
    padded[:, BREAST:] = 0
    header = mammogram(padded, WindowCenter=2048, WindowWidth=4096, PixelPaddingValue=0)
    reference = Reference(padded, header)
    assert (reference.counted == (padded > 0)).all()
    structure = STRUCTURE.copy()
    structure[:, BREAST:] = 3000
    found = measure_structure(reference, structure)
    assert found.outside.max() < 0.05
    assert kinds(reference, structure, SERVED) == set()


# --- faults of what is served ---------------------------------------------------------------------------------


def served_with(noise: Float) -> Pixels:
    return stored(in_air(TISSUE + noise))


@pytest.mark.parametrize("db", [-1.5, 1.5])
def test_noise_too_strong_or_too_weak(reference: Reference, db: float) -> None:
    wrong = served_with(np.float32(10 ** (db / 20)) * DRAWN)
    assert kinds(reference, STRUCTURE, wrong) == {"spectrum"}


def test_noise_missing_in_half_the_tiles(reference: Reference) -> None:
    """The image as a whole has the right energy: one half lacks what the other half has too much."""
    wrong = DRAWN.copy()
    wrong[:384] *= np.float32(np.sqrt(1.7))
    wrong[384:] *= np.float32(np.sqrt(0.3))
    assert kinds(reference, STRUCTURE, served_with(wrong)) >= {"tiles"}
    assert "quiet" not in kinds(reference, STRUCTURE, served_with(wrong))


def test_noise_that_repeats(reference: Reference) -> None:
    wrong = np.tile(DRAWN[:128, :128], (6, 6))[:ROWS, :COLUMNS]
    found = measure_noise(reference, STRUCTURE, served_with(wrong))
    assert found["repeat"] > 0.15
    assert "repeat" in kinds(reference, STRUCTURE, served_with(wrong))
    assert measure_noise(reference, STRUCTURE, SERVED)["repeat"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("period", [2.3, 3.0, 3.7])
def test_lines_of_a_grid_that_are_lost(period: float) -> None:
    """The lines are finer than the filters of coherent errors. These filters count them as the original's own noise."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    lines = np.float32(NOISE) * np.sin(2 * np.pi * (x + 0.05 * y) / period)
    original = stored(in_air(CLEAN + grain(3) + lines))
    reference = Reference(original, mammogram(original, WindowCenter=2048, WindowWidth=4096))
    assert "periodic" in kinds(reference, STRUCTURE)
    found = measure_structure(reference, STRUCTURE)
    assert 0.2 < found.periodic < 1 < burden(found, LIMITS)
    assert measure_structure(reference, in_air(TISSUE + lines)).periodic < 0.02


def test_noise_where_the_original_is_flat(reference: Reference) -> None:
    wrong = SERVED.copy()
    wrong[:, 600:] += np.abs(np.rint(DRAWN[:, 600:])).astype(np.uint16)
    assert kinds(reference, STRUCTURE, wrong) == {"quiet"}


def test_a_pixel_in_a_clipped_tile_is_no_noise() -> None:
    clipped = ORIGINAL.copy()
    clipped[200:, 200:540] = 4095
    served = clipped.copy()
    served[400, 400] = 4094
    own = Reference(clipped, mammogram(clipped, WindowCenter=2048, WindowWidth=4096))
    assert measure_noise(own, clipped.astype(np.float32), served)["spectrum_tile_db"] < 0.1


def test_noise_of_another_colour(reference: Reference) -> None:
    """White noise instead of a detector's has too much energy in the finest band, and too little in the others."""
    noise = np.float32(DRAWN.std()) * white(slice(0, ROWS), slice(0, COLUMNS), 3)
    figures = measure_noise(reference, STRUCTURE, served_with(noise))
    assert figures["spectrum_db_1"] > 2
    assert figures["spectrum_db_2"] < -1
    assert "spectrum" in kinds(reference, STRUCTURE, served_with(noise))


# --- the limits, one at a time ---------------------------------------------------------------------------------


FAR = Thresholds(
    **{
        each.name: (math.inf,) * len(each.default) if isinstance(each.default, tuple) else math.inf
        for each in fields(Thresholds)
    }
)


def only(name: str, index: int | None, value: float) -> Thresholds:
    """Limits that nothing exceeds, except that one."""
    if index is None:
        return replace(FAR, **{name: value})  # type: ignore[arg-type]
    every = list(getattr(FAR, name))
    every[index] = value
    return replace(FAR, **{name: tuple(every)})  # type: ignore[arg-type]


def test_each_limit_of_the_structure_fails_what_exceeds_it(reference: Reference) -> None:
    measured = measure_structure(reference, STRUCTURE)
    one_cell = np.zeros_like(measured.outside)
    one_cell[3, 4] = 0.5
    planted = replace(measured, shift=0.5, slow=0.5, periodic=0.5, outside=one_cell, lost=np.full(4, 0.5))
    figures = judge(reference, STRUCTURE, planted, SERVED, {}, LIMITS).figures
    cases = [(name, None, figures[name]) for name in ("shift", "slow", "periodic", "outside")]
    cases += [("lost", number, figures[f"lost_{number + 1}"]) for number in range(4)]
    cases += [("lines", number, figures[f"lines_{width:g}"]) for number, width in enumerate((1.2, 2.5, 5))]
    for name, number, figure in cases:
        assert list(failures(planted, {}, only(name, number, 1.001 * figure))) == [], name
        assert len(list(failures(planted, {}, only(name, number, 0.999 * figure)))) == 1, name
    for number, width in enumerate((1.2, 2.5, 5)):
        figure, wide = figures[f"lines_most_{width:g}"], only("lines", number, 1e6)
        for share in 1.001, 0.999:
            limits = replace(wide, lines_most=share * figure / 1e6)
            assert len(list(failures(planted, {}, limits))) == broken_cells(planted, limits).any() == (share < 1)


@pytest.mark.parametrize("figure", ["spectrum_db_1", "spectrum_db_4", "spectrum_tile_db", "repeat", "quiet"])
@pytest.mark.parametrize("value", [0.5, -0.5])
def test_each_limit_of_the_noise_fails_what_exceeds_it(reference: Reference, figure: str, value: float) -> None:
    """Energy may also be too little; the other figures are no less than 0."""
    found, limit = measure_structure(reference, STRUCTURE, specks=False), figure.rstrip("_14")
    assert list(failures(found, {figure: value}, only(limit, None, 0.5))) == []
    fails = value > 0 or limit == "spectrum_db"
    assert len(list(failures(found, {figure: value}, only(limit, None, 0.49)))) == fails


def test_which_specks_are_wrong() -> None:
    own = Speck(row=100, column=100, size=1, strength=5.0, share=0.94, missing=0.51)
    for changed, wrong in (
        ({}, True),
        ({"strength": 4.99}, False),
        ({"share": 0.95}, False),
        ({"share": 1.05}, False),
        ({"share": 1.06, "missing": -0.51}, True),
        ({"missing": 0.5}, False),
        ({"share": 1.06, "missing": -0.5}, False),
    ):
        speck = own._replace(**changed)  # type: ignore[arg-type]
        assert wrong_specks([speck], [], LIMITS) == ([speck] * wrong, [])
    strong = [own._replace(row=row, share=1.0) for row in (100, 99)]
    for row, strength, wrong in ((149, 4.0, True), (149, 3.99, False), (150, 4.0, False)):
        weak = own._replace(row=row, strength=strength)
        assert wrong_specks([*strong, weak], [], LIMITS)[0] == [weak] * wrong
    made = own._replace(strength=6.0, share=0.49)
    for changed, invented in (({}, True), ({"strength": 5.99}, False), ({"share": 0.5}, False)):
        speck = made._replace(**changed)  # type: ignore[arg-type]
        assert wrong_specks([], [speck], LIMITS) == ([], [speck] * invented)


# --- burden and repairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["lines", "lost", "slow", "periodic"])
def test_burden_is_the_figure_nearest_to_its_limit(reference: Reference, field: str) -> None:
    """If all other limits are far away, the burden grows as that limit shrinks. Single places do not count."""
    found = measure_structure(reference, STRUCTURE, specks=False)
    far: dict[str, Any] = {"lines": (1e6,) * 3, "lost": (1e6,) * 4, "slow": 1e6, "periodic": 1e6}
    own = (0.9,) * 4 if field == "lost" else getattr(LIMITS, field)
    halved = tuple(each / 2 for each in own) if isinstance(own, tuple) else own / 2
    one, two = (burden(found, replace(LIMITS, **(far | {field: value}))) for value in (own, halved))
    assert two == pytest.approx(2 * one, rel=0.05)


def test_a_band_that_may_be_lost_wholly_is_no_burden_until_it_is_wrong(reference: Reference) -> None:
    found = measure_structure(reference, STRUCTURE, specks=False)
    far = replace(LIMITS, lines=(1e6,) * 3, slow=1e6, periodic=1e6, lost=(1.0, 1e6, 1e6, 1e6))
    assert burden(found, far) < 1e-3
    wrong = replace(found, lost=np.array([1.2, 0.5, 0.5, 0.5]))
    assert burden(wrong, far) == pytest.approx(1.2)


def test_a_single_place_is_repaired_and_not_a_burden(reference: Reference) -> None:
    structure = STRUCTURE.copy()
    structure[304:316, 202:204] += 300
    one = measure_structure(reference, structure, specks=False, limits=LIMITS)
    assert burden(one, LIMITS) <= 1
    assert burden(measure_structure(reference, structure, specks=False), LIMITS) > 1
    broken = broken_cells(one, LIMITS)
    assert broken[19, 12]
    assert broken.mean() < 0.02
    assert kinds(reference, structure) >= {"lines"}


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [3.0, 6.0])
def test_worse_is_a_greater_burden(reference: Reference, sigma: float) -> None:
    assert burden(measure_structure(reference, in_air(gaussian_filter(TISSUE, sigma))), LIMITS) > burden(
        measure_structure(reference, STRUCTURE), LIMITS
    )


def test_every_figure_is_documented(reference: Reference) -> None:

    text = (ROOT / "docs/METRICS.md").read_text(encoding="utf-8")
    part = text.split("\n## Figures of the gate\n")[1].split("\n## ")[0]
    documented = set(
        re.findall(
            r"`([a-z0-9_.]+)`", " ".join(line.split("|")[1] for line in part.splitlines() if line.startswith("| `"))
        )
    )
    noise = measure_noise(reference, STRUCTURE, SERVED)
    verdict = judge(reference, STRUCTURE, measure_structure(reference, STRUCTURE), SERVED, noise, LIMITS)
    assert documented == {*verdict.figures, "psnr_db", "fsim_mean", "fsim_p5"}
