"""Balance (node/codec/balancing.py): an image coded as coarsely as each place allows, by the gate's measure."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from node.codec.balancing import PER_OCTAVE_OF_STEP, Balance, Drawn, Seen, _Look, balanced, headroom_of
from node.codec.encoding import EncodeRequest, EncodeResult, encode_and_verify
from node.codec.engine import make_base, reconstruct
from node.codec.guide import decode_guide
from node.codec.guiding import Raising
from node.codec.points import decode_points
from node.codec.relief import nudged, relieved
from node.codec.source import read_original
from node.codec.tilemap import TileMap
from node.config import ReconstructSettings
from node.fidelity.gate import Survey
from node.upscalers.catalogue import Catalogue
from node.upscalers.mammo import Mammo
from storage.coarseness import PER_OCTAVE, Coarseness
from storage.coders import step_octaves
from storage.payload import decode_base, decode_rendition
from storage.pixels import pixel_digest
from storage.records import Rung, Thresholds
from tests.samples import breast, mammogram, write

GATE = Thresholds(0.93, 0.90, 28.42)
JPEG_XL = tuple(Rung(1, "jpegxl", distance, sample_bits=12) for distance in (4.0, 3.0, 2.3, 1.7, 1.2, 0.8, 0.5, 0.3))
AVIF = tuple(Rung(1, "avif", distance, sample_bits=12) for distance in (3.2, 2.5, 1.9, 1.3, 0.9, 0.6, 0.4, 0.25))


def uneven(rows: int, columns: int) -> NDArray[np.uint16]:
    """A breast with ten times the noise in its lower half: what passes there is far too good above."""
    pixels = breast(rows, columns, seed=3).astype(np.float64)
    noise = np.random.default_rng(4).standard_normal(pixels.shape)
    noise[: rows // 2] *= 0.1
    return np.where(pixels > 0, np.clip(pixels + 120 * noise, 1, 4095), 0).astype(np.uint16)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(mammogram(uneven(768, 560)), tmp_path_factory.mktemp("balance") / "uneven.dcm")


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(mammogram(uneven(1024, 800)), tmp_path_factory.mktemp("balance") / "larger.dcm")


def encode(path: Path, ladder: tuple[Rung, ...], *, balance: bool = True, coarseness: str = "") -> EncodeResult:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    request = EncodeRequest(path, digest, "1.2.3", ladder, GATE, 0.5, coarseness=coarseness, balance=balance)
    settings = ReconstructSettings.model_validate({"upscaler": "mammo", "device": "cpu"})
    return encode_and_verify(request, Catalogue(settings))


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [JPEG_XL, AVIF], ids=["jpegxl", "avif"])
def test_balanced_images_pass_in_fewer_bytes(larger: Path, ladder: tuple[Rung, ...]) -> None:
    even, found = encode(larger, ladder, balance=False), encode(larger, ladder)
    assert even.made is not None
    assert found.made is not None
    for result in (even, found):
        verdict = result.made.verdict  # type: ignore[union-attr]
        assert verdict.passed
        assert verdict.fsim_mean >= GATE.fsim_mean
        assert verdict.fsim_p5 >= GATE.fsim_p5
    base = decode_base(found.base)
    assert base.coarseness is not None
    assert len(base.coded) < 0.9 * len(decode_base(even.base).coded)


@pytest.mark.slow
def test_a_retrieval_makes_the_verified_pixels(larger: Path) -> None:
    result = encode(larger, AVIF)
    base, made = decode_base(result.base), decode_rendition(result.rendition)
    guide, points = decode_guide(made.guide), decode_points(made.points) if made.points else None
    assert base.coarseness is not None
    assert not made.patches
    pixels = reconstruct(base, Mammo(device="cpu"), seed=made.seed, steps=made.steps, guide=guide, points=points)
    assert pixel_digest(pixels) == made.output_digest


def test_the_same_original_gives_the_same_base_and_so_does_its_map(original: Path) -> None:
    """A lost base is made again: all the way, or by the map that its rendition's row has."""
    one, other = encode(original, AVIF), encode(original, AVIF)
    assert one.made is not None
    assert one.base == other.base
    assert one.made.derived_uid == other.made.derived_uid  # type: ignore[union-attr]
    taken = one.made.tried[-1]
    assert taken.coarseness
    assert all(not outcome.coarseness for outcome in one.made.tried[:-1])
    rung = next(rung for rung in AVIF if str(rung) == taken.rung)
    assert encode(original, (rung,), coarseness=taken.coarseness).base == one.base


