"""Encodes a user's images for ``latent-pacs gate calibrate``, and collects the figures of the gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian

from node.codec.encode.search import Encoded, Encoder
from node.codec.encode.source_image import Source
from node.config import Settings
from node.fidelity.reference import Reference
from node.training.image_files import Picture, read_picture
from node.upscalers.catalogue import Catalogue
from storage.dicom.dicomfile import HeaderBytes
from storage.dicom.pixels import pixel_digest
from storage.errors import NotReconstructable
from storage.thresholds import burden_of, limits_of, shares_of


@dataclass(frozen=True)
class Calibrated:
    """One image. ``point``: the chosen operating point; empty if none passed, and ``why`` gives the reason.

    ``figures``: those of the gate, by name. ``nearest``: the figure nearest to its limit; ``burden``: that figure as a
    share of the limit. ``ratio``: bytes of 16-bit pixels over those of the payload.
    """

    name: str
    point: str = ""
    upscaler: str = ""
    payload_bytes: int = 0
    ratio: float = 0.0
    nearest: str = ""
    burden: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    why: str = ""


def calibrated(files: Sequence[Path], settings: Settings) -> Iterator[Calibrated]:
    """Encode each image as the archivist would; files that are not images are skipped."""
    catalogue = Catalogue(settings.reconstruct)
    for file in files:
        picture = read_picture(file)
        if picture is not None:
            yield _calibrated(picture, settings, catalogue)


def _calibrated(picture: Picture, settings: Settings, catalogue: Catalogue) -> Calibrated:
    codec, header_bytes = settings.codec, HeaderBytes(ExplicitVRLittleEndian, b"", b"")
    try:
        source = Source.of(picture.pixels, picture.header, header_bytes, pixel_digest(picture.pixels), "OW")
    except NotReconstructable as error:
        return Calibrated(picture.name, why=str(error))
    reference = Reference(picture.pixels, picture.header)
    encoder = Encoder(
        *(source, reference, catalogue.candidates(), settings.thresholds if codec.gated else None),
        scales=codec.scales,
        effort=codec.effort,
        share=settings.gate.patches.share,
    )
    made = encoder.encode_at(codec.fixed_point) if codec.fixed_point else encoder.search()
    if made is None:
        missed = [trial for trial in encoder.tried if trial.failures]
        why = (
            f"{missed[-1].point}: {'; '.join(missed[-1].failures)}"
            if missed
            else "no operating point passes on a sample"
        )
        return Calibrated(picture.name, why=why)
    return _of(picture, made, settings)


def _of(picture: Picture, made: Encoded, settings: Settings) -> Calibrated:
    figures = {name: made.verdict.figures[name] for name in limits_of(settings.thresholds)}
    shares = shares_of(figures, settings.thresholds)
    return Calibrated(
        picture.name,
        str(made.base.point),
        made.upscaler.name,
        made.payload_bytes,
        round(picture.pixels.size * 2 / made.payload_bytes, 1),
        max(shares, key=lambda name: shares[name]),
        round(burden_of(figures, settings.thresholds), 4),
        figures,
    )


def report_of(found: Sequence[Calibrated], settings: Settings) -> dict[str, Any]:
    """The images, and the distribution of each figure over those that passed, with its limit."""
    limits = limits_of(settings.thresholds)
    passed = [each for each in found if each.point]
    return {
        "profile": settings.codec.profile.value,
        "images": [vars(each) for each in found],
        "passed": len(passed),
        "figures": {name: _spread([each.figures[name] for each in passed], limits[name]) for name in limits},
    }


def _spread(values: list[float], limit: float) -> dict[str, float]:
    if not values:
        return {"limit": limit}
    median, percentile_95, largest = (float(value) for value in np.percentile(np.abs(values), (50, 95, 100)))
    return {"median": median, "percentile_95": percentile_95, "max": largest, "limit": limit}
