"""The contract of every upscaler (node/reconstruct/upscalers/protocol.py), held against each one we ship."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from node.config import ReconstructSettings, SdX2Settings
from node.reconstruct.engine import make_base, reconstruct
from node.reconstruct.upscalers.catalogue import Catalogue
from node.reconstruct.upscalers.protocol import Upscaler, UpscaleTask
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


def settings(name: str, weights: Path) -> ReconstructSettings:
    own = SdX2Settings(weights=str(weights), steps=2, tile=64, overlap=16)
    return ReconstructSettings.model_validate({"upscaler": name, "device": "cpu", "sd_x2": own})


@pytest.fixture(params=["bicubic", "sd_x2"])
def fresh(request: pytest.FixtureRequest, weights: Path) -> Callable[[], Upscaler]:
    """Builds the upscaler anew, as a new process would."""
    return lambda: Catalogue(settings(request.param, weights)).configured()


def task(scale: int = 2, rows: int = 150, columns: int = 131, seed: int = 3, steps: int = 2) -> UpscaleTask:
    operator = Operator(rows, columns, scale)
    pixels = breast(max(rows, 260), max(columns, 260))[:rows, :columns]
    return UpscaleTask(operator.down(pixels), operator, int(pixels.min()), int(pixels.max()), seed, steps)


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
    given = task(scale)
    image = fresh().upscale(given)
    assert image.shape == (150, 131)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()


def test_a_pure_function(fresh: Callable[[], Upscaler]) -> None:
    """Again, after another image, and in a fresh process: the same bits. The base is not written to."""
    upscaler, given = fresh(), task()
    before = given.base.copy()
    first = upscaler.upscale(given)
    assert np.array_equal(given.base, before)
    upscaler.upscale(task(rows=99, columns=140, seed=9))
    assert np.array_equal(upscaler.upscale(given), first)
    assert np.array_equal(fresh().upscale(given), first)


def test_consistent_where_it_says_so(fresh: Callable[[], Upscaler]) -> None:
    upscaler, given = fresh(), task()
    if upscaler.consistent:
        away = given.operator.down(upscaler.upscale(given)) - given.base
        assert np.abs(away).max() < 0.01


def test_the_engine_makes_any_of_them_consistent(fresh: Callable[[], Upscaler]) -> None:
    base = make_base(original_of(breast(260, 300)), Rung(2, "png16"))
    pixels = reconstruct(base, fresh(), seed=5, steps=2)
    fixed = (pixels <= base.minimum) | (pixels >= base.maximum)
    free = np.abs(base.operator.down(fixed)) < 1e-5
    assert free.any()
    assert np.abs(base.operator.down(pixels) - base.samples())[free].max() <= 1.0


def test_generative_ones_depend_on_the_seed(fresh: Callable[[], Upscaler]) -> None:
    upscaler = fresh()
    same = np.array_equal(upscaler.upscale(task(seed=1)), upscaler.upscale(task(seed=2)))
    assert same is not upscaler.generative


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
