"""The coders: uint16 samples to bytes and back. One small class each, alike in shape.

``png16`` is the paper's (16-bit grayscale PNG); ``jpegls``, ``htj2k`` and ``jpegxl`` are lossless at distance 0;
``jpegxl`` is lossy at a positive Butteraugli distance. The bytes are plain files of their format, without a wrapper.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from storage.dicom.codestreams import codestream_header
from storage.errors import PayloadError
from storage.records import OperatingPoint

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


CODERS: dict[str, Coder] = {"png16": Png16(), "jpegls": JpegLs(), "jpegxl": JpegXl()}
"""Of bases: damaged bytes raise."""

ORIGINAL_CODERS: dict[str, Coder] = {"jpegls": JpegLs(), "jpegxl": JpegXl(), "htj2k": HtJ2k()}
"""Of packed originals, whose checksum is looked at first: the HTJ2K decoder does not notice every damage."""


def encode(samples: Samples, point: OperatingPoint) -> bytes:
    """Code base samples as the operating point says."""
    return CODERS[point.coder].encode(np.ascontiguousarray(samples), distance=point.distance, effort=point.effort)


def decode(data: bytes, point: OperatingPoint, shape: tuple[int, int]) -> Samples:
    """Decode base samples and check that they are what the payload says. Raises PayloadError."""
    samples = decode_of_shape(CODERS, point.coder, data, shape)
    if samples.shape != shape or samples.dtype != np.uint16:
        raise PayloadError(f"{point.coder} codestream holds {samples.dtype} {samples.shape}, not uint16 {shape}")
    return samples


def decode_of_shape(coders: Mapping[str, Coder], name: str, data: bytes, shape: tuple[int, int]) -> Samples:
    """Decode a codestream that announces that shape; its first bytes are looked at before the decoder may allocate.

    Raises PayloadError.
    """
    try:
        found = codestream_header(data)
        if (found.rows, found.columns) != shape or found.samples > 1:
            size = (found.rows, found.columns, *((found.samples,) if found.samples > 1 else ()))
            raise PayloadError(f"{name} codestream holds {size}, not uint16 {shape}")
        return coders[name].decode(data)
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"{name} codestream cannot be decoded: {error!r}") from error


def _threads() -> int:
    """As many as torch is given, else one per processor at hand; the bytes are the same whatever their number."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list where parallel regions are nested
    return int(given) if given.isdigit() and int(given) else min(os.cpu_count() or 1, _MOST_THREADS)


def _lossless_only(name: str, distance: float) -> None:
    if distance:
        raise ValueError(f"coder {name} is lossless; distance must be 0, not {distance:g}")
