"""Rate against distortion of mammograms: our payloads beside JPEG XL, JPEG 2000 and HTJ2K of the full-size image.

Bits per pixel are of the breast's bounding box. PSNR and tile FSIM are the gate's; HaarPSI is piq's on the same tiles,
seen through the gate's window (it halves what it is given: of the finest octave it says nothing). Our bits are the
coded base and the guide; a rival's are its bare codestream.

JPEG XL and JPEG 2000 code each image twice, its samples scaled to 12 and to 16 bits; HTJ2K to 12 and 14, as signed
integers, since its lossy decoder wraps round where a value leaves the type. All spread their bits over the images as
JPEG XL does: at each of its distances JPEG 2000 gets the whole-frame PSNR that JPEG XL reached, HTJ2K the bytes it
took. Rivals, too, are clipped to the original's least and greatest value.

Pooled points are one setting on all images: mean quality, all bits over all area. A method's curve is the least rate
at each quality over its families (our scales 1, 2 and 4; a rival's two scalings), each piecewise cubic (PCHIP) in log
rate over quality through its Pareto points; each metric picks its own rungs. BD-rate is the mean difference in log
rate where both curves lie within 0.03 to 0.3 bits per pixel: negative means that ours takes fewer bytes. "no
network" is every rung of "ours" with plain bicubic; at scale 1 that is JPEG XL at 12 bits.

    python -m benchmarks.rate_distortion --data FOLDER_OR_FILE... [--json FILE] [--png FILE] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import piq
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table
from scipy.interpolate import PchipInterpolator

from node.codec.engine import Pixels, make_base, reconstruct
from node.codec.guide import encode_guide
from node.codec.guiding import guided
from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference, measure
from node.fidelity.regions import breast_mask
from node.training.evaluate import original_of
from node.training.pictures import Picture, read_pictures
from node.upscalers.bicubic import Bicubic
from node.upscalers.mammo import SHIPPED, Mammo
from node.upscalers.protocol import Upscaler
from node.upscalers.sd_x2 import SdX2
from storage.errors import LatentPacsError
from storage.payload import Base, seed_of
from storage.pixels import pixel_digest
from storage.records import Rung

OURS, DETAIL, PLAIN, SD_X2 = "ours", "ours, detail 1", "no network", "sd_x2"
METRICS = {"psnr_db": "PSNR, dB", "fsim_mean": "FSIM mean", "fsim_p5": "FSIM p5", "haarpsi": "HaarPSI"}
RUNGS = tuple(
    Rung(scale=scale, coder="jpegxl", distance=distance, effort=7, sample_bits=12)
    for scale, distances in ((4, (0.1, 0.3, 0.6, 1.2, 2.4)), (2, (0.1, 0.2, 0.3, 0.6, 1.2, 2)), (1, (0.6, 1, 2, 3, 4)))
    for distance in distances
)
RIVAL_SETTINGS = tuple(  # bits per sample, distance of JPEG XL
    [(12, distance) for distance in (0.6, 1, 1.5, 2, 3, 4, 6, 9)]
    + [(16, distance) for distance in (1.5, 2, 3, 4, 6, 9, 14, 20)]
)
LEAST_BPP, MOST_BPP = 0.03, 0.3
SHOWN_BPP = (0.03, 0.05, 0.1, 0.2, 0.3)
_BLOCK = 16
_COLOURS = {OURS: "tab:red", DETAIL: "tab:orange", PLAIN: "tab:blue", SD_X2: "tab:purple"}
_COLOURS |= {"JPEG XL": "black", "JPEG 2000": "tab:green", "HTJ2K": "tab:brown"}
_TICKS = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)

Candidate = tuple[str, str, str, int, Pixels]  # method, family, setting, bytes taken, image
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # log bits per pixel and quality, both rising


@dataclass(frozen=True)
class Point:
    """One method at one setting, on one image or on all. ``area``: pixels of the breast's bounding box."""

    method: str
    family: str
    setting: str
    bits: int
    area: int
    bpp: float
    quality: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders or files of mammograms")
    parser.add_argument("--json", metavar="FILE", help="write all figures; - for standard output, without tables")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the curves (extra `demo`)")
    parser.add_argument("--model", type=Path, default=SHIPPED, metavar="FOLDER", help="mammo; default: the shipped one")
    parser.add_argument("--sd-x2", type=Path, metavar="FOLDER", help="weights of sd_x2; left out without")
    parser.add_argument("--max-pixels", type=int, default=0, metavar="N", help="cut larger images around the breast")
    options = parser.parse_args()
    if options.png and find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib: pip install matplotlib")
    try:
        pictures = [cut(picture, options.max_pixels) for picture in read_pictures(options.data)]
        model = options.model
        upscalers: dict[str, Upscaler] = {OURS: Mammo(model), DETAIL: Mammo(model, detail=1.0), PLAIN: Bicubic()}
        if options.sd_x2:
            upscalers[SD_X2] = SdX2(str(options.sd_x2))
        weights = {method: each.weights_digest for method, each in upscalers.items()}  # missing ones fail here
    except LatentPacsError as error:
        parser.error(str(error))
    report = report_of(list(measured(pictures, upscalers)), weights)
    if options.json == "-":
        print(json.dumps(report, indent=2))
    else:
        show(report)
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.png:
        draw_curves(report, options.png)


