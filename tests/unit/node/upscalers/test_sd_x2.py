"""Proves sd_x2 on a tiny random copy of the pipeline: sizes, grey levels, repeatability, weights."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.upscalers import sd_x2
from node.upscalers.protocol import Upscaler, UpscaleTask
from node.upscalers.sd_x2 import (
    NotFinite,
    SdX2,
)
from storage.errors import ConfigError
from storage.formats.resample import Operator
from tests.support.encoder_samples import task_of


def picture(rows: int, columns: int) -> np.ndarray:
    """A smooth image in [0, 1] with its extremes inside."""
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    return 0.5 + 0.25 * np.sin(2 * np.pi * (y + 3) / 61) + 0.25 * np.cos(2 * np.pi * (x + y / 3) / 47)


def task(rows: int, columns: int, scale: int = 2, *, seed: int = 7, low: int = 40, high: int = 60000) -> UpscaleTask:
    operator = Operator(rows, columns, scale)
    return task_of(operator.down(picture(rows, columns) * (high - low) + low), operator, seed)


class Doubler:
    """A network that draws nothing: it interpolates each tile and records its inputs."""

    stride = 8
    channels = 4

    def __init__(self, mode: str = "nearest") -> None:
        self.mode = mode
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def double(self, pixels: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        self.calls.append((pixels, noise))
        return torch.nn.functional.interpolate(pixels, scale_factor=2, mode=self.mode)[:, 0]


def projected(job: UpscaleTask) -> np.ndarray:
    """The samples repeated twice along both axes, made consistent with the samples."""
    return job.operator.project(job.samples.repeat(2, axis=0).repeat(2, axis=1), job.samples)


def with_network(network: Any, **options: Any) -> SdX2:
    upscaler = SdX2("nowhere", device="cpu", **({"tile": 64, "overlap": 16} | options))
    vars(upscaler)["_network"] = network
    return upscaler


# What it says of itself


@pytest.mark.slow
def test_it_names_itself_as_the_protocol_asks(upscaler: SdX2) -> None:
    plug: Upscaler = upscaler
    assert (plug.name, plug.method, plug.generative) == ("sd_x2", "LDM_UPSCALE_1", True)
    assert plug.steps == 2
    assert len(plug.method) <= 16


def test_numerics_name_all_that_can_move_a_grey_level(upscaler: SdX2) -> None:
    numerics = upscaler.numerics
    assert all(isinstance(value, str) for value in numerics.values())
    expected = {"device": "cpu", "dtype": "float32", "tile": "64", "overlap": "16", "batch": "1"}
    assert expected.items() <= numerics.items()
    assert {"torch", "diffusers", "transformers", "kernels", "threads"} <= numerics.keys()


def test_importing_it_imports_neither_torch_nor_diffusers() -> None:
    program = (
        "import sys, node.upscalers.sd_x2\nsys.exit(len({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 32}, "tile 32"),
        ({"tile": 100}, "multiple of 32"),
        ({"overlap": 0}, "overlap 0"),
        ({"tile": 64, "overlap": 40}, "half a tile"),
        ({"dtype": "int8"}, "'int8'"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SdX2("nowhere", **options)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert SdX2("nowhere").numerics["device"] == "cpu"
    with pytest.raises(ConfigError, match=r"reconstruct\.device"):
        _ = SdX2("nowhere", device="cuda:99").numerics


# Sizes and grey levels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns", "scale"),
    [(128, 128, 2), (130, 94, 2), (127, 201, 2), (9, 5, 2), (1, 300, 2), (264, 132, 4), (131, 77, 4)],
)
def test_the_result_has_exactly_the_size_of_the_original_and_is_consistent(
    upscaler: SdX2, rows: int, columns: int, scale: int
) -> None:
    job = task(rows, columns, scale)
    image = upscaler.structure(job)
    assert image.shape == (rows, columns)
    assert image.dtype == np.float32
    assert image.std() > 100
    np.testing.assert_allclose(job.operator.down(image), job.samples, atol=1.0)


def test_at_scale_1_there_is_nothing_to_upscale() -> None:
    job = task(30, 50, 1)
    made = SdX2("nowhere").structure(job)
    assert np.array_equal(made, job.upsampled)
    assert made is not job.upsampled


def test_grain_is_the_noise_as_it_was_drawn() -> None:
    job, noise = task(30, 50), np.ones((30, 50), dtype=np.float32)
    assert SdX2("nowhere").grain(job, job.upsampled, noise) is noise


def test_one_tile_is_what_the_pipeline_of_the_paper_returns(model: Path, upscaler: SdX2) -> None:
    """The expected pixels are computed by hand: three channels, mode of the posterior, guidance 0, empty prompt, own
    decoding."""
    from diffusers import StableDiffusionLatentUpscalePipeline

    job = task(128, 128)
    low, high = float(job.samples.min()), float(job.samples.max())
    with sd_x2._quiet(), torch.no_grad():
        pipeline = StableDiffusionLatentUpscalePipeline.from_pretrained(str(model))
        pipeline.set_progress_bar_config(disable=True)
        pixels = torch.from_numpy((job.samples - low) / (high - low) * 2 - 1).expand(1, 3, 64, 64)
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noise = torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(7))[None]
        drawn = pipeline(
            "", image=latents, latents=noise, num_inference_steps=2, guidance_scale=0, output_type="latent"
        )
        decoded = pipeline.vae.decode(drawn.images / pipeline.vae.config.scaling_factor).sample.mean(dim=1)[0]
    expected = (decoded.clamp(-1, 1).numpy() + 1) / 2 * (high - low) + low
    expected = job.operator.project(expected.astype(np.float32), job.samples)
    np.testing.assert_allclose(upscaler.structure(job), expected, atol=1.0)


def test_grey_levels_are_mapped_by_the_range_of_the_image_and_survive_it() -> None:
    network = Doubler()
    job = task(200, 256, high=65535)
    image = with_network(network).structure(job)
    np.testing.assert_allclose(image, projected(job), atol=0.1)
    whole = (job.samples - job.samples.min()) / np.ptp(job.samples) * 2 - 1
    first = network.calls[0][0][0, 0].numpy()
    np.testing.assert_allclose(first, whole[:64, :64], atol=1e-6)


def test_a_single_grey_level_of_sixteen_bits_is_seen_and_answered(upscaler: SdX2) -> None:
    job = task(128, 128, high=65535)
    samples = job.samples.copy()
    samples[20:30, 20:30] += 1
    one, other = upscaler.structure(job), upscaler.structure(task_of(samples, job.operator))
    assert len(np.unique(one)) > 4096
    assert 0 < np.abs(one - other).max() < 64


def test_the_same_picture_at_twelve_and_sixteen_bits_gives_the_same_picture(upscaler: SdX2) -> None:
    job = task(128, 128, low=0, high=4095)
    finer = task_of(job.samples * 16, job.operator)
    np.testing.assert_allclose(upscaler.structure(job), upscaler.structure(finer) / 16, atol=0.05)


def test_an_image_of_one_grey_level_stays_that() -> None:
    operator = Operator(30, 50, 2)
    flat = SdX2("nowhere").structure(task_of(np.full((15, 25), 812.0, np.float32), operator))
    np.testing.assert_allclose(flat, 812, atol=1e-3)


@pytest.mark.parametrize(("rows", "columns", "scale"), [(127, 201, 2), (257, 189, 4)])
def test_sizes_that_are_no_multiple_of_the_scale_are_not_shifted(rows: int, columns: int, scale: int) -> None:
    truth = picture(rows, columns) * (60000 - 40) + 40
    image = with_network(Doubler("bicubic")).structure(task(rows, columns, scale))
    # A crop instead of U misses the far corner by 4200 and 6500 grey levels.
    assert np.abs(image - truth)[-20:-8, -20:-8].max() < 900
    assert np.abs(image - truth)[8:20, 8:20].max() < 900


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scale": 3}, "scale 3 is none of"), ({"scale": 8}, "scale 8 is none of"), ({"rows": 200}, "do not belong")],
)
def test_a_task_it_cannot_do_is_refused(upscaler: SdX2, change: dict[str, int], message: str) -> None:
    job = task(128, 128)
    operator = Operator(**({"rows": 128, "columns": 128, "scale": 2} | change))
    base = operator.down(picture(128, 128)) if "scale" in change else job.samples
    with pytest.raises(ValueError, match=message):
        upscaler.structure(task_of(base, operator))
    with pytest.raises(ValueError, match="steps 0"):
        upscaler.structure(task_of(job.samples, job.operator, steps=0))


# Noise and tiles


def test_overlapping_tiles_share_their_noise_and_other_seeds_draw_another() -> None:
    network = Doubler()
    upscaler = with_network(network)
    upscaler.structure(task(128, 208))
    (left, right), side = (noise[0] for _, noise in network.calls), 64 // 4
    shift = 40 // 4  # tiles begin at 0 and at 40 of 104 columns
    assert torch.equal(left[:, :, shift:], right[:, :, : side - shift])
    upscaler.structure(task(128, 208, seed=8))
    assert not torch.equal(network.calls[2][1], network.calls[0][1])


def test_the_second_doubling_draws_its_own_noise_from_the_same_seed() -> None:
    network = Doubler()
    upscaler = with_network(network, tile=128)
    for _ in range(2):
        upscaler.structure(task(256, 256, scale=4))
    first, second, *again = (noise for _, noise in network.calls)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)


def test_another_seed_is_another_image(upscaler: SdX2) -> None:
    assert not np.array_equal(upscaler.structure(task(128, 128, seed=1)), upscaler.structure(task(128, 128, seed=2)))


def test_more_steps_are_another_image(upscaler: SdX2) -> None:
    job = task(128, 128)
    more = task_of(job.samples, job.operator, job.seed, steps=3)
    assert not np.array_equal(upscaler.structure(job), upscaler.structure(more))


# The same task, the same pixels


@pytest.mark.slow
def test_what_was_done_before_leaves_no_trace(model: Path, upscaler: SdX2) -> None:
    job = task(200, 170)
    first = upscaler.structure(job)
    assert np.array_equal(upscaler.structure(job), first)
    upscaler.structure(task(77, 300, scale=4, seed=99))
    torch.manual_seed(12345)
    assert np.array_equal(upscaler.structure(job), first)
    fresh = SdX2(str(model), device="cpu", tile=64, overlap=16)
    assert np.array_equal(fresh.structure(job), first)


@pytest.mark.slow
def test_a_busy_machine_gives_the_same_pixels(upscaler: SdX2) -> None:
    job = task(200, 170)
    first = upscaler.structure(job)
    with busy(threads=3):
        assert all(np.array_equal(upscaler.structure(job), first) for _ in range(3))


@contextmanager
def busy(threads: int) -> Iterator[None]:
    over = threading.Event()

    def burn() -> None:
        matrix = torch.rand(300, 300)
        while not over.is_set():
            matrix @ matrix

    workers = [threading.Thread(target=burn) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        over.set()
        for worker in workers:
            worker.join()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 3, 4])
def test_every_batch_has_the_full_shape_and_the_tiles_keep_their_places(
    monkeypatch: pytest.MonkeyPatch, upscaler: SdX2, batch: int
) -> None:
    """CUDA uses such batches. A batch of another shape may round otherwise, so its size is constant and part of the
    numerics."""
    job = task(128, 300)
    alone = upscaler.structure(job)
    monkeypatch.setitem(sd_x2._BATCH, "cpu", batch)
    assert upscaler.numerics["batch"] == str(batch)
    together = upscaler.structure(job)
    assert np.array_equal(upscaler.structure(job), together)
    np.testing.assert_allclose(together, alone, atol=2.0)
    network = Doubler()
    image = with_network(network).structure(job)
    assert {len(pixels) for pixels, _ in network.calls} == {batch}
    np.testing.assert_allclose(image, projected(job), atol=0.1)


def test_bfloat16_runs_and_says_so(model: Path, upscaler: SdX2) -> None:
    job = task(128, 128)
    half = SdX2(str(model), device="cpu", dtype="bfloat16", tile=64, overlap=16)
    assert half.numerics["dtype"] == "bfloat16"
    image = half.structure(job)
    assert np.array_equal(half.structure(job), image)
    assert 0 < np.abs(image - upscaler.structure(job)).mean() < 600


@pytest.mark.gpu
def test_on_cuda_the_pixels_repeat(model: Path) -> None:
    job = task(300, 400)
    upscaler = SdX2(str(model), tile=64, overlap=16)
    assert upscaler.numerics["device"] == "cuda"
    assert upscaler.numerics["dtype"] == "float16"
    first = upscaler.structure(job)
    assert np.array_equal(upscaler.structure(job), first)
    exact = SdX2(str(model), device="cpu", tile=64, overlap=16).structure(job)
    assert np.abs(first - exact).mean() < 100


def test_values_that_are_not_finite_never_become_pixels(model: Path) -> None:
    upscaler = SdX2(str(model), device="cpu", tile=64, overlap=16)
    torch.nn.init.constant_(upscaler._network._pipeline.unet.conv_out.bias, float("nan"))
    with pytest.raises(NotFinite, match=r"reconstruct\.sd_x2\.dtype"):
        upscaler.structure(task(64, 64))


@pytest.mark.slow
def test_nothing_is_printed_and_the_libraries_keep_their_settings(
    model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in (diffusers, transformers)]
    upscaler = SdX2(str(model), device="cpu", tile=64, overlap=16)
    upscaler.structure(task(64, 64))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert before == [
        (library.get_verbosity(), library.is_progress_bar_enabled()) for library in (diffusers, transformers)
    ]


def test_the_text_encoder_does_not_stay_in_memory(upscaler: SdX2) -> None:
    pipeline = upscaler._network._pipeline
    assert pipeline.text_encoder is None
    assert pipeline.tokenizer is None
