"""``mammo`` in training: it learns, goes on to the bit where it was stopped, and is measured honestly."""

from __future__ import annotations

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

from node.codec.engine import make_base, reconstruct
from node.codec.guiding import guided
from node.fidelity.gate import Reference
from node.fidelity.regions import breast_mask
from node.fidelity.spectrum import BANDS, band_edges, closer_in_every_band, power_spectrum, relative_power
from node.training import evaluate as evaluation
from node.training import trainer
from node.training.baseline import DISTANCES, DampedBicubic, damping_at, fit_damping
from node.training.evaluate import evaluate, latent_ceiling, original_of, summary
from node.training.pictures import Picture
from node.training.plates import code, degrade, piece_of
from node.training.trainer import CHECKPOINT, CheckpointError, Plan, Progress, TrainingFailed, train
from node.upscalers.mammo import WEIGHTS, Mammo, load_network, save_network
from node.upscalers.network import MammoNetwork, to_latent, to_pixels
from node.upscalers.protocol import UpscaleTask
from storage.errors import LatentPacsError
from storage.payload import seed_of
from storage.records import Rung
from storage.resample import Operator
from tests.samples import breast

Pixels = NDArray[np.uint16]

TINY = Plan(steps=6, width=8, blocks=(1, 1, 1), batch=2, crop=64, deck=2, renew=2)


def jpegxl(scale: int, distance: float) -> Rung:
    return Rung(scale=scale, coder="jpegxl", distance=distance, effort=7, sample_bits=12)


def ribbed(rows: int = 256, columns: int = 256, *, seed: int = 0, air: int = 0) -> Pixels:
    """Tissue under a fine grid that no base of half the size can hold, always at the same place of a latent.

    The grid looks the same mirrored and turned. ``air``: dark, noisy rows at the bottom.
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
ENOUGH = replace(TINY, steps=40, batch=4, deck=6, renew=10, rate=1e-2)
"""Steps enough to learn the grid: what is left of the error is a tenth, whatever the seed."""


@pytest.fixture(autouse=True, scope="module")
def full_precision() -> Iterator[None]:
    """Measuring what is faster costs a second a run, and these tests compare to the bit.

    One thread: these networks are too small to share, and on a busy machine threads that wait for each other are slow.
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
    """Squared error of the posterior mean on a picture that was not trained on, in units of the missing detail's."""
    plate = degrade(ribbed(256, 256, seed=9), np.ones((4, 4), dtype=bool), jpegxl(2, 0.3), 0.8)
    wanted, seen = plate.wanted.float()[None], plate.seen.float()[None]
    with torch.inference_mode():
        guess = network(torch.zeros_like(wanted), seen, torch.ones(1), plate.rung[None])
    return float(torch.square(guess - wanted).mean())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 40 steps."""
    folder = tmp_path_factory.mktemp("learned")
    run(folder, ENOUGH, pictures=PICTURES)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where six steps went straight through."""
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    return folder


# --- the network --------------------------------------------------------------------------------------------------


def awake(width: int = 8, blocks: tuple[int, int, int] = (1, 1, 1), seed: int = 1) -> MammoNetwork:
    """A network whose every layer does something: fresh ones are zero at the ends."""
    torch.manual_seed(seed)
    network = MammoNetwork(width=width, blocks=blocks)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 / max(parameter[0].numel(), 1) ** 0.5)
    return network.eval().requires_grad_(False)


