"""Proves which images a trainer reads from files, and that training patches pass through the real codec."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.fidelity.breast_regions import breast_mask
from node.training.image_files import NoPictures, Picture, picture_files, read_picture, read_pictures
from storage.errors import LatentPacsError
from tests.support.samples import breast, mammogram, write

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]


def save(pixels: NDArray[Any], path: Path, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def read(path: Path) -> Picture:
    found = read_picture(path)
    assert found is not None
    return found


# --- raster files -------------------------------------------------------------------------------------------------


def test_png_of_8_bits_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = breast(300, 270, bits=8).astype(np.uint8)
    picture = read(save(pixels, tmp_path / "a.PNG"))
    assert picture.bits == 8
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, pixels)
    assert picture.header.PhotometricInterpretation == "MONOCHROME2"
    assert not picture.film


@pytest.mark.parametrize("white", [4095 * 16, 65535])
def test_12_bits_stored_times_16_are_12_bits_again(tmp_path: Path, white: int) -> None:
    pixels = breast(300, 270)
    pixels[10:20, 10:20] = 4095
    stored = np.where(pixels == 4095, white, pixels * 16).astype(np.uint16)
    picture = read(save(stored, tmp_path / "a.png"))
    assert picture.bits == 12
    assert np.array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("rounded", [np.floor, np.rint, np.ceil], ids=lambda rounded: rounded.__name__)
@pytest.mark.parametrize("bits", [10, 12])
def test_bits_stretched_to_16_are_as_they_were(tmp_path: Path, bits: int, rounded: np.ufunc) -> None:
    pixels = breast(300, 270, bits=bits)
    pixels[10:20, 10:20] = (1 << bits) - 1
    picture = read(save(rounded(pixels * (65535 / ((1 << bits) - 1))).astype(np.uint16), tmp_path / "a.png"))
    assert picture.bits == bits
    assert np.array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_png_of_16_bits_says_how_many_it_uses(tmp_path: Path, bits: int) -> None:
    pixels = breast(256, 256, bits=bits)
    pixels[0, :2] = (1, (1 << bits) - 1)
    picture = read(save(pixels, tmp_path / "a.png"))
    assert picture.bits == bits
    assert np.array_equal(picture.pixels, pixels)


def test_colour_png_becomes_grey(tmp_path: Path) -> None:
    grey = breast(270, 260, bits=8).astype(np.uint8)
    for number, colours in enumerate((np.stack([grey] * 3, axis=2), np.stack([grey] * 3 + [grey * 0 + 255], axis=2))):
        picture = read(save(colours, tmp_path / f"{number}.png"))
        assert picture.pixels.shape == grey.shape
        assert np.abs(picture.pixels.astype(int) - grey).max() <= 1


def test_jpeg_is_halved_to_the_scale_of_12_bits(tmp_path: Path) -> None:
    rows, columns = 601, 541
    y, x = np.mgrid[0:rows, 0:columns]
    smooth = (100 + 60 * np.sin(x / 40) * np.cos(y / 50)).astype(np.uint8)
    picture = read(save(smooth, tmp_path / "a.jpeg", quality=95))
    assert picture.bits == 12
    assert picture.pixels.shape == (300, 270)
    quads = smooth[:600, :540].reshape(300, 2, 270, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(picture.pixels, quads * 16, atol=2 * 16)
    assert (picture.pixels % 16).any()  # the mean of four has more than 8 bits


# --- DICOM --------------------------------------------------------------------------------------------------------


def test_dicom_with_its_header(tmp_path: Path) -> None:
    pixels = breast(300, 280)
    picture = read(write(mammogram(pixels), tmp_path / "no suffix"))
    assert np.array_equal(picture.pixels, pixels)
    assert (picture.bits, picture.film) == (12, False)
    assert picture.header.Modality == "MG"
    assert picture.name == f"{tmp_path.name}/no suffix"
    assert np.array_equal(picture.mask, breast_mask(pixels, "MONOCHROME2"))
    assert 0 < picture.mask.mean() < 1


def test_the_breast_is_found_in_an_inverted_image(tmp_path: Path) -> None:
    pixels = breast(300, 280)
    inverted = mammogram(4095 - pixels, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    plain = mammogram(pixels)
    first, second = (read(write(ds, tmp_path / ds.SOPInstanceUID)) for ds in (inverted, plain))
    assert np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_compressed_dicom_is_decoded(tmp_path: Path, syntax: Any) -> None:
    pixels = breast(280, 260)
    ds = mammogram(pixels)
    if syntax == RLELossless:
        write(ds, tmp_path / "plain.dcm")
        ds.file_meta = _file_meta(ds)
        ds.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)
        ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    else:
        _encapsulated(ds, pixels, syntax).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    picture = read(tmp_path / "a.dcm")
    assert np.array_equal(picture.pixels, pixels)
    assert picture.bits == 12


def _file_meta(ds: Dataset) -> Any:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return meta


def _encapsulated(ds: Dataset, pixels: Pixels, syntax: Any) -> Dataset:
    import imagecodecs
    from pydicom.encaps import encapsulate

    if syntax == JPEGLSLossless:
        coded = imagecodecs.jpegls_encode(pixels)
    else:
        coded = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0)
    ds.PixelData = encapsulate([bytes(coded)])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta = _file_meta(ds)
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize(
    ("changes", "film"),
    [
        ({}, False),
        ({"ConversionType": "DF"}, True),
        ({"ConversionType": "WSD"}, False),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
    ],
    ids=["digital", "digitised film", "workstation", "secondary capture"],
)
def test_film_is_told_from_digital_images(tmp_path: Path, changes: dict[str, Any], film: bool) -> None:
    assert read(write(mammogram(breast(260, 260), **changes), tmp_path / "a.dcm")).film is film


# --- what is passed over ------------------------------------------------------------------------------------------


def unusable(folder: Path) -> list[Path]:
    """Files of many kinds in ``folder`` that are not mammograms."""
    folder.mkdir(parents=True, exist_ok=True)
    byte = breast(600, 600, bits=8).astype(np.uint8)
    made = [
        save(byte[:255, :600], folder / "small.png"),
        save(byte[:510, :600], folder / "small when halved.jpg"),
        save(np.zeros((300, 300), np.uint8), folder / "black.png"),
        write(mammogram(breast(255, 300)), folder / "small.dcm"),
    ]
    for path in (
        save(byte, folder / "cut.png"),
        save(byte, folder / "cut.jpg"),
        write(mammogram(breast(300, 300)), folder / "cut.dcm"),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        made.append(path)
    header = mammogram(breast(300, 300))
    del header.PixelData
    made.append(write(header, folder / "no pixels.dcm"))
    for name, content in (("empty.png", b""), ("empty", b""), ("notes.txt", b"no picture"), ("text.jpg", b"text")):
        (folder / name).write_bytes(content)
        made.append(folder / name)
    return made


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    files = unusable(tmp_path / "mixed")
    assert {path.name: read_picture(path) for path in files} == {path.name: None for path in files}
    good = save(breast(256, 256), tmp_path / "mixed" / "good.png")
    assert [picture.name for picture in read_pictures([tmp_path])] == [f"mixed/{good.name}"]


def test_a_png_damaged_between_its_chunks_is_passed_over(tmp_path: Path) -> None:
    path = save(breast(300, 300), tmp_path / "a.png")
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    first = content[start : start + 1000]
    chunk = struct.pack(">I", len(first)) + b"IDAT" + first + struct.pack(">I", zlib.crc32(b"IDAT" + first))
    path.write_bytes(content[: start - 8] + chunk + b"\0\0\0\x10\xdcp\xc3\r" * 100)
    assert read_picture(path) is None


def test_dicom_without_a_value_for_bits_stored_does_not_end_the_reading(tmp_path: Path) -> None:
    ds = mammogram(breast(300, 300))
    ds.BitsStored = None
    found = read_picture(write(ds, tmp_path / "a.dcm"))
    assert found is None or found.bits == 16


@pytest.mark.parametrize("kind", ["signed", "shifted"])
def test_pixels_are_below_what_bits_allow(tmp_path: Path, kind: str) -> None:
    pixels = breast(300, 300)
    if kind == "signed":
        ds = mammogram((pixels.astype(np.int16) - 2000).view(np.uint16), PixelRepresentation=1)
    else:
        ds = mammogram(pixels << 4, HighBit=15)
    found = read_picture(write(ds, tmp_path / "a.dcm"))
    assert found is None or found.pixels.max() < 1 << found.bits


def test_nothing_readable_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    unusable(tmp_path / "mixed")
    with pytest.raises(NoPictures, match="mixed"):
        read_pictures([tmp_path / "mixed"])
    with pytest.raises(NoPictures, match="elsewhere does not exist"):
        read_pictures([tmp_path / "elsewhere"])
    assert issubclass(NoPictures, LatentPacsError)


def test_files_come_in_one_order_each_once(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(breast(256, 256), tmp_path / name)
    wanted = [tmp_path / name for name in ("a/deep/3.png", "b/1.png", "b/2.png", "c.png")]
    assert picture_files([tmp_path]) == wanted
    assert picture_files([tmp_path / "c.png", tmp_path / "b", tmp_path / "b" / "1.png", tmp_path / "a"]) == wanted
    assert [picture.name for picture in read_pictures([tmp_path])] == [
        "deep/3.png",
        "b/1.png",
        "b/2.png",
        f"{tmp_path.name}/c.png",
    ]
