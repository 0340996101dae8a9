"""Proves that fine-tuning the decoder of sd_x2 learns, resumes exactly, and changes nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset
from safetensors.torch import load_file

from node.fidelity.breast_regions import breast_mask
from node.training import sd_decoder
from node.training.image_files import NoPictures, Picture
from node.training.sd_decoder import (
    DECODER_CHECKPOINT,
    DecoderPlan,
    DecoderResult,
    FolderTaken,
    fine_tune_decoder,
)
from node.training.trainer import CheckpointError, Progress, TrainingFailed
from node.upscalers.sd_x2 import SdX2, WeightsNotFound
from storage.errors import LatentPacsError
from storage.formats.resample import Operator
from tests.support import tiny_sd
from tests.support.encoder_samples import task_of
from tests.support.samples import breast

VAE = Path("vae", "diffusion_pytorch_model.safetensors")
PLAN = DecoderPlan(steps=6, batch=2, crop=32, rate=1e-3)


def picture(seed: int, rows: int = 160, columns: int = 128) -> Picture:
    pixels = breast(rows, columns, seed=seed)
    return Picture(f"{seed}.dcm", pixels, 12, Dataset(), False, breast_mask(pixels, "MONOCHROME2"))


PICTURES = [picture(1), picture(2), picture(3)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For networks this small, waiting for a second thread takes longer than computing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd.build(tmp_path_factory.mktemp("sd_x2"))


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after six steps without an interruption."""
    return tune(model, tmp_path_factory.mktemp("tuned")).folder


def tune(model: Path, folder: Path, plan: DecoderPlan = PLAN, **options: Any) -> DecoderResult:
    pictures = options.pop("pictures", PICTURES)
    return fine_tune_decoder(pictures, str(model), folder, plan, device="cpu", **options)


def checkpoint(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / DECODER_CHECKPOINT, weights_only=True)
    return content


# What it learns


@pytest.mark.slow
def test_the_loss_falls_and_the_ceiling_rises(model: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    plan = DecoderPlan(steps=24, batch=2, crop=64, rate=1e-3)
    result = tune(model, tmp_path, plan, pictures=[picture(1, 64, 64)], watch=seen.append)
    losses = checkpoint(tmp_path)["losses"]
    assert [progress.step for progress in seen] == list(range(1, 25))
    assert {progress.steps for progress in seen} == {24}
    assert seen[-1].loss == pytest.approx(np.mean(losses))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert result.after_db > result.before_db + 1
    assert (result.folder, result.steps, result.held_out) == (tmp_path, 24, False)


@pytest.mark.slow
def test_no_picture_of_the_last_ones_patient_is_learnt_from(model: Path, tuned: Path, tmp_path: Path) -> None:
    """The last picture is for evaluation, and the views of a patient are much alike."""
    of_one = Dataset()
    of_one.PatientID = "P1"
    views = [replace(picture(seed), header=of_one) for seed in (8, 9)]
    result = tune(model, tmp_path / "others", pictures=[*PICTURES[:2], *views])
    assert result.held_out
    assert (tmp_path / "others" / VAE).read_bytes() == (tuned / VAE).read_bytes()
    assert not tune(model, tmp_path / "one", pictures=views).held_out


@pytest.mark.slow
def test_the_last_picture_is_not_learnt_from(model: Path, tuned: Path, tmp_path: Path) -> None:
    result = tune(model, tmp_path, pictures=[*PICTURES[:2], picture(9)])
    assert result.held_out
    assert (tmp_path / VAE).read_bytes() == (tuned / VAE).read_bytes()
    assert checkpoint(tmp_path)["before_db"] != checkpoint(tuned)["before_db"]


def test_crops_are_mapped_by_the_range_of_the_whole_picture_as_the_upscaler_maps_them() -> None:
    whole = PICTURES[0]
    low, span = np.float32(whole.pixels.min()), np.float32(np.ptp(whole.pixels))
    mapped = (whole.pixels.astype(np.float32) - low) * (2 / span) - 1
    square = replace(whole, pixels=whole.pixels[:128])
    np.testing.assert_array_equal(sd_decoder._cut(square, 128, np.random.default_rng(0)), mapped[:128])
    for seed in range(20):
        piece = sd_decoder._cut(whole, 32, np.random.default_rng(seed))
        assert piece.shape == (32, 32)
        assert piece.max() > -1  # some of it is breast


# What it leaves alone


def test_only_the_decoder_moves(model: Path, tuned: Path) -> None:
    before, after = load_file(model / VAE), load_file(tuned / VAE)
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}
    others = [path.relative_to(model) for path in model.rglob("*") if path.is_file() and path.name != VAE.name]
    others += [Path("unet", VAE.name)]
    assert {path.relative_to(tuned) for path in tuned.rglob("*") if path.is_file()} == {
        *others,
        VAE,
        Path(DECODER_CHECKPOINT),
    }
    for name in others:
        assert (tuned / name).read_bytes() == (model / name).read_bytes(), name
        assert not (tuned / name).is_symlink()
    assert (tuned / VAE).stat().st_mode == (tuned / DECODER_CHECKPOINT).stat().st_mode  # not the owner's alone


