"""The contract of every upscaler (node/upscalers/protocol.py), held against each one we ship."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from node.codec.engine import consistency, make_base, reconstruct
from node.codec.guide import LEVEL_TILE, deviations, grid, measure_levels, share_map, tile_means, unit_map
from node.codec.guiding import guided
from node.config import ReconstructSettings, SdX2Settings
from node.fidelity.gate import Reference
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Upscaled, Upscaler, UpscaleTask
from storage.errors import ModelMissing
from storage.payload import Rendition
from storage.records import Rung, Verdict
from storage.resample import Operator
from tests import tiny_sd
from tests.samples import breast
from tests.test_engine import original_of


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd.build(tmp_path_factory.mktemp("tiny"))


def settings(name: str, weights: Path, detail: float = 0.0) -> ReconstructSettings:
    own = SdX2Settings(weights=str(weights), steps=2, tile=64, overlap=16)
    return ReconstructSettings.model_validate({"upscaler": name, "device": "cpu", "detail": detail, "sd_x2": own})


@pytest.fixture(params=["bicubic", "bicubic detail", "mammo", "mammo detail", "sd_x2"])
def fresh(request: pytest.FixtureRequest, weights: Path) -> Callable[[], Upscaler]:
    """Builds the upscaler anew, as a new process would."""
    name, _, detail = request.param.partition(" ")
    return lambda: Catalogue(settings(name, weights, 1.0 if detail else 0.0)).configured()


def task(upscaler: Upscaler, scale: int = 2, rows: int = 150, columns: int = 131, seed: int = 3) -> UpscaleTask:
    operator = Operator(rows, columns, scale)
    pixels = breast(max(rows, 260), max(columns, 260))[:rows, :columns]
    base = operator.down(pixels)
    levels = measure_levels(pixels - operator.lift(base), np.ones(grid(rows, columns, LEVEL_TILE), dtype=bool))
    return UpscaleTask(
        base,
        operator,
        int(pixels.min()),
        int(pixels.max()),
        seed,
        upscaler.steps,
        Rung(scale, "png16"),
        levels=levels if upscaler.guided else None,
    )


def same(one: Upscaled, other: Upscaled) -> bool:
    if (one.texture is None) != (other.texture is None):
        return False
    textures = one.texture is None or np.array_equal(one.texture, other.texture)
    return textures and np.array_equal(one.image, other.image)


def test_says_what_it_is(fresh: Callable[[], Upscaler]) -> None:
    upscaler = fresh()
    assert re.fullmatch(r"[a-z0-9_]{1,32}", upscaler.name)
    assert re.fullmatch(r"[A-Z0-9_ ]{1,16}", upscaler.method)  # CS, PS3.5 6.2
    assert re.fullmatch(r"[0-9a-f]{64}", upscaler.weights_digest)
    assert upscaler.steps >= 0
    numerics = upscaler.numerics
    assert {"device", "dtype", "torch"} <= numerics.keys()
    assert all(isinstance(value, str) for value in numerics.values())


@pytest.mark.parametrize("scale", [2, 4])
def test_shape_type_and_range(fresh: Callable[[], Upscaler], scale: int) -> None:
    upscaler = fresh()
    drawn = upscaler.upscale(task(upscaler, scale))
    assert (drawn.texture is not None) is (upscaler.detail > 0)
    for part in (drawn.image, drawn.texture):
        if part is not None:
            assert part.shape == (150, 131)
            assert part.dtype == np.float32
            assert np.isfinite(part).all()


def test_a_pure_function(fresh: Callable[[], Upscaler]) -> None:
    """Again, after another image, and in a fresh process: the same bits. The base is not written to."""
    upscaler = fresh()
    given = task(upscaler)
    before = given.base.copy()
    first = upscaler.upscale(given)
    assert np.array_equal(given.base, before)
    upscaler.upscale(task(upscaler, rows=99, columns=140, seed=9))
    assert same(upscaler.upscale(given), first)
    assert same(fresh().upscale(given), first)


def test_consistent_where_it_says_so(fresh: Callable[[], Upscaler]) -> None:
    upscaler = fresh()
    given = task(upscaler)
    if upscaler.consistent:
        away = given.operator.down(upscaler.upscale(given).image) - given.base
        assert np.abs(away).max() < 0.01


def test_texture_is_hidden_from_the_base_and_of_the_strength_asked_for(fresh: Callable[[], Upscaler]) -> None:
    upscaler = fresh()
    given = task(upscaler, rows=384, columns=384)
    texture = upscaler.upscale(given).texture
    if texture is None:
        return
    assert np.abs(given.operator.down(texture)).max() < 0.01
    assert given.levels is not None
    strength = unit_map(given.levels, 384, 384) * share_map(given.levels, 384, 384)
    assert np.square(texture).sum() == pytest.approx(np.square(strength).sum(), rel=1e-3)
    loud = deviations(given.levels) > np.median(deviations(given.levels))
    power = tile_means(np.square(texture), LEVEL_TILE)
    assert power[loud].mean() > power[~loud].mean()


@pytest.mark.parametrize("rung", [Rung(2, "png16"), Rung(4, "jpegxl", distance=0.6, sample_bits=12)], ids=str)
def test_the_engine_makes_any_of_them_consistent(fresh: Callable[[], Upscaler], rung: Rung) -> None:
    """Within a grey level of a lossless base, within its own quantisation RMS of a lossy one (DESIGN, decision 4)."""
    upscaler = fresh()
    original = original_of(breast(300, 280))
    base = make_base(original, rung)
    guide = None
    if upscaler.guided:
        reference = Reference(original.pixels, Dataset())
        guide, made = guided(reference, base, upscaler, seed=5, steps=upscaler.steps, detail=upscaler.detail)
        assert guide.levels.any()
        assert upscaler.detail > 0 or not guide.amplitude.any()
    pixels = reconstruct(base, upscaler, seed=5, steps=upscaler.steps, guide=guide)
    if guide is not None:
        assert np.array_equal(pixels, made)
    away = consistency(pixels, base)
    if rung.distance:
        assert 0 < away.rms <= base.quantisation_rms
    else:
        assert away.maximum <= 1.0


def test_drawn_content_depends_on_the_seed_and_nothing_else_does(fresh: Callable[[], Upscaler]) -> None:
    upscaler = fresh()
    equal = same(upscaler.upscale(task(upscaler, seed=1)), upscaler.upscale(task(upscaler, seed=2)))
    assert equal is not (upscaler.detail > 0 or upscaler.name == "sd_x2")
    assert upscaler.generative or equal, "what draws says so"


def test_missing_model_names_the_digest(weights: Path) -> None:
    """A rendition whose weights are not the installed ones is not rendered with others."""
    made = Rendition(
        base_digest="0" * 64,
        original_uid="1.2",
        derived_uid="2.25.1",
        upscaler="sd_x2",
        method="LDM_UPSCALE_1",
        generative=True,
        weights_digest="ab" * 32,
        numerics={"device": "cpu", "dtype": "float32"},
        steps=2,
        seed=1,
        output_digest="0" * 64,
        verdict=Verdict(40.0, 0.95, 0.92, 1),
    )
    with pytest.raises(ModelMissing, match="ab" * 32):
        Catalogue(settings("bicubic", weights)).for_rendition(made)
