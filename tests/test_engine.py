"""The engine: what comes back is consistent with its base, reproducible, and keeps padding and range."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.codec.engine import consistency, make_base, reconstruct
from node.codec.source import Original
from node.upscalers.bicubic import Bicubic
from storage.dicomfile import HeaderBytes, encode
from storage.errors import NotReconstructable
from storage.payload import Base, decode_base, encode_base
from storage.records import Rung
from tests.samples import breast, mammogram

LOSSLESS = [Rung(2, "png16"), Rung(4, "png16"), Rung(2, "jpegls"), Rung(2, "jpegxl"), Rung(1, "jpegxl")]
LOSSY = [Rung(2, "jpegxl", 0.3, sample_bits=12), Rung(4, "jpegxl", 0.6, sample_bits=12), Rung(1, "jpegxl", 1.0)]


def original_of(pixels: NDArray[np.uint16], **changes: Any) -> Original:
    ds: Dataset = mammogram(pixels, **changes)
    header = encode(ds[:0x7FE00010], ExplicitVRLittleEndian)
    parsed = HeaderBytes(str(ExplicitVRLittleEndian), header, b"")
    return Original.of(pixels, ds, parsed, "0" * 64, "OW")


def rendered(base: Base) -> NDArray[np.uint16]:
    return reconstruct(base, Bicubic(), seed=1, steps=0)


@pytest.mark.parametrize("rung", LOSSLESS, ids=str)
@pytest.mark.parametrize("shape", [(640, 512), (641, 515), (259, 999)])
def test_consistent_with_a_lossless_base(rung: Rung, shape: tuple[int, int]) -> None:
    """DESIGN decision 4: within one grey level, where nothing was clipped."""
    base = make_base(original_of(breast(*shape)), rung)
    pixels = rendered(base)
    assert pixels.shape == shape
    assert consistency(pixels, base).maximum <= 1.0


def test_a_lossless_base_is_only_rounded() -> None:
    inside = breast(900, 700)[300:600, :300]
    assert make_base(original_of(inside), Rung(2, "png16")).quantisation_rms == pytest.approx(12**-0.5, rel=0.05)


@pytest.mark.parametrize("rung", LOSSY, ids=str)
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_consistent_with_a_lossy_base(rung: Rung, bits: int) -> None:
    """Within the base's own quantisation, plus rounding to integers."""
    base = make_base(original_of(breast(bits=bits), bits=bits), rung)
    away = consistency(rendered(base), base)
    assert away.rms <= max(base.quantisation_rms, 0.5)


def test_consistency_notices_a_reconstruction_that_is_not() -> None:
    base = make_base(original_of(breast()), Rung(2, "png16"))
    pixels = rendered(base)
    pixels[300:320, 100:120] += 40
    assert consistency(pixels, base).maximum > 10


def test_scale_one_lossless_is_the_original() -> None:
    pixels = breast()
    assert np.array_equal(rendered(make_base(original_of(pixels), Rung(1, "jpegxl"))), pixels)


def test_same_base_same_pixels_under_load_and_on_any_thread_count() -> None:
    import torch

    base = make_base(original_of(breast(901, 700)), Rung(2, "jpegxl", 0.3, sample_bits=12))
    first = rendered(base)
    threads = torch.get_num_threads()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            torch.randn(256, 256) @ torch.randn(256, 256)

    workers = [threading.Thread(target=load) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for _ in range(3):
                assert np.array_equal(rendered(decode_base(encode_base(base))), first)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [0, 4095])
def test_padding_stays_and_stays_alone(value: int) -> None:
    """PS3.3 C.7.5.1.1.2: padded pixels keep exactly their value, and no other pixel takes it."""
    pixels = np.clip(breast(), 1, 4094)
    pixels[:, 400:] = value
    pixels[:37] = value
    mask = pixels == value
    base = make_base(original_of(pixels, PixelPaddingValue=value), Rung(2, "jpegxl", 0.6, sample_bits=12))
    result = rendered(decode_base(encode_base(base)))
    assert np.array_equal(result == value, mask)
    assert (base.minimum, base.maximum) == (pixels[~mask].min(), pixels[~mask].max())
    edge = np.abs(result[100:500, 380:399].astype(int) - pixels[100:500, 380:399])
    assert edge.mean() < 100, "the step to the padding value rings into the image"


