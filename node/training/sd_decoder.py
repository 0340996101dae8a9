"""Adapts the decoder of ``sd_x2``'s autoencoder to an archive's own mammograms; nothing else is trained.

Stable Diffusion's autoencoder was made for photographs, and the upscaler cannot restore what the autoencoder loses (an
open question of arXiv 2310.05299). The decoder learns to reproduce crops of the breast from the latents of the frozen
encoder. The batch of a step depends only on the pictures, the seed and the step. A resumed run gives the same bits on
the same machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from node.fidelity.gate import psnr
from node.fidelity.windows import display_window
from node.training.image_files import NoPictures, Picture
from node.training.trainer import LOSSES_KEPT, SAVE_EVERY, CheckpointError, Progress, TrainingFailed
from node.upscalers.numerics import device_of
from node.upscalers.sd_x2 import SdX2, WeightsNotFound, find_weights, weight_files
from storage.errors import InputInvalid
from storage.formats.geometry import CELL
from storage.optional_packages import require_extra

DECODER_CHECKPOINT = "decoder.pt"
_TIMED_STEPS = 2
_UNKNOWN = 10_000
"""Number of steps of a plan while the steps are being timed."""
_EVALUATED = 16
"""Number of crops whose mean squared error gives the PSNR."""


class FolderTaken(InputInvalid):
    """The output folder is or lies in that of the source model, or has files of another origin; nothing was written."""


@dataclass(frozen=True)
class DecoderPlan:
    """``steps``: length of the whole run, over which the learning rate ``rate`` falls to zero. ``crop``: side in
    pixels."""

    steps: int
    batch: int = 4
    crop: int = 256
    rate: float = 1e-5
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.crop) < 1 or self.crop % 8:
            raise ValueError(f"{self}: steps and batch must be at least 1, crop a multiple of 8")


@dataclass(frozen=True)
class DecoderResult:
    """Result of a training: the PSNR in dB of encoding and decoding 16 fixed breast crops, before and after.

    ``sd_x2`` cannot reach a higher PSNR. The peak is the width of the display window, as in the gate. ``held_out``:
    whether the crops are of a patient who was not trained on; false if there is only one patient.
    """

    folder: Path
    steps: int
    before_db: float
    after_db: float
    held_out: bool


@dataclass
class _State:
    vae: Any
    trained: torch.nn.ModuleDict
    optimiser: torch.optim.AdamW
    before_db: float | None = None
    step: int = 0
    losses: list[float] = field(default_factory=list)


def fine_tune_decoder(
    pictures: Sequence[Picture],
    source: str,
    folder: Path,
    plan: DecoderPlan,
    *,
    minutes: float | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    device: str = "auto",
    watch: Callable[[Progress], None] = lambda _: None,
) -> DecoderResult:
    """Train, and write checkpoints and finally a pipeline, as ``SdX2`` loads it, to ``folder``.

    ``source``: as for ``SdX2``. The last usable picture, and all others of its patient, are held out of training unless
    nothing else is left. ``resume``: continue the checkpoint in ``folder`` under its own plan, with the larger number
    of steps. ``minutes``: a time budget as for ``train``. ``stop_after``: the step to end at, with the decoder trained
    so far. Raises NoPictures, FolderTaken, WeightsNotFound, CheckpointError and TrainingFailed.
    """
    require_extra("sd-x2", "training the decoder of sd_x2")
    origin = find_weights(source)
    weight_files(origin)
    _claim(folder, origin)
    bound = _fingerprint(SdX2(str(origin)).weights_digest, pictures)
    state = _fresh(origin, plan, device_of(device))
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        if resume and (folder / DECODER_CHECKPOINT).exists():
            plan = _restore(state, folder / DECODER_CHECKPOINT, plan, bound)
        untimed = minutes is not None and state.step >= plan.steps - 1
        if untimed:
            plan = replace(plan, steps=state.step + _UNKNOWN)
        *others, last = _usable(pictures, plan.crop)
        patient = last.header.get("PatientID")
        others = [one for one in others if not patient or one.header.get("PatientID") != patient]
        if state.before_db is None:
            state.before_db = _ceiling(state.vae, last, plan)
        began = saved = time.monotonic()
        end = began + (60 * minutes if minutes is not None else math.inf)
        first = state.step
        try:
            while state.step < min(plan.steps, stop_after or plan.steps) and time.monotonic() < end:
                loss = _one_step(state, plan, others or [last])
                state.losses = [*state.losses[1 - LOSSES_KEPT :], loss]
                watch(Progress(state.step, plan.steps, float(np.mean(state.losses)), time.monotonic() - began))
                if untimed and state.step == first + _TIMED_STEPS:
                    each = (time.monotonic() - began) / _TIMED_STEPS
                    plan = replace(plan, steps=state.step + max(int((end - time.monotonic()) / each), 1))
                if time.monotonic() - saved > SAVE_EVERY:
                    _save(state, plan, folder, bound)
                    saved = time.monotonic()
        finally:
            _save(state, plan, folder, bound)
        after_db = _ceiling(state.vae, last, plan)
    _write_pipeline(origin, state.vae, folder)
    return DecoderResult(folder, state.step, state.before_db, after_db, held_out=bool(others))


def _usable(pictures: Sequence[Picture], crop: int) -> list[Picture]:
    """The pictures that are large enough for a crop and have more than one grey level. Raises NoPictures."""
    fits = [each for each in pictures if min(each.pixels.shape) >= crop and each.mask.any() and np.ptp(each.pixels) > 0]
    if not fits:
        raise NoPictures(f"none of {len(pictures)} pictures has {crop} x {crop} pixels with breast to learn from")
    return fits


def _claim(folder: Path, origin: Path) -> None:
    target, taken = folder.resolve(), origin.resolve()
    if target == taken or taken in target.parents:
        raise FolderTaken(f"{folder} belongs to the source model, which must not be changed; give another folder")
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not any(folder.glob(DECODER_CHECKPOINT + "*")):
        raise FolderTaken(f"{folder} is neither empty nor an earlier run of this training; give another folder")
    folder.mkdir(parents=True, exist_ok=True)


def _fingerprint(weights: str, pictures: Sequence[Picture]) -> str:
    """Digest of weights and pictures in their order. A run resumed with others might train on the held-out picture."""
    facts = [(each.name, each.pixels.shape, int(each.pixels.min()), int(each.pixels.max())) for each in pictures]
    return hashlib.sha256(repr((weights, facts)).encode()).hexdigest()


def _cut(picture: Picture, crop: int, random: np.random.Generator) -> NDArray[np.float32]:
    """A crop around a random position in the breast, mapped to [-1, 1] by the picture's range as in ``SdX2``."""
    places = np.argwhere(picture.mask)
    middle = places[int(random.integers(len(places)))] * CELL + random.integers(CELL, size=2)
    top, left = np.clip(middle - crop // 2, 0, np.array(picture.pixels.shape) - crop)
    low, span = np.float32(picture.pixels.min()), np.float32(np.ptp(picture.pixels))
    piece = picture.pixels[top : top + crop, left : left + crop].astype(np.float32)
    return np.asarray((piece - low) * (2 / span) - 1, dtype=np.float32)


def _one_step(state: _State, plan: DecoderPlan, pictures: Sequence[Picture]) -> float:
    random = np.random.default_rng((plan.seed, 4, state.step))
    chosen = [pictures[int(number)] for number in random.integers(len(pictures), size=plan.batch)]
    pieces = [np.rot90(_cut(picture, plan.crop, random), int(random.integers(4))) for picture in chosen]
    pieces = [piece[:, ::-1] if random.integers(2) else piece for piece in pieces]
    grey = torch.from_numpy(np.stack(pieces)[:, None]).to(state.vae.device)
    for group in state.optimiser.param_groups:
        group["lr"] = plan.rate * 0.5 * (1 + math.cos(math.pi * state.step / plan.steps))
    difference = _round_trip(state.vae, grey, half=grey.is_cuda) - grey
    loss = difference.abs().mean() + difference.square().mean()
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(state.trained.parameters(), 1.0)
    if not math.isfinite(float(norm)):
        raise TrainingFailed(f"the gradient of step {state.step} is not finite at rate {plan.rate:g}; try a lower one")
    state.optimiser.step()
    state.step += 1
    return float(loss.detach())


def _round_trip(vae: Any, grey: Tensor, *, half: bool) -> Tensor:
    """Encode grey crops (n, 1, h, w) by the mode, as ``SdX2`` does, without gradient, and decode them."""
    with torch.no_grad():
        latents = vae.encode(grey.expand(-1, 3, -1, -1)).latent_dist.mode()
    with torch.autocast(grey.device.type, torch.bfloat16, enabled=half):
        image: Tensor = vae.decode(latents).sample
    return image.float().mean(dim=1, keepdim=True)


def _ceiling(vae: Any, picture: Picture, plan: DecoderPlan) -> float:
    """PSNR in dB of encoding and decoding fixed crops in float32, clipped as in ``SdX2``."""
    errors = []
    for number in range(_EVALUATED):
        piece = _cut(picture, plan.crop, np.random.default_rng((plan.seed, 5, number)))
        grey = torch.from_numpy(piece)[None, None].to(vae.device)
        with torch.no_grad():
            errors.append(torch.square(_round_trip(vae, grey, half=False).clamp(-1, 1) - grey).mean().item())
    error = float(np.mean(errors) * (np.ptp(picture.pixels) / 2) ** 2)
    return psnr(error, display_window(picture.header, picture.pixels, picture.mask).width)


def _fresh(origin: Path, plan: DecoderPlan, device: torch.device) -> _State:
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(
            str(origin), subfolder="vae", local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsNotFound(f"{origin / 'vae'} cannot be loaded ({error}); get the model again") from error
    vae.float().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    trained = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_()
    return _State(vae, trained, torch.optim.AdamW(trained.parameters(), lr=plan.rate, weight_decay=0.0))


def _save(state: _State, plan: DecoderPlan, folder: Path, bound: str) -> None:
    content: dict[str, Any] = {"plan": json.dumps(asdict(plan)), "bound": bound, "before_db": state.before_db}
    content |= {"step": state.step, "losses": state.losses}
    content |= {"trained": state.trained.state_dict(), "optimiser": state.optimiser.state_dict()}
    fresh = folder / (DECODER_CHECKPOINT + ".part")
    torch.save(content, fresh)
    fresh.replace(folder / DECODER_CHECKPOINT)


def _restore(state: _State, path: Path, given: DecoderPlan, bound: str) -> DecoderPlan:
    """Fill ``state`` from a checkpoint of the same source and pictures; return the plan of the resumed run."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["bound"] != bound:
            raise ValueError("it was made from other weights or other pictures")
        plan = DecoderPlan(**json.loads(content["plan"]))
        state.trained.load_state_dict(content["trained"])
        state.optimiser.load_state_dict(content["optimiser"])
        state.before_db, state.step, state.losses = content["before_db"], int(content["step"]), list(content["losses"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} cannot be resumed: {reason}; train without resume to start again") from error
    return replace(plan, steps=max(plan.steps, given.steps))


def _write_pipeline(origin: Path, vae: Any, folder: Path) -> None:
    """Copy the source with the new decoder. The index is written last, so that a partial copy is no model."""
    (folder / "model_index.json").unlink(missing_ok=True)
    for name in ("scheduler", "tokenizer"):  # copyfile follows links of the hub's cache and does not copy modes
        shutil.copytree(origin / name, folder / name, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for weights in weight_files(origin):
        part = folder / weights.parent.name
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if part.name == "vae":
            # save_pretrained would print a progress bar and make the files readable by their owner only
            tensors = vae.to("cpu", memory_format=torch.contiguous_format).state_dict()
            (part / "diffusion_pytorch_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        else:
            shutil.copyfile(weights, part / weights.name)
        shutil.copyfile(weights.parent / "config.json", part / "config.json")
    shutil.copyfile(origin / "model_index.json", folder / "model_index.json")
