"""Repeats the protocol of arXiv 2310.05299 on the available images, and compares with the paper's figures.

Each image becomes 1024 x 1024 samples of 16 bits, like the paper's PNG files. It is resized to 512 and to 256 by
torchvision (bicubic, antialiased), and decompressed by torchvision's bicubic resize, by ``bicubic`` and ``mammo``, and
by ``sd_x2`` if its weights are given (``--sd-x2 FOLDER``). FSIM is piq's for the whole frame, as in the paper. It first
averages squares of 4 x 4 pixels. PSNR has a peak of 65535. The paper's figures are those of its own latent upscaler on
the EMBED data set, so conditions differ.

Sizes are those of the 1024 x 1024 images: ZIP (deflate 6) of the raw samples, lossless PNG, JPEG XL, JPEG-LS, JPEG 2000
and HTJ2K, and 16-bit PNG of 512 x 512 and 256 x 256. Resizing all images is timed twice, with one thread and with
several, each of which resizes one image at a time, because the paper claims that threads help.

    python -m benchmarks.paper --data FOLDER_OR_FILE... [--sd-x2 FOLDER] [--threads 4] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import piq
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision.transforms.v2 import InterpolationMode, functional

from benchmarks.coded import encoder_of, settings_of
from node.fidelity.breast_regions import breast_mask
from node.training.image_files import Picture, read_pictures
from node.upscalers.bicubic import Bicubic
from node.upscalers.mammo import Mammo
from node.upscalers.protocol import Upscaler
from node.upscalers.sd_x2 import SdX2
from storage.records import OperatingPoint

SIDE, BITS = 1024, 16
TOP = (1 << BITS) - 1
LOWS = (512, 256)
PUBLISHED = {"fsim_mean": 0.93, "fsim_variance": 0.0006, "psnr_db": 28.42}
"""The paper's figures for 1024 x 1024 samples from 512 x 512."""
TORCHVISION = "torchvision bicubic"

