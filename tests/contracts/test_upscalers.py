"""Proves the contract of node/upscalers/protocol.py for every upscaler in the repository."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from node.codec.decode import Decoded, SideInformation
from node.codec.encode.base_coding import make_base
from node.codec.noise import NoiseModel
from node.codec.rendering import Rendering
from node.config.encoding_sections import ReconstructSettings, SdX2Settings
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Upscaler, UpscaleTask
from storage.errors import ModelMissing
from storage.formats.payload import Rendition
from storage.records import OperatingPoint, Verdict
from tests.support import tiny_sd
from tests.support.encoder_samples import model, phantom, source_alone

Float = NDArray[np.float32]

ROWS, COLUMNS = 152, 146
"""Of an image that sd_x2 makes from several tiles that overlap."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd.build(tmp_path_factory.mktemp("tiny"))


def settings(name: str, weights: Path) -> ReconstructSettings:
    own = SdX2Settings(weights=str(weights), steps=2, tile=64, overlap=16)
    return ReconstructSettings.model_validate({"upscaler": name, "device": "cpu", "sd_x2": own})


@pytest.fixture(scope="module", params=["bicubic", "mammo", "sd_x2"])
def fresh(request: pytest.FixtureRequest, weights: Path) -> Callable[[], Upscaler]:
    """A function that builds the upscaler again, as a new process would."""
    return lambda: Catalogue(settings(request.param, weights)).configured()


@pytest.fixture(scope="module")
def upscaler(fresh: Callable[[], Upscaler]) -> Upscaler:
    return fresh()


def noise_of(rows: int, columns: int) -> NoiseModel:
    return model(rows, columns, deviation=12.0)


def task(upscaler: Upscaler, scale: int = 2, rows: int = ROWS, columns: int = COLUMNS, seed: int = 3) -> UpscaleTask:
    """A task for a corner of the phantom with a lossy base."""
    pixels = phantom()[200 : 200 + rows, :columns]
    decoded = Decoded.of(make_base(source_alone(pixels), OperatingPoint(scale, "jpegxl", 0.5, 3)))
    return decoded.task(noise_of(rows, columns), seed, upscaler.steps)


def made(upscaler: Upscaler, given: UpscaleTask) -> tuple[Float, Float]:
    """The structure and the grain."""
    structure = upscaler.structure(given)
    rows, columns = structure.shape
    return structure, upscaler.grain(given, structure, noise_of(rows, columns).draw(structure, given.seed))


def same(one: tuple[Float, Float], other: tuple[Float, Float]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_says_what_it_is(upscaler: Upscaler) -> None:
    assert re.fullmatch(r"[a-z0-9_]{1,32}", upscaler.name)
    assert re.fullmatch(r"[A-Z0-9_ ]{1,16}", upscaler.method)  # CS, PS3.5 6.2
    assert re.fullmatch(r"[0-9a-f]{64}", upscaler.weights_digest)
    assert upscaler.steps >= 0
    numerics = upscaler.numerics
    assert {"device", "dtype", "torch", "numpy"} <= numerics.keys()
    assert all(isinstance(value, str) for value in numerics.values())


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shape_and_type(upscaler: Upscaler, scale: int) -> None:
    for part in made(upscaler, task(upscaler, scale)):
        assert part.shape == (ROWS, COLUMNS)
        assert part.dtype == np.float32
        assert np.isfinite(part).all()


@pytest.mark.slow
def test_a_pure_function(fresh: Callable[[], Upscaler]) -> None:
    """The result has the same bits when it is repeated, after another image, and in a new process. The task is not
    changed."""
    upscaler = fresh()
    given = task(upscaler)
    before = {name: getattr(given, name).copy() for name in ("samples", "upsampled", "deviation")}
    first = made(upscaler, given)
    first[0][:] += 0.0  # the caller may write to it
    assert all(np.array_equal(getattr(given, name), array) for name, array in before.items())
    made(upscaler, task(upscaler, rows=140, columns=160, seed=9))
    assert same(made(upscaler, given), first)
    assert same(made(fresh(), given), first)


def test_a_structure_may_be_written_to(upscaler: Upscaler) -> None:
    given = task(upscaler)
    before = given.upsampled.copy()
    upscaler.structure(given)[:] = 0
    assert np.array_equal(given.upsampled, before)


@pytest.mark.slow
@pytest.mark.parametrize("point", [OperatingPoint(2, "png16"), OperatingPoint(4, "jpegxl", 0.6)], ids=str)
def test_a_structure_is_consistent_with_its_base(upscaler: Upscaler, point: OperatingPoint) -> None:
    """Downsampled, the structure is the base, except for what the coder changes and the noise that the base lacks."""
    pixels = phantom()[200 : 200 + ROWS, :COLUMNS]
    base = make_base(source_alone(pixels), point)
    image = Rendering(base, upscaler, SideInformation(), seed=5, steps=upscaler.steps).pixels(draw=True)
    away = base.operator.down(image) - base.samples()
    assert np.sqrt(np.mean(np.square(away))) < 1.5 * max(base.quantisation_rms, 2.0)


def test_grain_has_the_strength_of_the_noise(upscaler: Upscaler) -> None:
    given = task(upscaler)
    structure = upscaler.structure(given)
    noise = noise_of(*structure.shape).draw(structure, given.seed)
    grain = upscaler.grain(given, structure, noise.copy())
    assert grain.std() == pytest.approx(noise.std(), rel=0.25)


@pytest.mark.slow
def test_what_draws_says_so(upscaler: Upscaler) -> None:
    """If the structure depends on the seed, a model has drawn a part of it, and must say so."""
    one, other = (upscaler.structure(task(upscaler, seed=seed)) for seed in (1, 2))
    assert np.array_equal(one, other) is (upscaler.name != "sd_x2")
    assert upscaler.generative or np.array_equal(one, other)


@pytest.mark.slow
def test_the_deviation_is_not_looked_at_where_it_is_not_needed(upscaler: Upscaler) -> None:
    if not upscaler.needs_deviation:
        with_noise = task(upscaler)
        pixels = phantom()[200 : 200 + ROWS, :COLUMNS]
        decoded = Decoded.of(make_base(source_alone(pixels), OperatingPoint(2, "jpegxl", 0.5, 3)))
        without = decoded.task(None, with_noise.seed, upscaler.steps)
        assert np.array_equal(upscaler.structure(with_noise), upscaler.structure(without))


def test_missing_model_names_the_digest(weights: Path) -> None:
    """A rendition whose weights are not installed is not rendered with other weights."""
    rendition = Rendition(
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
        structure_digest="0" * 64,
        verdict=Verdict(40.0, 0.95, 0.92, 1),
    )
    with pytest.raises(ModelMissing, match="ab" * 32):
        Catalogue(settings("bicubic", weights)).for_rendition(rendition)
