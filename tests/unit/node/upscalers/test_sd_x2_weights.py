"""Proves the digest of the weight files of ``sd_x2``, and the errors for missing, damaged and other files."""

from __future__ import annotations

import builtins
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.upscalers.protocol import UpscaleTask
from node.upscalers.sd_x2 import (
    MODEL,
    SdX2,
    WeightsNotFound,
    find_weights,
    weight_files,
)
from storage.errors import LatentPacsError
from storage.formats.resample import Operator
from storage.records import OperatingPoint


def task(rows: int, columns: int) -> UpscaleTask:
    """A task whose samples are a ramp at half of the size."""
    operator = Operator(rows, columns, 2)
    samples = np.linspace(40, 60000, rows * columns // 4, dtype=np.float32).reshape(rows // 2, columns // 2)
    upsampled = operator.up(samples)
    point = OperatingPoint(operator.scale, "png16")
    return UpscaleTask(samples, operator, upsampled, point, 0.0, np.zeros_like(upsampled), 7, 2)


def test_the_digest_is_over_the_weight_files_by_name_and_content(model: Path, upscaler: SdX2) -> None:
    names = [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    lines = [f"{name} {hashlib.sha256((model / name).read_bytes()).hexdigest()}\n" for name in names]
    assert upscaler.weights_digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_digest_follows_the_weights_and_nothing_else(upscaler: SdX2, copy: Path) -> None:
    (copy / "README.md").write_text("another file")
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not what is loaded")
    assert SdX2(str(copy)).weights_digest == upscaler.weights_digest
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert SdX2(str(copy)).weights_digest != upscaler.weights_digest


def test_pickled_weights_are_never_read(copy: Path) -> None:
    (copy / "text_encoder" / "model.safetensors").unlink()
    (copy / "text_encoder" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsNotFound, match=r"model\.safetensors is missing"):
        weight_files(copy)


def assert_it_says_what_to_do(error: WeightsNotFound) -> None:
    message = str(error)
    assert isinstance(error, LatentPacsError)
    assert "\n" not in message
    for part in ("reconstruct.sd_x2.weights", "config.yaml", MODEL, "hf download"):
        assert part in message


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler",
        "tokenizer",
    ],
)
def test_an_incomplete_folder_is_an_error_that_says_what_to_do(copy: Path, missing: str) -> None:
    path = copy / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(WeightsNotFound, match=missing) as caught:
        SdX2(str(copy)).structure(task(64, 64))
    assert_it_says_what_to_do(caught.value)
    with pytest.raises(WeightsNotFound):
        _ = SdX2(str(copy)).weights_digest


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_file_cut_short_is_an_error_that_says_what_to_do(copy: Path, part: str) -> None:
    weights = copy / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(WeightsNotFound, match="cannot be loaded") as caught:
        SdX2(str(copy)).structure(task(64, 64))
    assert_it_says_what_to_do(caught.value)


def test_another_model_is_not_taken_for_it(copy: Path) -> None:
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionLatentUpscalePipeline", "StableDiffusionPipeline"))
    with pytest.raises(WeightsNotFound, match="holds a StableDiffusionPipeline") as caught:
        _ = SdX2(str(copy)).weights_digest
    assert_it_says_what_to_do(caught.value)


@pytest.mark.slow
def test_the_hub_is_not_asked_when_the_environment_says_offline(tmp_path: Path) -> None:
    program = (
        "from node.upscalers.sd_x2 import SdX2, WeightsNotFound\n"
        "try:\n"
        f"    SdX2({MODEL!r}).weights_digest\n"
        "except WeightsNotFound as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert_it_says_what_to_do(WeightsNotFound(done.stdout.removesuffix("\n")))
    assert done.stderr == ""


@pytest.mark.parametrize("failure", ["ConnectionError", "HTTPError", "RuntimeError"])
def test_a_hub_out_of_reach_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        kind = getattr(huggingface_hub.errors, failure, None) or getattr(builtins, failure)
        raise kind("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(WeightsNotFound) as caught:
        find_weights(MODEL)
    assert_it_says_what_to_do(caught.value)


def test_a_model_in_the_cache_of_the_hub_is_found_offline(
    monkeypatch: pytest.MonkeyPatch, model: Path, upscaler: SdX2, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    commit = "0123456789" * 4
    cached = tmp_path / "models--stabilityai--sd-x2-latent-upscaler"
    shutil.copytree(model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = SdX2(MODEL, device="cpu", tile=64, overlap=16)
    assert found.weights_digest == upscaler.weights_digest
    assert np.array_equal(found.structure(task(64, 64)), upscaler.structure(task(64, 64)))
