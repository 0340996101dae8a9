"""Proves that every bit of a pixel cell comes out of a codestream: values above Bits Stored, and embedded overlays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from node.codec.encode.source_image import read_source_and_reference
from storage.dicom.content import same_content
from storage.dicom.encapsulate import _rle
from storage.dicom.pixels import decode_frame, integer_pixels, transcode
from storage.dicom.writing import encode
from storage.errors import NotReconstructable
from tests.support.samples import breast, mammogram, write, write_body

TISSUE = breast(40, 36)
OVERLAY = TISSUE | np.uint16(0x1000)
"""12 bits, and an overlay plane in bit 12 (Overlay Bit Position, retired)."""
HIGH = TISSUE << 4
"""12 bits below High Bit 15."""


def codestream(pixels: NDArray[Any], syntax: str, bits: int = 16) -> bytes:
    words = pixels.view(np.uint16)
    return _rle(words, bits) if syntax == RLELossless else bytes(imagecodecs.ljpeg_encode(words, bitspersample=bits))


def coded(path: Path, pixels: NDArray[Any], syntax: str, *, frames: int = 1, bits: int = 16, **changes: Any) -> Path:
    ds = mammogram(TISSUE, SOPInstanceUID="1.2.3", StudyInstanceUID="1.2.4", SeriesInstanceUID="1.2.5", **changes)
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.PixelData = encapsulate([codestream(pixels, syntax, bits)] * frames, has_bot=False)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    body = encode(ds, ExplicitVRLittleEndian)
    return write_body(body, path, sop_class=ds.SOPClassUID, sop_instance="1.2.3", syntax=UID(syntax))


def converted(path: Path, syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    target = path.with_suffix(".out")
    transcode(path, target, syntax)
    return dcmread(target)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("target", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, RLELossless])
@pytest.mark.parametrize(
    ("pixels", "high_bit"), [(OVERLAY, 11), (HIGH, 15), (TISSUE << 2, 13)], ids=["overlay", "high", "middle"]
)
def test_decompressed_pixels_keep_all_bits(
    tmp_path: Path, pixels: NDArray[np.uint16], high_bit: int, syntax: UID, target: UID, frames: int
) -> None:
    after = converted(coded(tmp_path / "in.dcm", pixels, syntax, HighBit=high_bit, frames=frames), target)
    assert after.PixelData == pixels.tobytes() * frames
    assert (after.BitsStored, after.HighBit) == (12, high_bit)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, RLELossless])
def test_images_that_differ_in_an_overlay_alone_are_not_the_same(tmp_path: Path, syntax: UID, frames: int) -> None:
    one, other = (
        coded(tmp_path / name, pixels, syntax, frames=frames) for name, pixels in (("one", TISSUE), ("other", OVERLAY))
    )
    assert not same_content(one, other)
    assert same_content(one, one)
    assert same_content(other, Path(str(converted(other).filename)))


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, RLELossless])
def test_stray_bits_of_a_codestream_make_an_image_exact(tmp_path: Path, syntax: UID) -> None:
    path = coded(tmp_path / "in.dcm", OVERLAY, syntax)
    assert np.array_equal(integer_pixels(path), OVERLAY)
    with pytest.raises(NotReconstructable):
        read_source_and_reference(path, "")


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("frames", [1, 2])
def test_signed_lossless_jpeg_has_its_sign_in_the_unused_bits(tmp_path: Path, bits: int, frames: int) -> None:
    signed = TISSUE.astype(np.int16) - 2048
    cells = signed & 0x0FFF if bits == 12 else signed
    path = coded(tmp_path / "in.dcm", cells, JPEGLosslessSV1, frames=frames, bits=bits, PixelRepresentation=1)
    assert np.array_equal(decode_frame(path), signed)
    assert converted(path).PixelData == signed.tobytes() * frames


def test_signed_pixels_with_an_overlay_keep_it(tmp_path: Path) -> None:
    path = coded(tmp_path / "in.dcm", OVERLAY.astype(np.int16), JPEGLosslessSV1, PixelRepresentation=1)
    assert converted(path).PixelData == OVERLAY.tobytes()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_an_overlay_is_sent_to_a_peer_that_prefers_a_compression(tmp_path: Path, syntax: UID) -> None:
    """JPEG 2000 of 12 bits cannot hold the overlay. The encoder raises an error, and the sender takes another
    syntax."""
    path = write(mammogram(OVERLAY), tmp_path / "in.dcm")
    if syntax == JPEG2000Lossless:
        with pytest.raises(Exception, match="does not decode"):
            converted(path, syntax)
    else:
        converted(path, syntax)
        assert np.array_equal(decode_frame(path.with_suffix(".out")), OVERLAY)
