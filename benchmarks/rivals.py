"""Codes images by full-size JPEG XL and JPEG 2000 in a given number of bytes, to compare with reconstructions.

Both code the whole frame with samples scaled to 16 bits, which suits them best. The setting (JPEG XL's distance, JPEG
2000's target PSNR) is searched until the codestream is within 1% of the given size, or for 14 tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint16]

NEAR = 0.01
MOST_TRIES = 14


@dataclass(frozen=True)
class Rival:
    """An image decoded from another coder.

    ``pixels``: uint16 (rows, columns), the original's grey levels. ``size``: bytes of the codestream.
    """

    name: str
    pixels: Pixels
    size: int
    setting: str


def jpeg_xl(pixels: Pixels, bits: int, size: int) -> Rival:
    samples, factor = _spread(pixels, bits)
    distance, data = at_size(
        lambda distance: bytes(imagecodecs.jpegxl_encode(samples, distance=distance, effort=7, numthreads=1)),
        size,
        fine=0.05,
        coarse=20.0,
    )
    return Rival("JPEG XL", _gathered(imagecodecs.jpegxl_decode(data), factor, bits), len(data), f"d{distance:.2f}")


def jpeg_2000(pixels: Pixels, bits: int, size: int) -> Rival:
    samples, factor = _spread(pixels, bits)
    loss, data = at_size(
        lambda loss: bytes(imagecodecs.jpeg2k_encode(samples, level=100 - loss, codecformat="j2k", numthreads=1)),
        size,
        fine=10.0,
        coarse=75.0,
    )
    decoded = imagecodecs.jpeg2k_decode(data)
    return Rival("JPEG 2000", _gathered(decoded, factor, bits), len(data), f"{100 - loss:.1f} dB")


def at_size(encode: Callable[[float], bytes], size: int, *, fine: float, coarse: float) -> tuple[float, bytes]:
    """The setting between ``fine`` and ``coarse`` whose codestream is nearest to ``size`` bytes, and the codestream.

    Bytes decrease towards ``coarse``. The interval is divided by linear interpolation between the logarithms of the
    sizes at its ends, and every third time in the middle.
    """
    found = [(setting, encode(setting)) for setting in (fine, coarse)]
    low, high = found
    for number in range(MOST_TRIES):
        nearest = min(found, key=lambda each: abs(len(each[1]) - size))
        if abs(len(nearest[1]) - size) <= NEAR * size or not len(high[1]) < size < len(low[1]):
            break
        share = 0.5
        if number % 3 != 2:
            share = math.log(len(low[1]) / size) / math.log(len(low[1]) / len(high[1]))
        middle = math.exp(math.log(low[0]) + min(max(share, 0.02), 0.98) * math.log(high[0] / low[0]))
        found.append((middle, encode(middle)))
        if len(found[-1][1]) >= size:
            low = found[-1]
        else:
            high = found[-1]
    return min(found, key=lambda each: abs(len(each[1]) - size))


def _spread(pixels: Pixels, bits: int) -> tuple[Pixels, float]:
    factor = 65535 / ((1 << bits) - 1)
    return np.rint(pixels * factor).astype(np.uint16), factor


def _gathered(samples: NDArray[np.generic], factor: float, bits: int) -> Pixels:
    values = np.rint(np.asarray(samples, dtype=np.float32) / np.float32(factor))
    return np.clip(values, 0, (1 << bits) - 1).astype(np.uint16)
