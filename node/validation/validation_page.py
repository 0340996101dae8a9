"""Makes the report page of a validation: verdict, classifiers, ROC curves, fidelity of the arms, worst images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.config import ValidationSettings
from node.reports.charts import draw
from node.reports.page import (
    Banner,
    Chart,
    KeyFigure,
    KeyFigures,
    Mark,
    PagePicture,
    PageSection,
    Paragraph,
    Part,
    Pictures,
    Table,
    Tone,
)
from node.reports.page import page as html_page
from node.validation.findings import Figure, Findings, Trained, say
from node.validation.statistics import MEASURES, Equivalence
from node.validation.terms import Subject
from storage.printable import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_TONES: dict[Equivalence, Tone] = {
    Equivalence.EQUIVALENT: "good",
    Equivalence.DIFFERENT: "bad",
    Equivalence.INCONCLUSIVE: "warning",
}
_UNITS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "fsim": "FSIM"}


@dataclass(frozen=True)
class Worst:
    """The tile of an image with the lowest FSIM. ``figures``: PSNR (dB), SSIM and FSIM. ``pictures``: source,
    reconstruction and difference, uint8 (256, 256)."""

    subject: Subject
    corner: tuple[int, int]
    figures: tuple[float, ...]
    pictures: tuple[NDArray[np.uint8], ...]


def page(found: Findings, worst: list[Worst], settings: ValidationSettings, backbone: str, finished: datetime) -> str:
    sections = [
        PageSection("Summary", _summary(found)),
        PageSection("Classifiers", _classifiers(found)),
        PageSection("Fidelity of the arms to the sources", _likeness(found)),
        PageSection("Least faithful tiles", _worst(worst)),
        PageSection("Method", _method(found, settings, backbone)),
    ]
    subtitle = f"ResNet50 on source, decompressed and compressed images, {finished:%Y-%m-%d %H:%M} UTC"
    _, _, text = found.sentence.partition(": ")
    banner = Banner(_TONES[found.verdict], found.verdict.capitalize(), text[:1].upper() + text[1:])
    return html_page("Validation", subtitle, banner, sections, "Latent PACS; not a medical device.")


def _summary(found: Findings) -> list[Part]:
    auc = {one.name: one.figures["auc"] for one in found.trained}
    cards = [KeyFigure(f"AUC, {name}", f"{value[0]:.3f}", _interval(value)) for name, value in auc.items()]
    cards.append(
        KeyFigure(
            "Images",
            f"{sum(found.counts.values()):,}",
            f"{found.counts[found.positive]} {found.positive} (positive), {counted(found.patients, 'patient')}",
        )
    )
    ratio = found.pixel_bytes / max(found.payload_bytes, 1)
    cards.append(KeyFigure("Payloads", f"{found.payload_bytes / 1e6:,.1f} MB", f"pixels are {ratio:.0f} times as many"))
    parts: list[Part] = []
    if found.weights == "none":
        parts.append(
            Paragraph(
                "Weights: none. The backbone has random weights: this run tests the procedure, and says little about a "
                "trained classifier.",
                strong=True,
            )
        )
    parts.append(KeyFigures(cards))
    if found.excluded:
        rows = [[name, why, str(count)] for (name, why), count in sorted(found.excluded.items())]
        parts.append(Table(["class", "reason", "images"], rows, "Labelled images that are left out", "llr"))
    return parts


def _classifiers(found: Findings) -> list[Part]:
    head = ["trained on", "tested on", *("AUC" if name == "auc" else name for name in MEASURES)]
    rows = [
        [one.trained_on.value, one.tested_on.value, *(_with_interval(one.figures[name]) for name in MEASURES)]
        for one in found.trained
    ]
    parts: list[Part] = [
        Table(head, rows, "With 95% intervals (bootstrap by patient); positive from a score of 0.5", "llrrrr")
    ]
    parts.append(Chart(draw(lambda drawing: _roc(drawing, found.trained), "ROC curves", 4.2), "ROC curves"))
    compared = [_compared(one) for one in found.trained[1:]]
    columns = [
        "against source",
        "difference of AUC",
        "90% interval",
        "p, no difference",
        "p, not equivalent",
        "verdict",
    ]
    parts.append(Table(columns, compared, f"Equivalence within {found.margin:g} (TOST at 5%)", "lrrrrl"))
    parts += [
        Paragraph(say(found.trained[0], one, found.counts[found.positive], blind=found.blind))
        for one in found.trained[1:]
    ]
    return parts


def _compared(one: Trained) -> list[str | Mark]:
    comparison = one.compared
    return [
        one.name,
        f"{comparison.difference:+.4f}",
        f"{comparison.low:+.4f} to {comparison.high:+.4f}",
        _p(comparison.p_different),
        _p(comparison.p_equivalent),
        Mark(comparison.verdict.value, _TONES[comparison.verdict]),
    ]


def _likeness(found: Findings) -> list[Part]:
    rows: list[list[str | Mark]] = [
        [
            one.arm.value,
            _UNITS[one.measure],
            *(_figure(value) for value in (one.full_mean, one.full_variance, one.tile_mean, one.tile_variance)),
            f"{one.tiles:,}",
        ]
        for one in found.likeness
    ]
    head = ["arm", "measure", "frame: mean", "variance", "tiles: mean", "variance", "tiles"]
    return [
        Table(
            head, rows, "Decompressed against source; compressed against the source at its own resolution", "llrrrrr"
        ),
        Paragraph(
            "Whole-frame FSIM is the paper's: it averages squares of pixels first, so fine detail has little effect. "
            "Tiles are 256 x 256 pixels and contain breast. All figures are measured through the image's display "
            "window. The paper reports, at 1024 pixels from 512: FSIM 0.93, variance 0.0006, PSNR 28.42 dB."
        ),
    ]


def _worst(worst: list[Worst]) -> list[Part]:
    parts: list[Part] = []
    for one in worst:
        psnr, ssim, fsim = one.figures
        names = ("source", "decompressed", "difference: black to white spans a quarter of the display window")
        pictures = [PagePicture(pixels, name) for pixels, name in zip(one.pictures, names, strict=True)]
        caption = (
            f"{one.subject.uid}, {one.subject.class_name}, row {one.corner[0]}, column {one.corner[1]}: "
            f"FSIM {fsim:.3f}, SSIM {ssim:.3f}, PSNR {psnr:.1f} dB"
        )
        parts.append(Pictures(pictures, caption))
    return parts or [
        Paragraph("No image has a tile of 256 x 256 pixels that contains breast, or none can be made again.")
    ]


def _method(found: Findings, settings: ValidationSettings, backbone: str) -> list[Part]:
    weights = "none (random)" if found.weights == "none" else found.weights
    return [
        Paragraph(f"Backbone: torchvision ResNet50, frozen, weights {weights}, SHA-256 {backbone}."),
        Paragraph(
            "Images were retrieved as for C-MOVE; the compressed arm is the payload's decoded base. Source and "
            "decompressed images are resized to at most 1024 pixels a side, compressed ones to 512 (scale 2) or 256 "
            "(scale 4); classifiers do not see finer detail, as in the paper. Images are cropped to the breast."
        ),
        Paragraph(
            f"Cross-validation in {settings.folds} folds by patient, with balanced classes. Per fold and arm the dense "
            f"layers' hyperparameters were chosen by {settings.trials} trials of Bayesian optimisation (TPE) on "
            "patients of the training folds only. Areas and their covariance are DeLong's (1988), with patients as "
            "clusters (Obuchowski 1997); the standard error of a difference is at least half a case of the rarer class."
        ),
    ]


def _roc(drawing: Drawing, trained: tuple[Trained, ...]) -> None:
    axes = drawing.subplots()
    for one in trained:
        style = "-" if one.trained_on is one.tested_on else "--"
        axes.step(*one.curve, style, where="post", label=f"{one.name} ({one.figures['auc'][0]:.3f})")
    axes.plot([0, 1], [0, 1], ":", linewidth=0.8, color="#8a8a8a")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="trained on (AUC)")


def _interval(figure: Figure) -> str:
    return "" if math.isnan(figure[1]) else f"{figure[1]:.3f} to {figure[2]:.3f}"


def _with_interval(figure: Figure) -> str:
    return "undefined" if math.isnan(figure[0]) else f"{figure[0]:.3f} ({_interval(figure)})"


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
