"""Reads mammograms for training from DICOM, PNG and JPEG files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from node.fidelity.breast_regions import Mask, breast_mask
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import PixelShape, integer_pixels
from storage.errors import DataSetError, InputInvalid, PixelError
from storage.formats.geometry import TILE

Pixels = NDArray[np.uint16]

_JPEG = {".jpg", ".jpeg"}
_RASTER = {".png", *_JPEG}
_HALVED_BITS = 12
"""Bits of the grey levels of a halved JPEG, since means of four 8-bit pixels have finer steps."""


class NoPictures(InputInvalid):
    """The given folders contain no readable mammogram."""


@dataclass(frozen=True)
class Picture:
    """One mammogram: uint16 pixels (rows, columns) below ``2 ** bits``, its header and its breast mask.

    ``film``: whether it is taken as digitised film, since Conversion Type is DF or the SOP Class is Secondary Capture.
    ``mask``: bool per cell of 16 x 16 pixels.
    """

    name: str
    pixels: Pixels
    bits: int
    header: Dataset
    film: bool
    mask: Mask


def picture_files(sources: Iterable[Path]) -> list[Path]:
    """All files in and below folders, and the given files, sorted. Raises NoPictures if a source does not exist."""
    found: set[Path] = set()
    for source in sources:
        if not source.exists():
            raise NoPictures(f"{source} does not exist")
        found.update(path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file())
    return sorted(found)


def read_pictures(sources: Sequence[Path]) -> list[Picture]:
    """All images in ``sources`` that ``read_picture`` reads; others are skipped. Raises NoPictures if there is none."""
    pictures = [picture for path in picture_files(sources) if (picture := read_picture(path)) is not None]
    if not pictures:
        raise NoPictures(f"no DICOM, PNG or JPEG mammogram in {', '.join(map(str, sources))}")
    return pictures


def read_picture(path: Path) -> Picture | None:
    """The image in a file; None if it has none that can be read, or a side is shorter than 256 pixels.

    A JPEG is halved first, because its own quantisation has damaged the finest octave.
    """
    found = _raster(path) if path.suffix.lower() in _RASTER else _dicom(path)
    if found is None or min(found[0].shape) < TILE:
        return None
    pixels, bits, header = found
    photometric = str(header.get("PhotometricInterpretation", ""))
    film = header.get("ConversionType") == "DF" or header.get("SOPClassUID") == SecondaryCaptureImageStorage
    mask = breast_mask(pixels, photometric)
    return Picture("/".join(path.parts[-2:]), pixels, bits, header, film, mask)


def _dicom(path: Path) -> tuple[Pixels, int, Dataset] | None:
    try:
        with opened(path) as file:
            header = file.header()
            if "PixelData" not in header and not file.layout.has_pixels:
                return None
        pixels = integer_pixels(path)
    except (DataSetError, PixelError, OSError, ValueError):
        return None
    bits = PixelShape.of(header).bits_stored
    if pixels.ndim != 2 or pixels.dtype != np.uint16 or not bits or int(pixels.max()) >> bits:
        return None
    return pixels, bits, header


def _raster(path: Path) -> tuple[Pixels, int, Dataset] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            grey = image if image.mode in ("I;16", "I;16B", "I", "L") else image.convert("L")
            values = np.asarray(grey)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    if path.suffix.lower() in _JPEG:
        return _halved(values), _HALVED_BITS, header
    if values.min() < 0 or values.max() > 65535 or values.max() == 0:
        return None
    pixels = _significant(values.astype(np.uint16))
    return pixels, max(8, int(pixels.max()).bit_length()), header


def _significant(pixels: Pixels) -> Pixels:
    """The original values of pixels whose range, for example of 12 bits, was stretched to 16 bits.

    It recognises multiplication by a power of 2 (white may still be 65535), and multiplication by a number such as
    65535 / 4095 with rounding.
    """
    grey = np.unique(pixels)
    for bits in range(8, 15):  # from 15 bits on, nearly all values look stretched
        top = (1 << bits) - 1
        stretched = np.rint(grey * (top / 65535)) * (65535 / top)
        if np.abs(stretched - grey).max() < 1:
            return np.asarray(np.rint(pixels * np.float32(top / 65535)), dtype=np.uint16)
    union = int(np.bitwise_or.reduce(pixels[pixels < pixels.max()], axis=None, initial=0))
    return pixels >> np.uint16(max((union & -union).bit_length() - 1, 0))


def _halved(values: NDArray[np.uint8]) -> Pixels:
    rows, columns = (size // 2 * 2 for size in values.shape)
    quads = values[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3), dtype=np.float32)
    return np.asarray(np.rint(quads * (1 << (_HALVED_BITS - 8))), dtype=np.uint16)