def test_where_nothing_passes_the_image_stays_exact(original: Path) -> None:
    hopeless = tuple(Rung(4, "jpegxl", distance, sample_bits=12) for distance in (25.0, 24.0, 23.0))
    result = encode(original, hopeless)
    assert result.made is None
    assert result.tried
    assert all(outcome.verdict.failures for outcome in result.tried)


def test_tiles_that_would_be_stored_exactly_are_coded_finer(original: Path) -> None:
    _, reference = read_original(original, "")
    tiles = len(reference.all_tiles)
    survey = Survey(
        corners=np.array(reference.all_tiles),
        breast=np.ones(tiles, dtype=bool),
        fsim=np.full(tiles, 0.95),
        squares=np.zeros(tiles),
        error_p999=np.zeros(tiles),
        shift=np.zeros(tiles),
        worst_error=np.zeros((tiles, 8, 8), dtype=np.float32),
        outside=np.zeros((tiles, 8, 8), dtype=np.float32),
        kept=np.zeros((0, 5)),
        new=np.zeros((0, 5)),
        window_width=4096.0,
    )
    limits = replace(GATE, error_p999=10.0, error_max=20.0, shift=0.002, outside=0.1, fsim_worst=0.85)
    flat = Coarseness(768, 560, np.full((3, 3), 2, dtype=np.int8))
    assert relieved(flat, survey, limits, 4.0) is None
    survey.shift[4] = -0.0021
    survey.worst_error[0, :3, :3] = 25.0  # nine squares to mend

    def finer(tile_bytes: float | None) -> list[tuple[int, int]]:
        dear = None if tile_bytes is None else dict.fromkeys(reference.all_tiles, tile_bytes)
        changed = relieved(flat, survey, limits, 4.0, dear)
        assert changed is not None
        assert (changed.steps <= flat.steps).all()
        return sorted((int(row), int(column)) for row, column in np.argwhere(changed.steps != flat.steps))

    assert finer(200.0) == [(0, 0), (1, 1)]
    assert finer(20_000.0) == [(1, 1)], "mending the squares costs less than coding the tile finer"
    assert finer(None) == [(1, 1)]
    survey.shift[4] = -0.004
    much = relieved(flat, survey, limits, 4.0)
    assert much is not None
    assert much.steps[1, 1] <= 2 - PER_OCTAVE, "twice the shift, half the step at least"
    lowest = relieved(flat, survey, limits, 0.0)
    assert lowest is not None
    assert lowest.steps.min() == 0, "samples of 12 bits cannot be scaled up"
    survey.shift[4] = -0.0021
    first, again = (relieved(flat, survey, limits, 4.0, again=again) for again in (False, True))
    assert first is not None
    assert again is not None
    assert 2 - again.steps[1, 1] == 2 * (2 - first.steps[1, 1]), "it was too little"
    survey.fsim[:] = np.linspace(0.90, 0.9594, tiles)  # a mean of 0.9297
    nudge = nudged(flat, survey, limits, 4.0)
    assert np.unique(flat.steps - nudge.steps).tolist() == [0, 1]
    assert nudge.steps[0, 0] == 1, "the worst tile first"
    assert nudge.steps[2, 2] == 2, "no more than it takes"
    assert (nudged(flat, survey, limits, 0.0).steps >= 0).all()


def test_each_tile_answers_as_it_did(original: Path) -> None:
    """By how much FSIM falls where a tile is coded more coarsely: as seen where it was moved, as typical else."""
    _, reference = read_original(original, "")
    tiles = len(reference.tiles)
    balance = Balance(reference, GATE, AVIF)
    flat = np.zeros(tiles)
    balance._looks.append(_Look(AVIF[0], flat, np.full(tiles, -4.0)))
    assert balance._answers() == pytest.approx(0.55)
    moved = flat.copy()
    moved[0], moved[1], moved[2] = 1.0, -1.0, 0.05
    balance._looks.append(_Look(AVIF[0], moved, np.full(tiles, -4.0) + moved * np.where(moved > 0.5, 0.8, 0.4)))
    answers = balance._answers()
    assert answers[0] == pytest.approx(0.8, abs=0.02)
    assert answers[1] == pytest.approx(0.4, abs=0.02)
    assert answers[2] == pytest.approx(answers[3], abs=0.02), "hardly moved"
    assert answers[3] == pytest.approx(0.6, abs=0.05), "what all did"
    balance._looks.append(_Look(AVIF[1], flat, np.full(tiles, -5.0)))
    assert balance._answers() == pytest.approx(0.55), "another rung's steps are not the same"