def test_the_result_is_a_model_that_sd_x2_upscales_with(model: Path, tuned: Path) -> None:
    operator = Operator(160, 128, 2)
    task = task_of(operator.down(PICTURES[0].pixels), operator)
    made = [SdX2(str(folder), device="cpu", tile=64, overlap=16, steps=2) for folder in (model, tuned)]
    assert made[0].weights_digest != made[1].weights_digest
    images = [upscaler.structure(task) for upscaler in made]
    assert images[1].shape == (160, 128)
    assert not np.array_equal(*images)


@pytest.mark.slow
def test_links_into_the_cache_of_the_hub_become_files(model: Path, tuned: Path, tmp_path: Path) -> None:
    source = tmp_path / "snapshot"
    shutil.copytree(model, source, copy_function=lambda path, link: Path(link).symlink_to(path))
    tune(source, tmp_path / "tuned")
    assert not [path for path in (tmp_path / "tuned").rglob("*") if path.is_symlink()]
    assert [path.name for path in (tmp_path / "tuned" / "vae").iterdir() if path.name != "config.json"] == [VAE.name]
    assert (tmp_path / "tuned" / VAE).read_bytes() == (tuned / VAE).read_bytes()


# Going on


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(model: Path, tuned: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(model, tmp_path, watch=interrupt)
    assert not (tmp_path / "model_index.json").exists()
    tune(model, tmp_path, resume=True)
    assert (tmp_path / VAE).read_bytes() == (tuned / VAE).read_bytes()
    ours, straight = checkpoint(tmp_path), checkpoint(tuned)
    assert all(ours[name] == straight[name] for name in ("plan", "step", "losses", "before_db"))
    for number, values in straight["optimiser"]["state"].items():
        assert all(torch.equal(ours["optimiser"]["state"][number][name], value) for name, value in values.items())


@pytest.mark.slow
def test_it_stops_where_told_and_goes_on_under_its_own_plan(model: Path, tuned: Path, tmp_path: Path) -> None:
    assert tune(model, tmp_path, stop_after=3).steps == 3
    assert SdX2(str(tmp_path)).weights_digest != SdX2(str(model)).weights_digest
    result = tune(model, tmp_path, DecoderPlan(steps=1, crop=512, seed=5), resume=True)
    assert result.steps == 6
    assert (tmp_path / VAE).read_bytes() == (tuned / VAE).read_bytes()
    assert tune(model, tmp_path, replace(PLAN, steps=7), resume=True).steps == 7


@pytest.mark.slow
def test_without_resume_an_earlier_run_is_started_again_and_nothing_is_printed(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert tune(model, tmp_path, replace(PLAN, steps=1), pictures=PICTURES[:2]).steps == 1
        assert len(checkpoint(tmp_path)["losses"]) == 1
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("damage", ["cut short", "not a checkpoint", "another kind", "nothing"])
def test_a_damaged_checkpoint_is_an_error_that_says_so(model: Path, tuned: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / DECODER_CHECKPOINT
    if damage == "another kind":
        torch.save({"plan": "{}"}, path)
    else:
        content = (tuned / DECODER_CHECKPOINT).read_bytes()
        path.write_bytes({"cut short": content[: len(content) // 2], "nothing": b""}.get(damage, b"not a checkpoint"))
    damaged = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"decoder\.pt cannot be resumed: .*; train without resume"):
        tune(model, tmp_path, resume=True)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("other", ["weights", "pictures"])
def test_a_checkpoint_is_not_continued_with_other_weights_or_pictures(
    model: Path, tuned: Path, tmp_path: Path, other: str
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copyfile(tuned / DECODER_CHECKPOINT, tmp_path / "run" / DECODER_CHECKPOINT)
    source = tiny_sd.build(tmp_path, seed=1) if other == "weights" else model
    pictures = PICTURES if other == "weights" else PICTURES[::-1]
    with pytest.raises(CheckpointError, match="other weights or other pictures"):
        tune(source, tmp_path / "run", resume=True, pictures=pictures)


# What it refuses


@pytest.mark.parametrize("inside", ["", "vae", "tuned/here"])
def test_the_source_is_never_written_to(model: Path, inside: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    with pytest.raises(FolderTaken, match="source model") as caught:
        tune(model, model / inside)
    assert isinstance(caught.value, LatentPacsError)
    assert before == {path: path.stat().st_mtime_ns for path in model.rglob("*")}


def test_a_folder_or_file_of_somebody_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_text("of another training")
    for taken in (tmp_path, tmp_path / "checkpoint.pt"):
        with pytest.raises(FolderTaken, match="neither empty nor an earlier run"):
            tune(model, taken, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_rate_that_breaks_it_is_named_and_no_model_is_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"rate 1e\+30; try a lower"):
        tune(model, tmp_path, replace(PLAN, rate=1e30))
    assert not (tmp_path / "model_index.json").exists()


def test_pictures_that_no_crop_fits_into_are_refused(model: Path, tmp_path: Path) -> None:
    flat = replace(PICTURES[0], pixels=np.full_like(PICTURES[0].pixels, 7))
    with pytest.raises(NoPictures, match="none of 2 pictures has 136 x 136"):
        tune(model, tmp_path, replace(PLAN, crop=136), pictures=[PICTURES[0], flat])


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"crop": 0}, {"crop": 100}])
def test_a_plan_that_cannot_work_is_refused_at_once(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        replace(PLAN, **change)


def test_an_autoencoder_cut_short_is_an_error_that_says_so(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / VAE).write_bytes((copy / VAE).read_bytes()[:5000])
    with pytest.raises(WeightsNotFound, match="vae cannot be loaded"):
        tune(copy, tmp_path / "tuned")