def test_padding_range_with_one_value() -> None:
    pixels = np.clip(breast(), 20, 4095)
    pixels[:, 400:] = 7
    original = original_of(pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=10)
    result = rendered(make_base(original, Rung(2, "png16")))
    assert np.array_equal(result == 7, pixels == 7)
    assert not ((result <= 10) & (pixels > 10)).any()


def test_padding_range_with_several_values() -> None:
    pixels = np.clip(breast(), 20, 4095)
    pixels[:, 400:450], pixels[:, 450:] = 3, 5
    pixels[300, 200] = 9
    original = original_of(pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=10)
    assert original.several_padding_values
    result = rendered(decode_base(encode_base(make_base(original, Rung(2, "png16")))))
    padded = pixels <= 10
    assert np.array_equal(result[padded], pixels[padded])
    assert (result[~padded] > 10).all()


def test_what_the_pixels_rule_out() -> None:
    pixels = breast()
    with pytest.raises(NotReconstructable, match="all pixels are padding"):
        original_of(pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=4095)
    with pytest.raises(NotReconstructable, match="Bits Stored"):
        original_of(pixels + np.uint16(4096))


def test_values_stay_within_the_originals_own() -> None:
    pixels = np.clip(breast(), 100, 3000)
    result = rendered(make_base(original_of(pixels), Rung(4, "jpegxl", 3.0, sample_bits=12)))
    assert result.min() >= 100
    assert result.max() <= 3000


def test_lift_is_better_than_plain_bicubic() -> None:
    """What the projection buys, on a picture with texture at every scale."""
    pixels = breast()
    base = make_base(original_of(pixels), Rung(2, "png16"))
    plain = np.clip(np.rint(base.operator.up(base.samples())), 0, 4095)
    error = [np.square(image.astype(float) - pixels).mean() for image in (rendered(base), plain)]
    assert error[0] < error[1]


# --- the window -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("air", [0, 1000, 4095])
@pytest.mark.parametrize("rung", [*LOSSY, Rung(1, "avif", 1.0, sample_bits=12)], ids=str)
def test_air_of_one_value_is_not_coded_and_comes_back_exactly(rung: Rung, air: int) -> None:
    pixels = np.full((900, 1100), air, dtype=np.uint16)
    pixels[130:750, :480] = breast(620, 480)
    original = original_of(pixels)
    base = decode_base(encode_base(make_base(original, rung)))
    window = base.window
    assert window is not None
    assert window.beyond == air
    assert window.rows * window.columns < 0.45 * base.operator.low_rows * base.operator.low_columns
    uncoded = make_base(replace(original, _lowered={}, _windows={rung.scale: None}), rung)
    assert uncoded.window is None
    assert len(base.coded) < 1.02 * len(uncoded.coded)
    made, of_all = rendered(base), rendered(uncoded)
    far = np.ones(pixels.shape, dtype=bool)
    far[130 - 48 : 750 + 48, : 480 + 48] = False  # what the operator reaches
    assert (made[far] == air).all()
    error = [np.square(image.astype(float) - pixels)[~far].mean() for image in (made, of_all)]
    assert error[0] < 1.1 * error[1] + 1


def test_where_nearly_all_is_worth_coding_all_is_coded() -> None:
    lossy = LOSSY[0]
    full = breast(900, 700)[300:600, :300]
    assert make_base(original_of(full), lossy).window is None
    assert make_base(original_of(np.full((300, 280), 700, np.uint16)), lossy).window is None
    for rung in LOSSLESS:
        assert make_base(original_of(breast(400, 300)), rung).window is None
    noise = np.random.default_rng(1).integers(0, 3, (900, 1100)).astype(np.uint16)
    noise[100:400, :300] = breast(300, 300)
    assert make_base(original_of(noise), lossy).window is None
