"""Synthetic Digital Mammography objects, shared with the benchmarks, and files in RLE Lossless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from benchmarks.samples import MAMMOGRAPHY, breast, mammogram, write, write_body
from storage.dicom.dicomfile import encode, file_meta, write_preamble

__all__ = ["MAMMOGRAPHY", "breast", "byte_planes", "mammogram", "rle_file", "write", "write_body"]


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
