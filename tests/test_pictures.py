"""What a trainer learns from: pictures out of files, and plates, pieces of them sent through the real codec."""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.codec.guide import LEVEL_TILE, measure_levels, unit_map
from node.fidelity.regions import breast_mask
from node.training import plates
from node.training.pictures import NoPictures, Picture, picture_files, read_picture, read_pictures
from node.training.plates import Plate, code, crops, degrade, make_plate, piece_of
from node.upscalers.network import STRIDE, UNSHUFFLE, to_pixels
from storage.coarseness import Coarseness
from storage.errors import LatentPacsError
from storage.records import Rung
from tests.samples import breast, mammogram, write

Pixels = NDArray[np.uint16]


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
    """Files in ``folder`` that hold no mammogram, of many kinds."""
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


# --- plates -------------------------------------------------------------------------------------------------------


def picture(rows: int = 320, columns: int = 256, *, seed: int = 0, bits: int = 12) -> Picture:
    pixels = breast(rows, columns, seed=seed, bits=bits)
    return Picture(str(seed), pixels, bits, Dataset(), False, breast_mask(pixels, "MONOCHROME2"))


def jpegxl(scale: int, distance: float) -> Rung:
    return Rung(scale=scale, coder="jpegxl", distance=distance, effort=7, sample_bits=12)


def tissue(seed: int = 0) -> Pixels:
    """256 x 256 pixels of breast without air."""
    return breast(640, 512, seed=seed)[192:448, :256]


def parts(plate: Plate) -> tuple[torch.Tensor, ...]:
    return plate.seen, plate.wanted, plate.share, plate.rung


def same(one: Plate, other: Plate) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def test_a_plate_is_a_function_of_pictures_seed_and_number() -> None:
    pictures = [picture(seed=1), picture(seed=2)]
    whose = [(7, 3), (7, 4), (8, 3)]
    made = [make_plate(pictures, seed, number) for seed, number in whose]
    torch.manual_seed(5)
    again = [make_plate([picture(seed=1), picture(seed=2)], seed, number) for seed, number in reversed(whose)]
    assert all(same(one, other) for one, other in zip(made, reversed(again), strict=True))
    assert not any(same(one, other) for one, other in itertools.combinations(made, 2))


@pytest.mark.parametrize(("rows", "columns", "sides"), [(330, 270, {64, 80}), (1100, 800, {192, 256})])
def test_the_shape_of_a_plate(rows: int, columns: int, sides: set[int]) -> None:
    """Multiples of 64 pixels, at most 1024 x 768, in either orientation."""
    plate = make_plate([picture(rows, columns)], 1, 1)
    height, width = plate.share.shape
    assert {height, width} == sides
    assert plate.seen.shape == (17, height, width)
    assert plate.wanted.shape == (16, height, width)
    assert plate.rung.shape == (3,)
    assert {part.dtype for part in parts(plate)[:3]} == {torch.float16}
    assert plate.rung.dtype == torch.float32
    assert all(bool(torch.isfinite(part).all()) for part in parts(plate))
    assert 0 <= float(plate.share.min()) <= float(plate.share.max()) <= 1


@pytest.mark.parametrize("rung", [jpegxl(1, 2.0), jpegxl(2, 0.6), jpegxl(4, 0.3)], ids=str)
def test_what_is_wanted_has_unit_variance_and_leads_back_to_the_original(rung: Rung) -> None:
    pixels = tissue()
    inside = np.ones((4, 4), dtype=bool)
    inside[0, 3] = False
    plate = degrade(pixels, inside, rung, 0.8)
    followed = plate.wanted.float()[:, plate.share == 1]
    assert followed.shape[1] > 0.7 * plate.share.numel()
    assert float(followed.std()) == pytest.approx(1, abs=0.15)
    assert float(plate.wanted.abs().max()) <= 6
    image = code(pixels, rung)[2]
    unit = unit_map(measure_levels(pixels - image, inside), *pixels.shape)
    wanted = to_pixels(plate.wanted.float()[None])[0, 0].numpy()
    reached = np.abs(wanted) < 5.9
    np.testing.assert_allclose((image + wanted * unit)[reached], pixels[reached], atol=0.01 * unit.max())
    assert plate.share[0, -1] == 0


def test_less_is_told_of_the_noise_than_there_is() -> None:
    """The last channel is the base's quantisation, in octaves; ``told`` moves it and nothing else."""
    pixels, inside = tissue(), np.ones((4, 4), dtype=bool)
    whole, half = (degrade(pixels, inside, jpegxl(2, 0.6), told) for told in (1.0, 0.5))
    assert torch.equal(whole.seen[:16], half.seen[:16])
    assert torch.equal(whole.wanted, half.wanted)
    np.testing.assert_allclose((whole.seen[16] - half.seen[16]).float().numpy(), 1 / 3, atol=2e-3)


