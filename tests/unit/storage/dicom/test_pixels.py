"""Proves that pixels which contradict their header are detected, and that others are decompressed unchanged."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from node.workers.requests import CheckRequest
from storage.dicom.content import same_content
from storage.dicom.dicomfile import opened
from storage.dicom.encapsulate import JPEG_XL_LOSSLESS, _rle
from storage.dicom.pixels import PixelShape, decode_frame, native_pixel_warning, transcode
from storage.dicom.writing import encode
from storage.errors import PixelError
from tests.support.samples import breast, mammogram, write_body

FRAMES = np.stack([breast(32, 30, seed=seed) for seed in range(3)])


def jpeg_ls(frame: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegls_encode(frame))


def jpeg_xl(frame: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(frame, lossless=True, usecontainer=False))


def encapsulated(codestreams: Sequence[bytes], **more: int) -> Dataset:
    """A mammogram of 32 x 30 pixels with these codestreams, without an offset table."""
    ds = mammogram(FRAMES[0], SOPInstanceUID="1.2.3", StudyInstanceUID="1.2.4", SeriesInstanceUID="1.2.5")
    ds.PixelData = encapsulate(list(codestreams), has_bot=False, **more)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def file_of(ds: Dataset, path: Path, syntax: str, body: bytes | None = None) -> Path:
    data = encode(ds, ExplicitVRLittleEndian) if body is None else body
    return write_body(data, path, sop_class=ds.SOPClassUID, sop_instance=ds.SOPInstanceUID, syntax=UID(syntax))


def with_frames(ds: Dataset, stated: bytes) -> bytes:
    """The data set with a received value of Number of Frames."""
    element = struct.pack("<HH2sH", 0x0028, 0x0008, b"IS", len(stated)) + stated
    before, after = (
        encode(ds, ExplicitVRLittleEndian, within=part) for part in (range(0x00280008), range(0x00280009, 1 << 32))
    )
    return before + element + after


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("tag", [0x7FE00008, 0x7FE00010])
def test_a_second_pixel_data_element_is_noticed(tmp_path: Path, syntax: UID, tag: int) -> None:
    ds, order = mammogram(FRAMES[0], PixelData=bytes(2 * FRAMES[0].size)), "<" if syntax.is_little_endian else ">"
    second = struct.pack(order + "HH2sHI", tag >> 16, tag & 0xFFFF, b"OW", 0, 4) + b"abcd"
    path = file_of(ds, tmp_path / "x.dcm", syntax, encode(ds, syntax) + second)
    with opened(path) as file:
        assert native_pixel_warning(file, PixelShape.of(file.outline())) == "pixel data occurs more than once"


@pytest.mark.parametrize(("rows", "fits"), [(31, False), (32, True)])
def test_rle_with_a_row_too_many_is_noticed(tmp_path: Path, rows: int, fits: bool) -> None:
    ds = encapsulated([_rle(FRAMES[0], 12)])
    ds.Rows = rows
    path = file_of(ds, tmp_path / "x.dcm", RLELossless)
    if fits:
        assert np.array_equal(decode_frame(path), FRAMES[0])
        return
    with pytest.raises(PixelError, match="more than the 31 rows"):
        decode_frame(path)
    with pytest.raises(PixelError, match="more than the 31 rows"):
        transcode(path, tmp_path / "y.dcm", ExplicitVRLittleEndian)


@pytest.mark.parametrize("zeros", [1, 2, 64])
def test_zero_bytes_behind_rle_are_no_rows(tmp_path: Path, zeros: int) -> None:
    path = file_of(encapsulated([_rle(FRAMES[0], 12) + bytes(zeros)]), tmp_path / "x.dcm", RLELossless)
    assert np.array_equal(decode_frame(path), FRAMES[0])


@pytest.mark.parametrize(("count", "says"), [(3, ""), (4, "4 frames are found, the header says 3")])
def test_frames_beyond_the_stated_number_are_noticed(tmp_path: Path, count: int, says: str) -> None:
    ds = encapsulated([jpeg_ls(frame) for frame in (*FRAMES, FRAMES[0])][:count])
    ds.NumberOfFrames = 3
    path = file_of(ds, tmp_path / "x.dcm", JPEGLSLossless)
    assert CheckRequest(path).answer(None) == says
    transcode(path, tmp_path / "y.dcm", ExplicitVRLittleEndian)
    assert dcmread(tmp_path / "y.dcm").PixelData == FRAMES.astype("<u2").tobytes()


@pytest.mark.parametrize("broken", [b"", b"\0\0", b"\xff\xd8"])
def test_a_later_frame_that_is_no_codestream_is_noticed(tmp_path: Path, broken: bytes) -> None:
    codestreams = [jpeg_ls(FRAMES[0]), broken, jpeg_ls(FRAMES[2])]
    items = [
        struct.pack("<HHI", 0xFFFE, 0xE000, len(one) + len(one) % 2) + one + bytes(len(one) % 2) for one in codestreams
    ]
    ds = encapsulated(codestreams[:1])
    ds.NumberOfFrames = 3
    ds["PixelData"].value = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + b"".join(items)
    assert "codestream cannot be decoded" in CheckRequest(file_of(ds, tmp_path / "x.dcm", JPEGLSLossless)).answer(None)


def test_jpeg_xl_whose_frames_cannot_be_told_apart_is_not_decompressed(tmp_path: Path) -> None:
    ds = encapsulated([jpeg_xl(frame) for frame in FRAMES], fragments_per_frame=2)
    ds.NumberOfFrames = 3
    path = file_of(ds, tmp_path / "x.dcm", JPEG_XL_LOSSLESS)
    assert "frames are found, the header says 3" in CheckRequest(path).answer(None)
    with pytest.raises(PixelError, match="frames are found, not 3"):
        transcode(path, tmp_path / "y.dcm", ExplicitVRLittleEndian)


@pytest.mark.parametrize("stated", [b"1 ", b" 1", b"01", b"1.0 ", b"0 ", b"-1", b"x ", b"1\\1 ", b""])
def test_any_number_of_frames_is_kept_when_a_frame_is_decompressed(tmp_path: Path, stated: bytes) -> None:
    ds = encapsulated([jpeg_ls(FRAMES[0])])
    path = file_of(ds, tmp_path / "x.dcm", JPEGLSLossless, with_frames(ds, stated))
    transcode(path, tmp_path / "y.dcm", ExplicitVRLittleEndian)
    made = dcmread(tmp_path / "y.dcm")
    assert (made.get_item("NumberOfFrames").value or b"") == stated
    assert made.PixelData == FRAMES[0].astype("<u2").tobytes()


def test_frames_beyond_the_stated_number_are_not_decompressed(tmp_path: Path) -> None:
    ds = encapsulated([jpeg_ls(frame) for frame in FRAMES])
    ds.NumberOfFrames = 2
    transcode(file_of(ds, tmp_path / "x.dcm", JPEGLSLossless), tmp_path / "y.dcm", ExplicitVRLittleEndian)
    made = dcmread(tmp_path / "y.dcm")
    assert made.NumberOfFrames == 2
    assert made.PixelData == FRAMES[:2].astype("<u2").tobytes()


def test_offset_tables_are_not_content(tmp_path: Path) -> None:
    ds = encapsulated([jpeg_ls(FRAMES[0])])
    plain = file_of(ds, tmp_path / "x.dcm", JPEGLSLossless)
    ds.add_new(0x7FE00001, "OV", struct.pack("<Q", 0))
    ds.add_new(0x7FE00002, "OV", struct.pack("<Q", len(jpeg_ls(FRAMES[0]))))
    assert same_content(plain, file_of(ds, tmp_path / "y.dcm", JPEGLSLossless))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("stated", [b"", b"1 "])
@pytest.mark.parametrize("encoder", [jpeg_ls, jpeg_xl])
def test_more_codestreams_than_frames_are_noticed(
    tmp_path: Path, encoder: Callable[[np.ndarray], bytes], stated: bytes, table: bool
) -> None:
    """Without an offset table, all fragments would count as one frame, and the image could be reconstructed from it."""
    ds = encapsulated([])
    ds.PixelData = encapsulate([encoder(frame) for frame in FRAMES[:2]], has_bot=table)
    ds["PixelData"].is_undefined_length = True
    syntax = JPEGLSLossless if encoder is jpeg_ls else JPEG_XL_LOSSLESS
    path = file_of(ds, tmp_path / "in.dcm", syntax, with_frames(ds, stated))
    assert CheckRequest(path).answer(None) == "2 frames are found, the header says 1"


def test_a_codestream_in_several_fragments_is_one_frame(tmp_path: Path) -> None:
    ds = encapsulated([jpeg_ls(FRAMES[0])], fragments_per_frame=3)
    path = file_of(ds, tmp_path / "in.dcm", JPEGLSLossless)
    assert CheckRequest(path).answer(None) == ""
    assert np.array_equal(decode_frame(path), FRAMES[0])
