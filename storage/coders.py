"""The coders: uint16 samples to bytes and back. One small class each, alike in shape.

``png16`` is the paper's (16-bit grayscale PNG); ``jpegls``, ``htj2k`` and ``jpegxl`` are lossless at distance 0;
``jpegxl`` is lossy at a positive Butteraugli distance, and so is ``avif``, whose quantiser is chosen to be about as
coarse. The bytes are plain files of their format, without a wrapper.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from storage.errors import PayloadError
from storage.records import Rung

Samples = NDArray[np.uint16]

_MOST_THREADS = 8
"""A bound for machines with many processors, which several workers may share."""


class Coder(Protocol):
    """Integers to bytes. ``decode(encode(x))`` has the shape of x, and equals x where ``distance`` is 0."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        """Code uint16 samples of shape (rows, columns)."""

    def decode(self, data: bytes) -> Samples:
        """The samples. May raise any error of its library on damaged bytes."""


class Png16:
    """16-bit grayscale PNG, as in arXiv 2310.05299. ``effort`` is the deflate level."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        _lossless_only("png16", distance)
        return bytes(imagecodecs.png_encode(samples, level=effort))

    def decode(self, data: bytes) -> Samples:
        return np.asarray(imagecodecs.png_decode(data))


class JpegLs:
    """JPEG-LS (ISO/IEC 14495-1), lossless. ``effort`` has no effect."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        _lossless_only("jpegls", distance)
        return bytes(imagecodecs.jpegls_encode(samples, level=0))

    def decode(self, data: bytes) -> Samples:
        return np.asarray(imagecodecs.jpegls_decode(data))


class HtJ2k:
    """High-throughput JPEG 2000 (ISO/IEC 15444-15), reversible. ``effort`` has no effect."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        _lossless_only("htj2k", distance)
        return bytes(imagecodecs.htj2k_encode(samples, reversible=True))

    def decode(self, data: bytes) -> Samples:
        return np.asarray(imagecodecs.htj2k_decode(data))


class JpegXl:
    """JPEG XL (ISO/IEC 18181), lossless modular at distance 0, VarDCT above."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        if distance == 0:
            return bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=effort, numthreads=_threads()))
        return bytes(imagecodecs.jpegxl_encode(samples, distance=distance, effort=effort, numthreads=_threads()))

    def decode(self, data: bytes) -> Samples:
        return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=_threads()))


class Avif:
    """AV1 (AVIF), monochrome, 12 bits, lossy only: libaom. Its decoder works in integers: same samples everywhere.

    ``distance``: as of JPEG XL, see ``quantiser``. ``effort``: 1 to 9, libaom's speed being 9 less that, plus 4. On
    mammograms 7, speed 6, is as good as anything slower: what those smooth more, the gate asks back.
    """

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        if distance <= 0:
            raise ValueError("coder avif is lossy; distance must be above 0")
        if samples.size and int(samples.max()) > AVIF_TOP:
            raise ValueError(f"coder avif takes samples of 12 bits, not {int(samples.max())}")
        # imagecodecs codes one channel without loss, whatever the level; of three that are equal it keeps one, lossily
        grey = np.broadcast_to(samples[..., None], (*samples.shape, 3))
        return bytes(
            imagecodecs.avif_encode(
                np.ascontiguousarray(grey),
                level=round(100 - quantiser(distance) * 100 / 63),
                speed=min(max(13 - effort, 0), 10),
                bitspersample=12,
                pixelformat=imagecodecs.AVIF.PIXEL_FORMAT.YUV400,  # releases differ in its name
                codec="aom",
                numthreads=1,  # with more, libaom codes otherwise, and a little larger
            )
        )

    def decode(self, data: bytes) -> Samples:
        return np.asarray(imagecodecs.avif_decode(data, numthreads=_threads()))


AVIF_TOP = 4095
"""The largest sample that ``avif`` takes."""


def top_sample(coder: str) -> int:
    """The largest sample that a coder takes."""
    return AVIF_TOP if coder == "avif" else 65535


def quantiser(distance: float) -> int:
    """How coarse libavif is asked to be, 1 to 63, for about what a JPEG XL distance is on mammograms, by tile FSIM.

    libavif 1.4 makes of its quality, which this becomes, a quantiser of AV1 by a table of its own.
    """
    return min(max(round(27 + 9 * math.log2(distance)), 1), 63)


def step_octaves(rung: Rung) -> float:
    """The logarithm to base 2 of a lossy coder's quantisation step, up to a constant: 1 more is what samples scaled by
    a half come to. Measured on mammograms by bytes; JPEG XL refines its steps where distances are large."""
    if rung.coder == "avif":
        number = quantiser(rung.distance)
        return 0.143 * number if number > 10 else 1.43 - 0.345 * (10 - number)
    return 0.65 * math.log2(rung.distance)


CODERS: dict[str, Coder] = {"png16": Png16(), "jpegls": JpegLs(), "jpegxl": JpegXl(), "avif": Avif()}
"""Of bases: damaged bytes raise."""

ORIGINAL_CODERS: dict[str, Coder] = {"jpegls": JpegLs(), "jpegxl": JpegXl(), "htj2k": HtJ2k()}
"""Of packed originals, whose checksum is looked at first: the HTJ2K decoder does not notice every damage."""


def encode(samples: Samples, rung: Rung) -> bytes:
    """Code base samples as the rung says."""
    return CODERS[rung.coder].encode(np.ascontiguousarray(samples), distance=rung.distance, effort=rung.effort)


def decode(data: bytes, rung: Rung, shape: tuple[int, int]) -> Samples:
    """Decode base samples and check that they are what the payload says. Raises PayloadError."""
    try:
        samples = CODERS[rung.coder].decode(data)
    except Exception as error:
        raise PayloadError(f"{rung.coder} codestream cannot be decoded: {error}") from error
    if samples.shape != shape or samples.dtype != np.uint16:
        raise PayloadError(f"{rung.coder} codestream holds {samples.dtype} {samples.shape}, not uint16 {shape}")
    return samples


def _threads() -> int:
    """As many as torch is given, else one per processor at hand; the bytes are the same whatever their number."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list where parallel regions are nested
    return int(given) if given.isdigit() and int(given) else min(os.cpu_count() or 1, _MOST_THREADS)


def _lossless_only(name: str, distance: float) -> None:
    if distance:
        raise ValueError(f"coder {name} is lossless; distance must be 0, not {distance:g}")
