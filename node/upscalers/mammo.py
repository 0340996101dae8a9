"""``mammo``: our own latent flow for mammograms, compact, trained on mammograms, shipped here.

It starts from the noise that the ``bicubic`` upscaler would draw and can only change it (flow.py). One evaluation gives
the posterior mean of the residual, which makes the structure better; further steps turn the drawn noise into grain that
knows about the tissue it lies on. The image is cut into tiles with a halo as wide as the network sees, so that tiles
leave no trace; tiles where no noise is to be drawn are skipped.
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

from node.fidelity.threads import on_all_cores
from node.upscalers.numerics import cpu_numerics, device_of
from node.upscalers.protocol import UpscaleTask
from storage.errors import ModelMissing

if TYPE_CHECKING:
    import torch

    from node.upscalers.flow import Velocity
    from node.upscalers.network import MammoNetwork

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

SHIPPED = Path(__file__).parent / "weights" / "mammo"
"""The model that comes with this release."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
_CELL = 4
"""Pixels per latent cell along each side: ``network.UNSHUFFLE``, which is not imported for torch's sake."""
_FILES = ("config.json", WEIGHTS)


class ModelNotFound(ModelMissing):
    """The model's files are absent, incomplete or damaged; the message says what to do."""


class Mammo:
    """``folder`` as ``latent-pacs model train`` writes it. With ``steps`` 0 noise is passed on as it was drawn.

    ``tile``: pixels of the full image that go through the network at once, without the halo; a multiple of 8.
    ``dtype``: of the trunk; ``auto`` is bfloat16 where the device computes in it, else float32. Nothing is read before
    it is needed; once loaded, the model stays.
    """

    name = "mammo"
    method = "LPACS_MAMMO"
    generative = True
    needs_deviation = True

    def __init__(
        self, folder: Path = SHIPPED, *, device: str = "auto", dtype: str = "auto", steps: int = 0, tile: int = 512
    ) -> None:
        if tile < 64 or tile % 8:
            raise ValueError(f"mammo: tile {tile} is below 64 or not a multiple of 8")
        if steps < 0:
            raise ValueError(f"mammo: {steps} steps; 0 leaves noise as it was drawn")
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"mammo: dtype {dtype!r} is neither auto nor float32 nor bfloat16")
        self.steps = steps
        self._folder = folder
        self._device_name = device
        self._dtype_name = dtype
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

        found = cpu_numerics() | {"device": self._device.type, "dtype": self._dtype, "tile": str(self._tile)}
        if self._device.type == "cuda":
            cudnn: Any = torch.backends.cudnn
            found |= {"gpu": torch.cuda.get_device_name(self._device), "cudnn": str(cudnn.version())}
        return found

    def structure(self, task: UpscaleTask) -> Float:
        """The consistent base plus the posterior mean of what it lacks: float32, full size, grey levels.

        It starts from ``Operator.lift``, not from plain bicubic: its detail is what the network was trained on.
        """
        from node.upscalers import flow

        lifted = task.upsampled
        if not task.deviation.any():
            return lifted.copy()
        v = self._velocity(task, lifted)
        change = _pixels(flow.mean(v, _latent(lifted)), *lifted.shape)
        change *= task.deviation
        change += lifted
        return change

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        """What is to be added to ``structure`` instead of ``noise``: float32, full size, grey levels.

        ``noise`` has the deviation and the spectrum that the encoder measured: over its deviation it is the start x_0
        of the flow, whose end x_1 is a residual to the consistent base. Its mean is in ``structure`` already, beside
        repairs of which the flow knows nothing.
        """
        if task.steps == 0 or not task.deviation.any():
            return noise
        from node.upscalers import flow

        later = self._velocity(task, task.operator.lift(task.samples))
        z = _latent(_over(noise, task.deviation))
        first = later(z, 0.0)

        def v(x: torch.Tensor, t: float) -> torch.Tensor:
            return first if t == 0 else later(x, t)

        made = flow.sample(v, z, task.steps) - flow.mean(v, z)
        return _pixels(made, *noise.shape) * task.deviation

    def _velocity(self, task: UpscaleTask, lifted: Float) -> Velocity:
        """v(x, t) of the whole image: from and to float32 (1, 16, padded rows / 4, padded columns / 4)."""
        from node.upscalers.conditioning import point_features, scene

        seen = scene(lifted, task.deviation, task.quantisation_rms, task.point.scale)[None]
        point = point_features(task.point.scale, task.point.distance)[None].to(self._device)
        tiles = _Tiles(task.deviation > 0, seen.shape[-2], seen.shape[-1], self._tile, self._network.halo)
        whole = tiles.spread(seen.to(self._network.enter.weight.dtype))

        def v(x: torch.Tensor, t: float) -> torch.Tensor:
            return self._evaluated(tiles, x, whole, t, point)

        return v

    def _evaluated(
        self, tiles: _Tiles, x: torch.Tensor, seen: torch.Tensor, t: float, point: torch.Tensor
    ) -> torch.Tensor:
        """The velocity tile by tile; 0 in tiles where nothing is wanted. ``seen``: spread already."""
        import torch

        device = self._device
        result, moment = torch.zeros_like(x), torch.tensor([t], device=device)
        drawn = tiles.spread(x) if t > 0 else None

        def one(corner: tuple[int, int]) -> None:
            with torch.inference_mode():  # holds for one thread
                part = None if drawn is None else tiles.cut(drawn, *corner).to(device)
                made = network(part, tiles.cut(seen, *corner).to(device), moment, point)
                tiles.paste(result, made.cpu(), *corner)

        network = self._network
        on_all_cores(one, tiles.wanted)  # a tile on one core: its pixels do not depend on how many there are
        if not bool(torch.isfinite(result.sum())):  # of one value that is not, no sum is
            raise ModelNotFound(f"{self._folder} returned values that are not finite: its weights are damaged")
        return result

    @cached_property
    def _network(self) -> MammoNetwork:
        import torch

        network = load_network(self._folder).to(self._device)
        network = network.to(memory_format=torch.channels_last)
        return network.with_trunk(getattr(torch, self._dtype))  # type: ignore[no-any-return]

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self._device_name)

    @cached_property
    def _dtype(self) -> str:
        if self._dtype_name != "auto":
            return self._dtype_name
        return "bfloat16" if _computes_in_bfloat16(self._device) else "float32"