def test_every_kind_of_rung_and_orientation_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[Pixels, Rung, float]] = []
    maps: list[Coarseness] = []
    empty = Plate(*[torch.zeros(1)] * 4)

    def note(
        pixels: Pixels, inside: NDArray[np.bool_], rung: Rung, told: float, coarseness: Coarseness | None
    ) -> Plate:
        assert inside.shape == (pixels.shape[0] // LEVEL_TILE, pixels.shape[1] // LEVEL_TILE)
        assert inside.any()
        met.append((pixels, rung, told))
        if coarseness is not None:
            assert rung.distance
            assert (coarseness.rows, coarseness.columns) == pixels.shape
            maps.append(coarseness)
        return empty

    monkeypatch.setattr(plates, "degrade", note)
    pictures = [picture(), picture(bits=8), picture(bits=14)]
    for number in range(120):
        make_plate(pictures, 1, number)
    scales = [rung.scale for _, rung, _ in met]
    assert set(scales) == {1, 2, 4}
    assert min(scales.count(1), scales.count(2) // 4, scales.count(4) // 3) >= 6
    assert {pixels.shape for pixels, _, _ in met} == {(320, 256), (256, 320)}
    assert all(pixels.dtype == np.uint16 and pixels.max() <= 4095 for pixels, _, _ in met)
    assert all(np.percentile(pixels, 99) > 300 for pixels, _, _ in met)  # whatever their bits, all are 12 now
    distances = [rung.distance for _, rung, _ in met]
    assert 0.0 in distances
    assert 0.07 <= min(distance for distance in distances if distance) < 0.2
    assert 1.2 < max(distances) <= 4
    assert all(rung.distance >= 0.5 for _, rung, _ in met if rung.scale == 1 and rung.coder == "jpegxl")
    coders = [rung.coder for _, rung, _ in met]
    assert 20 < coders.count("avif") < 65
    assert 15 < len(maps) < 60
    assert len({int(np.median(each.steps)) for each in maps}) > 5
    assert min(told for _, _, told in met) >= 0.6
    assert max(told for _, _, told in met) <= 1.0


def test_a_piece_is_the_picture_as_it_is() -> None:
    for bits in (8, 12, 14):
        own = picture(256, 320, bits=bits)
        pixels, inside = piece_of(own, np.random.default_rng(1))
        expected = np.clip(np.rint(own.pixels * 2.0 ** (12 - bits)), 0, 4095)
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels, expected)
        assert inside.shape == (4, 5)
        assert np.array_equal(inside, own.mask.reshape(4, 4, 5, 4).any(axis=(1, 3)))


# --- the base of a plate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", [jpegxl(1, 1.0), jpegxl(2, 0.6), jpegxl(2, 0.0), jpegxl(4, 1.2)], ids=str)
def test_the_lift_is_consistent_with_the_decoded_base(rung: Rung) -> None:
    pixels = tissue()
    decoded, plain, consistent, rms = code(pixels, rung)
    operator = plates.Operator(*pixels.shape, rung.scale)
    assert decoded.shape == (256 // rung.scale, 256 // rung.scale)
    assert plain.shape == consistent.shape == pixels.shape
    np.testing.assert_allclose(operator.down(consistent), decoded, atol=0.02)
    error = operator.down(pixels) - decoded
    assert rms == pytest.approx(float(np.sqrt(np.square(error).mean())), rel=1e-3)
    if rung.distance == 0:
        assert np.array_equal(decoded, np.clip(np.rint(operator.down(pixels)), 0, 4095))
        assert rms == pytest.approx(1 / math.sqrt(12), rel=0.05)
    if rung.scale > 1:
        assert np.abs(operator.down(plain) - decoded).max() > 1  # and plain bicubic is not


# --- crops --------------------------------------------------------------------------------------------------------


def numbered(rows: int = 48, columns: int = 64) -> Plate:
    """A plate whose channels say where they are: row, column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = torch.stack([row, column]).half()
    share = torch.ones(rows, columns).half()
    share[:, : columns // 2] = 0
    return Plate(place.repeat(9, 1, 1)[:17], place.repeat(8, 1, 1), share, torch.tensor([1.0, 2.0, 3.0]))


def test_crops_are_of_one_place_on_the_coarsest_grid() -> None:
    seen, wanted, share, rung = crops([numbered()], 64, 40, np.random.default_rng(1))
    assert (seen.shape, wanted.shape, share.shape, rung.shape) == (
        (40, 17, 16, 16),
        (40, 16, 16, 16),
        (40, 1, 16, 16),
        (40, 3),
    )
    assert {part.dtype for part in (seen, wanted, share, rung)} == {torch.float32}
    assert torch.equal(seen[:, :16], wanted)
    top, left = seen[:, 0, 0, 0], seen[:, 1, 0, 0]
    for corner in (top, left):
        assert not (corner % (STRIDE // UNSHUFFLE)).any()
        assert len(set(corner.tolist())) > 4
    assert torch.equal(seen[:, 0, :, 0] - top[:, None], torch.arange(16.0).expand(40, 16))
    assert torch.equal(share[:, 0], (seen[:, 1] >= 32).float())
    assert float((share.mean(dim=(1, 2, 3)) > 0.5).float().mean()) > 0.9  # they look for the breast


def test_crops_as_large_as_the_plate_and_crops_of_nothing() -> None:
    whole = numbered(16, 16)
    nothing = Plate(whole.seen, whole.wanted, torch.zeros(16, 16).half(), whole.rung)
    seen = crops([nothing], 64, 2, np.random.default_rng(1))[0]
    assert torch.equal(seen, whole.seen.float().expand(2, 17, 16, 16))


def test_crops_are_a_function_of_the_random_state() -> None:
    deck = [make_plate([picture()], 1, number) for number in range(2)]
    one, other, next_one = (crops(deck, 64, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], next_one[0])