Pixels = NDArray[np.uint16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--sd-x2", type=Path)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    upscalers: dict[str, Upscaler] = {"bicubic": Bicubic(), "mammo": Mammo()}
    if options.sd_x2:
        upscalers["sd_x2"] = SdX2(str(options.sd_x2))
    pictures = [prepared(picture) for picture in read_pictures(options.data)]
    report = {
        "images": len(pictures),
        "published": PUBLISHED,
        "likeness": likeness(pictures, upscalers),
        "bytes": sizes(pictures),
        "resizing": resizing(pictures, options.threads),
    }
    print(json.dumps(report, indent=2)) if options.json else show(report)


def prepared(picture: Picture) -> Picture:
    """A picture of 1024 x 1024 samples over the range of 16 bits, like the paper's files, with dense tissue bright."""
    values = picture.pixels.astype(np.float32) * (TOP / ((1 << picture.bits) - 1))
    if str(picture.header.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        values = TOP - values
    pixels = rounded(resize(values, SIDE))
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    header.WindowCenter, header.WindowWidth = (TOP + 1) / 2, TOP + 1
    return replace(picture, pixels=pixels, bits=BITS, header=header, mask=breast_mask(pixels, "MONOCHROME2"))


def resize(values: NDArray[Any], side: int) -> NDArray[np.float32]:
    """torchvision's antialiased bicubic resize to ``side`` x ``side``."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    made = functional.resize(tensor, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return np.asarray(made[0].numpy())


def rounded(values: NDArray[Any]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, TOP), dtype=np.uint16)


def likeness(pictures: list[Picture], upscalers: dict[str, Upscaler]) -> list[dict[str, Any]]:
    """Mean and variance over the images of PSNR and whole-frame FSIM, by low resolution and by upscaler."""
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for picture in track(pictures, "decompressing", console=Console(stderr=True)):
        for low in LOWS:
            restored: dict[str, Callable[[], Pixels]] = {TORCHVISION: partial(by_torchvision, picture, low)}
            restored |= {name: partial(by_upscaler, picture, low, each) for name, each in upscalers.items()}
            for name, make in restored.items():
                found.setdefault((low, name), []).append(compared(picture.pixels, make()))
    rows = []
    for (low, name), values in found.items():
        psnr, fsim = np.array(values).T
        row = {"from": low, "by": name, "psnr_db": psnr.mean(), "psnr_variance": psnr.var()}
        row |= {"fsim_mean": fsim.mean(), "fsim_variance": fsim.var()}
        rows.append(
            {key: value if isinstance(value, str | int) else round(float(value), 6) for key, value in row.items()}
        )
    return rows


def by_torchvision(picture: Picture, low: int) -> Pixels:
    """Downsample to 16-bit samples, as in the paper's PNG files, and upsample again."""
    return rounded(resize(rounded(resize(picture.pixels, low)), SIDE))


def by_upscaler(picture: Picture, low: int, upscaler: Upscaler) -> Pixels:
    """The reconstruction without drawn noise. The paper draws none, and it would lower both figures."""
    encoder = replace(encoder_of(picture, settings_of(upscaler="bicubic")), upscalers=(upscaler,), limits=None)
    made = encoder.encode_at(OperatingPoint(SIDE // low, "png16", effort=6))
    assert made is not None, "nothing is refused without limits"
    return made.plain


def compared(original: Pixels, made: Pixels) -> tuple[float, float]:
    """PSNR in dB and FSIM of the whole frame."""
    x, y = (torch.from_numpy(each.astype(np.float32) / TOP)[None, None] for each in (original, made))
    return float(piq.psnr(y, x)), float(piq.fsim(y, x, chromatic=False))


def sizes(pictures: list[Picture]) -> dict[str, dict[str, float]]:
    """Bytes per image, and their share of the raw samples."""
    coders: dict[str, Callable[[Pixels], bytes]] = {
        "raw": lambda pixels: pixels.tobytes(),
        "ZIP": zipped,
        "PNG": imagecodecs.png_encode,
        "JPEG XL": lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True, effort=7),
        "JPEG-LS": imagecodecs.jpegls_encode,
        "JPEG 2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, reversible=True, level=0),
        "HTJ2K": lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True),
        **{f"PNG of {low}": partial(png_of, low=low) for low in LOWS},
    }
    raw = sum(picture.pixels.nbytes for picture in pictures)
    found = {}
    for name, encode in coders.items():
        total = sum(len(encode(np.ascontiguousarray(picture.pixels))) for picture in pictures)
        found[name] = {"bytes_per_image": round(total / len(pictures)), "share_of_raw": round(total / raw, 4)}
    return found


def png_of(pixels: Pixels, low: int) -> bytes:
    return bytes(imagecodecs.png_encode(rounded(resize(pixels, low))))


def zipped(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image", pixels.tobytes())
    return out.getvalue()


def resizing(pictures: list[Picture], threads: int) -> list[dict[str, Any]]:
    """Seconds to resize all images to 512 x 512, the better of two runs. Within each thread torch uses one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        counts = sorted({1, 2, threads})
        took: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(2):
            for count in counts:
                with ThreadPoolExecutor(count) as pool:
                    began = time.perf_counter()
                    list(pool.map(lambda picture: resize(picture.pixels, LOWS[0]), pictures))
                    took[count].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    one = min(took[1])
    return [
        {"threads": count, "seconds": round(min(each), 4), "speedup": round(one / min(each), 2)}
        for count, each in took.items()
    ]


def show(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        "from", "by", "PSNR dB", "FSIM mean", "FSIM variance", title=f"{report['images']} images, 1024 x 1024"
    )
    for row in report["likeness"]:
        figures = (f"{row['psnr_db']:.2f}", f"{row['fsim_mean']:.4f}", f"{row['fsim_variance']:.6f}")
        table.add_row(str(row["from"]), row["by"], *figures)
    table.add_row("512", "published", *(str(PUBLISHED[name]) for name in ("psnr_db", "fsim_mean", "fsim_variance")))
    console.print(table)
    table = Table("bytes", "per image", "share of raw")
    for name, size in report["bytes"].items():
        table.add_row(name, f"{size['bytes_per_image']:,}", f"{size['share_of_raw']:.3f}")
    console.print(table)
    table = Table("resizing, threads", "seconds", "speedup")
    for row in report["resizing"]:
        table.add_row(str(row["threads"]), str(row["seconds"]), str(row["speedup"]))
    console.print(table)


if __name__ == "__main__":
    main()