def inputs(rows: int = 24, columns: int = 32, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """noisy, seen and rung for one image of so many latent cells."""
    random = torch.Generator().manual_seed(seed)
    noisy, seen = (torch.randn(1, channels, rows, columns, generator=random) for channels in (16, 17))
    return noisy, seen, torch.tensor([[1.0, -0.3, 0.0]])


def test_the_posterior_mean_hears_no_noise() -> None:
    network = awake()
    noisy, seen, rung = inputs()
    one, other = (network(x, seen, torch.ones(1), rung) for x in (noisy, noisy * -37))
    assert torch.equal(one, other)
    assert float(one.std()) > 0
    assert not torch.equal(network(noisy, seen, torch.tensor([0.5]), rung), network(-noisy, seen, torch.ones(1), rung))


def test_without_noise_nothing_is_left_to_guess() -> None:
    network = awake()
    noisy, seen, rung = inputs()
    assert torch.equal(network(noisy, seen, torch.zeros(1), rung), noisy)


def test_the_latent_is_the_image_itself() -> None:
    pixels = torch.from_numpy(breast(264, 280).astype(np.float32))[None, None]
    latent = to_latent(pixels)
    assert latent.shape == (1, 16, 66, 70)
    assert torch.equal(to_pixels(latent), pixels)
    assert torch.equal(latent[0, :, 3, 5], pixels[0, 0, 12:16, 20:24].flatten())


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 2, 1), (2, 0, 0)], ids=str)
def test_a_pixel_depends_on_its_surroundings_as_far_as_the_halo_and_no_further(blocks: tuple[int, int, int]) -> None:
    network = awake(blocks=blocks)
    cells = network.halo // 4
    size = 2 * (cells + 8)
    noisy, seen, rung = inputs(size, size)
    time = torch.tensor([0.5])
    before = network(noisy, seen, time, rung)
    reach = 0
    for row, column in ((cells + 8, cells + 8), (cells + 9, cells + 9)):  # both phases of the coarse grid
        moved, other = noisy.clone(), seen.clone()
        moved[..., row, column] += 5
        other[..., row, column] -= 5
        changed = (network(moved, other, time, rung) != before).any(dim=1)[0].nonzero()
        assert len(changed)
        reach = max(reach, int((changed - torch.tensor([row, column])).abs().max()))
    assert reach * 4 <= network.halo
    assert reach * 4 > network.halo - 16  # nor is more cut out than is needed


def test_a_model_saved_and_loaded_as_diffusers_does_is_the_same_model(tmp_path: Path) -> None:
    network = awake(blocks=(1, 2, 1))
    network.register_to_config(damping=[[2, 0.1, 0.25]])
    save_network(network, tmp_path)
    noisy, seen, rung = inputs()
    expected = network(noisy, seen, torch.tensor([0.4]), rung)
    for loaded in (
        load_network(tmp_path),
        MammoNetwork.from_pretrained(str(tmp_path), low_cpu_mem_usage=False),
    ):
        assert torch.equal(loaded(noisy, seen, torch.tensor([0.4]), rung), expected)
        assert loaded.config.damping == [[2, 0.1, 0.25]]
        assert loaded.halo == network.halo
        assert not loaded.training


# --- learning -----------------------------------------------------------------------------------------------------


def test_it_learns_what_the_base_cannot_hold(learned: Path) -> None:
    """The grid is lost in every base, and is the same in every picture: forty steps suffice."""
    before, after = mean_error(MammoNetwork(width=8, blocks=(1, 1, 1))), mean_error(load_network(learned))
    assert before == pytest.approx(1, abs=0.3)
    assert after < 0.4 * before


def test_the_ablation_learns_too_and_differently(learned: Path, tmp_path: Path) -> None:
    regression = run(tmp_path, replace(ENOUGH, mean_share=1.0))
    assert mean_error(regression) < 0.4
    assert not same_weights(regression, load_network(learned))
    assert checkpoint(tmp_path)["plan"]["mean_share"] == 1.0


def test_progress_is_reported_step_by_step_and_decided_by_the_seed(straight: Path, tmp_path: Path) -> None:
    met: list[Progress] = []
    run(tmp_path, replace(TINY, steps=2, seed=2), watch=met.append)
    losses = checkpoint(tmp_path)["losses"]
    assert [(now.step, now.steps) for now in met] == [(1, 2), (2, 2)]
    assert [now.loss for now in met] == pytest.approx([np.mean(losses[:count]) for count in (1, 2)])
    assert met[0].seconds <= met[1].seconds
    assert losses[0] != checkpoint(straight)["losses"][0]


def test_the_result_is_a_model_with_its_baseline(straight: Path) -> None:
    network = load_network(straight)
    assert network.config.width == 8
    assert network.config.damping == fit_damping(PICTURES[:1], TINY.seed)
    assert [point[:2] for point in network.config.damping] == [[scale, d] for scale in (2, 4) for d in DISTANCES]
    assert Mammo(straight).weights_digest == Mammo(straight).weights_digest


def test_a_gpu_gets_batches_that_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(TINY, mean_share=1.0)
    assert plan.sized_for("cpu") == plan
    monkeypatch.setattr(trainer, "_device", lambda name: torch.device("cuda"))
    larger = plan.sized_for("auto")
    assert larger.batch > plan.batch
    assert larger.deck > plan.deck
    assert (larger.steps, larger.width, larger.mean_share, larger.seed) == (plan.steps, plan.width, 1.0, plan.seed)


