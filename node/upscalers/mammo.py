"""``mammo``: a compact latent flow trained on mammograms; its weights are part of the package.

The flow starts from the noise that the ``bicubic`` upscaler would draw (flow.py). One evaluation gives the posterior
mean of the residual, which improves the structure. Further steps change the drawn noise depending on the tissue. The
image is processed in tiles with a halo as wide as the receptive field, so tiles leave no seams. Each tile is cut down
to the pixels that lack more noise than rounds to 0, and a tile without such pixels is skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores
from node.upscalers.numerics import device_of, numerics_of
from node.upscalers.protocol import UpscaleTask
from storage.errors import ModelMissing
from storage.formats.geometry import reduced

if TYPE_CHECKING:
    import torch

    from node.upscalers.flow import Velocity
    from node.upscalers.network import MammoNetwork

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Part = tuple[slice, slice]

SHIPPED = Path(__file__).parent / "weights" / "mammo"
"""The model that is part of the package."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
_CELL = 4
"""Pixels per latent cell along each side: ``network.UNSHUFFLE``, repeated because importing it would import torch."""
_STRIDE = 8
"""Pixels per cell of the network's coarsest grid: ``network.STRIDE``. Parts start and end on multiples of it."""
_FILES = ("config.json", WEIGHTS)
_MOST = 1.0
"""Largest change of a pixel by the network, in standard deviations of the noise that is missing there. Its predictions
are smaller, except beside the skin line and letters, where they are wrong more often than right: there it brightened
black air, in which noise was then drawn. The limit saves 1.9% of the bytes of 22 digital images."""

_FAINT = 0.25
"""Standard deviation in grey levels up to which the network is not run, since its change there rounds to 0."""


class ModelNotFound(ModelMissing):
    """The model's files are absent, incomplete or damaged. The message says what to do."""


class Mammo:
    """The upscaler ``mammo`` with the model in ``folder``, as written by ``latent-pacs model train``.

    ``steps``: sampling steps for noise; with 0, drawn noise is used unchanged. ``tile``: side of a tile without its
    halo, in pixels of the full image: a multiple of 8, at least 64. ``dtype``: data type of the trunk; ``auto`` is
    bfloat16 if the device has instructions for it, else float32. Files are read on first use, and the loaded model is
    kept. Raises ValueError for other values, and ModelNotFound on first use.
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
            raise ValueError(f"mammo: steps {steps} is negative; 0 uses drawn noise unchanged")
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"mammo: dtype {dtype!r} is neither auto nor float32 nor bfloat16")
        self.steps = steps
        self._folder = folder
        self._device_name = device
        self._dtype_name = dtype
        self._tile = tile

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 over the sorted (name, SHA-256) pairs of the model's files."""
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
        return numerics_of(self._device, self._dtype) | {"tile": str(self._tile)}

    def structure(self, task: UpscaleTask) -> Float:
        """The upsampled base plus the posterior mean of the residual: float32, full size, grey levels.

        No pixel changes by more than ``_MOST`` standard deviations of the missing noise at its place. The base must be
        upsampled by ``Operator.lift``, not by plain bicubic, because the network was trained on that.
        """
        from node.upscalers import flow

        upsampled = task.upsampled
        if not task.deviation.any():
            return upsampled.copy()
        v = self._velocity(task, upsampled)
        result = _pixels(flow.mean(v, _latent(upsampled)), *upsampled.shape)
        np.clip(result, -_MOST, _MOST, out=result)
        result *= task.deviation
        result += upsampled
        return result

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        """The noise to add to ``structure`` instead of ``noise``: float32, full size, grey levels.

        ``noise`` has the deviation and the spectrum that the encoder measured. Divided by the deviation it is the start
        x_0 of the flow; the end x_1 is a residual of the upsampled base. The posterior mean of the residual is
        subtracted, since ``structure`` contains it, together with repairs that the flow does not model.
        """
        if task.steps == 0 or not task.deviation.any():
            return noise
        from node.upscalers import flow

        velocity = self._velocity(task, task.upsampled)
        z = _latent(_divided(noise, task.deviation))
        at_zero = velocity(z, 0.0)

        def v(x: torch.Tensor, t: float) -> torch.Tensor:
            return at_zero if t == 0 else velocity(x, t)

        latent = flow.sample(v, z, task.steps) - flow.mean(v, z)
        return _pixels(latent, *noise.shape) * task.deviation

    def _velocity(self, task: UpscaleTask, upsampled: Float) -> Velocity:
        """v(x, t) of the whole image; x and v: float32 (1, 16, padded rows / 4, padded columns / 4)."""
        from node.upscalers.conditioning import point_features, scene

        seen = scene(upsampled, task.deviation, task.quantisation_rms, task.point.scale)[None]
        point = point_features(task.point.scale, task.point.distance)[None].to(self._device)
        tiles = _Tiles(task.deviation > _FAINT, self._tile, self._network.halo)
        padded = tiles.pad(seen.to(self._network.enter.weight.dtype))

        def v(x: torch.Tensor, t: float) -> torch.Tensor:
            return self._evaluate(tiles, x, padded, t, point)

        return v

    def _evaluate(
        self, tiles: _Tiles, x: torch.Tensor, seen: torch.Tensor, t: float, point: torch.Tensor
    ) -> torch.Tensor:
        """Compute the velocity part by part. It is 0 outside the parts. ``seen`` is padded already."""
        import torch

        device, network = self._device, self._network
        result, time = torch.zeros_like(x), torch.tensor([t], device=device)
        padded_x = tiles.pad(x) if t > 0 else None

        def evaluate_part(part: Part) -> None:
            with torch.inference_mode():  # applies to the current thread only
                here = None if padded_x is None else tiles.cut(padded_x, part).to(device)
                velocity = network(here, tiles.cut(seen, part).to(device), time, point, network.spare)
                tiles.paste(result, velocity.cpu(), part)

        on_all_cores(evaluate_part, tiles.parts)  # one core per part: pixels do not depend on the number of cores
        if not bool(torch.isfinite(result.sum())):  # a single NaN or infinity makes the sum not finite
            raise ModelNotFound(f"{self._folder} returned values that are not finite: its weights are damaged")
        return result

    @cached_property
    def _network(self) -> MammoNetwork:
        import torch

        network = load_network(self._folder).to(self._device)
        network = network.to(memory_format=torch.channels_last)
        return network.with_trunk(getattr(torch, self._dtype))

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self._device_name)

    @cached_property
    def _dtype(self) -> str:
        if self._dtype_name != "auto":
            return self._dtype_name
        return "bfloat16" if _computes_in_bfloat16(self._device) else "float32"