def cut(picture: Picture, most: int) -> Picture:
    """The picture, or a square of at most ``most`` pixels around the middle of the breast."""
    if not most or picture.pixels.size <= most:
        return picture
    side = max(TILE, math.isqrt(most))
    window = []
    for whole, blocks in zip(picture.pixels.shape, np.nonzero(picture.mask), strict=True):
        middle = (int(blocks.min()) + int(blocks.max()) + 1) * _BLOCK // 2
        start = max(min(middle - side // 2, whole - side), 0)
        window.append(slice(start, start + side))
    pixels = np.ascontiguousarray(picture.pixels[tuple(window)])
    mask = breast_mask(pixels, str(picture.header.get("PhotometricInterpretation", "")))
    return replace(picture, pixels=pixels, mask=mask)


def measured(pictures: Sequence[Picture], upscalers: dict[str, Upscaler]) -> Iterator[tuple[str, list[Point]]]:
    """Each picture's name, and every method at every setting on it."""
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=(len(RUNGS) + len(RIVAL_SETTINGS)) * len(pictures))
        for picture in pictures:
            progress.update(task, description=picture.name)
            reference = Reference(picture.pixels, picture.header)
            points: list[Point] = []
            ours = (_ours(reference, make_base(original_of(picture), rung), upscalers) for rung in RUNGS)
            rivals = (_rivals(picture, bits, distance) for bits, distance in RIVAL_SETTINGS)
            for candidates in chain(ours, rivals):
                points.extend(_point(reference, *candidate) for candidate in candidates)
                progress.advance(task)
            yield picture.name, points


def _ours(reference: Reference, base: Base, upscalers: dict[str, Upscaler]) -> Iterator[Candidate]:
    seed = seed_of(pixel_digest(reference.pixels))
    family, setting = f"x{base.rung.scale}", f"d{base.rung.distance:g}"
    for method, upscaler in upscalers.items():
        size, steps = len(base.coded), upscaler.steps
        if upscaler.guided:  # the pixels that come of a guide are those that a retrieval makes of its bytes
            guide, pixels = guided(reference, base, upscaler, seed=seed, steps=steps, detail=upscaler.detail)
            yield method, family, setting, size + len(encode_guide(guide)), pixels
        elif method != SD_X2 or base.rung.scale > 1:
            yield method, family, setting, size, reconstruct(base, upscaler, seed=seed, steps=steps)


def _rivals(picture: Picture, bits: int, distance: float) -> Iterator[Candidate]:
    """JPEG XL at ``distance`` with samples of ``bits`` bits, and the others at its PSNR or its size."""

    def restored(decoded: NDArray[Any], bits: int) -> Pixels:
        return _times(decoded, 2.0 ** (picture.bits - bits), int(picture.pixels.min()), int(picture.pixels.max()))

    samples = _times(picture.pixels, 2.0 ** (bits - picture.bits), 0, (1 << bits) - 1)
    coded = imagecodecs.jpegxl_encode(samples, distance=distance, effort=7)
    decoded = np.asarray(imagecodecs.jpegxl_decode(coded))
    yield "JPEG XL", f"{bits} bits", f"d{distance:g}", len(coded), restored(decoded, bits)

    error = float(np.mean(np.square(decoded.astype(np.float64) - samples)))
    level = 20 * math.log10((1 << bits) - 1) - 10 * math.log10(max(error, 1e-3))  # OpenJPEG's target of PSNR
    wavelet = imagecodecs.jpeg2k_encode(samples, level=level, bitspersample=bits, codecformat="j2k")
    decoded = np.asarray(imagecodecs.jpeg2k_decode(wavelet))
    yield "JPEG 2000", f"{bits} bits", f"PSNR of d{distance:g}", len(wavelet), restored(decoded, bits)

    bits = min(bits, 14)  # int16 with room for overshoot
    signed = _times(picture.pixels, 2.0 ** (bits - picture.bits), 0, (1 << bits) - 1).astype(np.int16)
    blocks = _of_size(len(coded), lambda step: imagecodecs.htj2k_encode(signed, level=step, reversible=False))
    decoded = np.asarray(imagecodecs.htj2k_decode(blocks))
    yield "HTJ2K", f"{bits} bits", f"size of d{distance:g}", len(blocks), restored(decoded, bits)


def _times(values: NDArray[Any], factor: float, least: int, most: int) -> Pixels:
    return np.asarray(np.clip(np.rint(values * np.float64(factor)), least, most), dtype=np.uint16)


def _of_size(wanted: int, encode: Callable[[float], bytes]) -> bytes:
    """The codestream nearest below ``wanted`` bytes, by halving the interval of quantisation steps."""
    least, most = -20.0, 2.0  # base-2 logarithm of the step, relative to 16 bits
    for _ in range(12):
        middle = (least + most) / 2
        least, most = (middle, most) if len(encode(2.0**middle)) > wanted else (least, middle)
    return encode(2.0**most)


def _point(reference: Reference, method: str, family: str, setting: str, size: int, pixels: Pixels) -> Point:
    area = math.prod(int(np.ptp(blocks) + 1) * _BLOCK for blocks in np.nonzero(reference.mask))
    verdict = measure(reference, pixels, None)
    figures = (verdict.psnr_db, verdict.fsim_mean, verdict.fsim_p5, _haarpsi(reference, pixels))
    return Point(method, family, setting, 8 * size, area, 8 * size / area, dict(zip(METRICS, figures, strict=True)))


def _haarpsi(reference: Reference, pixels: Pixels) -> float:
    """Mean HaarPSI (Reisenhofer et al., 2018) of the gate's tiles, as displayed."""
    x, y = (torch.from_numpy(reference.window.show(image))[None, None] for image in (pixels, reference.pixels))
    places = [np.s_[..., row : row + TILE, column : column + TILE] for row, column in reference.tiles]
    scores = [float(piq.haarpsi(x[place], y[place])) for place in places]
    return float(np.mean(scores))


def report_of(images: Sequence[tuple[str, list[Point]]], weights: dict[str, str]) -> dict[str, Any]:
    """Everything measured, pooled and compared, ready for JSON."""
    points = pooled([points for _, points in images])
    curves = curves_of(points)
    return {
        "weights": weights,
        "images": len(images),
        "left_out": "" if SD_X2 in weights else f"{SD_X2}, for want of weights (--sd-x2 FOLDER)",
        "bd_rate": bd_rates(curves),
        "shown_bpp": SHOWN_BPP,
        "at_bpp": {name: {metric: _at(curve) for metric, curve in each.items()} for name, each in curves.items()},
        "points": [asdict(point) for point in points],
        "per_image": [
            {"image": name, "bd_rate": bd_rates(curves_of(own)), "points": [asdict(point) for point in own]}
            for name, own in images
        ],
    }


def pooled(images: Sequence[list[Point]]) -> list[Point]:
    """Each setting over all images: mean quality, all bits over all area."""
    points = []
    for same in zip(*images, strict=True):
        bits, area = sum(point.bits for point in same), sum(point.area for point in same)
        quality = {metric: float(np.mean([point.quality[metric] for point in same])) for metric in METRICS}
        points.append(replace(same[0], bits=bits, area=area, bpp=bits / area, quality=quality))
    return points


def curves_of(points: Sequence[Point]) -> dict[str, dict[str, Curve]]:
    """Each method's curve for each metric."""
    methods = dict.fromkeys(point.method for point in points)
    own = {method: [point for point in points if point.method == method] for method in methods}
    return {method: {metric: _curve(mine, metric) for metric in METRICS} for method, mine in own.items()}


def _curve(points: Sequence[Point], metric: str) -> Curve:
    """The least rate at which one of the families reaches a quality, from the cheapest point's to the best."""
    cheapest = min(points, key=lambda point: point.bpp)
    quality = np.linspace(cheapest.quality[metric], max(point.quality[metric] for point in points), 2001)
    rates = np.full(quality.shape, np.inf)
    for family in {point.family for point in points}:
        kept: list[tuple[float, float]] = []
        for rate, reached in sorted((point.bpp, point.quality[metric]) for point in points if point.family == family):
            if not kept or reached > kept[-1][1]:
                kept.append((math.log(rate), reached))
        logs, reaches = zip(*kept, strict=True)
        cubic = PchipInterpolator(reaches, logs) if len(kept) > 1 else np.poly1d(logs)
        within = quality <= reaches[-1]
        rates[within] = np.minimum(rates[within], cubic(np.maximum(quality[within], reaches[0])))
    return rates, quality


def bd_rates(curves: dict[str, dict[str, Curve]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Ours, without and with detail, against everything else: {ours: {other: {metric: BD-rate or None}}}."""
    return {
        ours: {
            other: {metric: bd_rate(curves[ours][metric], curve) for metric, curve in each.items()}
            for other, each in curves.items()
            if other not in (OURS, DETAIL)
        }
        for ours in (OURS, DETAIL)
    }


def bd_rate(ours: Curve, other: Curve) -> dict[str, Any] | None:
    """Bjontegaard's rate difference in percent, and where it was taken; None where the curves do not overlap."""
    quality = np.linspace(max(ours[1][0], other[1][0]), min(ours[1][-1], other[1][-1]), 2001)
    mine, theirs = (np.interp(quality, curve[1], curve[0]) for curve in (ours, other))
    within = (np.minimum(mine, theirs) >= math.log(LEAST_BPP)) & (np.maximum(mine, theirs) <= math.log(MOST_BPP))
    if quality[0] >= quality[-1] or within.sum() < 2:
        return None
    covered = [round(math.exp(value), 4) for value in theirs[within][[0, -1]]]
    return {"percent": round(100 * math.expm1(float((mine - theirs)[within].mean())), 2), "other_bpp": covered}


def _at(curve: Curve) -> list[float | None]:
    values = np.interp(np.log(SHOWN_BPP), *curve, left=np.nan, right=np.nan)
    return [None if math.isnan(value) else round(float(value), 5) for value in values]


def show(report: dict[str, Any]) -> None:
    """Quality at a few rates, then BD-rates with the range of the other's rates that they were taken over."""
    console = Console()
    rates = Table("", "bits/px", *(f"{bpp:g}" for bpp in SHOWN_BPP), title=f"{report['images']} image(s)")
    for metric, label in METRICS.items():
        for method, values in report["at_bpp"].items():
            cells = ("-" if value is None else f"{value:.4g}" for value in values[metric])
            rates.add_row(label, method, *cells)
        rates.add_section()
    console.print(rates)
    for method, others in report["bd_rate"].items():
        table = Table("against", *METRICS.values(), title=f"BD-rate of {method}, %; below 0: fewer bytes")
        for other, found in others.items():
            table.add_row(other, *map(_cell, found.values()))
        console.print(table)
    console.print(f"left out: {report['left_out'] or 'nothing'}")


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no overlap"
    least, most = (f"{bpp:.2f}".removeprefix("0") for bpp in found["other_bpp"])
    return f"{found['percent']:+.1f} [dim]{least}-{most}[/dim]"


def draw_curves(report: dict[str, Any], file: Path) -> None:
    """Four panels, one per metric: every point, and each method's envelope as a line."""
    from matplotlib.figure import Figure

    points = [Point(**point) for point in report["points"]]
    figure = Figure(figsize=(12, 9), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(2, 2).flat, METRICS.items(), strict=True):
        for method, curves in curves_of(points).items():
            bpp, quality = np.exp(curves[metric][0]), curves[metric][1]
            seen, width = (bpp >= _TICKS[0]) & (bpp <= _TICKS[-1]), 2.4 if method in (OURS, DETAIL) else 1.3
            axes.semilogx(bpp[seen], quality[seen], label=method, color=_COLOURS[method], linewidth=width)
            dots = [p for p in points if p.method == method and _TICKS[0] <= p.bpp <= _TICKS[-1]]
            axes.scatter([p.bpp for p in dots], [p.quality[metric] for p in dots], color=_COLOURS[method], s=10)
        axes.set(title=label, xlabel="bits per pixel of the breast's box", xticks=_TICKS, xticklabels=_TICKS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(_COLOURS))
    figure.suptitle(f"{report['images']} mammogram(s); dots: settings, lines: upper envelopes")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
