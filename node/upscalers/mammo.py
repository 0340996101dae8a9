"""``mammo``: our own latent diffusion upscaler for mammograms, compact, trained on mammograms, shipped here.

It draws the residual of the original to the consistent base (network.py). One deterministic step gives the posterior
mean, the default; with ``detail`` a flow-matching sampler adds texture in a few steps. The image is cut into tiles
with a halo as wide as the network sees, so that tiles leave no trace; tiles where the guide wants nothing are skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.codec.guide import LEVEL_TILE
from node.upscalers.noise import noise_rows
from node.upscalers.numerics import cpu_numerics, device_of
from node.upscalers.protocol import Upscaled, UpscaleTask, hidden_from_base
from storage.errors import ModelMissing

if TYPE_CHECKING:
    import torch

    from node.upscalers.network import MammoNetwork

Float = NDArray[np.float32]

SHIPPED = Path(__file__).parent / "weights" / "mammo"
"""The model that comes with this release."""
SHIPPED_ABLATION = SHIPPED.with_name("mammo-regression")
"""A plain regression network of the same size, trained alike: what evaluations compare with."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
_CELLS = LEVEL_TILE // 4
_FILES = ("config.json", WEIGHTS, "scheduler_config.json")


class ModelNotFound(ModelMissing):
    """The model's files are absent, incomplete or damaged; the message says what to do."""


class Mammo:
    """``folder`` as ``latent-pacs model train`` writes it. ``detail`` 0 takes one step, more takes ``steps``.

    ``tile``: pixels of the full image that go through the network at once, without the halo. Nothing is read before
    it is needed; once loaded, the model stays.
    """

    name = "mammo"
    method = "LDM_MAMMO_1"
    generative = True
    guided = True
    consistent = False

    def __init__(
        self, folder: Path = SHIPPED, *, device: str = "auto", detail: float = 0.0, steps: int = 3, tile: int = 768
    ) -> None:
        if tile < LEVEL_TILE or tile % LEVEL_TILE:
            raise ValueError(f"mammo: tile {tile} is not a multiple of {LEVEL_TILE}")
        if steps < 2:
            raise ValueError(f"mammo: {steps} steps; texture takes two at least")
        self.detail = detail
        self.steps = steps if detail > 0 else 1
        self._folder = folder
        self._device_name = device
        self._tile = tile

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 over the sorted (name, SHA-256) of the files that decide the pixels."""
        digest = hashlib.sha256()
        for name in sorted(_FILES):
            try:
                content = (self._folder / name).read_bytes()
            except OSError as error:
                raise _not_found(self._folder, f"{name} cannot be read: {error.strerror}") from error
            digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        return tuple((name, self._folder / name) for name in _FILES)

    @property
    def numerics(self) -> dict[str, str]:
        import torch

        found = cpu_numerics() | {"device": self._device.type, "tile": str(self._tile)}
        if self._device.type == "cuda":
            cudnn: Any = torch.backends.cudnn
            found |= {"gpu": torch.cuda.get_device_name(self._device), "cudnn": str(cudnn.version())}
        return found

    def upscale(self, task: UpscaleTask) -> Upscaled:
        """The consistent base plus the mean residual; with two steps or more, a draw minus that mean as texture.

        Raises ValueError where the task has no levels: ``mammo`` cannot work without the encoder's guide.
        """
        from node.upscalers.conditioning import scene
        from node.upscalers.network import to_pixels

        if task.levels is None:
            raise ValueError("mammo needs the levels that the encoder measured")
        image = task.consistent_base()
        if not task.levels.any():
            return Upscaled(image)
        seen = scene(image, task.levels, task.quantisation_rms, task.rung, task.coarseness)
        strength = seen.unit * seen.share
        plan = _Plan(seen.seen.shape[1], seen.seen.shape[2], task.levels, self._tile, self._network.halo)
        mean, drawn = self._sample(plan, seen.seen, seen.rung, task.seed, task.steps)
        rows, columns = image.shape
        residual = to_pixels(mean[None])[0, 0, :rows, :columns].numpy()
        image += residual * strength
        if drawn is None:
            return Upscaled(image)
        texture = to_pixels((drawn - mean)[None])[0, 0, :rows, :columns].numpy() * strength
        return Upscaled(image, hidden_from_base(texture, task.operator, strength))

    def _sample(
        self, plan: _Plan, seen: torch.Tensor, rung: torch.Tensor, seed: int, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The posterior mean and, with several steps, a draw: latents (16, rows / 4, columns / 4)."""
        import torch

        noise = torch.zeros(16, *seen.shape[1:])
        if steps > 1:
            rows = noise_rows(seed, range(seen.shape[1]), seen.shape[2] * 16)
            noise = torch.from_numpy(rows).reshape(seen.shape[1], seen.shape[2], 16).permute(2, 0, 1)
        mean = self._denoise(plan, noise, seen, rung, 1.0)
        if steps == 1:
            return mean, None
        scheduler = self._scheduler
        scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
        x, clean = noise, mean
        for time, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
            if sigma < 1:
                clean = self._denoise(plan, x, seen, rung, sigma)
            x = scheduler.step((x - clean) / sigma, time, x, return_dict=False)[0]
        return mean, x

    def _denoise(
        self, plan: _Plan, noisy: torch.Tensor, seen: torch.Tensor, rung: torch.Tensor, time: float
    ) -> torch.Tensor:
        """E[x0 | x_s] of the whole image, tile by tile; 0 where no tile is wanted."""
        import torch

        clean = torch.zeros_like(noisy, memory_format=torch.contiguous_format)
        whole = torch.cat([noisy, seen])
        with torch.inference_mode():
            for top, left in plan.wanted:
                part = plan.cut(whole, top, left).to(self._device, memory_format=torch.channels_last)
                guess = self._network(
                    part[:, :16],
                    part[:, 16:],
                    torch.tensor([time], device=self._device),
                    rung[None].to(self._device),
                )
                plan.paste(clean, guess[0].cpu(), top, left)
        if not bool(torch.isfinite(clean).all()):
            raise ModelNotFound(f"{self._folder} returned values that are not finite: its weights are damaged")
        return clean

    @cached_property
    def _network(self) -> MammoNetwork:
        import torch

        network = load_network(self._folder).to(self._device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]

    @cached_property
    def _scheduler(self) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_pretrained(str(self._folder))

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self._device_name)