# --- going on -----------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_is_bit_for_bit_as_straight_through(straight: Path, tmp_path: Path) -> None:
    """The checkpoint's own plan counts, whatever is asked for at the second sitting."""
    run(tmp_path, stop_after=3)
    assert (checkpoint(tmp_path)["step"], checkpoint(tmp_path)["plan"]["steps"]) == (3, 6)
    assert (tmp_path / WEIGHTS).read_bytes() != (straight / WEIGHTS).read_bytes()
    met: list[Progress] = []
    run(tmp_path, Plan(steps=1, seed=99, width=16), resume=True, watch=met.append)
    assert [now.step for now in met] == [4, 5, 6]
    assert (tmp_path / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    assert Mammo(tmp_path).weights_digest == Mammo(straight).weights_digest
    assert checkpoint(tmp_path)["losses"] == checkpoint(straight)["losses"]


def test_interrupted_in_the_middle_nothing_is_lost(straight: Path, tmp_path: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, watch=interrupt)
    assert checkpoint(tmp_path)["step"] == 4
    run(tmp_path, resume=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()


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


def test_minutes_are_a_budget(tmp_path: Path) -> None:
    met: list[Progress] = []
    began = time.monotonic()
    run(tmp_path, replace(TINY, steps=1), minutes=0.05, watch=met.append)
    assert time.monotonic() - began < 30  # with the baseline, on a busy machine
    assert met[-1].seconds < 3 + 3  # the step that was being made may end
    content = checkpoint(tmp_path)
    assert 1 <= content["step"] <= content["plan"]["steps"] < 5000
    assert same_weights(load_network(tmp_path), run(tmp_path, resume=True, stop_after=content["step"]))


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
    network = MammoNetwork(width=8, blocks=(1, 1, 1))
    with torch.no_grad():
        network.enter.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingFailed, match="step 1 is not finite"):
        run(tmp_path, start_from=network)
    assert not (tmp_path / WEIGHTS).exists()
    assert issubclass(TrainingFailed, LatentPacsError)
    assert issubclass(CheckpointError, LatentPacsError)


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
    """Gently: after two steps it is near where it began, and not where a fresh one would be."""
    start = load_network(learned)
    kept = {name: value.clone() for name, value in start.state_dict().items()}
    tuned = run(tmp_path, replace(TINY, steps=2, rate=1e-4, width=16, blocks=(2, 2, 2)), start_from=start)
    assert (tuned.config.width, tuple(tuned.config.blocks)) == (8, (1, 1, 1))
    assert mean_error(tuned) == pytest.approx(mean_error(start), rel=0.2)
    assert not same_weights(tuned, start)
    assert all(torch.equal(kept[name], value) for name, value in start.state_dict().items())
    assert Mammo(tmp_path).weights_digest != Mammo(learned).weights_digest


def test_fine_tuning_resumes_too(learned: Path, tmp_path: Path) -> None:
    start = load_network(learned)
    plan = replace(TINY, steps=4)
    whole = run(tmp_path / "whole", plan, start_from=start)
    run(tmp_path / "parts", plan, start_from=start, stop_after=2)
    assert same_weights(run(tmp_path / "parts", plan, start_from=start, resume=True), whole)


def test_a_fine_tuned_model_does_not_say_where_it_came_from(learned: Path, tmp_path: Path) -> None:
    """Its digest is of its weights and their meaning, not of a folder on the machine that made it."""
    run(tmp_path, replace(TINY, steps=1), start_from=load_network(learned))
    assert str(learned) not in (tmp_path / "config.json").read_text()


def test_fine_tuning_a_model_of_another_size_resumes_too(learned: Path, tmp_path: Path) -> None:
    plan = replace(TINY, steps=2, width=16)
    run(tmp_path, plan, start_from=load_network(learned), stop_after=1)
    run(tmp_path, plan, start_from=load_network(learned), resume=True)
    assert checkpoint(tmp_path)["step"] == 2


# --- the baseline -------------------------------------------------------------------------------------------------


def test_the_fitted_damping_is_no_worse_than_either_end() -> None:
    """Pictures of 256 pixels: their pieces are all of them."""
    pictures = [picture(breast(640, 512, seed=seed)[192:448, :256]) for seed in (1, 2)]
    fitted = fit_damping(pictures, seed=1)
    assert [(scale, distance) for scale, distance, _ in fitted] == [(s, d) for s in (2, 4) for d in DISTANCES]
    assert all(0 <= damping <= 1 for _, _, damping in fitted)
    assert max(damping for _, _, damping in fitted) > 0.05
    for scale, distance, damping in fitted[1::2]:
        errors = np.zeros(3)
        for each in pictures:
            pixels, inside = piece_of(each, np.random.default_rng(5))
            share = np.kron(inside, np.ones((64, 64)))
            plain, consistent = code(pixels, jpegxl(int(scale), distance))[1:3]
            for number, weight in enumerate((0.0, damping, 1.0)):
                image = consistent + weight * (plain - consistent)
                errors[number] += float((np.square(pixels - image, dtype=np.float64) * share).sum())
        assert errors[1] <= errors[[0, 2]].min() * (1 + 1e-5)


def test_damped_bicubic_goes_from_consistent_to_plain() -> None:
    operator = Operator(256, 200, 2)
    base = operator.down(breast(256, 256)[:, :200])
    task = UpscaleTask(base, operator, 0, 4095, 1, 0, jpegxl(2, 0.6))
    consistent, half, plain = (DampedBicubic(damping).upscale(task) for damping in (0.0, 0.5, 1.0))
    assert consistent.texture is None
    assert np.array_equal(consistent.image, operator.lift(base))
    np.testing.assert_allclose(plain.image, operator.up(base), atol=1e-2)
    np.testing.assert_allclose(half.image, (consistent.image + plain.image) / 2, atol=1e-2)


def test_damping_between_the_fitted_distances() -> None:
    fitted = [[2, 1.0, 0.6], [2, 0.5, 0.2], [4, 0.5, 0.9]]
    asked = [jpegxl(2, distance) for distance in (0.1, 0.5, 0.75, 1.0, 3.0)]
    assert [damping_at(fitted, rung) for rung in asked] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])
    assert damping_at(fitted, jpegxl(4, 2.0)) == pytest.approx(0.9)
    assert damping_at(fitted, jpegxl(1, 0.5)) == 0
    assert damping_at(None, jpegxl(2, 0.5)) == damping_at([], jpegxl(2, 0.5)) == 0


