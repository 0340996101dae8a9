"""Proves that images of the large vendors are eligible, measured inside the breast, shown in their window and padded
exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.archive.intake.eligibility import why_exact
from node.codec.decode import SideInformation
from node.codec.encode.base_coding import make_base
from node.codec.encode.source_image import Source, read_source_and_reference
from node.codec.rendering import Rendering
from node.config import EligibilitySettings
from node.fidelity.breast_regions import Shape
from node.fidelity.reference import Reference
from node.upscalers.bicubic import Bicubic
from storage.dicom.dicomfile import opened
from storage.formats.padding import unpack_padding
from storage.formats.payload import decode_base, encode_base
from storage.records import OperatingPoint
from tests.support.samples import write
from tests.support.vendors import LARGEST, VENDORS, breast_tissue, pixels_of, vendor_mammogram

POINT = OperatingPoint(2, "jpegxl", 0.6)


def read(ds: Dataset, folder: Path) -> tuple[Source, Reference]:
    path = write(ds, folder / "one.dcm", ExplicitVRLittleEndian)
    with opened(path) as file:
        assert why_exact(file, file.header(), EligibilitySettings()) == ""
    return read_source_and_reference(path, "0" * 64)


def is_padding(ds: Dataset) -> NDArray[np.bool_]:
    pixels, value = pixels_of(ds), ds.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, dtype=bool)
    return (pixels >= value) & (pixels <= ds.get("PixelPaddingRangeLimit", value))


@pytest.mark.parametrize("vendor", VENDORS)
def test_padding_comes_back_exactly(vendor: str, tmp_path: Path) -> None:
    ds = vendor_mammogram(vendor)
    pixels, padded = pixels_of(ds), is_padding(ds)
    original, _ = read(ds, tmp_path)
    base = decode_base(encode_base(make_base(original, POINT)))
    result = Rendering(base, Bicubic(), SideInformation(), seed=1, steps=0).pixels(draw=True)
    assert np.array_equal(result[padded], pixels[padded])
    if padded.any():
        low, high = original.padding or (0, 0)
        assert np.array_equal((result >= low) & (result <= high), padded), "no other pixel may become padding"
        mask, values = unpack_padding(original.padding_bytes, *pixels.shape)
        assert np.array_equal(mask, padded)
        assert np.array_equal(values, pixels[padded])
    else:
        assert original.padding_bytes == b""
    error = (result.astype(np.float64) - pixels)[~padded]
    assert np.sqrt(np.mean(error**2)) < 0.02 * (1 << ds.BitsStored)
    assert result.max() < 1 << ds.BitsStored


@pytest.mark.slow
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_breast_is_found(vendor: str, tmp_path: Path) -> None:
    _, reference = read(vendor_mammogram(vendor), tmp_path)
    _, inside = breast_tissue(*reference.pixels.shape)
    found = np.kron(reference.mask, np.ones((16, 16), dtype=bool))[: inside.shape[0], : inside.shape[1]]
    assert (found & inside).sum() > 0.97 * inside.sum()
    assert found.sum() < 1.35 * inside.sum()
    assert reference.inverted == (vendor in {"lorad", "siemens inverse", "fuji", "carestream"})


@pytest.mark.parametrize(
    ("vendor", "low", "high", "shape"),
    [
        ("ge", 1300, 2900, "sigmoid"),
        ("hologic", 797, 3297, "sigmoid"),
        ("c-view", 250, 830, "linear"),
        ("lorad", 3500, 12500, "linear"),
        ("siemens", 800, 3200, "linear"),
        ("fuji", -1, 1023, "linear"),
        ("microdose", 700, 3300, "sigmoid"),
        ("planmed", 12000, 54000, "linear_exact"),
        ("ims", 1500, 6700, "linear"),  # the second: the first, of width 1, shows nothing
        ("carestream", 548, 3548, "linear_exact"),  # a quarter of the table's outputs
    ],
)
def test_the_window_is_the_headers(vendor: str, low: float, high: float, shape: Shape, tmp_path: Path) -> None:
    _, reference = read(vendor_mammogram(vendor), tmp_path)
    window = reference.window
    assert (window.low, window.high, window.shape) == (pytest.approx(low, abs=1), pytest.approx(high, abs=1), shape)


def test_a_lookup_table_is_a_window(tmp_path: Path) -> None:
    """Agfa's table is a logistic curve about 2000, which ends where it still rises."""
    _, reference = read(vendor_mammogram("agfa"), tmp_path)
    assert 0 <= reference.window.low < 600
    assert 3500 < reference.window.high < 4096


def test_padding_within_the_breast(tmp_path: Path) -> None:
    """By the standard, pixels of the breast whose value lies in the range are padding, wherever they are."""
    ds = vendor_mammogram("ge")
    pixels = pixels_of(ds).copy()
    pixels[300:302, 100], pixels[350, 150] = 17, 0
    ds.PixelData = pixels.tobytes()
    padded = is_padding(ds)
    assert padded[300, 100]
    original, _ = read(ds, tmp_path)
    result = Rendering(make_base(original, POINT), Bicubic(), SideInformation(), seed=1, steps=0).pixels(draw=True)
    assert np.array_equal((result <= 30), padded)
    assert np.array_equal(result[padded], pixels[padded])
    around = np.s_[296:306, 96:106]
    clean = pixels_of(vendor_mammogram("ge"))
    error = np.abs(result[around].astype(int) - clean[around])[~padded[around]]
    assert error.mean() < 60, "what fills the pixel does not ring"


@pytest.mark.very_slow
def test_the_largest_matrix(tmp_path: Path) -> None:
    """The image has 5355 x 4915 pixels. Its breast is found, and its padding is packed and restored."""
    ds = vendor_mammogram("microdose", *LARGEST)
    original, reference = read(ds, tmp_path)
    _, inside = breast_tissue(*LARGEST)
    found = np.kron(reference.mask, np.ones((16, 16), dtype=bool))[: LARGEST[0], : LARGEST[1]]
    assert (found & inside).sum() > 0.97 * inside.sum()
    packed = original.padding_bytes
    assert len(packed) < 4000
    mask, values = unpack_padding(packed, *LARGEST)
    assert np.array_equal(mask, is_padding(ds))
    assert not values.any()
    assert original.lowered(4).shape == (1339, 1229)
