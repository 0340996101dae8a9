"""Evaluation of ``mammo`` on whole images: against the best bicubic, against an ablation, with and without texture."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.codec.engine import Pixels, make_base, reconstruct
from node.codec.guide import decode_guide, encode_guide
from node.codec.guiding import guided
from node.codec.source import Original
from node.fidelity.gate import Reference, measure
from node.fidelity.spectrum import band_edges, closer_in_every_band, power_spectrum, relative_power
from node.training.baseline import DampedBicubic, damping_at
from node.training.pictures import Picture
from node.upscalers.bicubic import Bicubic
from node.upscalers.mammo import Mammo, load_network
from node.upscalers.network import STRIDE, to_latent, to_pixels
from node.upscalers.protocol import Upscaler
from storage.dicomfile import HeaderBytes
from storage.payload import Base, seed_of
from storage.records import Rung, Verdict

Float = NDArray[np.float32]

RUNGS = tuple(
    Rung(scale=scale, coder="jpegxl", distance=distance, effort=7, sample_bits=12)
    for scale, distance in ((2, 0.1), (2, 0.6), (2, 1.2), (4, 0.6))
)
_BLOCK = 16


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


def summary(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures by rung, pooled over the breast pixels (errors) and averaged over images (FSIM, PSNR).

    Digital images alone, where there are any: film is smoother, and would flatter a model.
    """
    digital = [result for result in results if not result["film"]] or list(results)
    rows = []
    for rung in RUNGS:
        group = [result for result in digital if (result["scale"], result["distance"]) == (rung.scale, rung.distance)]
        if not group:
            continue
        weights = [result["base_mse"] * result["breast_pixels"] for result in group]
        row: dict[str, Any] = {"rung": f"x{rung.scale} d{rung.distance:g}", "images": len(group)}
        for key in ("mse_ratio", "ablation_mse_ratio"):
            if key in group[0]:
                row[key] = round(float(np.average([result[key] for result in group], weights=weights)), 5)
        row["worst_mse_ratio"] = max(result["mse_ratio"] for result in group)
        for arm in ("base", "model", "model_detail", "bicubic_detail"):
            row[arm] = {
                figure: round(float(np.mean([result[arm][figure] for result in group])), 5) for figure in group[0][arm]
            }
        row["closer_in_every_band"] = all(result["spectrum"]["closer_in_every_band"] for result in group)
        row["seconds"] = round(float(np.mean([result["seconds"] for result in group])), 2)
        rows.append(row)
    return rows


def latent_ceiling(pixels: Pixels) -> float:
    """The largest error, in grey levels, that the latent itself makes of an image: there and back without a network."""
    import torch

    rows, columns = (size // STRIDE * STRIDE for size in pixels.shape)
    image = torch.from_numpy(pixels[:rows, :columns].astype(np.float32))[None, None]
    return float((to_pixels(to_latent(image)) - image).abs().max())


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
    return Arm(measure(reference, pixels, None), error, power_spectrum(pixels, reference.mask), guide_bytes, seconds)


def _spectra(arms: dict[str, Arm], truth: NDArray[np.float64], scale: int) -> dict[str, Any]:
    """Power relative to the original's in bands from half the payload's Nyquist frequency up."""
    shown = {name: arm.spectrum for name, arm in arms.items() if name in ("base", "model", "model_detail")}
    return {
        "cycles_per_pixel": [round(float(edge) / 128, 4) for edge in band_edges(scale)],
        **{name: np.round(relative_power(power, truth, scale), 4).tolist() for name, power in shown.items()},
        "closer_in_every_band": closer_in_every_band(shown["model_detail"], shown["base"], truth, scale),
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
        "latent_ceiling_max_error": latent_ceiling(picture.pixels),
        "mse_ratio": round(model.squared_error / arms["base"].squared_error, 5),
        "breast_pixels": int(inside.sum()),
        "base_mse": round(arms["base"].squared_error / int(inside.sum()), 4),
        "spectrum": _spectra(arms, power_spectrum(picture.pixels, reference.mask), base.rung.scale),
        "seconds": round(model.seconds, 3),
        "detail_seconds": round(arms["model_detail"].seconds, 3),
    }
    if "ablation" in arms:
        result["ablation_mse_ratio"] = round(arms["ablation"].squared_error / arms["base"].squared_error, 5)
    return result