# --- evaluation ---------------------------------------------------------------------------------------------------

SEEN = picture(ribbed(512, 256, seed=5, air=200), "woman/view.dcm")
RUNGS = (jpegxl(2, 0.6),)


@pytest.fixture(scope="module")
def result(learned: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "RUNGS", RUNGS)
        (found,) = evaluate([SEEN], learned, steps=2, ablation=learned, device="cpu")
    return found


PROMISED = {"image", "scale", "distance", "bpp", "base", "model", "model_detail", "mse_ratio", "seconds"}


def test_the_form_of_an_evaluation(result: dict[str, Any]) -> None:
    result = json.loads(json.dumps(result))
    assert result.keys() >= PROMISED
    assert (result["image"], result["scale"], result["distance"]) == ("woman/view.dcm", 2, 0.6)
    for arm in ("base", "model", "model_detail"):
        assert result[arm].keys() == {"psnr_db", "fsim_mean", "fsim_p5"}
        assert 0 < result[arm]["fsim_p5"] <= result[arm]["fsim_mean"] <= 1
        assert 10 < result[arm]["psnr_db"] < 100
    assert result["seconds"] > 0
    assert result["film"] is False
    assert result["latent_ceiling_max_error"] == 0


def test_the_figures_are_those_of_the_reconstruction(learned: Path, result: dict[str, Any]) -> None:
    """Recomputed from the pixels: the squared errors over the breast, and the bits per pixel of its bounding box."""
    reference = Reference(SEEN.pixels, SEEN.header)
    inside = np.kron(reference.mask, np.ones((16, 16), dtype=bool))
    base = make_base(original_of(SEEN), RUNGS[0])
    damped = DampedBicubic(damping_at(load_network(learned).config.damping, RUNGS[0]))
    before = reconstruct(base, damped, seed=0, steps=0)
    _, after = guided(reference, base, Mammo(learned, device="cpu"), seed=seed_of("5eed5eed"), steps=1, detail=0)
    errors = [float(np.square(SEEN.pixels.astype(float) - image)[inside].sum()) for image in (before, after)]
    assert result["mse_ratio"] == pytest.approx(errors[1] / errors[0], abs=2e-5)
    assert result["mse_ratio"] < 0.5  # the grid that it was trained on
    assert result["ablation_mse_ratio"] == result["mse_ratio"]  # of the same model
    assert result["breast_pixels"] == inside.sum()
    assert result["base_mse"] == pytest.approx(errors[0] / inside.sum(), rel=1e-3)
    rows, columns = np.nonzero(inside)
    area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    guide_bits = result["bpp"] * result["guide_share"] * area
    assert result["bpp"] * area == pytest.approx(8 * len(base.coded) + guide_bits, rel=1e-3)
    assert 0 < guide_bits < 8 * 200
    assert result["model"]["psnr_db"] > result["base"]["psnr_db"]


