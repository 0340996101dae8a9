"""Coders: encode uint16 samples as bytes, and decode them.

All coders are lossless at distance 0; ``jpegxl`` is lossy at a positive Butteraugli distance. The bytes are files or
codestreams of the format, without a wrapper.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from storage.dicom.codestreams import codestream_header
from storage.errors import PayloadError
from storage.records import OperatingPoint

Samples = NDArray[np.uint16]

_MAX_THREADS = 8
"""Maximum threads per coder, since several workers may share the processors. Chosen, not measured."""


class Coder(Protocol):
    """``decode(encode(x))`` has the shape of x, and equals x if ``distance`` is 0."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        """Encode uint16 samples of shape (rows, columns)."""

    def decode(self, data: bytes) -> Samples:
        """Decode samples. May raise any error of the library on damaged bytes."""


@dataclass(frozen=True)
class Lossless:
    """A lossless coder. ``encoder`` takes samples and an effort, which it may ignore."""

    name: str
    encoder: Callable[[Samples, int], bytes | bytearray]
    decoder: Callable[[bytes], Samples]

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        if distance:
            raise ValueError(f"coder {self.name} is lossless; distance must be 0, not {distance:g}")
        return bytes(self.encoder(samples, effort))

    def decode(self, data: bytes) -> Samples:
        return np.asarray(self.decoder(data))


class JpegXl:
    """JPEG XL (ISO/IEC 18181): lossless modular at distance 0, otherwise VarDCT."""

    def encode(self, samples: Samples, *, distance: float, effort: int) -> bytes:
        if distance == 0:
            return bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=effort, numthreads=_threads()))
        return bytes(imagecodecs.jpegxl_encode(samples, distance=distance, effort=effort, numthreads=_threads()))

    def decode(self, data: bytes) -> Samples:
        return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=_threads()))


_PNG_16 = Lossless(
    "png16", lambda samples, effort: imagecodecs.png_encode(samples, level=effort), imagecodecs.png_decode
)
"""16-bit grayscale PNG, as in arXiv 2310.05299. The effort is the deflate level."""
_JPEG_LS = Lossless(
    "jpegls", lambda samples, effort: imagecodecs.jpegls_encode(samples, level=0), imagecodecs.jpegls_decode
)
"""JPEG-LS (ISO/IEC 14495-1), lossless."""
_HTJ2K = Lossless(
    "htj2k", lambda samples, effort: imagecodecs.htj2k_encode(samples, reversible=True), imagecodecs.htj2k_decode
)
"""High-throughput JPEG 2000 (ISO/IEC 15444-15), reversible."""

CODERS: dict[str, Coder] = {"png16": _PNG_16, "jpegls": _JPEG_LS, "jpegxl": JpegXl()}
"""Coders of bases. Their decoders raise on damaged bytes."""

ORIGINAL_CODERS: dict[str, Coder] = {"jpegls": _JPEG_LS, "jpegxl": JpegXl(), "htj2k": _HTJ2K}
"""Coders of packed originals. The HTJ2K decoder does not detect all damage, so a checksum is verified before."""


def encode(samples: Samples, point: OperatingPoint) -> bytes:
    """Encode base samples with the coder of an operating point."""
    return CODERS[point.coder].encode(np.ascontiguousarray(samples), distance=point.distance, effort=point.effort)


def decode(data: bytes, point: OperatingPoint, shape: tuple[int, int]) -> Samples:
    """Decode base samples, and check their shape and type. Raises PayloadError."""
    samples = decode_of_shape(CODERS, point.coder, data, shape)
    if samples.shape != shape or samples.dtype != np.uint16:
        raise PayloadError(f"{point.coder} codestream holds {samples.dtype} {samples.shape}, not uint16 {shape}")
    return samples


def decode_of_shape(coders: Mapping[str, Coder], name: str, data: bytes, shape: tuple[int, int]) -> Samples:
    """Decode a codestream. Raises PayloadError if it cannot be decoded, or if its header states another shape, which is
    checked before the decoder allocates memory."""
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
    """OMP_NUM_THREADS, or else the number of processors, at most ``_MAX_THREADS``. The encoded bytes do not depend on
    it."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list for nested parallel regions
    return int(given) if given.isdigit() and int(given) else min(os.cpu_count() or 1, _MAX_THREADS)
