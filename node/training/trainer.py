"""Trains ``mammo`` from a seed, with checkpoints. A resumed run gives the same bits on the same machine.

The network learns the velocity of flow.py by least squares (arXiv 2303.08797, equation 2.13). Errors are weighted by
octave bands, each divided by the energy of the residual in that band: lost vessels are visible in the middle bands,
which contribute little to a plain squared error. Errors also have more weight where the base shows structure than where
it shows noise, from half to eight times the mean of the crop, because the gate measures the worst lines. The posterior
mean does not depend on weights that are functions of the base alone.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.training.image_files import Picture
from node.training.training_patches import TrainingPatch, crops, make_patch
from node.upscalers import flow
from node.upscalers.mammo import save_network
from node.upscalers.network import LATENT, MammoNetwork, NetworkConfig, to_pixels
from node.upscalers.numerics import device_of
from storage.errors import InputInvalid, LatentPacsError

CHECKPOINT = "checkpoint.pt"
LOSSES_KEPT = 64
"""Steps over which the reported loss is averaged."""
_TIMED_STEPS = 12
"""Steps that are timed at once."""
_TIMED_SHARE = 0.02
"""Share of a time budget in which steps are timed. A GPU needs some seconds to reach full speed."""
_UNKNOWN = 1_000_000
"""Number of steps of a plan while the steps are being timed."""
_AHEAD = 4
"""Number of patches that are prepared ahead of their step."""
SAVE_EVERY = 120.0
"""Seconds between checkpoints."""
_BANDS = (0.7, 1.4, 2.8, 5.6)
"""Octave bands: differences of Gaussians of these standard deviations, in pixels."""
_BAND_WEIGHTS = (1.0, 1.0, 1.0, 0.3)
"""Weight of each band in the loss."""
_STRUCTURE = (1.0, 4.0, 3.0)
"""Structure is the energy of the base's detail between the first two Gaussians, blurred by the third one. These are
their standard deviations in pixels."""
_WEIGHTS = (0.5, 8.0)
"""Minimum and maximum weight of a pixel, relative to the mean of its crop."""
_LEAST_ENERGY = 1e-4
"""Added to the energy of a band, in squared deviations of the missing noise, to bound the loss of an empty band."""


class CheckpointError(InputInvalid):
    """A checkpoint cannot be resumed. The message gives the reason."""


class TrainingFailed(LatentPacsError):
    """A training diverged. The message says at which step."""


@dataclass(frozen=True)
class Plan:
    """Hyperparameters of a training.

    ``steps``: length of the whole run, over which the learning rate ``rate`` falls to a hundredth. ``width``, ``wide``,
    ``blocks``: see NetworkConfig. ``batch``: crops per step. ``crop``: side of a crop in pixels. ``zero_share``: share
    of each batch at t = 0, which trains the posterior mean and so the structure; other times are uniform. ``average``:
    decay of the running mean of the weights, which becomes the model. ``patches``: number of patches in use at a time;
    the oldest is replaced every ``patch_steps`` steps.
    """

    steps: int
    width: int = 64
    wide: int = 96
    blocks: tuple[int, int, int] = (1, 2, 1)
    batch: int = 12
    crop: int = 192
    rate: float = 1.5e-3
    zero_share: float = 0.67
    average: float = 0.999
    patches: int = 96
    patch_steps: int = 6
    seed: int = 1

    def sized_for(self, device: str) -> Plan:
        """The plan for a device: on CUDA with larger batches, more patches and a higher rate; otherwise unchanged."""
        if device_of(device).type != "cuda":
            return self
        return replace(self, batch=64, rate=2e-3, patches=512, patch_steps=3)


@dataclass(frozen=True)
class Progress:
    """Progress of a training. ``loss``: mean of the last 64 steps. ``train`` reports the share of the residual's energy
    that is left at t = 0, averaged over the bands (1 for an untrained network); ``fine_tune_decoder`` its own loss."""

    step: int
    steps: int
    loss: float
    seconds: float


@dataclass
class _State:
    network: MammoNetwork
    average: MammoNetwork
    optimiser: torch.optim.AdamW
    step: int = 0
    losses: list[float] = field(default_factory=list)


def train(
    pictures: Sequence[Picture],
    plan: Plan,
    folder: Path,
    *,
    minutes: float | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    start_from: MammoNetwork | None = None,
    device: str = "auto",
    watch: Callable[[Progress], None] = lambda _: None,
) -> MammoNetwork:
    """Train; write checkpoints and finally the model (as ``load_network`` reads it) to ``folder``; return the model.

    ``minutes``: time budget that replaces ``plan.steps``; the first steps are timed to plan the rest. ``resume``:
    continue the checkpoint in ``folder``, if there is one, under its own plan, for at most ``minutes``. A finished one
    is extended to ``plan.steps`` in all, or by ``minutes``. ``stop_after``: the step to end at, with the model trained
    so far. ``start_from``: a model to fine-tune. Any exception but TrainingFailed leaves a checkpoint of the last step.
    Raises CheckpointError, and TrainingFailed if a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _fresh(plan, start_from)
    finished = True
    if resume and (folder / CHECKPOINT).exists():
        found = _restore(state, folder / CHECKPOINT)
        finished = state.step >= found.steps
        plan = replace(found, steps=max(found.steps, plan.steps))
    run = _TrainingRun(state, plan, pictures, folder, device, minutes, watch)
    try:
        if minutes is not None and finished:
            run.plan_for(minutes)
        run.advance(min(run.plan.steps, stop_after or run.plan.steps))
    except TrainingFailed:
        raise  # keep the last good checkpoint
    except BaseException:
        run.save()
        raise
    finally:
        run.cache.close()
    run.save()
    model: MammoNetwork = state.average.to("cpu").to(memory_format=torch.contiguous_format)
    save_network(model, folder)
    return model


