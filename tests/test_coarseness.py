"""storage.coarseness: the map's bytes, the scaling it stands for, and bases whose samples it scaled."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from node.codec.engine import make_base
from storage import coders
from storage.coarseness import LIMIT, PER_OCTAVE, TILE, Coarseness
from storage.errors import PayloadError
from storage.payload import Base, decode_base, encode_base
from storage.records import Rung
from tests.samples import breast
from tests.test_engine import original_of

SCALES = [1, 2, 4, 16]
"""Of bases, and 16, which the search for a map asks for."""
AVIF = Rung(2, "avif", 0.3, sample_bits=12)
RUNGS = [Rung(2, "jpegxl"), Rung(4, "png16", sample_bits=16), Rung(1, "jpegxl", 1.0), AVIF]


def grid(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE), -(-columns // TILE)


def constant(rows: int, columns: int, step: int) -> Coarseness:
    return Coarseness(rows, columns, np.full(grid(rows, columns), step, np.int8))


def uneven(rows: int, columns: int, largest: int = LIMIT) -> Coarseness:
    """A map as uneven as can be: of random steps up to ``largest`` either way."""
    steps = np.random.default_rng(rows * 10_000 + columns).integers(-largest, largest + 1, grid(rows, columns))
    return Coarseness(rows, columns, steps.astype(np.int8))


@st.composite
def maps(draw: st.DrawFn, most: int = 2000) -> Coarseness:
    rows, columns = draw(st.integers(1, most)), draw(st.integers(1, most))
    return Coarseness(
        rows,
        columns,
        draw(arrays(np.int8, grid(rows, columns), elements=st.integers(-LIMIT, LIMIT), fill=st.nothing())),
    )


# --- bytes ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(map_=maps())
def test_a_map_comes_back(map_: Coarseness) -> None:
    before = map_.steps.copy()
    packed = map_.pack()
    assert isinstance(packed, bytes)
    again = Coarseness.unpack(packed, map_.rows, map_.columns)
    assert (again.rows, again.columns, again.steps.dtype) == (map_.rows, map_.columns, np.int8)
    assert np.array_equal(again.steps, before)
    assert np.array_equal(map_.steps, before)


def test_a_map_is_packed_as_documented() -> None:
    map_ = Coarseness(300, 513, np.array([[3, 5, -2], [-32, 32, 32]], np.int8))
    assert map_.pack() == bytes([3, 2, 249, 224, 64, 0])


def test_the_layout_in_memory_does_not_matter() -> None:
    map_ = uneven(1000, 1500)
    for steps in (np.asfortranarray(map_.steps), np.repeat(map_.steps, 2, axis=1)[:, ::2]):
        assert Coarseness(1000, 1500, steps).pack() == map_.pack()
        assert np.array_equal(Coarseness(1000, 1500, steps).scaling(4), map_.scaling(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "coarseness holds 0 bytes, not 6"),
        (bytes(5), "coarseness holds 5 bytes, not 6"),
        (bytes(7), "coarseness holds 7 bytes, not 6"),
        (bytes([33, 0, 0, 0, 0, 0]), "a step beyond 32"),
        (bytes([0, 0, 0, 0, 0, 256 - 33]), "a step beyond 32"),
        (bytes([0, 0, 0, 128, 0, 0]), "a step beyond 32"),
        (bytes([20, 20, 0, 0, 0, 0]), "a step beyond 32"),
    ],
)
def test_bytes_that_are_no_map_are_a_payload_error(data: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        Coarseness.unpack(data, 300, 513)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=6, max_size=6))
def test_random_bytes_are_the_only_ones_of_their_map_or_a_payload_error(data: bytes) -> None:
    try:
        map_ = Coarseness.unpack(data, 300, 513)
    except PayloadError as error:
        assert "beyond" in str(error)
    else:
        assert map_.pack() == data


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 2), (3, 2), (6,)])
def test_a_map_of_another_grid_is_a_payload_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(PayloadError, match=r"tiles, not \(2, 3\)"):
        Coarseness(300, 513, np.zeros(shape, np.int8))


@pytest.mark.parametrize("step", [LIMIT + 1, -LIMIT - 1, 127, -128])
def test_a_step_beyond_the_limit_is_a_payload_error(step: int) -> None:
    steps = np.zeros((2, 3), np.int8)
    steps[1, 2] = step
    with pytest.raises(PayloadError, match="a step beyond 32"):
        Coarseness(300, 513, steps)


# --- scaling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (255, 257), (256, 512), (300, 513), (641, 1031)])
def test_scaling_has_the_shape_of_the_base(shape: tuple[int, int], scale: int) -> None:
    scaling = uneven(*shape).scaling(scale)
    assert scaling.dtype == np.float32
    assert scaling.shape == (-(-shape[0] // scale), -(-shape[1] // scale))
    assert (scaling >= 2**-4).all()
    assert (scaling <= 2**4).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("step", [-LIMIT, -9, -8, -1, 0, 1, 3, 8, 16, LIMIT])
def test_a_constant_map_scales_alike_everywhere(step: int, scale: int) -> None:
    scaling = constant(300, 700, step).scaling(scale)
    assert np.ptp(scaling) == 0
    assert scaling[0, 0] == pytest.approx(2 ** (-step / 8), rel=1e-6)
    if step % PER_OCTAVE == 0:
        assert scaling[0, 0] == 2.0 ** (-step // 8)


PARTS = 3.5e-4
"""Two parts of a step, one lost by rounding down along each axis: 2 ** (2 / 512 / 8) - 1, and float32."""


def interpolated(map_: Coarseness, scale: int) -> NDArray[np.float64]:
    """What the scaling stands for: torch's bilinear interpolation of the steps, in float64."""
    import torch

    steps = torch.from_numpy(map_.steps.astype(np.float64))[None, None]
    down, across = (count * TILE // scale for count in map_.steps.shape)
    fine = torch.nn.functional.interpolate(steps, size=(down, across), mode="bilinear", align_corners=False)[0, 0]
    rows, columns = -(-map_.rows // scale), -(-map_.columns // scale)
    return np.exp2(-fine.numpy()[:rows, :columns] / 8)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (200, 900), (512, 768), (641, 1031), (1100, 259)])
