"""Proves that training ``mammo`` learns, resumes to the bit, and is measured on patients that it has not seen."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset

from node.fidelity.breast_regions import breast_mask
from node.training import evaluate as evaluation
from node.training import trainer
from node.training.evaluate import bytes_at_limits, evaluate, summary
from node.training.image_files import Picture
from node.training.trainer import CHECKPOINT, CheckpointError, Plan, Progress, TrainingFailed, train
from node.training.training_patches import degrade
from node.upscalers.mammo import WEIGHTS, Mammo, load_network
from node.upscalers.network import MammoNetwork, NetworkConfig
from storage.errors import LatentPacsError
from tests.support.samples import breast

Pixels = NDArray[np.uint16]

TINY = Plan(steps=6, width=8, wide=16, blocks=(1, 1, 1), batch=2, crop=64, patches=2, patch_steps=2)


def ribbed(rows: int = 256, columns: int = 256, *, seed: int = 0, air: int = 0) -> Pixels:
    """Tissue under a fine grid that no base of half the size can hold, always at the same place of a latent cell.

    The grid looks the same mirrored and rotated. ``air``: number of dark, noisy rows at the bottom.
    """
    tissue = breast(2 * rows, 2 * columns, seed=seed)[rows // 2 : rows // 2 + rows, :columns]
    rib = np.array([1.0, -1.0, -1.0, 1.0])
    grid = np.tile(np.outer(rib, rib), (-(-rows // 4), -(-columns // 4)))[:rows, :columns]
    pixels = 1000 + 0.5 * tissue + 400 * grid
    pixels[rows - air :] = np.random.default_rng(seed).integers(0, 60, (air, columns))
    return np.clip(pixels, 0, 4095).astype(np.uint16)


def picture(pixels: Pixels, name: str = "a.dcm", *, film: bool = False) -> Picture:
    return Picture(name, pixels, 12, Dataset(), film, breast_mask(pixels, "MONOCHROME2"))


PICTURES = [picture(ribbed(seed=1)), picture(ribbed(seed=2))]
ENOUGH = replace(TINY, steps=40, batch=4, patches=6, patch_steps=10, rate=1e-2)
"""Steps enough to learn the grid: what is left of the error is a tenth, whatever the seed."""


@pytest.fixture(autouse=True, scope="module")
def full_precision() -> Iterator[None]:
    """Skip the measurement of the faster precision, which takes a second for each run. These tests compare to the bit.

    One thread is used, because these networks are too small for several, which wait for each other on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_half_is_fast", lambda _: False)
        yield
    torch.set_num_threads(threads)


def run(folder: Path, plan: Plan = TINY, **options: Any) -> MammoNetwork:
    return train(options.pop("pictures", PICTURES[:1]), plan, folder, device="cpu", **options)