class _TrainingRun:
    """One uninterrupted part of a training."""

    def __init__(
        self,
        state: _State,
        plan: Plan,
        pictures: Sequence[Picture],
        folder: Path,
        device: str,
        minutes: float | None,
        watch: Callable[[Progress], None],
    ) -> None:
        self.plan = plan
        self._state, self._folder, self._watch = state, folder, watch
        self._device = device_of(device)
        self.cache = PatchCache(pictures, plan)
        self._half = _half_is_fast(self._device)
        self._began = self._saved = time.monotonic()
        self._end = self._began + (minutes * 60 if minutes is not None else float("inf"))
        _move(state, self._device)

    def plan_for(self, minutes: float) -> None:
        """Time some steps with a full cache, and set the plan's number of steps to what fits into the time left."""
        first = self._state.step
        self.plan = replace(self.plan, steps=first + _UNKNOWN)
        self.advance(first + 2)
        began, timed_from = time.monotonic(), self._state.step
        timed_until = min(began + _TIMED_SHARE * minutes * 60, self._end)
        self.advance(timed_from + _TIMED_STEPS)
        while time.monotonic() < timed_until:
            self.advance(self._state.step + _TIMED_STEPS)
        per_step = (time.monotonic() - began) / max(self._state.step - timed_from, 1)
        left = max(self._end - time.monotonic(), 0.0)
        self.plan = replace(self.plan, steps=self._state.step + int(left / max(per_step, 1e-6)))

    def advance(self, until: int) -> None:
        """Train to step ``until``, or until the time budget ends."""
        state = self._state
        while state.step < until and time.monotonic() < self._end:
            loss = _one_step(state, self.plan, self.cache, self._device, self._half)
            if not np.isfinite(loss):
                raise TrainingFailed(f"the loss of step {state.step} is not finite; try a lower rate, or another seed")
            state.losses = [*state.losses[1 - LOSSES_KEPT :], loss]
            seconds = time.monotonic() - self._began
            self._watch(Progress(state.step, self.plan.steps, float(np.mean(state.losses)), seconds))
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()

    def save(self) -> None:
        _save(self._state, self.plan, self._folder)
        self._saved = time.monotonic()


class PatchCache:
    """The patches in use, which threads compute ahead of their step.

    Patches stay in CPU memory, where crops are taken. Only batches are moved to the device of the network.
    """

    def __init__(self, pictures: Sequence[Picture], plan: Plan) -> None:
        self._pictures, self._plan = pictures, plan
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2))
        self._patches: dict[int, Future[TrainingPatch]] = {}

    def at(self, step: int) -> list[TrainingPatch]:
        """The patches of one step, a function of its number alone."""
        first = step // self._plan.patch_steps
        numbers = range(first, first + self._plan.patches)
        for number in [*numbers, *range(numbers.stop, numbers.stop + _AHEAD)]:
            if number not in self._patches:
                self._patches[number] = self._threads.submit(make_patch, self._pictures, self._plan.seed, number)
        for old in [number for number in self._patches if number < first]:
            del self._patches[old]
        return [self._patches[number].result() for number in numbers]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def _one_step(state: _State, plan: Plan, cache: PatchCache, device: torch.device, half: bool) -> float:
    """Train on one batch; returns the loss at t = 0, averaged over crops and bands."""
    random = np.random.default_rng((plan.seed, 2, state.step))
    batch = crops(cache.at(state.step), plan.crop, plan.batch, random)
    seen, r, share, point, z = (part.to(device) for part in batch)
    t = _times(plan, random).to(device)
    wanted = flow.velocity(z, r, t)
    wanted[t == 0] = r[t == 0] * (math.pi / 2)  # the part of velocity(z, r, 0) that does not depend on z
    for group in state.optimiser.param_groups:
        group["lr"] = _rate(plan, state.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        last = torch.channels_last
        x = flow.interpolant(z, r, t).to(memory_format=last)
        found = state.network(x, seen.to(memory_format=last), t, point).float()
    weight = structure_weights(to_pixels(seen[:, :LATENT])).sqrt()
    energy = band_energies(to_pixels(r * share) * weight)
    error = band_energies(to_pixels((found - wanted) * share) * (2 / math.pi) * weight)
    left = error / (energy + _LEAST_ENERGY)
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward((left.mean(dim=0) * torch.tensor(_BAND_WEIGHTS, device=device)).sum())
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimiser.step()
    state.step += 1
    with torch.no_grad():
        decay = min(plan.average, state.step / (state.step + 10))
        torch._foreach_lerp_(list(state.average.parameters()), list(state.network.parameters()), 1 - decay)
    return float(left[t == 0].detach().mean())


def band_energies(pixels: Tensor) -> Tensor:
    """Mean square of ``pixels``, (n, 1, side, side), in each octave band, by Parseval's theorem: (n, 4)."""
    side = pixels.shape[-1]
    transformed = torch.fft.rfft2(pixels[:, 0])
    powers = transformed.real.square() + transformed.imag.square()
    result: Tensor = powers.flatten(1) @ _band_powers(side).to(pixels.device)
    return result


def structure_weights(detail: Tensor) -> Tensor:
    """Weight of squared errors at each pixel, (n, 1, side, side), from the base's detail of the same shape."""
    side = detail.shape[-1]
    fine, coarse, broad = (_gaussian(side, sigma).to(detail.device) for sigma in _STRUCTURE)
    band = torch.fft.irfft2(torch.fft.rfft2(detail) * (fine - coarse), s=(side, side))
    energy = torch.fft.irfft2(torch.fft.rfft2(band.square()) * broad, s=(side, side))
    result: Tensor = energy / (energy.mean(dim=(2, 3), keepdim=True) + _LEAST_ENERGY)
    return result.clamp(*_WEIGHTS)


def _gaussian(side: int, sigma: float) -> Tensor:
    """Transfer function of a Gaussian at the frequencies of ``rfft2`` of a square."""
    squared = torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side)[None].square()
    return torch.exp(-2 * math.pi**2 * sigma**2 * squared)


