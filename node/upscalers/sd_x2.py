"""``sd_x2``: the paper's upscaler (arXiv 2310.05299), diffusers' StableDiffusionLatentUpscalePipeline.

The model is ``stabilityai/sd-x2-latent-upscaler``: Stable Diffusion's autoencoder (8 x 8 pixels to a latent of 4
channels) and a k-diffusion UNet that denoises the latents of an image of twice the size. It was made for 8-bit colour
pictures. For 16-bit radiographs this module maps grey levels by the image's own range, encodes with the mode of the
latent distribution instead of a sample, decodes in float32 without the pipeline's conversion to 8 bits, and tiles.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.upscalers.numerics import device_of, numerics_of
from node.upscalers.protocol import UpscaleTask
from node.upscalers.tiles import TilePlan, blend
from storage.errors import LatentPacsError
from storage.optional_packages import require_extra

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]

MODEL = "stabilityai/sd-x2-latent-upscaler"
PIPELINE = "StableDiffusionLatentUpscalePipeline"

_DTYPES = ("auto", "float32", "float16", "bfloat16")
# Tiles per network call. This is not an option, because another batch shape selects other kernels and rounds
# differently, which makes another rendition. One tile keeps all cores of a CPU busy.
_BATCH = {"cpu": 1, "cuda": 4}
# In pixels of the base: the UNet has 2 latents per 8 pixels and halves them three times.
_TILE_UNIT = 32
_DOUBLINGS = {2: 1, 4: 2}
# The weight files that are read. The .bin files of the same names are pickles, which can run code; they are never read.
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


class WeightsNotFound(LatentPacsError):
    """The model's files are absent, incomplete or damaged. The message says how to get them."""


class NotFinite(LatentPacsError):
    """The network returned NaN or infinity, as half precision may; such pixels are never used."""


