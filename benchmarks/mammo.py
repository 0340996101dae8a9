"""Seconds and memory of ``mammo`` on a full-field image of 13.6 megapixels, beside JPEG XL encodings of it.

The image is ``--data``, or a real film where the extra ``demo`` is installed, cut or tiled to 4096 x 3328; else a
synthetic one. In one run and turn by turn: reconstruction from the bytes of base and guide to integer pixels in one
step and with texture, and what a user would do instead, encoding (effort 7) or decoding the full image as JPEG XL.
``network_tflop`` counts the convolutions of the tiles that are not skipped; ``share`` is their part of the image.
Peak memory is that of a process of its own that reconstructs the image once.

    python -m benchmarks.mammo [--rounds 3] [--data FILE] [--device auto] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from benchmarks.reconstruct import COLUMNS, ROWS, image
from node.codec.engine import make_base, reconstruct
from node.codec.guide import decode_guide, encode_guide
from node.codec.guiding import guided
from node.fidelity.gate import Reference
from node.fidelity.regions import breast_mask
from node.training.evaluate import original_of
from node.training.pictures import Picture, read_picture
from node.upscalers.mammo import SHIPPED, Mammo, load_network
from storage.dicomfile import HeaderBytes
from storage.payload import decode_base, encode_base
from storage.records import Rung

RUNG = Rung(2, "jpegxl", 0.6, sample_bits=12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(*options.once, options.device)))
        return
    report = compare(full_field(options.data), options.rounds, options.device)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    table = Table("", "median", title=f"{report['megapixels']} megapixels from {report['rung']}, {report['device']}")
    for name, value in report.items():
        if name not in ("megapixels", "rung", "device"):
            table.add_row(name, str(value))
    Console().print(table)


def full_field(path: Path | None) -> Picture:
    """One mammogram of exactly the benchmark's size."""
    picture = read_picture(path) if path else None
    pixels, bits = (picture.pixels, picture.bits) if picture else image()
    rows, columns = -(-ROWS // pixels.shape[0]), -(-COLUMNS // pixels.shape[1])
    full = np.ascontiguousarray(np.tile(pixels, (rows, columns))[:ROWS, :COLUMNS])
    return Picture("full field", full, bits, Dataset(), False, breast_mask(full, "MONOCHROME2"))


def compare(picture: Picture, rounds: int, device: str) -> dict[str, Any]:
    """Time each in turn, ``rounds`` times after a warm-up."""
    base = replace(make_base(original_of(picture), RUNG), header=HeaderBytes(str(ExplicitVRLittleEndian), b" ", b""))
    reference = Reference(picture.pixels, picture.header)
    still, textured = Mammo(device=device), Mammo(device=device, detail=1)
    data = encode_base(base)
    guide, _ = guided(reference, base, still, seed=1, steps=1, detail=0)
    rough = replace(guide, amplitude=np.full_like(guide.amplitude, 5))
    guides = {1: encode_guide(guide), textured.steps: encode_guide(rough)}
    full = imagecodecs.jpegxl_encode(picture.pixels, distance=1.0, effort=7)

    def ours(upscaler: Mammo) -> Callable[[], Any]:
        guide = guides[upscaler.steps]
        return lambda: reconstruct(decode_base(data), upscaler, seed=1, steps=upscaler.steps, guide=decode_guide(guide))

    times = _turn_by_turn(
        {
            "one_step_s": ours(still),
            f"texture_{textured.steps}_steps_s": ours(textured),
            "jpegxl_encode_s": lambda: imagecodecs.jpegxl_encode(picture.pixels, distance=1.0, effort=7),
            "jpegxl_decode_s": lambda: imagecodecs.jpegxl_decode(full),
        },
        rounds,
    )
    share = _share(decode_guide(guides[1]).levels)
    return {
        "megapixels": round(picture.pixels.size / 1e6, 1),
        "rung": str(RUNG),
        "device": device,
        "threads": torch.get_num_threads(),
        "share": round(share, 3),
        "network_tflop": round(_flop_per_pixel() * picture.pixels.size * share / 1e12, 3),
        **times,
        "one_step_over_3_encodings": round(times["one_step_s"] / (3 * times["jpegxl_encode_s"]), 3),
        "peak_memory_gb": _peak_memory(data, guides[1], device),
    }


def _turn_by_turn(timed: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def _share(levels: NDArray[np.uint8], tile: int = 12) -> float:
    """Part of the 768-pixel tiles that have a level in or beside them."""
    from scipy.ndimage import binary_dilation

    near = binary_dilation(levels > 0, np.ones((3, 3), dtype=bool))
    tiles = [
        near[row : row + tile, column : column + tile].any()
        for row in range(0, near.shape[0], tile)
        for column in range(0, near.shape[1], tile)
    ]
    return float(np.mean(tiles))


def _flop_per_pixel() -> float:
    """Multiplications and additions of the convolutions, per pixel of the full image, without halos."""
    network = load_network(SHIPPED)
    cells = {"middle": 64, "widen": 64, "narrow": 64}
    total = 0.0
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            total += 2 * layer.weight.numel() / cells.get(name.split(".")[0], 16)
    return total


def _peak_memory(data: bytes, guide: bytes, device: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("base", "guide")]
        for file, content in zip(files, (data, guide), strict=True):
            file.write_bytes(content)
        command = [sys.executable, "-m", "benchmarks.mammo", "--device", device, "--once", *map(str, files)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(found.stdout)["peak_memory_gb"])


def once(base: Path, guide: Path, device: str) -> dict[str, float]:
    """Reconstruct once, and say how much memory this process has had at most."""
    reconstruct(
        decode_base(base.read_bytes()), Mammo(device=device), seed=1, steps=1, guide=decode_guide(guide.read_bytes())
    )
    return {"peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}


if __name__ == "__main__":
    main()
