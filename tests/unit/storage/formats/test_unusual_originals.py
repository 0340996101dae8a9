"""Proves that originals that cannot be packed, or passed through, give a reason, and that no byte is lost."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from storage.dicom.packbits import encode_plane
from storage.errors import KeptVerbatim, PixelError
from storage.formats import packed_original
from storage.formats.jpegls_passthrough import pass_through
from storage.formats.packed_original import is_light, pack_original, unpack_original
from tests.support.samples import breast, byte_planes, mammogram, rle_file, write


def packed(path: Path, coder: str = "jpegls") -> bytes:
    return pack_original(path, coder, hashlib.sha256(path.read_bytes()).hexdigest())


def report() -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.88.33"), generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.TextValue = "No finding. " * 500
    return ds


# --- packing ------------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_fit_into_memory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(mammogram(), tmp_path / "x.dcm")
    size = path.stat().st_size
    monkeypatch.setattr(packed_original, "_MAX_BYTES", size)
    assert len(packed(path)) < size
    monkeypatch.setattr(packed_original, "_MAX_BYTES", size - 1)
    with pytest.raises(KeptVerbatim, match=f"the file has {size} bytes; at most {size - 1} are packed"):
        packed(path)


def test_pixels_that_do_not_get_smaller_stay(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (128, 96)).astype(np.uint16)
    path = write(mammogram(noise, bits=16), tmp_path / "noise.dcm")
    with pytest.raises(KeptVerbatim, match=rf"the packed form has \d+ bytes, the file {path.stat().st_size}"):
        packed(path)


def test_rle_in_two_fragments_stays(tmp_path: Path) -> None:
    """Otherwise the bytes between the fragments would be lost."""
    pixels = breast(200, 160)
    path = rle_file(mammogram(pixels), tmp_path / "rle.dcm", [encode_plane(plane) for plane in byte_planes(pixels)])
    assert packed(path)
    data = path.read_bytes()
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert data.endswith(end)
    path.write_bytes(data.removesuffix(end) + b"\xfe\xff\x00\xe0\2\0\0\0\0\0" + end)
    with pytest.raises(KeptVerbatim, match="RLE of an unusual structure is stored as received"):
        packed(path)


def test_a_small_document_is_unpacked_by_the_node_and_a_large_one_by_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, object_ = write(report(), tmp_path / "sr.dcm"), tmp_path / "packed"
    object_.write_bytes(packed(path))
    size = path.stat().st_size
    for limit, light in ((size, True), (size - 1, False)):
        monkeypatch.setattr(packed_original, "MAX_LIGHT_BYTES", limit)
        assert is_light(object_) is light
    assert b"".join(unpack_original(object_.read_bytes())) == path.read_bytes()


# --- passing through ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("a VR that pixels do not have", "pixels are in another element, or in"),
        ("no Bits Stored", "the header has no Bits Stored"),
        ("an offset table", "or it has an extended offset table"),
        ("more rows", "pixel data is longer than its pixels"),
    ],
)
def test_a_header_that_no_encoder_wrote_is_not_passed_through(tmp_path: Path, change: str, says: str) -> None:
    """The unpacked file is sent instead."""
    ramp = np.arange(128 * 96, dtype=np.uint16).reshape(128, 96) % 4096
    ds = mammogram(ramp)
    if change == "no Bits Stored":
        del ds.BitsStored
    if change == "an offset table":
        ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = bytes(8), bytes(8)
    if change == "more rows":
        ds.PixelData = ds.PixelData + bytes(2 * 96)
    path = write(ds, tmp_path / "x.dcm", ExplicitVRLittleEndian)
    if change == "a VR that pixels do not have":
        data = path.read_bytes()
        assert data.count(b"\xe0\x7f\x10\x00OW") == 1
        path.write_bytes(data.replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00UN"))
    object_ = tmp_path / "packed"
    object_.write_bytes(packed(path))
    with pytest.raises(PixelError, match=says):
        pass_through(object_, tmp_path / "passed")
    assert not (tmp_path / "passed").exists()
    assert b"".join(unpack_original(object_.read_bytes())) == path.read_bytes()