def test_scaling_is_bilinear_in_steps_between_tile_centres(shape: tuple[int, int], scale: int) -> None:
    map_ = uneven(*shape)
    ratio = map_.scaling(scale) / interpolated(map_, scale)
    assert ratio.min() > 1 - 1e-6  # parts of a step are rounded down, towards finer
    assert ratio.max() < 1 + PARTS


@settings(max_examples=20, deadline=None)
@given(map_=maps(most=900), scale=st.sampled_from([2, 4, 16]))
def test_scaling_of_any_map_is_bilinear(map_: Coarseness, scale: int) -> None:
    ratio = map_.scaling(scale) / interpolated(map_, scale)
    assert ratio.min() > 1 - 1e-6
    assert ratio.max() < 1 + PARTS


def documented(map_: Coarseness, scale: int, row: int, column: int) -> np.float32:
    """One value of the scaling after docs/FORMATS.md, in Python's integers."""
    tile = TILE // scale

    def between(values: list[int], at: int) -> int:
        before, way = divmod(2 * at + 1 - tile, 2 * tile)
        low, high = (values[min(max(index, 0), len(values) - 1)] for index in (before, before + 1))
        return (low * (2 * tile - way) + high * way) // (2 * tile)

    parts = [[512 * int(step) for step in line] for line in map_.steps]
    line = [between([each[index] for each in parts], row) for index in range(len(parts[0]))]
    return np.float32(2.0 ** (-between(line, column) / 4096))


@pytest.mark.parametrize("scale", SCALES)
def test_scaling_is_computed_as_documented(scale: int) -> None:
    """Bit for bit: a base is divided by what it was multiplied with, on another machine too."""
    map_ = uneven(641, 1031)
    scaling = map_.scaling(scale)
    random = np.random.default_rng(scale)
    for row, column in zip(
        random.integers(0, len(scaling), 500), random.integers(0, scaling.shape[1], 500), strict=True
    ):
        assert scaling[row, column] == documented(map_, scale, int(row), int(column))


def test_scaling_has_the_same_bits_everywhere() -> None:
    """Literal: exact values are thousands of float64 spacings from where float32 would round the other way."""
    ends = Coarseness(1, 2 * TILE, np.array([[-LIMIT, LIMIT]], np.int8)), Coarseness(513, 1031, _LITERAL)
    digests = [hashlib.sha256(map_.scaling(1).astype("<f4").tobytes()).hexdigest() for map_ in ends]
    assert digests == [
        "acefaf3eeef1fc851aec9fb26cd18c4d85051412a210115b92d90bba6fa23431",
        "9a31365f282b7aabe51d7d11c9ebe2185f2c8df4927b6fd15cd5faf9ec1999b8",
    ]


_LITERAL = np.array([[0, 1, -1, 32, -32], [5, -7, 11, -13, 17], [-19, 23, -29, 31, 2]], np.int8)


@pytest.mark.parametrize(("steps", "octaves"), [([0, 0, 16], 0.0), ([8, 8, -32], 1.0), ([-4, -4, -4], -0.5)])
def test_the_typical_tile_is_the_median(steps: list[int], octaves: float) -> None:
    assert Coarseness(100, 3 * TILE, np.array([steps], np.int8)).typical_octaves == octaves


