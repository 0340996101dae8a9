"""Makes valid Digital Mammography objects with synthetic pixels, and DICOM files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from benchmarks import samples
from benchmarks.samples import MAMMOGRAPHY, breast, write, write_body
from storage.dicom.dicomfile import file_meta, write_preamble
from storage.dicom.writing import encode

__all__ = ["MAMMOGRAPHY", "breast", "byte_planes", "mammogram", "rle_file", "write", "write_body"]


def mammogram(pixels: NDArray[np.uint16] | None = None, *, bits: int = 12, **changes: Any) -> Dataset:
    """A mammogram of benchmarks/samples.py, by default of 320 x 288 pixels, which a node encodes in a second."""
    return samples.mammogram(breast(320, 288, bits=bits) if pixels is None else pixels, bits=bits, **changes)


def rle_file(ds: Dataset, path: Path, segments: list[bytes]) -> Path:
    """Write a data set in RLE Lossless with one frame of the given segments (PS3.5 Annex G)."""
    padded = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    header = np.zeros(16, "<u4")
    header[0] = len(padded)
    header[1 : 1 + len(padded)] = np.cumsum([64, *(len(segment) for segment in padded)])[: len(padded)]
    ds.PixelData = encapsulate([header.tobytes() + b"".join(padded)])
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    with path.open("wb") as out:
        write_preamble(out, file_meta(ds.SOPClassUID, ds.SOPInstanceUID, RLELossless))
        out.write(encode(ds, ExplicitVRLittleEndian))
    return path


def byte_planes(pixels: NDArray[np.uint16]) -> list[NDArray[np.uint8]]:
    """The high and the low bytes of 16-bit pixels, the segments of RLE Lossless."""
    return [(pixels >> 8).astype(np.uint8), (pixels & 255).astype(np.uint8)]