@lru_cache(maxsize=4)
def _band_powers(side: int) -> Tensor:
    """Squared transfer functions of the bands at the frequencies of ``rfft2`` of a square: (frequencies, 4).

    Frequencies that ``rfft2`` omits as mirror images are counted twice.
    """
    filters = [_gaussian(side, sigma) for sigma in (0.0, *_BANDS)]
    counts = torch.full((side // 2 + 1,), 2.0)
    counts[0] = counts[-1] = 1.0
    bands = [((fine - coarse).square() * counts).flatten() for fine, coarse in pairwise(filters)]
    return torch.stack(bands, dim=1) / side**4


def _times(plan: Plan, random: np.random.Generator) -> Tensor:
    zeros = max(1, round(plan.batch * plan.zero_share))
    times = np.zeros(plan.batch, dtype=np.float32)
    times[zeros:] = random.uniform(0.0, 1.0, plan.batch - zeros)
    return torch.from_numpy(times)


def _rate(plan: Plan, step: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return plan.rate * warm_up * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / plan.steps)))))


def _fresh(plan: Plan, start_from: MammoNetwork | None) -> _State:
    torch.manual_seed(plan.seed)
    config = NetworkConfig(width=plan.width, wide=plan.wide, blocks=plan.blocks)
    network = MammoNetwork(config if start_from is None else start_from.config)
    if start_from is not None:
        network.load_state_dict(start_from.state_dict())
    average = MammoNetwork(network.config)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    return _State(network, average.requires_grad_(False), optimiser)


def _save(state: _State, plan: Plan, folder: Path) -> None:
    content = {
        "plan": json.dumps(asdict(plan)),
        "size": asdict(state.network.config),
        "step": state.step,
        "losses": state.losses,
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    fresh = folder / (CHECKPOINT + ".part")
    torch.save(content, fresh)
    fresh.replace(folder / CHECKPOINT)


def _restore(state: _State, path: Path) -> Plan:
    """Fill ``state`` from a checkpoint; return the checkpoint's plan. Raises CheckpointError."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = json.loads(content["plan"])
        plan = Plan(**{**found, "blocks": tuple(found["blocks"])})
        fresh = _fresh(plan, MammoNetwork(NetworkConfig(**content["size"])))
        for name in ("network", "average", "optimiser"):
            getattr(fresh, name).load_state_dict(content[name])
        state.network, state.average, state.optimiser = fresh.network, fresh.average, fresh.optimiser
        state.step, state.losses = int(content["step"]), list(content["losses"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be resumed: {error}; train without --resume to start again") from error
    return plan


def _move(state: _State, device: torch.device) -> None:
    for part in (state.network, state.average):
        part.to(device).to(memory_format=torch.channels_last)
    for values in state.optimiser.state.values():
        values.update({key: value.to(device) for key, value in values.items() if key != "step"})


def _half_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are faster than float32: assumed on a GPU, measured on a CPU."""
    if device.type == "cuda":
        return True
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(kind).to(memory_format=torch.channels_last)
        image = torch.zeros(1, 64, 96, 96, dtype=kind).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            layer(image)
            began = time.perf_counter()
            for _ in range(3):
                layer(image)
        seconds[kind] = time.perf_counter() - began
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]