class _Tiles:
    """Square tiles over a latent of ``rows`` x ``columns`` cells, each cut out with its halo; all have one shape.

    Beyond the image the latent goes on with its border cells, whatever the tiling. ``wanted`` pixels: bool, full size.
    """

    def __init__(self, wanted: Mask, rows: int, columns: int, tile: int, halo: int) -> None:
        self._wanted, self._rows, self._columns = wanted, rows, columns
        self._tile, self._halo = tile // _CELL, halo // _CELL

    @property
    def wanted(self) -> Iterator[tuple[int, int]]:
        """Top-left corners, in cells, of the tiles where the network has to run."""
        side = self._tile * _CELL
        for top in range(0, self._rows, self._tile):
            for left in range(0, self._columns, self._tile):
                row, column = top * _CELL, left * _CELL
                if self._wanted[row : row + side, column : column + side].any():
                    yield top, left

    def spread(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent (1, channels, rows, columns), continued so that every tile can be cut out of it."""
        import torch
        from torch.nn import functional as F  # noqa: N812 - the name everybody uses

        right, bottom = (self._halo + -length % self._tile for length in (self._columns, self._rows))
        around = F.pad(latent, (self._halo, right, self._halo, bottom), mode="replicate")
        return around.contiguous(memory_format=torch.channels_last)

    def cut(self, spread: torch.Tensor, top: int, left: int) -> torch.Tensor:
        """One tile with its halo: (1, channels, tile + 2 halo, tile + 2 halo)."""
        side = self._tile + 2 * self._halo
        return spread[:, :, top : top + side, left : left + side]

    def paste(self, latent: torch.Tensor, tile: torch.Tensor, top: int, left: int) -> None:
        """Put the inner part of a tile where it belongs."""
        rows, columns = min(self._tile, self._rows - top), min(self._tile, self._columns - left)
        inner = tile[:, :, self._halo : self._halo + rows, self._halo : self._halo + columns]
        latent[:, :, top : top + rows, left : left + columns] = inner


def _latent(image: Float) -> torch.Tensor:
    """float32 (1, 16, padded rows / 4, padded columns / 4)."""
    import torch

    from node.upscalers.conditioning import padded
    from node.upscalers.network import to_latent

    return to_latent(torch.from_numpy(padded(image))[None, None])


def _pixels(latent: torch.Tensor, rows: int, columns: int) -> Float:
    """The inverse of ``_latent``: an array of its own to write to."""
    from node.upscalers.network import to_pixels

    return np.ascontiguousarray(to_pixels(latent)[0, 0, :rows, :columns].numpy())


def _over(values: Float, deviation: Float) -> Float:
    """``values`` in units of ``deviation``; 0 where that is 0."""
    return np.divide(values, deviation, out=np.zeros_like(values), where=deviation > 0)


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether there are instructions for it: true of every GPU in use, and of CPUs with AMX or AVX-512 BF16."""
    import torch

    if device.type == "cuda":
        return True
    cpu: Any = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


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
    """Write a model as ``load_network`` and diffusers read it."""
    network.save_pretrained(str(folder), safe_serialization=True)
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it readable by its owner alone


def _not_found(folder: Path, why: str) -> ModelNotFound:
    return ModelNotFound(
        f"no usable mammo model in {folder}: {why}; leave reconstruct.mammo.weights empty for the shipped one, "
        "or train one with `latent-pacs model train`"
    )