class SdX2:
    """Applies the x2 model once for scale 2 and twice for scale 4 (the paper's 512 and 256 to 1024).

    The autoencoder changes every pixel, so the result is projected: downsampled, it equals the base.

    ``source``: a folder made by ``hf download``, or a model id on the Hugging Face hub. ``tile`` and ``overlap``: in
    pixels of the base. Files are read on first use, which may raise WeightsNotFound, and the loaded model is kept.
    Raises ExtraMissing if diffusers or transformers is not installed, and ValueError for values out of range.
    """

    name = "sd_x2"
    method = "LDM_UPSCALE_1"
    generative = True
    needs_deviation = False
    files: tuple[tuple[str, Path], ...] = ()  # the archive keeps no copy: gigabytes that others publish

    def __init__(
        self,
        source: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        steps: int = 20,
        tile: int = 256,
        overlap: int = 32,
    ) -> None:
        require_extra("sd-x2", "the upscaler sd_x2")
        if dtype not in _DTYPES:
            raise ValueError(f"sd_x2: dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        if tile < 2 * _TILE_UNIT or tile % _TILE_UNIT:
            raise ValueError(f"sd_x2: tile {tile} is not a multiple of {_TILE_UNIT}, at least {2 * _TILE_UNIT}")
        if not 0 < overlap <= tile // 2:
            raise ValueError(f"sd_x2: overlap {overlap} is outside 1 .. {tile // 2}, half a tile")
        if steps < 1:
            raise ValueError(f"sd_x2: steps {steps} is below 1")
        self.steps = steps
        self._source = source
        self._device_name = device
        self._dtype_name = dtype
        self._tile = tile
        self._overlap = overlap

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 over the sorted (relative path, SHA-256) pairs of the weight files."""
        digest = hashlib.sha256()
        for path in sorted(weight_files(self._folder)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self._folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()

    @property
    def numerics(self) -> dict[str, str]:
        import torch

        found = numerics_of(self._device, str(self._dtype).removeprefix("torch.")) | {
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
            "tile": str(self._tile),
            "overlap": str(self._overlap),
            "batch": str(self._batch),
        }
        if self._device.type != "cuda":
            # Sums are split among threads, so another number of threads rounds differently.
            found["threads"] = str(torch.get_num_threads())
        return found

    def structure(self, task: UpscaleTask) -> Float:
        """As Upscaler says. The only random input is noise for the whole image, drawn on the CPU from ``task.seed``.

        Raises NotFinite, and ValueError if the task's scale, shape or steps are not valid.
        """
        import torch

        operator, samples = task.operator, task.samples
        if operator.scale == 1:
            return task.upsampled.copy()
        if operator.scale not in _DOUBLINGS:
            raise ValueError(f"sd_x2: scale {operator.scale} is none of 1, 2 and 4")
        if samples.shape != (operator.low_rows, operator.low_columns):
            raise ValueError(f"sd_x2: samples {samples.shape} do not belong to {operator}")
        if task.steps < 1:
            raise ValueError(f"sd_x2: steps {task.steps} is below 1")
        low, span = samples.min(), np.ptp(samples)
        if span <= 0:
            return task.upsampled.copy()
        generator = torch.Generator("cpu").manual_seed(task.seed)
        # One range for the whole image: tiles must map grey levels alike.
        image = (samples - low) * (2 / span) - 1
        for _ in range(_DOUBLINGS[operator.scale]):
            image = self._double(image, task.steps, generator)
        # If rows or columns are not a multiple of the scale, D shrinks by slightly less than the scale, and a crop
        # would shift the far border by up to scale - 1 pixels. Then U resamples. Otherwise U returns its input.
        image = np.clip(operator.up(image), -1, 1)
        return operator.project(np.asarray((image + 1) * (span / 2) + low, dtype=np.float32), samples)

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        """Return the drawn noise unchanged; the paper's model has no noise of its own."""
        return noise

    def _double(self, image: Float, steps: int, generator: torch.Generator) -> Float:
        """``image``, float32 (rows, columns) in [-1, 1], at twice the size."""
        import torch

        rows, columns = image.shape
        stride = self._network.stride
        plan = TilePlan.cover(rows, columns, tile=self._tile, overlap=self._overlap, align=stride)
        margin = ((0, plan.rows - rows), (0, plan.columns - columns))
        canvas = torch.from_numpy(np.pad(image, margin, mode="symmetric"))[None]
        # Overlapping tiles share noise, so they draw nearly the same pixels in the overlap.
        shape = (self._network.channels, plan.rows // stride * 2, plan.columns // stride * 2)
        noise = torch.randn(shape, generator=generator)
        doubled = blend(plan.scaled(2), self._tiles(plan, canvas, noise, steps))
        return np.clip(doubled[: rows * 2, : columns * 2], -1, 1)

    def _tiles(self, plan: TilePlan, canvas: torch.Tensor, noise: torch.Tensor, steps: int) -> Iterator[Float]:
        """The doubled tiles in plan order; the last batch is padded with copies of its last tile."""
        import torch

        tile, stride = plan.tile, self._network.stride
        side = tile * 2 // stride
        positions = plan.positions
        for first in range(0, len(positions), self._batch):
            wanted = positions[first : first + self._batch]
            batch = wanted + wanted[-1:] * (self._batch - len(wanted))
            pixels = [canvas[:, top : top + tile, left : left + tile] for top, left in batch]
            corners = [(top * 2 // stride, left * 2 // stride) for top, left in batch]
            latents = [noise[:, top : top + side, left : left + side] for top, left in corners]
            doubled = self._network.double(torch.stack(pixels), torch.stack(latents), steps)
            yield from doubled[: len(wanted)].numpy()

    @cached_property
    def _folder(self) -> Path:
        folder = find_weights(self._source)
        weight_files(folder)  # raises WeightsNotFound
        return folder

    @cached_property
    def _network(self) -> _Network:
        return _Network(self._folder, self._device, self._dtype)

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self._device_name)

    @property
    def _dtype(self) -> torch.dtype:
        """Data type of the UNet. On CUDA the default is float16, in which it is published; bfloat16 is coarser."""
        import torch

        if self._dtype_name == "auto":
            return torch.float16 if self._device.type == "cuda" else torch.float32
        dtype: torch.dtype = getattr(torch, self._dtype_name)
        return dtype

    @property
    def _batch(self) -> int:
        return _BATCH.get(self._device.type, 1)


class _Network:
    """The loaded pipeline. The UNet runs in the chosen dtype, the autoencoder always in float32.

    Pixels pass through the autoencoder; near white, bfloat16 has steps of 8 in 4096 grey levels.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        pipeline = _load(folder)
        pipeline.set_progress_bar_config(disable=True)
        with _quiet(), torch.no_grad():
            # Guidance 0 always means the empty prompt: embed it once and free the text encoder.
            embedding, _, pooled, _ = pipeline.encode_prompt("", "cpu", do_classifier_free_guidance=False)
            pipeline.text_encoder = pipeline.tokenizer = None
            pipeline.vae.to(device)
            pipeline.unet.to(device, dtype)
        self._pipeline = pipeline
        self._device = device
        self._embedding = embedding.to(device, dtype)
        self._pooled = pooled.to(device, dtype)

    @property
    def stride(self) -> int:
        """Pixels per latent along one side (8)."""
        return int(self._pipeline.vae_scale_factor)

    @property
    def channels(self) -> int:
        """Channels of a latent (4)."""
        return int(self._pipeline.vae.config.latent_channels)

    def double(self, pixels: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        """Grey tiles (n, 2t, 2t), float32, from ``pixels`` (n, 1, t, t) in [-1, 1] and unit ``noise`` (n, 4, t/4, t/4).

        ``noise`` is the only randomness: with latents given both as ``image`` and as ``latents`` the pipeline draws
        nothing, and Euler's method without churn is deterministic.
        """
        import torch

        vae = self._pipeline.vae
        scaling = vae.config.scaling_factor
        with torch.no_grad(), _quiet(), _repeatable(self._device):
            colour = pixels.to(self._device).expand(-1, 3, -1, -1)
            small = vae.encode(colour).latent_dist.mode() * scaling
            drawn = self._pipeline(
                image=small,
                latents=noise.to(self._embedding.dtype),
                num_inference_steps=steps,
                guidance_scale=0,
                prompt_embeds=self._embedding.expand(len(pixels), -1, -1),
                pooled_prompt_embeds=self._pooled.expand(len(pixels), -1),
                output_type="latent",
            ).images
            grey: torch.Tensor = vae.decode(drawn.float() / scaling).sample.mean(dim=1).cpu()
        if not bool(torch.isfinite(grey).all()):
            raise NotFinite(
                f"sd_x2 returned values that are not finite in {self._embedding.dtype}; "
                "set reconstruct.sd_x2.dtype to float32 in config.yaml"
            )
        return grey


def find_weights(source: str) -> Path:
    """The model's folder: ``source`` itself, or a snapshot from the Hugging Face hub (downloaded unless offline)."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    # Each release of huggingface_hub derives its HTTP errors from another package; only this name is stable.
    errors: Any = import_module("huggingface_hub.errors")
    weights = [f"{component}/{name}" for component, name in _WEIGHTS.items()]
    patterns = ["model_index.json", "*/*.json", "tokenizer/*", *weights]
    try:
        with _quiet():
            return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        raise _not_found(f"{source!r} is neither a folder nor a model that can be downloaded from the hub") from error


def weight_files(folder: Path) -> list[Path]:
    """The weight files that diffusers loads from ``folder``. Raises WeightsNotFound if the model is incomplete."""
    try:
        index = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _not_found(f"{folder} has no readable model_index.json") from error
    if index.get("_class_name") != PIPELINE:
        raise _not_found(f"{folder} holds a {index.get('_class_name')}, not a {PIPELINE}")
    weights = [f"{component}/{name}" for component, name in _WEIGHTS.items()]
    configurations = [f"{component}/config.json" for component in _WEIGHTS]
    for needed in ("scheduler/scheduler_config.json", "tokenizer", *configurations, *weights):
        if not (folder / needed).exists():
            raise _not_found(f"{folder} is incomplete, {needed} is missing")
    return [folder / name for name in weights]


def _load(folder: Path) -> Any:
    from diffusers import StableDiffusionLatentUpscalePipeline
    from safetensors import SafetensorError

    try:
        with _quiet():
            pipeline = StableDiffusionLatentUpscalePipeline.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _not_found(f"{folder} cannot be loaded ({reason})") from error
    for component in _WEIGHTS:
        getattr(pipeline, component).float().eval()
    return pipeline


def _not_found(reason: str) -> WeightsNotFound:
    return WeightsNotFound(
        f"sd_x2 has no weights: {reason}; run `hf download {MODEL} --local-dir FOLDER` and set "
        "reconstruct.sd_x2.weights in config.yaml to that folder"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars, advice and warnings of the libraries, and restore their settings afterwards."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers  # also switches the progress bars of huggingface_hub

    before = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in (diffusers, transformers)]
    try:
        for library, _, _ in before:
            library.set_verbosity_error()
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _repeatable(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA, use deterministic convolution algorithms, without TF32."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
