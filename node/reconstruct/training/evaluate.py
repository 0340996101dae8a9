"""Evaluation of ``mammo`` on whole images: against the best bicubic, against an ablation, with and without texture."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.fidelity.gate import Reference, measure
from node.reconstruct.engine import Original, Pixels, make_base, reconstruct
from node.reconstruct.guide import decode_guide, encode_guide
from node.reconstruct.guiding import guided
from node.reconstruct.training.baseline import DampedBicubic, damping_at
from node.reconstruct.training.pictures import Picture
from node.reconstruct.upscalers.bicubic import Bicubic
from node.reconstruct.upscalers.mammo import Mammo, load_network
from node.reconstruct.upscalers.protocol import Upscaler
from storage.dicomfile import HeaderBytes
from storage.payload import Base, seed_of
from storage.records import Rung, Verdict

Float = NDArray[np.float32]

RUNGS = tuple(
    Rung(scale=scale, coder="jpegxl", distance=distance, effort=7, sample_bits=12)
    for scale, distance in ((2, 0.1), (2, 0.6), (2, 1.2), (4, 0.6))
)
BANDS = 6
_BLOCK = 16
_SPECTRUM_TILE = 256


@dataclass(frozen=True)
class Arm:
    """One way to reconstruct, measured: its pixels' figures, squared error over the breast, and spectrum by band."""

    verdict: Verdict
    squared_error: float
    spectrum: NDArray[np.float64]
    guide_bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "psnr_db": round(self.verdict.psnr_db, 3),
            "fsim_mean": round(self.verdict.fsim_mean, 5),
            "fsim_p5": round(self.verdict.fsim_p5, 5),
        }


def evaluate(
    pictures: Sequence[Picture], folder: Path, *, steps: int, ablation: Path | None, device: str = "auto"
) -> Iterator[dict[str, Any]]:
    """One result per picture and rung, in the form that ``latent-pacs model evaluate --json`` prints."""
    still = Mammo(folder, device=device)
    textured = Mammo(folder, device=device, detail=1.0, steps=steps)
    plain = None if ablation is None else Mammo(ablation, device=device)
    damping = load_network(folder).config.damping
    for picture in pictures:
        reference = Reference(picture.pixels, picture.header)
        inside = np.kron(reference.mask, np.ones((_BLOCK, _BLOCK), dtype=bool))
        inside = inside[: picture.pixels.shape[0], : picture.pixels.shape[1]]
        for rung in RUNGS:
            base = make_base(original_of(picture), rung)
            arms = {
                "base": _unguided(reference, inside, base, DampedBicubic(damping_at(damping, rung))),
                "model": _guided(reference, inside, base, still),
                "model_detail": _guided(reference, inside, base, textured),
                "bicubic_detail": _guided(reference, inside, base, Bicubic(1.0)),
            }
            if plain is not None:
                arms["ablation"] = _guided(reference, inside, base, plain)
            yield _result(picture, reference, inside, base, arms)


def original_of(picture: Picture) -> Original:
    """A picture as the engine takes it: no padding, and no header that anything here would need."""
    return Original(
        pixels=picture.pixels,
        padding=None,
        padding_value=0,
        padding_pixels=None,
        bits_stored=picture.bits,
        digest="",
        pixel_digest="",
        pixel_vr="OW",
        header_bytes=HeaderBytes("1.2.840.10008.1.2.1", b"", b""),
    )


def _unguided(reference: Reference, inside: NDArray[np.bool_], base: Base, upscaler: Upscaler) -> Arm:
    began = time.monotonic()
    pixels = reconstruct(base, upscaler, seed=0, steps=0)
    return _measured(reference, inside, pixels, 0, time.monotonic() - began)


def _guided(reference: Reference, inside: NDArray[np.bool_], base: Base, upscaler: Upscaler) -> Arm:
    """Encoded as the archivist does, then reconstructed from the bytes of the guide, as a retrieval does."""
    seed = seed_of("5eed5eed")
    guide, made = guided(reference, base, upscaler, seed=seed, steps=upscaler.steps, detail=upscaler.detail)
    written = encode_guide(guide)
    began = time.monotonic()
    pixels = reconstruct(base, upscaler, seed=seed, steps=upscaler.steps, guide=decode_guide(written))
    seconds = time.monotonic() - began
    if not np.array_equal(pixels, made):
        raise AssertionError(f"{upscaler.name}: the reconstruction is not what the encoder verified")
    return _measured(reference, inside, pixels, len(written), seconds)


