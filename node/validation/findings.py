"""The results of a validation: classifiers per setting compared with the sources, and fidelity of the arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.config import ValidationSettings
from node.validation.statistics import MEASURES, Comparison, Equivalence, bootstrap, compare, interval, measures, roc
from node.validation.terms import MEASURES as LIKENESS
from node.validation.terms import Arm, Subject

SETTINGS = (
    (Arm.SOURCE, Arm.SOURCE),
    (Arm.DECOMPRESSED, Arm.DECOMPRESSED),
    (Arm.COMPRESSED, Arm.COMPRESSED),
    (Arm.SOURCE, Arm.DECOMPRESSED),
)
"""(trained on, tested on). Each other setting is compared with the first one. The second one gives the verdict."""

Excluded = Counter[tuple[str, str]]
"""Number of labelled images that are left out, by class and reason."""
_SEED = 0

Figure = tuple[float, float, float]
"""A value and the bounds of its 95% interval; nan if undefined."""


@dataclass(frozen=True)
class Trained:
    """Results of one of SETTINGS. ``comparison``: with the sources; None for the sources. ``curve``: the ROC curve."""

    trained_on: Arm
    tested_on: Arm
    figures: dict[str, Figure]
    comparison: Comparison | None
    curve: tuple[NDArray[np.float64], NDArray[np.float64]]

    @property
    def name(self) -> str:
        return self.trained_on if self.trained_on is self.tested_on else f"{self.trained_on}, on {self.tested_on}"

    @property
    def compared(self) -> Comparison:
        assert self.comparison is not None, "only the sources have no comparison"
        return self.comparison


@dataclass(frozen=True)
class Likeness:
    """Mean and variance of one measure of one arm, over images (whole frames) and over all tiles of all images."""

    arm: Arm
    measure: str
    full_mean: float
    full_variance: float
    tile_mean: float
    tile_variance: float
    tiles: int


@dataclass(frozen=True)
class Findings:
    """Results of a validation. ``blind``: on the sources the classifier is not significantly better than chance. All
    comparisons are then inconclusive."""

    trained: tuple[Trained, ...]
    likeness: tuple[Likeness, ...]
    blind: bool
    positive: str
    counts: Mapping[str, int]
    patients: int
    excluded: Excluded
    weights: str
    margin: float
    pixel_bytes: int
    payload_bytes: int

    @property
    def verdict(self) -> Equivalence:
        """The verdict on decompressed images against sources."""
        return self.trained[1].compared.verdict

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return say(self.trained[0], self.trained[1], self.counts[self.positive], blind=self.blind)

    def summary(self) -> dict[str, Any]:
        """The figures that later runs are compared with."""
        compared = self.trained[1].compared
        return {
            "verdict": self.verdict.value,
            "auc": {one.name: round(one.figures["auc"][0], 4) for one in self.trained},
            "difference": compared.difference,
            "interval_90": [compared.low, compared.high],
            "margin": self.margin,
            "positives_needed": compared.positives_needed,
            "positive": self.positive,
            "images": sum(self.counts.values()),
            "positives": self.counts[self.positive],
            "patients": self.patients,
            "excluded": self.excluded.total(),
            "weights": self.weights,
            "ratio": round(self.pixel_bytes / max(self.payload_bytes, 1), 1),
        }

    def details(self) -> dict[str, Any]:
        """All other figures."""
        return {
            "trained": [
                {
                    "trained_on": one.trained_on.value,
                    "tested_on": one.tested_on.value,
                    "figures": {name: list(figure) for name, figure in one.figures.items()},
                    "comparison": None if one.comparison is None else asdict(one.comparison),
                    "roc": [axis.tolist() for axis in one.curve],
                }
                for one in self.trained
            ],
            "likeness": [asdict(one) for one in self.likeness],
            "classes": dict(self.counts),
            "excluded": [{"class": name, "reason": why, "images": n} for (name, why), n in self.excluded.items()],
            "pixel_bytes": self.pixel_bytes,
            "payload_bytes": self.payload_bytes,
        }


def find(
    subjects: list[Subject],
    scores: NDArray[np.float64],
    truth: NDArray[np.bool_],
    settings: ValidationSettings,
    *,
    positive: str,
    excluded: Excluded,
) -> Findings:
    """The results, from ``scores`` of all images by each of SETTINGS (settings, n). Raises TooFewCases."""
    patients = [one.patient for one in subjects]
    values, drawn = measures(scores, truth), bootstrap(scores, truth, patients, settings.bootstrap, _SEED)
    figures = [
        {name: (float(values[row, n]), *interval(drawn[:, row, n])) for n, name in enumerate(MEASURES)}
        for row in range(len(SETTINGS))
    ]
    blind = not figures[0]["auc"][1] > 0.5
    trained = []
    for row, (trained_on, tested_on) in enumerate(SETTINGS):
        compared = compare(scores[[0, row]], truth, patients, settings.margin) if row else None
        if compared is not None and blind:
            compared = replace(compared, verdict=Equivalence.INCONCLUSIVE, positives_needed=None)
        trained.append(Trained(trained_on, tested_on, figures[row], compared, roc(scores[row], truth)))
    return Findings(
        trained=tuple(trained),
        likeness=tuple(_likeness(subjects)),
        blind=blind,
        positive=positive,
        counts=Counter(one.class_name for one in subjects),
        patients=len(set(patients)),
        excluded=excluded,
        weights=settings.weights,
        margin=settings.margin,
        pixel_bytes=sum(one.instance.pixel_bytes for one in subjects),
        payload_bytes=sum(one.rendition.payload_bytes for one in subjects),
    )


def say(source: Trained, other: Trained, positives: int, *, blind: bool) -> str:
    """A verdict in words, with the estimated number of positives for a conclusive one."""
    compared = other.compared
    if blind:
        low = source.figures["auc"][1]
        return (
            f"inconclusive: on the sources themselves the classifier does not separate the classes (AUC "
            f"{source.figures['auc'][0]:.3f}, 95% interval from {low:.3f}), so the others cannot be judged"
        )
    head = (
        f"{compared.verdict}: {other.name} AUC {other.figures['auc'][0]:.3f}, source {source.figures['auc'][0]:.3f}, "
        f"difference {compared.difference:+.3f} (90% interval {compared.low:+.3f} to {compared.high:+.3f}, "
        f"margin {compared.margin:g})"
    )
    if compared.positives_needed is None:
        return head
    return f"{head}; about {compared.positives_needed:,} positive images would settle it, {positives} are labelled"


def _likeness(subjects: list[Subject]) -> list[Likeness]:
    found = []
    for arm in (Arm.DECOMPRESSED, Arm.COMPRESSED):
        known = [one.arms[arm].fidelity for one in subjects]
        full = np.stack([one.full for one in known if one is not None])
        tiles = np.concatenate([one.tiles for one in known if one is not None])
        for number, name in enumerate(LIKENESS):
            found.append(Likeness(arm, name, *_moments(full[:, number]), *_moments(tiles[:, number]), len(tiles)))
    return found


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and population variance; nan without values."""
    return (float(values.mean()), float(values.var())) if values.size else (math.nan, math.nan)