def test_spectra_are_relative_to_the_original(result: dict[str, Any]) -> None:
    found = result["spectrum"]
    assert len(found["cycles_per_pixel"]) == BANDS + 1
    assert (found["cycles_per_pixel"][0], found["cycles_per_pixel"][-1]) == (0.125, 0.5)
    assert all(len(found[arm]) == BANDS for arm in ("base", "model", "model_detail"))
    assert found["base"][-1] < 0.1  # the grid is at the end of the spectrum
    assert found["model"][-1] > 3 * found["base"][-1]


def test_the_same_image_has_the_same_power() -> None:
    power = power_spectrum(SEEN.pixels, SEEN.mask)
    assert (power > 0).all()
    for scale in (1, 2, 4):
        assert band_edges(scale)[0] == 32 // scale
        assert np.array_equal(relative_power(power_spectrum(SEEN.pixels.copy(), SEEN.mask), power, scale), [1] * BANDS)


@pytest.mark.parametrize(
    ("power", "than", "closer"), [(1, 1, False), (0.9, 0.5, True), (1.2, 0.8, True), (1.5, 0.9, False), (1, 2, True)]
)
def test_closer_is_closer_in_every_band(power: float, than: float, closer: bool) -> None:
    truth = np.arange(1.0, 65.0)
    assert closer_in_every_band(power * truth, than * truth, truth, 2) is closer
    one_worse = power * truth
    one_worse[-1] = 1e4
    assert not closer_in_every_band(one_worse, than * truth, truth, 2)


def test_the_spectrum_is_power_by_frequency() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[:16, 16:] = True
    wave = np.broadcast_to(2000 + 100 * np.sin(2 * np.pi * np.arange(512) / 4), (512, 512)).copy()
    power = power_spectrum(wave.astype(np.uint16), mask)
    assert power.shape == (64,)
    assert int(power.argmax()) == 32
    assert power[30:35].sum() > 0.99 * power.sum()
    stronger = power_spectrum((2 * wave).astype(np.uint16), mask)
    assert stronger[32] / power[32] == pytest.approx(4, rel=0.02)
    elsewhere = wave.copy()
    elsewhere[256:] = 0
    elsewhere[:, :256] = 0
    assert np.array_equal(power_spectrum(elsewhere.astype(np.uint16), mask), power)
    assert not power_spectrum(wave.astype(np.uint16), np.zeros_like(mask)).any()


def test_the_latent_has_no_ceiling() -> None:
    assert latent_ceiling(breast(301, 270, bits=16)) == 0


def outcome(ratio: float, base_mse: float, breast_pixels: int, **changes: Any) -> dict[str, Any]:
    figures = {"psnr_db": 30 + ratio, "fsim_mean": 0.9, "fsim_p5": 0.8}
    rung = evaluation.RUNGS[0]
    return {
        "film": False,
        "scale": rung.scale,
        "distance": rung.distance,
        "mse_ratio": ratio,
        "base_mse": base_mse,
        "breast_pixels": breast_pixels,
        "spectrum": {"closer_in_every_band": True},
        "seconds": 1.0,
        **dict.fromkeys(("base", "model", "model_detail", "bicubic_detail"), figures),
        **changes,
    }


def test_the_summary_pools_errors_not_ratios() -> None:
    loud = outcome(0.5, 300.0, 1000)
    quiet = outcome(1.0, 10.0, 3000, spectrum={"closer_in_every_band": False}, seconds=3.0)
    film = outcome(0.1, 1e6, 1000, film=True)
    other = outcome(0.7, 10.0, 1000, scale=4, distance=0.6)
    first, second = summary([quiet, film, loud, other])
    errors = 300.0 * 1000, 10.0 * 3000
    assert first["mse_ratio"] == pytest.approx((0.5 * errors[0] + errors[1]) / sum(errors), abs=1e-5)
    assert (first["images"], first["worst_mse_ratio"], first["seconds"]) == (2, 1.0, 2.0)
    assert first["model"]["psnr_db"] == pytest.approx(30.75)
    assert first["closer_in_every_band"] is False
    assert "ablation_mse_ratio" not in first
    assert (second["images"], second["mse_ratio"]) == (1, 0.7)
    assert [row["mse_ratio"] for row in summary([film])] == [0.1]  # nothing else is there
    assert summary([]) == []