def _measured(reference: Reference, inside: NDArray[np.bool_], pixels: Pixels, guide_bytes: int, seconds: float) -> Arm:
    difference = reference.pixels.astype(np.float32) - pixels
    error = float(np.square(difference[inside], dtype=np.float64).sum())
    return Arm(measure(reference, pixels, None), error, spectrum(pixels, inside), guide_bytes, seconds)


def spectrum(pixels: Pixels, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Power by radial frequency, in 64 bands from 0 to half a cycle per pixel, over tiles wholly inside the breast.

    Grey levels squared; Hann window, mean removed (IEC 62220-1 without its detrending by a plane).
    """
    window = np.outer(np.hanning(_SPECTRUM_TILE), np.hanning(_SPECTRUM_TILE)).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(_SPECTRUM_TILE)[:, None], np.fft.rfftfreq(_SPECTRUM_TILE))
    band = np.minimum((frequency * 128).astype(int), 64)
    power = np.zeros(65)
    for top in range(0, pixels.shape[0] - _SPECTRUM_TILE + 1, _SPECTRUM_TILE):
        for left in range(0, pixels.shape[1] - _SPECTRUM_TILE + 1, _SPECTRUM_TILE):
            here = (slice(top, top + _SPECTRUM_TILE), slice(left, left + _SPECTRUM_TILE))
            if inside[here].all():
                tile = pixels[here].astype(np.float32)
                transformed = np.abs(np.fft.rfft2((tile - tile.mean()) * window)) ** 2
                power += np.bincount(band.ravel(), transformed.ravel(), minlength=65)
    return power[:64]


def _spectra(arms: dict[str, Arm], truth: NDArray[np.float64], scale: int) -> dict[str, Any]:
    """Power relative to the original's in bands from half the payload's Nyquist frequency up."""
    edges = np.linspace(32 // scale, 64, BANDS + 1).round().astype(int)

    def ratios(power: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([power[a:b].sum() / max(truth[a:b].sum(), 1e-9) for a, b in itertools.pairwise(edges)])

    shown = {name: ratios(arm.spectrum) for name, arm in arms.items() if name in ("base", "model", "model_detail")}
    away = {name: np.abs(np.log(np.maximum(values, 1e-9))) for name, values in shown.items()}
    return {
        "cycles_per_pixel": [round(float(edge) / 128, 4) for edge in edges],
        **{name: [round(float(value), 4) for value in values] for name, values in shown.items()},
        "closer_in_every_band": bool((away["model_detail"] < away["base"]).all()),
    }


def _result(
    picture: Picture, reference: Reference, inside: NDArray[np.bool_], base: Base, arms: dict[str, Arm]
) -> dict[str, Any]:
    rows, columns = np.nonzero(reference.mask)
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) * _BLOCK * _BLOCK
    model = arms["model"]
    result: dict[str, Any] = {
        "image": picture.name,
        "film": picture.film,
        "scale": base.rung.scale,
        "distance": base.rung.distance,
        "bpp": round(8 * (len(base.coded) + model.guide_bytes) / area, 5),
        "guide_share": round(model.guide_bytes / (len(base.coded) + model.guide_bytes), 5),
        **{name: arm.as_json() for name, arm in arms.items()},
        "mse_ratio": round(model.squared_error / arms["base"].squared_error, 5),
        "breast_pixels": int(inside.sum()),
        "base_mse": round(arms["base"].squared_error / int(inside.sum()), 4),
        "spectrum": _spectra(arms, spectrum(picture.pixels, inside), base.rung.scale),
        "seconds": round(model.seconds, 3),
        "detail_seconds": round(arms["model_detail"].seconds, 3),
    }
    if "ablation" in arms:
        result["ablation_mse_ratio"] = round(arms["ablation"].squared_error / arms["base"].squared_error, 5)
    return result