def checkpoint(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return {**content, "plan": json.loads(content["plan"])}


def same_weights(one: MammoNetwork, other: MammoNetwork) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def mean_error(network: MammoNetwork) -> float:
    """Mean squared error of the posterior mean on a picture that was not trained on. The unit is that of the missing
    detail."""
    everywhere = np.ones((256, 256), dtype=bool)
    patch = degrade(ribbed(seed=9).astype(np.float32), everywhere, 2, 0.5, np.random.default_rng(1))
    wanted, seen = patch.wanted.float()[None], patch.seen.float()[None]
    with torch.inference_mode():
        guess = network(torch.zeros_like(wanted), seen, torch.zeros(1), patch.point[None]) * (2 / np.pi)
    return float(torch.square(guess - wanted).mean())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after 40 steps."""
    folder = tmp_path_factory.mktemp("learned")
    run(folder, ENOUGH, pictures=PICTURES)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after six steps without an interruption."""
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    return folder


# --- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_what_the_base_cannot_hold(learned: Path) -> None:
    """The grid is lost in every base, and is the same in every picture, so that forty steps suffice."""
    before, after = (
        mean_error(MammoNetwork(NetworkConfig(width=8, wide=16, blocks=(1, 1, 1)))),
        mean_error(load_network(learned)),
    )
    assert before == pytest.approx(1, abs=0.3)
    assert after < 0.4 * before


@pytest.mark.slow
def test_a_regression_of_the_mean_alone_learns_too_and_differently(learned: Path, tmp_path: Path) -> None:
    regression = run(tmp_path, replace(ENOUGH, zero_share=1.0))
    assert mean_error(regression) < 0.4
    assert not same_weights(regression, load_network(learned))


def test_band_energies_add_up_to_what_bands_hold() -> None:
    """By Parseval's theorem, they equal those of filtering in space, on a pattern that wraps around."""
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    found = trainer.band_energies(x)
    spectrum = torch.fft.fft2(x[:, 0])
    squared = torch.fft.fftfreq(64)[:, None].square() + torch.fft.fftfreq(64)[None].square()
    passed = [torch.ones_like(squared)]
    passed += [torch.exp(-2 * torch.pi**2 * sigma**2 * squared) for sigma in (0.7, 1.4, 2.8, 5.6)]
    for band, (fine, coarse) in enumerate(itertools.pairwise(passed)):
        pixels = torch.fft.ifft2(spectrum * (fine - coarse)).real
        torch.testing.assert_close(found[:, band], pixels.square().mean(dim=(1, 2)))


def test_errors_count_most_where_the_base_holds_structure() -> None:
    detail = 0.5 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    detail[0, 0, 30:32] += 6
    weights = trainer.structure_weights(detail)
    assert weights.shape == detail.shape
    assert float(weights[0, 0, 31].mean()) > 4 * float(weights[0, 0, 5].mean())
    assert float(weights.min()) >= 0.5
    assert float(weights.max()) <= 8
    assert bool(torch.isfinite(trainer.structure_weights(torch.zeros(1, 1, 64, 64))).all())


@pytest.mark.slow
def test_progress_is_reported_step_by_step_and_decided_by_the_seed(straight: Path, tmp_path: Path) -> None:
    met: list[Progress] = []
    run(tmp_path, replace(TINY, steps=2, seed=2), watch=met.append)
    losses = checkpoint(tmp_path)["losses"]
    assert [(now.step, now.steps) for now in met] == [(1, 2), (2, 2)]
    assert [now.loss for now in met] == pytest.approx([np.mean(losses[:count]) for count in (1, 2)])
    assert met[0].seconds <= met[1].seconds
    assert losses[0] != checkpoint(straight)["losses"][0]


def test_the_result_is_a_model(straight: Path) -> None:
    network = load_network(straight)
    assert network.config.width == 8
    assert Mammo(straight).weights_digest == Mammo(straight).weights_digest


def test_a_gpu_gets_batches_that_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(TINY, zero_share=1.0)
    assert plan.sized_for("cpu") == plan
    monkeypatch.setattr(trainer, "device_of", lambda name: torch.device("cuda"))
    larger = plan.sized_for("auto")
    assert larger.batch > plan.batch
    assert larger.patches > plan.patches
    assert (larger.steps, larger.width, larger.zero_share, larger.seed) == (plan.steps, plan.width, 1.0, plan.seed)


# --- going on -----------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_is_bit_for_bit_as_straight_through(straight: Path, tmp_path: Path) -> None:
    """The plan of the checkpoint counts, whatever plan is given when the training is resumed."""
    run(tmp_path, stop_after=3)
    assert (checkpoint(tmp_path)["step"], checkpoint(tmp_path)["plan"]["steps"]) == (3, 6)
    assert (tmp_path / WEIGHTS).read_bytes() != (straight / WEIGHTS).read_bytes()
    met: list[Progress] = []
    run(tmp_path, Plan(steps=1, seed=99, width=16), resume=True, watch=met.append)
    assert [now.step for now in met] == [4, 5, 6]
    assert (tmp_path / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    assert Mammo(tmp_path).weights_digest == Mammo(straight).weights_digest
    assert checkpoint(tmp_path)["losses"] == checkpoint(straight)["losses"]


@pytest.mark.slow
def test_interrupted_in_the_middle_nothing_is_lost(straight: Path, tmp_path: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, watch=interrupt)
    assert checkpoint(tmp_path)["step"] == 4
    run(tmp_path, resume=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is_or_goes_on(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    digest = Mammo(straight).weights_digest
    run(tmp_path, resume=True)
    assert (checkpoint(tmp_path)["step"], Mammo(tmp_path).weights_digest) == (6, digest)
    run(tmp_path, replace(TINY, steps=8), resume=True)
    assert checkpoint(tmp_path)["step"] == 8
    run(tmp_path, replace(TINY, steps=1), resume=True, minutes=0.02)
    content = checkpoint(tmp_path)
    assert 8 < content["step"] <= content["plan"]["steps"]
    assert Mammo(tmp_path).weights_digest != digest


@pytest.mark.slow
def test_minutes_are_a_budget(tmp_path: Path) -> None:
    met: list[Progress] = []
    began = time.monotonic()
    run(tmp_path, replace(TINY, steps=1), minutes=0.05, watch=met.append)
    assert time.monotonic() - began < 200  # with the baseline, on a busy machine
    assert met[-1].seconds < 3 + 30  # the step that was being made may end
    content = checkpoint(tmp_path)
    assert 1 <= content["step"] <= content["plan"]["steps"] < 5000
    assert same_weights(load_network(tmp_path), run(tmp_path, resume=True, stop_after=content["step"]))


@pytest.mark.slow
def test_a_budget_too_small_to_plan_with_does_not_bind_the_next_sitting(tmp_path: Path) -> None:
    run(tmp_path, replace(TINY, steps=1), minutes=1e-4)
    first = checkpoint(tmp_path)["step"]
    run(tmp_path, replace(TINY, steps=1), minutes=0.05, resume=True)
    assert checkpoint(tmp_path)["step"] > first + 1


def test_without_resume_it_starts_again(straight: Path, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"of something else")
    run(tmp_path)
    assert Mammo(tmp_path).weights_digest == Mammo(straight).weights_digest


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage", [_cut, lambda _: b"", lambda _: b"no checkpoint" * 100], ids=["cut", "empty", "text"]
)
def test_a_damaged_checkpoint_is_refused(straight: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / CHECKPOINT).write_bytes(damage((straight / CHECKPOINT).read_bytes()))
    held = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(CheckpointError, match=CHECKPOINT):
        run(tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == held
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"plan": '{"steps": 6, "blocks": [1, 1, 1], "colour": "blue"}'},
        {"plan": "6"},
        {"network": {}},
        {"step": "many"},
        {"optimiser": {}},
    ],
    ids=["unknown key", "no plan", "no weights", "no number", "no optimiser"],
)
def test_a_checkpoint_of_another_kind_is_refused(straight: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    content = torch.load(straight / CHECKPOINT, weights_only=True)
    torch.save({**content, **change}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError):
        run(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    network = MammoNetwork(NetworkConfig(width=8, wide=16, blocks=(1, 1, 1)))
    with torch.no_grad():
        network.enter.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingFailed, match="step 1 is not finite"):
        run(tmp_path, start_from=network)
    assert not (tmp_path / WEIGHTS).exists()
    assert issubclass(TrainingFailed, LatentPacsError)
    assert issubclass(CheckpointError, LatentPacsError)


@pytest.mark.slow
def test_a_training_that_went_astray_can_be_taken_up_where_it_was_well(tmp_path: Path) -> None:
    run(tmp_path, stop_after=2)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    content["plan"] = json.dumps({**json.loads(content["plan"]), "rate": float("inf")})
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingFailed):
        run(tmp_path, resume=True)
    held = checkpoint(tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in held["network"].values())


# --- fine-tuning --------------------------------------------------------------------------------------------------


def test_fine_tuning_starts_from_a_model(learned: Path, tmp_path: Path) -> None:
    """After two small steps the model is near its start, and not near a new model."""
    start = load_network(learned)
    kept = {name: value.clone() for name, value in start.state_dict().items()}
    tuned = run(tmp_path, replace(TINY, steps=2, rate=1e-4, width=16, blocks=(2, 2, 2)), start_from=start)
    assert (tuned.config.width, tuple(tuned.config.blocks)) == (8, (1, 1, 1))
    assert mean_error(tuned) == pytest.approx(mean_error(start), rel=0.2)
    assert not same_weights(tuned, start)
    assert all(torch.equal(kept[name], value) for name, value in start.state_dict().items())
    assert Mammo(tmp_path).weights_digest != Mammo(learned).weights_digest


@pytest.mark.slow
def test_fine_tuning_resumes_too(learned: Path, tmp_path: Path) -> None:
    start = load_network(learned)
    plan = replace(TINY, steps=4)
    whole = run(tmp_path / "whole", plan, start_from=start)
    run(tmp_path / "parts", plan, start_from=start, stop_after=2)
    assert same_weights(run(tmp_path / "parts", plan, start_from=start, resume=True), whole)


def test_a_fine_tuned_model_does_not_say_where_it_came_from(learned: Path, tmp_path: Path) -> None:
    """Its digest covers its weights and their meaning, and no folder of the machine that made it."""
    run(tmp_path, replace(TINY, steps=1), start_from=load_network(learned))
    assert str(learned) not in (tmp_path / "config.json").read_text()


def test_fine_tuning_a_model_of_another_size_resumes_too(learned: Path, tmp_path: Path) -> None:
    plan = replace(TINY, steps=2, width=16)
    run(tmp_path, plan, start_from=load_network(learned), stop_after=1)
    run(tmp_path, plan, start_from=load_network(learned), resume=True)
    assert checkpoint(tmp_path)["step"] == 2


# --- evaluation ---------------------------------------------------------------------------------------------------

SEEN_WOMAN = picture(ribbed(512, 256, seed=5, air=200), "woman/view.dcm")


@pytest.fixture(scope="module")
def result(learned: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "DISTANCES", {2: (0.5, 2.0)})
        (found,) = evaluate([SEEN_WOMAN], learned, device="cpu")
    return found


def test_the_form_of_an_evaluation(result: dict[str, Any]) -> None:
    result = json.loads(json.dumps(result))
    assert (result["image"], result["scale"], result["film"]) == ("woman/view.dcm", 2, False)
    assert {"base_bytes", "model_bytes"} <= result.keys()
    for point, distance in zip(result["points"], (0.5, 2.0), strict=False):
        assert point["distance"] == distance
        assert point["bytes"] > 0
        for of in ("base", "model"):
            assert len(point[f"{of}_lines"]) == 3
            assert len(point[f"{of}_lost"]) == 4
        assert point["model_inconsistency"] >= 0
        assert point["seconds"] > 0


def test_what_was_learned_shows_in_the_lines(result: dict[str, Any]) -> None:
    first = result["points"][0]
    assert first["model_lost"][0] < 0.8 * first["base_lost"][0]


def test_bytes_at_the_limits_lie_between_the_points_around_them() -> None:
    assert bytes_at_limits([(0.5, 4000), (2.0, 1000)]) == 2000
    assert bytes_at_limits([(2.0, 1000), (0.5, 4000), (4.0, 700)]) == 2000
    assert bytes_at_limits([(1.0, 4000), (2.0, 1000)]) == 4000
    assert bytes_at_limits([(1.5, 4000), (2.0, 1000)]) is None
    assert bytes_at_limits([(0.5, 4000), (0.7, 1000)]) is None
    assert bytes_at_limits([]) is None


def test_a_summary_leaves_out_what_was_not_bracketed() -> None:
    def row(image: str, base: int | None, model: int | None, scale: int = 2) -> dict[str, Any]:
        return {"image": image, "scale": scale, "base_bytes": base, "model_bytes": model}

    rows = summary([row("a", 1000, 900), row("b", 1000, 1000), row("c", None, 900), row("d", None, None, 4)])
    assert rows == [{"scale": 2, "images": 2, "bytes_ratio": 0.9487, "worst_bytes_ratio": 1.0}]