def test_a_map_is_known_as_it_is_interpolated(tmp_path: Path) -> None:
    """What tiles get of a map, and what is coarse: quiet tiles that no tile with breast reaches."""
    pixels = np.zeros((1700, 1900), dtype=np.uint16)
    pixels[:760, :500] = uneven(768, 560)[:760, :500]
    pixels[1300:1310, 1100:1110] = 4000  # a marker
    ds = mammogram(pixels, WindowCenter=1000, WindowWidth=2000)
    path = write(ds, tmp_path / "aside.dcm")
    _, reference = read_original(path, "")
    tiles = TileMap(reference)
    values = np.random.default_rng(5).uniform(-1, 1, len(reference.tiles))
    made = tiles.map(values, "jpegxl")
    logs = -np.log2(made.scaling(1))
    measured = [logs[row : row + 256, column : column + 256].mean() for row, column in reference.tiles]
    np.testing.assert_allclose(tiles.octaves(values), measured, atol=1e-3)
    away = round(PER_OCTAVE * (float(np.median(values)) + 1.5))
    assert made.steps[0, 5] == made.steps[6, 7] == away
    assert made.steps[5, 4] < away, "what stands out would be mended for more"
    assert made.steps[0, 0] == round(PER_OCTAVE * values[reference.tiles.index((0, 0))])
    assert tiles.map(values, "avif").steps.max() <= np.rint(PER_OCTAVE * values).max()


def test_a_map_is_solved_for_until_the_image_is_expected_to_pass(original: Path) -> None:
    """Where every tile answers as it is known to, the next map brings it just above the limits."""
    taken, reference = read_original(original, "")
    tiles = len(reference.tiles)
    first = Seen.of(reference, Drawn.of(taken, JPEG_XL[3], None, Raising((0, 0), np.zeros((3, 3), dtype=bool))))
    balance = Balance(reference, GATE, JPEG_XL)
    nominal = step_octaves(JPEG_XL[3])
    errors = np.log2(np.linspace(0.05, 0.10, tiles))
    balance._looks.append(_Look(JPEG_XL[3], np.full(tiles, nominal), errors))
    steps = balance._settled(np.zeros(tiles), nominal, 4.0)
    expected = 1 - np.exp2(errors + 0.55 * balance._tiles.octaves(steps))
    assert np.mean(expected) >= GATE.fsim_mean
    assert np.percentile(expected, 5) >= GATE.fsim_p5
    coarser = 1 - np.exp2(errors + 0.55 * balance._tiles.octaves(steps + 0.25))
    assert np.mean(coarser) < GATE.fsim_mean or np.percentile(coarser, 5) < GATE.fsim_p5
    assert balance._expected_bytes(first, balance._looks[-1].octaves + 1) == pytest.approx(
        first.payload_bytes * 2**-PER_OCTAVE_OF_STEP
    )


def test_headroom_is_what_a_coder_leaves(original: Path) -> None:
    taken, _ = read_original(original, "")
    assert headroom_of(make_base(taken, AVIF[0]), AVIF[0]) < 0.001
    assert headroom_of(make_base(taken, JPEG_XL[0]), JPEG_XL[0]) == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize(("mean", "p5"), [(0.93, 0.90), (1.0, 1.0)])
def test_a_flat_image_and_a_gate_that_nothing_passes_are_no_trouble(tmp_path: Path, mean: float, p5: float) -> None:
    """No division by zero (warnings are errors), and an end."""
    pixels = np.full((600, 520), 1000, dtype=np.uint16)
    pixels[:, 400:] = 0
    _, reference = read_original(write(mammogram(pixels), tmp_path / "flat.dcm"), "")
    taken, _ = read_original(tmp_path / "flat.dcm", "")
    raising = Raising((0, 0), np.zeros((3, 3), dtype=bool))
    first = Seen.of(reference, Drawn.of(taken, AVIF[0], None, raising))
    last = balanced(taken, reference, Thresholds(mean, p5, 28.42), raising, AVIF, first, math.inf)
    assert last.base.rung in AVIF