# --- bases ----------------------------------------------------------------------------------------------------


def made(rung: Rung, map_: Coarseness | None, shape: tuple[int, int] = (641, 515)) -> tuple[Base, NDArray[np.float32]]:
    """A base of a breast, and what it would be without rounding and coding."""
    pixels = breast(*shape)
    base = make_base(original_of(pixels), rung, map_)
    return base, base.operator.down(pixels)


def rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_a_base_with_a_map_reads_as_it_was_written(rung: Rung) -> None:
    map_ = uneven(641, 515, 12)
    base, ideal = made(rung, map_)
    read = decode_base(encode_base(base))
    assert read.coarseness is not None
    assert np.array_equal(read.coarseness.steps, map_.steps)
    assert np.array_equal(read.samples(), base.samples())
    assert read.quantisation_rms == pytest.approx(rms(base.samples() - ideal), rel=1e-6)


@pytest.mark.parametrize("bits", [0, 14, 16])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_samples_of_a_lossless_coder_are_the_ideal_ones_rounded_in_the_maps_steps(scale: int, bits: int) -> None:
    map_ = Coarseness(641, 515, np.abs(uneven(641, 515).steps))
    base, ideal = made(Rung(scale, "jpegxl", 0.0, effort=3, sample_bits=bits), map_)
    factor = 2.0 ** (bits - 12) if bits else 1.0
    ideal = np.clip(ideal, 0, 4095)
    scaling = map_.scaling(scale)
    samples = base.samples()
    assert np.array_equal(samples, np.rint(ideal * np.float32(factor) * scaling) / np.float32(factor) / scaling)
    assert (np.abs(samples - ideal) <= (0.5 / factor + 1e-3) / scaling).all()


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_a_map_of_zeros_changes_no_sample(rung: Rung) -> None:
    without, _ = made(rung, None)
    zeros, _ = made(rung, constant(641, 515, 0))
    assert zeros.coded == without.coded
    assert np.array_equal(zeros.samples(), without.samples())
    assert zeros.quantisation_rms == without.quantisation_rms


@pytest.mark.parametrize("rung", [AVIF, Rung(2, "jpegxl", 0.6, sample_bits=12)], ids=str)
def test_a_lossy_base_is_coarser_and_smaller_where_the_map_says(rung: Rung) -> None:
    """The image is one row of tiles twice over, mirrored."""
    half = breast(256, 1024)[:, :768]
    pixels = np.concatenate([half, half[:, ::-1]], axis=1)
    steps = np.array([[0, 0, 0, 16, 16, 16]], np.int8)
    original = original_of(pixels)
    plain = make_base(original, rung)
    mapped = make_base(original, rung, Coarseness(*pixels.shape, steps))
    off = mapped.samples() - mapped.operator.down(pixels)
    fine, coarse = off[:, : 512 // 2], off[:, -512 // 2 :]
    assert rms(coarse) > 1.25 * rms(fine)
    assert rms(fine) < 1.2 * rms((plain.samples() - plain.operator.down(pixels))[:, : 512 // 2])
    assert len(mapped.coded) < 0.9 * len(plain.coded)


@pytest.mark.parametrize("coder", ["avif", "jpegxl"])
def test_samples_that_a_map_scales_beyond_the_coders_top_stay_at_it(coder: str) -> None:
    """They neither wrap around nor stop the base from being made; the search leaves them room."""
    top = coders.top_sample(coder)
    bits = top.bit_length()
    base, ideal = made(Rung(2, coder, 0.05 if coder == "avif" else 0.0, sample_bits=bits), constant(641, 515, 8))
    finer, _ = made(base.rung, constant(641, 515, -8))
    assert rms(base.samples() - ideal) < 8
    limit = top / 2 / 2.0 ** (bits - 12)
    assert ideal.max() > 1.2 * limit
    assert finer.samples().max() <= limit
    assert rms(finer.samples() - np.clip(ideal, 0, limit)) < 8


def test_a_base_with_a_map_is_version_2_and_later_ones_are_refused() -> None:
    base, _ = made(RUNGS[0], constant(641, 515, 3))
    data = encode_base(base)
    assert data[:8] == b"LPACS\0B\2"
    later = data[:7] + b"\4" + data[8:-32]
    with pytest.raises(PayloadError, match="version"):
        decode_base(later + hashlib.sha256(later).digest())


def test_a_base_without_a_map_is_written_as_before() -> None:
    """Version 1, so that releases before this one read it."""
    base, _ = made(RUNGS[0], None)
    assert base.coarseness is None
    assert encode_base(base)[:8] == b"LPACS\0B\1"
