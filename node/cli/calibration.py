"""What ``latent-pacs gate calibrate`` measures and proposes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from node.codec.engine import make_base, reconstruct
from node.codec.guiding import guided
from node.config import Profile, Settings
from node.fidelity.gate import Reference, Survey, judge, survey
from node.training.evaluate import original_of
from node.training.pictures import NoPictures, picture_files, read_picture
from node.upscalers.catalogue import Catalogue
from storage.payload import seed_of
from storage.pixels import pixel_digest
from storage.records import Verdict

_LEAST_IS_WORST = ("fsim_mean", "fsim_p5", "psnr_db", "fsim_worst")
_PROPOSED = ("fsim_worst", "error_p999", "error_max", "shift", "outside")
_SHARE = 1.0
"""Percent of tiles that the proposed thresholds leave to patches or to the next rung."""


@dataclass(frozen=True)
class Measured:
    """One image on one rung."""

    name: str
    rung: str
    verdict: Verdict
    survey: Survey


def pictures_in(folder: Path) -> list[Path]:
    """Files that may be pictures. Raises NoPictures."""
    files = picture_files([folder])
    if not files:
        raise NoPictures(f"{folder} is empty")
    return files


def measured(files: Sequence[Path], limit: int, settings: Settings) -> Iterator[Measured]:
    """Every picture on every rung of the ladder, by the configured upscaler. Raises NoPictures where there is none."""
    upscaler = Catalogue(settings.reconstruct).configured()
    done = 0
    for file in files:
        picture = read_picture(file)
        if picture is None:
            continue
        original, reference = original_of(picture), Reference(picture.pixels, picture.header)
        seed = seed_of(pixel_digest(picture.pixels))
        for rung in settings.codec.rungs:
            base = make_base(original, rung)
            if upscaler.guided:
                output = guided(reference, base, upscaler, seed=seed, steps=upscaler.steps, detail=upscaler.detail)[1]
            else:
                output = reconstruct(base, upscaler, seed=seed, steps=upscaler.steps)
            found = survey(reference, output)
            yield Measured(picture.name, str(rung), judge(found, settings.thresholds), found)
        done += 1
        if limit and done == limit:
            return
    if not done:
        raise NoPictures(f"no DICOM, PNG or JPEG mammogram of 256 pixels or more a side in {files[0].parent}")


def report_of(found: Sequence[Measured], settings: Settings) -> dict[str, Any]:
    """Distributions per rung, over images or over tiles with breast, and the thresholds proposed."""
    limits = settings.thresholds
    rungs = []
    for rung in dict.fromkeys(each.rung for each in found):
        own = [each for each in found if each.rung == rung]
        passed = sum(not each.verdict.failures for each in own)
        figures = {name: _spread(name, values) for name, values in _figures(own).items()}
        rungs.append({"rung": rung, "images": len(own), "passed": passed, "figures": figures})
    fair = [
        each
        for each in found
        if each.verdict.fsim_mean >= limits.fsim_mean
        and each.verdict.fsim_p5 >= limits.fsim_p5
        and each.verdict.psnr_db >= limits.psnr_db
    ]
    strict = settings.codec.profile in (Profile.STRICT, Profile.US_MQSA)
    return {
        "images": len({each.name for each in found}),
        "profile": settings.codec.profile.value,
        "section": "strict" if strict else "balanced",
        "thresholds": {name: value for name, value in vars(limits).items() if math.isfinite(value)},
        "rungs": rungs,
        "proposed": _proposed(fair) if fair else {},
    }


def _figures(found: Sequence[Measured]) -> dict[str, np.ndarray[Any, Any]]:
    """Each figure, named as its threshold is, of all images or of all tiles."""
    breast = [each.survey.breast for each in found]
    return {
        "fsim_mean": np.array([each.verdict.fsim_mean for each in found]),
        "fsim_p5": np.array([each.verdict.fsim_p5 for each in found]),
        "psnr_db": np.array([each.verdict.psnr_db for each in found]),
        "fsim_worst": np.concatenate([each.survey.fsim[own] for each, own in zip(found, breast, strict=True)]),
        "error_p999": np.concatenate([each.survey.error_p999[own] for each, own in zip(found, breast, strict=True)]),
        "error_max": np.concatenate([each.survey.error_max[own] for each, own in zip(found, breast, strict=True)]),
        "shift": np.concatenate([np.abs(each.survey.shift[own]) for each, own in zip(found, breast, strict=True)]),
        "outside": np.concatenate([each.survey.outside_max for each in found]),
        "specks_lost": np.array([each.verdict.figures["specks_lost"] for each in found]),
        "specks_invented": np.array([each.verdict.figures["specks_invented"] for each in found]),
    }


def _spread(name: str, values: np.ndarray[Any, Any]) -> dict[str, float]:
    percentiles = (50, 5, 0) if name in _LEAST_IS_WORST else (50, 95, 100)
    median, bad, worst = (float(value) for value in np.percentile(values, percentiles))
    return {"median": median, "worst_5_percent": bad, "worst": worst}


def _proposed(fair: Sequence[Measured]) -> dict[str, float]:
    """What all but one percent of tiles keep to, rounded to two digits towards letting more through."""
    figures = _figures(fair)
    proposed = {}
    for name in _PROPOSED:
        least = name in _LEAST_IS_WORST
        share, side = (_SHARE, "lower") if least else (100 - _SHARE, "higher")
        value = float(np.percentile(figures[name], share, method=side))  # type: ignore[call-overload]
        step = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1e-3
        rounded = math.floor(value / step) * step if least else math.ceil(value / step) * step
        proposed[name] = float(f"{max(rounded, step):.3g}")
    return proposed
