"""The fingerprint of verified pixels, which distinguishes rounding differences from another picture.

Another processor or release of a library changes single grey levels of a reconstruction, so that its digest differs.
If the original was purged, the reconstruction cannot be measured again. The fingerprint has one sum per square of the
verified pixels: each pixel enters with a random sign. A sum changes by about the root of the number of pixels times the
RMS of their differences, wherever in the square these are (Johnson and Lindenstrauss, 1984). Each square has signs of
its own, so that a difference that is the same in all squares is tested once per square.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIDE = 256
"""Longest side of the squares, in pixels. Each takes 2 bytes, and all of them 0.5% of a payload. The squares of an
image have the same size to within a pixel: in a narrow remainder at the border a single difference would exceed the
limit, and the noise of so few pixels could not be estimated."""
RMS = 0.02
"""Largest RMS of the differences in a square, over the standard deviation of its drawn noise: 34 dB below the noise.
Between two sets of vector extensions it was 0.005 on a digital image with mammo."""
LEAST_RMS = 0.1
"""The limit in grey levels where little noise is drawn: as if every hundredth pixel differed by one."""
_SIGMAS = 3.0
"""Largest difference of a sum, in the standard deviations that it has at the largest RMS. Chosen, not measured."""
_MOST = 1 << 14
"""Largest difference of a sum that is accepted: sums are stored modulo 65536, so larger ones would be ambiguous."""
_STREAM = 0x66707269
"""First word of the generator's key; the second is the number of the square."""

Pixels = NDArray[np.uint16]


def fingerprint_of(pixels: Pixels) -> bytes:
    """The sums of the squares of ``pixels`` (uint16, rows x columns), in row order: uint16, little endian."""
    return np.array([_sum(number, pixels[part]) for number, part in _squares(pixels)], dtype="<u2").tobytes()


def difference(verified: bytes, served: Pixels, plain: Pixels) -> str:
    """A sentence about the first square that differs from the verified one by more than rounding; empty if none does.

    ``verified``: the fingerprint of the measured pixels, with drawn noise. ``served`` and ``plain``: the pixels to
    compare, with drawn noise and without it, both uint16, rows x columns.
    """
    known, squares = np.frombuffer(verified, "<u2").tolist(), list(_squares(served))
    if len(known) != len(squares):
        return "no fingerprint of its verified pixels was stored"
    for number, part in squares:
        noise = float((served[part].astype(np.float32) - plain[part]).std())
        limit = max(LEAST_RMS, RMS * noise)
        root = float(np.sqrt(served[part].size))
        off = abs((_sum(number, served[part]) - known[number] + 0x8000) % 0x10000 - 0x8000)
        if off > min(_SIGMAS * limit * root, _MOST):
            return (
                f"pixels from row {part[0].start}, column {part[1].start} on differ by more than rounding: by some "
                f"{off / root:.3g} grey levels, where {limit:.3g} are allowed"
            )
    return ""


def _squares(pixels: Pixels) -> Iterator[tuple[int, tuple[slice, ...]]]:
    return enumerate(product(*map(_sides, pixels.shape)))


def _sides(length: int) -> list[slice]:
    count = -(-length // SIDE)
    return [slice(each * length // count, (each + 1) * length // count) for each in range(count)]


def _sum(number: int, square: Pixels) -> int:
    """The sum of a square's pixels with its random signs, modulo 65536."""
    words = -(-square.size // 64)
    bits = np.random.Philox(key=[_STREAM, number]).random_raw(words)  # the same in each release of numpy
    plus = np.unpackbits(bits.astype("<u8").view(np.uint8), count=square.size, bitorder="little").view(bool)
    of_plus = int(square.sum(dtype=np.int64, where=plus.reshape(square.shape)))
    return (2 * of_plus - int(square.sum(dtype=np.int64))) % 0x10000