class _Tiles:
    """The parts of a latent that the network must process.

    They are squares of ``tile`` x ``tile`` pixels, each cut down to its noisy pixels. ``noisy``: bool, full size.
    ``halo``: pixels around a part that the network sees. Cells at the image's border are repeated beyond it.
    """

    def __init__(self, noisy: Mask, tile: int, halo: int) -> None:
        self._halo = halo // _CELL
        marks = reduced(noisy, _STRIDE, np.logical_or)
        self.parts = list(_bounds(marks, tile // _STRIDE))

    def pad(self, latent: torch.Tensor) -> torch.Tensor:
        """Pad a latent (1, channels, rows, columns) so that every part can be cut out with its halo."""
        import torch
        from torch.nn import functional as F  # noqa: N812 - the name everybody uses

        padded = F.pad(latent, (self._halo,) * 4, mode="replicate")
        return padded.contiguous(memory_format=torch.channels_last)

    def cut(self, padded: torch.Tensor, part: Part) -> torch.Tensor:
        """One part with its halo: (1, channels, its rows + 2 halo, its columns + 2 halo)."""
        rows, columns = (slice(side.start, side.stop + 2 * self._halo) for side in part)
        return padded[:, :, rows, columns]

    def paste(self, latent: torch.Tensor, found: torch.Tensor, part: Part) -> None:
        """Copy ``found``, the result for a part with the rest of its halo, into ``latent`` without that halo."""
        rows, columns = part
        left = (found.shape[-1] - (columns.stop - columns.start)) // 2
        latent[:, :, rows, columns] = found[:, :, left:-left, left:-left]


def _bounds(marks: Mask, side: int) -> Iterator[Part]:
    """For each square of ``side`` x ``side`` marks, the bounding rectangle of the set ones, in cells of the latent."""
    each = _STRIDE // _CELL
    for top, left in product(range(0, marks.shape[0], side), range(0, marks.shape[1], side)):
        square = marks[top : top + side, left : left + side]
        rows, columns = (np.flatnonzero(square.any(axis=axis)) for axis in (1, 0))
        if rows.size:
            yield (
                slice((top + int(rows[0])) * each, (top + int(rows[-1]) + 1) * each),
                slice((left + int(columns[0])) * each, (left + int(columns[-1]) + 1) * each),
            )


def _latent(image: Float) -> torch.Tensor:
    """An image as a latent: float32 (1, 16, padded rows / 4, padded columns / 4)."""
    import torch

    from node.upscalers.conditioning import padded
    from node.upscalers.network import to_latent

    return to_latent(torch.from_numpy(padded(image))[None, None])


def _pixels(latent: torch.Tensor, rows: int, columns: int) -> Float:
    """The inverse of ``_latent``, as a new writable array."""
    from node.upscalers.network import to_pixels

    return np.ascontiguousarray(to_pixels(latent)[0, 0, :rows, :columns].numpy())


def _divided(values: Float, deviation: Float) -> Float:
    """``values`` in units of ``deviation``; 0 where the deviation is 0."""
    return np.divide(values, deviation, out=np.zeros_like(values), where=deviation > 0)


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions: assumed for CUDA, and true for CPUs with AMX or AVX-512 BF16."""
    import torch

    if device.type == "cuda":
        return True
    cpu: Any = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def load_network(folder: Path) -> MammoNetwork:
    """The network in ``folder``, in evaluation mode. Raises ModelNotFound if it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from node.upscalers.network import MammoNetwork, NetworkConfig

    for name in _FILES:
        if not (folder / name).is_file():
            raise _not_found(folder, f"{name} is missing")
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = {one.name: content[one.name] for one in fields(NetworkConfig) if one.name in content}
        size["blocks"] = tuple(size.get("blocks", NetworkConfig.blocks))
        network = MammoNetwork(NetworkConfig(**size))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _not_found(folder, f"{WEIGHTS} cannot be loaded: {error}") from error
    return network.eval().requires_grad_(False)


def save_network(network: MammoNetwork, folder: Path) -> None:
    """Write the files that ``load_network`` reads, in diffusers' format."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    content = {"_class_name": type(network).__name__, **asdict(network.config)}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # safetensors.torch.save_file would make the file readable by its owner only
    (folder / WEIGHTS).write_bytes(save(dict(network.state_dict()), metadata={"format": "pt"}))


def _not_found(folder: Path, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"no usable mammo model in {folder}: {reason}; leave reconstruct.mammo.weights empty for the shipped one, "
        "or train one with `latent-pacs model train`"
    )
