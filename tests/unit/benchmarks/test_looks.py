"""Proves what benchmarks/looks.py shows: places, sheets, figures, and other coders at the same number of bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from benchmarks import losses
from benchmarks.coded import EVALUATION, EXACT, Coded, Image, code, described, lossless_bytes
from benchmarks.looks import arrays_of, first_sheet, second_sheet
from benchmarks.losses import lines_of
from benchmarks.rivals import Rival, at_size, jpeg_2000, jpeg_xl
from benchmarks.sheets import difference, narrow_window, places_of
from node.codec.encode.search import Encoder
from node.fidelity.breast_regions import breast_mask
from node.training.image_files import Picture
from tests.support.samples import breast


@pytest.fixture(scope="module")
def image() -> Image:
    pixels, header = breast(640, 512, seed=1), Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    picture = Picture("samples/breast.dcm", pixels, 12, header, False, breast_mask(pixels, "MONOCHROME2"))
    return described(picture, "samples")


@pytest.fixture(scope="module")
def coded(image: Image) -> Coded:
    return code(image, upscaler="bicubic")


def test_what_is_known_of_an_image(image: Image) -> None:
    assert (image.kind, image.use, image.spacing_mm) == ("digital", EVALUATION, 0.07)
    assert described(image.picture, "nyu_bsd2_8bit").use == "training"
    film = described(replace(image.picture, film=True), "sfm-malign-0")
    assert (film.kind, film.woman, film.use, film.spacing_mm) == ("film", "sfm-malign-0", EVALUATION, 0.05)
    assert image.breast.shape == image.picture.pixels.shape


@pytest.mark.slow
def test_coded(image: Image, coded: Coded) -> None:
    assert coded.structure.dtype == np.float32
    assert coded.served.dtype == coded.original.dtype == np.uint16
    assert coded.served.shape == coded.structure.shape == coded.breast.shape == coded.original.shape
    assert 0 < coded.payload_bytes < coded.original.nbytes / 20
    assert coded.worst
    assert coded.point.startswith("x")
    again = code(image, seed=2, upscaler="bicubic")
    assert np.array_equal(again.structure, coded.structure)
    assert again.payload_bytes == coded.payload_bytes
    assert not np.array_equal(again.served, coded.served)  # the noise alone is another


@pytest.mark.slow
def test_air_is_dark_for_other_programs(image: Image, coded: Coded) -> None:
    turned, header = 4095 - image.picture.pixels, Dataset()
    header.PhotometricInterpretation = "MONOCHROME1"
    inverted = replace(image, picture=replace(image.picture, pixels=turned, header=header))
    shown = replace(coded, original=turned, served=4095 - coded.served, structure=4095 - coded.structure)
    found = arrays_of(inverted, replace(shown, window=(95.0, 3095.0)))
    assert np.array_equal(found["original"], coded.original)
    assert found["original"].dtype == found["reconstructed"].dtype == np.uint16
    assert np.allclose(found["structure"], coded.structure, atol=1e-3)
    assert tuple(found["window"]) == (1000.0, 4000.0)
    assert np.array_equal(arrays_of(image, coded)["original"], coded.original)


def test_an_image_of_which_nothing_passes(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "search", lambda _: None)
    noise = np.random.default_rng(0).integers(0, 4096, (300, 280)).astype(np.uint16)
    picture = replace(image.picture, pixels=noise, mask=np.ones((19, 18), dtype=bool))
    found = code(replace(image, picture=picture), upscaler="bicubic")
    assert found.point == EXACT
    assert found.payload_bytes == lossless_bytes(noise)
    assert np.array_equal(found.served, noise)
    assert np.array_equal(found.structure, noise)
    assert found.worst


def test_places_and_windows(coded: Coded) -> None:
    places = places_of(coded)
    assert 2 <= len(places) <= 6
    assert "worst" in places[0].why
    for place in places:
        assert place.of(coded.original).shape == (place.side, place.side)
        low, high = narrow_window(coded, place)
        assert low < high
    corners = [(place.row, place.column) for place in places]
    assert len(set(corners)) == len(corners)


def test_sheets(image: Image, coded: Coded) -> None:
    places = places_of(coded)
    side = places[0].side
    row = {"raw_over_payload": 100.0, "lossless_over_payload": 20.0}
    first = first_sheet(image, coded, places, row)
    assert first.width == 6 * (side + 6) + 6
    assert first.height > 2 * -(-len(places) // 2) * side
    rivals = [Rival(name, coded.original, 1000, "d1") for name in ("JPEG XL", "JPEG 2000")]
    second = second_sheet(image, coded, places, rivals)
    assert second.width == 4 * (side + 6) + 6
    assert second.height > len(places) * side


def test_no_difference_is_middle_grey(coded: Coded) -> None:
    place = places_of(coded)[0]
    assert np.unique(difference(coded.original, coded, place)).tolist() == [128]
    brighter = difference(coded.original.astype(np.float32) + 1000, coded, place)
    assert brighter.min() == 255


@pytest.mark.slow
def test_losses(coded: Coded, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SIDE", 320), ("_SQUARES", 2), ("_DIRECTIONS", 3), ("_MOST_TILES", 2)):
        monkeypatch.setattr(losses, name, value)
    found = losses.losses(coded)
    assert found.lost[0] > found.lost[1] > found.lost[2] > found.lost[3]
    assert found.spectrum_db == pytest.approx([0, 0, 0, 0], abs=2)
    assert found.low < found.low_served < 1.6 * found.low
    assert found.psnr_structure > found.psnr_served
    same = replace(coded, structure=coded.original.astype(np.float32), served=coded.original)
    none = losses.losses(same)
    assert none.lost == [0, 0, 0, 0]
    assert none.lines == [0, 0, 0]
    assert none.fsim_served == 1


def test_a_lost_line_is_seen() -> None:
    random = np.random.default_rng(1)
    noise = gaussian_filter(random.standard_normal((400, 400)), 0.7).astype(np.float32)
    line = np.zeros_like(noise)
    line[200:202, 100:300] = 1.5 * noise.std()
    gone = lines_of([(noise + line, -noise)], 1.2)
    assert gone < lines_of([(noise + line, -noise - line)], 1.2)


def test_at_size() -> None:
    tried = []

    def encode(setting: float) -> bytes:
        tried.append(setting)
        return b"x" * round(100_000 / setting**1.3)

    for size in (500, 3_000, 40_000, 90_000):
        tried.clear()
        setting, data = at_size(encode, size, fine=0.5, coarse=100.0)
        assert len(data) == pytest.approx(size, rel=0.01)
        assert len(encode(setting)) == len(data)
        assert len(tried) < 9
    assert at_size(encode, 10, fine=0.5, coarse=100.0)[0] == 100.0  # as few as the coder can
    assert at_size(encode, 10**6, fine=0.5, coarse=100.0)[0] == 0.5


@pytest.mark.slow
def test_rivals(coded: Coded) -> None:
    for rival in (jpeg_xl(coded.original, 12, 9_000), jpeg_2000(coded.original, 12, 9_000)):
        assert rival.size == pytest.approx(9_000, rel=0.03)
        assert rival.pixels.shape == coded.original.shape
        inside = coded.breast
        error = rival.pixels[inside].astype(float) - coded.original[inside]
        assert np.sqrt(np.square(error).mean()) < 100