class _Plan:
    """Tiles over a latent of ``rows`` x ``columns``, each cut out with its halo; all have one shape.

    Beyond the image the latent goes on with its border cells, and where neither a tile of ``levels`` nor its
    neighbours want anything the result is 0: both whatever the tiling.
    """

    def __init__(self, rows: int, columns: int, levels: NDArray[np.uint8], tile: int, halo: int) -> None:
        self._rows, self._columns = rows, columns
        self._tile, self._halo = tile // 4, halo // 4
        self._near = _near(levels)

    @property
    def wanted(self) -> Iterator[tuple[int, int]]:
        """Top-left corners, in latent cells, of the tiles where the network has to run."""
        for top in range(0, self._rows, self._tile):
            for left in range(0, self._columns, self._tile):
                if self._near[_cells(top, self._tile), _cells(left, self._tile)].any():
                    yield top, left

    def cut(self, latent: torch.Tensor, top: int, left: int) -> torch.Tensor:
        """One tile with its halo: (1, channels, tile + 2 halo, tile + 2 halo)."""
        import torch

        rows = torch.arange(top - self._halo, top + self._tile + self._halo).clamp_(0, self._rows - 1)
        columns = torch.arange(left - self._halo, left + self._tile + self._halo).clamp_(0, self._columns - 1)
        return latent[:, rows][:, :, columns][None]

    def paste(self, latent: torch.Tensor, tile: torch.Tensor, top: int, left: int) -> None:
        """Put the inner part of a tile where it belongs."""
        import torch

        rows, columns = min(self._tile, self._rows - top), min(self._tile, self._columns - left)
        inner = tile[:, self._halo : self._halo + rows, self._halo : self._halo + columns]
        near = np.kron(self._near[_cells(top, self._tile), _cells(left, self._tile)], np.ones((_CELLS, _CELLS)))
        inner *= torch.from_numpy(near[:rows, :columns].astype(np.float32))
        latent[:, top : top + rows, left : left + columns] = inner


def _near(levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tiles with a level, and their neighbours: where ``share`` is above 0."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(levels > 0, np.ones((3, 3), dtype=bool)), dtype=bool)


def _cells(start: int, tile: int) -> slice:
    """Which tiles of ``levels`` a stretch of latent cells meets."""
    return slice(start // _CELLS, (start + tile) // _CELLS)


def load_network(folder: Path) -> MammoNetwork:
    """The network in ``folder``, in evaluation mode. Raises ModelNotFound where it is absent or damaged."""
    from safetensors import SafetensorError

    from node.upscalers.network import MammoNetwork

    for name in _FILES:
        if not (folder / name).is_file():
            raise _not_found(folder, f"{name} is missing")
    logging: Any = import_module("diffusers.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        network = MammoNetwork.from_pretrained(str(folder), use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _not_found(folder, f"{WEIGHTS} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(level)
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def save_network(network: MammoNetwork, folder: Path) -> None:
    """Write a model as ``load_network`` and diffusers read it: network, configuration and scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    network.save_pretrained(str(folder), safe_serialization=True)
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it readable by its owner alone
    FlowMatchEulerDiscreteScheduler().save_pretrained(str(folder))


def _not_found(folder: Path, why: str) -> ModelNotFound:
    return ModelNotFound(
        f"no usable mammo model in {folder}: {why}; leave reconstruct.mammo.weights empty for the shipped one, "
        "or train one with `latent-pacs model train`"
    )
