"""The guide: its maps, its bytes, and that with it nothing gets worse (node/codec/guide.py, guiding.py)."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom import Dataset
from scipy.ndimage import binary_dilation

from node.codec.engine import Decoded, Draft, finish, make_base, reconstruct, weighed
from node.codec.guide import (
    CORRECTION_ONE,
    CORRECTIONS,
    LEVEL_TILE,
    NETWORK,
    TURN_TILE,
    TURNS,
    WEIGHT_TILE,
    Guide,
    decode_guide,
    deviations,
    encode_guide,
    grid,
    measure_levels,
    share_map,
    spread,
    tile_means,
    turn_maps,
    unit_map,
)
from node.codec.guiding import (
    PSNR_BUDGET_DB,
    RAISES,
    Raising,
    calmed,
    equalised,
    guided,
    raised,
    tiles_with_breast,
    weight_tiles_with_breast,
)
from node.fidelity.gate import Reference, measure
from node.upscalers.bicubic import Bicubic
from node.upscalers.noise import noise_rows
from node.upscalers.protocol import Upscaled, UpscaleTask
from storage.errors import PayloadError
from storage.payload import Base
from storage.records import Rung
from tests.samples import breast
from tests.test_engine import original_of

RUNGS = [Rung(2, "jpegxl", distance=0.6, sample_bits=12), Rung(4, "png16"), Rung(1, "jpegxl", distance=2.0)]


# --- maps -----------------------------------------------------------------------------------------------------


def test_levels_say_how_strong_the_residual_is() -> None:
    random = np.random.default_rng(1)
    residual = np.zeros((300, 200), dtype=np.float32)
    residual[:64, :64] = 3 * random.standard_normal((64, 64))
    residual[64:128, :64] = 200 * random.standard_normal((64, 64))
    levels = measure_levels(residual, np.ones((5, 4), dtype=bool))
    assert levels.shape == (5, 4)
    found = deviations(levels)
    assert found[0, 0] == pytest.approx(3, rel=0.15)
    assert found[1, 0] == pytest.approx(200, rel=0.15)
    assert (levels[2:] == 0).all()
    assert (found[levels == 0] == 0).all()


def test_levels_are_nothing_outside_the_breast() -> None:
    inside = np.zeros((2, 2), dtype=bool)
    inside[0, 1] = True
    levels = measure_levels(np.full((128, 128), 50, dtype=np.float32), inside)
    assert (levels > 0).tolist() == inside.tolist()


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 150), st.integers(1, 150)), elements=st.floats(0, 100, width=32))
)
@settings(max_examples=30, deadline=None)
def test_tile_means_cover_every_pixel_once(values: np.ndarray) -> None:
    means = tile_means(values, 64)
    for row in range(means.shape[0]):
        for column in range(means.shape[1]):
            part = values[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
            assert means[row, column] == pytest.approx(part.mean(dtype=np.float64), rel=1e-4, abs=1e-4)


def test_spread_meets_the_tiles_values_at_their_centres_and_has_no_step() -> None:
    tiles = np.array([[0, 8], [4, 12]], dtype=np.float32)
    smooth = spread(tiles, 64, 120, 100)
    assert smooth.shape == (120, 100)
    assert smooth[31:33, 31:33].mean() == pytest.approx(0, abs=0.2)
    assert smooth[95:97, 31:33].mean() == pytest.approx(4, abs=0.2)
    assert max(np.abs(np.diff(smooth, axis=axis)).max() for axis in (0, 1)) <= 8 / 64 + 1e-5


def test_share_is_one_inside_and_nothing_two_tiles_away() -> None:
    levels = np.zeros((5, 5), dtype=np.uint8)
    levels[:2, :2] = 9
    share = share_map(levels, 320, 320)
    assert (share[:96, :96] == 1).all()
    assert (share[192:, 192:] == 0).all()
    unit = unit_map(levels, 320, 320)
    assert (unit > 0).all()
    assert unit[:96, :96] == pytest.approx(deviations(levels)[0, 0], rel=1e-5)


# --- bytes ----------------------------------------------------------------------------------------------------


@st.composite
def guides(draw: st.DrawFn) -> Guide:
    rows, columns = draw(st.integers(1, 900)), draw(st.integers(1, 900))

    def some(tile: int, top: int) -> np.ndarray:
        return draw(hnp.arrays(np.uint8, grid(rows, columns, tile), elements=st.integers(0, top)))

    corrections = np.stack([some(WEIGHT_TILE, 128) for _ in CORRECTIONS]).astype(int) - 64
    turns = some(TURN_TILE, len(TURNS) - 1) if draw(st.booleans()) else None
    return Guide(rows, columns, some(LEVEL_TILE, 63), corrections.astype(np.int8), some(WEIGHT_TILE, 15), turns)


@given(guides())
@settings(max_examples=50, deadline=None)
def test_bytes_give_the_guide_back(guide: Guide) -> None:
    found = decode_guide(encode_guide(guide))
    assert (found.rows, found.columns) == (guide.rows, guide.columns)
    assert (found.turns is None) == (guide.turns is None)
    for name in ("levels", "corrections", "amplitude", *([] if guide.turns is None else ["turns"])):
        assert getattr(found, name).dtype == getattr(guide, name).dtype
        assert np.array_equal(getattr(found, name), getattr(guide, name))


def some_guide() -> bytes:
    levels = np.full(grid(700, 500, LEVEL_TILE), 20, dtype=np.uint8)
    return encode_guide(Guide.neutral(700, 500, levels))


def turned(number: int) -> Guide:
    levels = np.full(grid(100, 70, LEVEL_TILE), 20, dtype=np.uint8)
    turns = np.full(grid(100, 70, TURN_TILE), number, dtype=np.uint8)
    return replace(Guide.neutral(100, 70, levels), turns=turns)


def test_a_guide_without_turns_is_as_it_always_was() -> None:
    assert encode_guide(replace(turned(0), turns=None))[0] == 1
    assert encode_guide(turned(0))[0] == 2
    with pytest.raises(PayloadError, match="out of range"):
        decode_guide(encode_guide(turned(len(TURNS))))


def test_turns_say_how_texture_is_moved_in_each_square() -> None:
    turns = np.arange(16, dtype=np.uint8).reshape(4, 4)
    maps = dict(turn_maps(turns, 120, 128))
    assert list(maps) == [(0, 0), (0, 64), (64, 0), (64, 64)]
    total = sum(np.abs(values) for values in maps.values())
    for number, (down, across, factor) in enumerate(TURNS):
        row, column = divmod(number, 4)
        square = np.s_[32 * row : min(32 * row + 32, 120), 32 * column : 32 * column + 32]
        assert (maps[down, across][square] == np.float32(factor)).all()
        assert (total[square] == np.float32(abs(factor))).all(), "moved one way only"
    assert list(dict(turn_maps(np.zeros((1, 1), dtype=np.uint8), 5, 5))) == [(0, 0)]


def test_a_guide_is_small() -> None:
    assert len(some_guide()) < 60


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "malformed"),
        (some_guide()[:3], "malformed"),
        (some_guide()[:-4], "holds|malformed"),
        (b"\x07" + some_guide()[1:], "format 7"),
        (some_guide()[:1] + b"\x01\x00" + some_guide()[3:], "holds"),
        (some_guide()[:5] + zlib.compress(b"\xff" * (88 + 5 * 6), wbits=-15), "out of range"),
        (some_guide()[:5] + b"\x55" * 40, "malformed"),
    ],
)
def test_damage_is_an_error_of_ours(damaged: bytes, why: str) -> None:
    with pytest.raises(PayloadError, match=why):
        decode_guide(damaged)


def test_a_guide_of_another_image_is_refused() -> None:
    base = make_base(original_of(breast(300, 300)), Rung(2, "png16"))
    with pytest.raises(PayloadError, match="700 x 500"):
        reconstruct(base, Bicubic(), seed=1, steps=0, guide=decode_guide(some_guide()))


# --- noise ----------------------------------------------------------------------------------------------------


def test_noise_belongs_to_the_object_and_the_place() -> None:
    """Literal values: other numbers would make other pixels of every rendition with texture."""
    rows = noise_rows(7, range(3, 9), 40)
    assert np.array_equal(noise_rows(7, range(5, 6), 40)[0], rows[2])
    assert np.array_equal(noise_rows(7, range(3, 9), 17), rows[:, :17])
    assert not np.array_equal(noise_rows(8, range(3, 9), 40), rows)
    first = noise_rows(7, range(3, 4), 4)[0]
    assert first.tolist() == [0.9691249132156372, 0.9009644985198975, -1.2499065399169922, -0.6765823364257812]


def test_noise_is_nearly_normal() -> None:
    noise = noise_rows(1, range(200), 500)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert np.abs(noise).max() < 3.5
    assert np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1] == pytest.approx(0, abs=0.02)
    assert np.mean(np.abs(noise) < 1) == pytest.approx(0.67, abs=0.02)


# --- the encoder's side ---------------------------------------------------------------------------------------


class Wild:
    """An upscaler that is right in some places, wrong in others, and draws texture: for the guide to tame."""

    name, method, weights_digest, numerics = "wild", "WILD", "", {}
    generative = guided = True
    consistent = False
    steps = 1

    def __init__(self, seed: int, detail: float = 0.0) -> None:
        self.detail = detail
        self._random = seed

    def upscale(self, task: UpscaleTask) -> Upscaled:
        random = np.random.default_rng(self._random)
        image = task.operator.lift(task.base)
        wrong = random.standard_normal(image.shape, dtype=np.float32) * np.float32(random.uniform(0.1, 300))
        smooth = np.sin(np.arange(image.shape[1], dtype=np.float32) / np.float32(random.uniform(1, 60))) * 100
        texture = random.standard_normal(image.shape, dtype=np.float32) * 40 if self.detail else None
        return Upscaled(image + wrong + smooth, texture)


@given(seed=st.integers(0, 10_000), rung=st.sampled_from(RUNGS), detail=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=6, deadline=None)
def test_whatever_the_upscaler_says_the_result_is_never_worse_than_the_consistent_base(
    seed: int, rung: Rung, detail: float
) -> None:
    random = np.random.default_rng(seed)
    pixels = breast(int(random.integers(260, 420)), int(random.integers(260, 420)), seed=seed)
    original = original_of(pixels)
    base = make_base(original, rung)
    reference = Reference(pixels, Dataset())
    _, still = guided(reference, base, Wild(seed), seed=1, steps=1, detail=0)
    plain = reconstruct(base, Bicubic(), seed=1, steps=0)
    assert squared_error(pixels, still) <= squared_error(pixels, plain)
    if detail:
        _, made = guided(reference, base, Wild(seed, detail), seed=1, steps=1, detail=detail)
        lost = measure(reference, still, None).psnr_db - measure(reference, made, None).psnr_db
        assert lost <= PSNR_BUDGET_DB + 0.1


def test_alpha_follows_the_upscaler_where_it_is_right_and_not_where_it_is_wrong() -> None:
    pixels = breast(512, 1024)

    class HalfRight(Wild):
        def upscale(self, task: UpscaleTask) -> Upscaled:
            image = task.operator.lift(task.base)
            image[:, :512] = pixels[:, :512]
            image[:, 512:] += 500 * np.random.default_rng(1).standard_normal((512, 512), dtype=np.float32)
            return Upscaled(image)

    base = make_base(original_of(pixels), RUNGS[0])
    guide, made = guided(Reference(pixels, Dataset()), base, HalfRight(0), seed=1, steps=1, detail=0)
    assert guide.corrections[NETWORK, :, 0] == pytest.approx(CORRECTION_ONE, abs=2)
    assert (guide.corrections[:, :, 1] == 0).all(), "it would pull its neighbour along"
    assert (guide.corrections[NETWORK, :, 2:] == 0).all()
    right = np.s_[:, :128]
    plain = reconstruct(base, Bicubic(), seed=1, steps=0)
    assert squared_error(pixels[right], made[right]) < 0.2 * squared_error(pixels[right], plain[right])


def test_texture_comes_only_where_there_is_breast() -> None:
    pixels = breast(768, 768)
    reference = Reference(pixels, Dataset())
    inside = tiles_with_breast(reference)
    assert inside.any()
    assert not inside.all()
    base = make_base(original_of(pixels), Rung(4, "jpegxl", distance=0.6, sample_bits=12))
    guide, made = guided(reference, base, Bicubic(1.0), seed=3, steps=1, detail=1.0)
    plain = reconstruct(base, Bicubic(), seed=3, steps=0)
    changed = tile_means((made != plain).astype(np.float32), LEVEL_TILE) > 0
    assert changed.any()
    assert (guide.levels[~inside] == 0).all()
    near = share_map(guide.levels, 768, 768) > 0
    far = ~binary_dilation(near, np.ones((3, 3), dtype=bool), iterations=52)  # what the projection reaches at scale 4
    assert far.any()
    assert np.array_equal(made[far], plain[far])


def test_weighing_is_linear() -> None:
    random = np.random.default_rng(2)
    pixels = breast(300, 280)
    base: Base = make_base(original_of(pixels), RUNGS[0])
    image, other, texture = (random.standard_normal((300, 280), dtype=np.float32) for _ in range(3))
    draft = Draft(base, base.samples(), image, Upscaled(other, texture), consistent=False)
    levels = np.ones(grid(300, 280, LEVEL_TILE), dtype=np.uint8)
    both = weighed(draft, Guide.neutral(300, 280, levels))
    np.testing.assert_allclose(both, other + texture, atol=1e-5)
    nothing = Guide.nothing(300, 280)
    np.testing.assert_allclose(weighed(draft, nothing), image, atol=1e-6)
    assert finish(draft, nothing).dtype == np.uint16


def squared_error(truth: np.ndarray, pixels: np.ndarray) -> float:
    return float(np.square(truth.astype(np.float64) - pixels).sum())


def test_edges_are_not_raised() -> None:
    """A marker in the breast rings, and its tile is left alone; one that errs no more than noise does stays in."""
    plain = breast(1024, 1024)
    marked = plain.copy()
    marked[640:680, 120:160] = 4095
    inside = {}
    for name, pixels in (("plain", plain), ("marked", marked)):
        reference, base = Reference(pixels, Dataset()), make_base(original_of(pixels), RUNGS[0])
        everywhere = Raising(RAISES[-1], weight_tiles_with_breast(reference))
        output = raised(base, Decoded.of(base), equalised(base, everywhere))
        inside[name] = calmed(reference, everywhere, output, 10.0).inside
        assert everywhere.inside[2, 0]
    assert inside["plain"][2, 0]
    assert not inside["marked"][2, 0]
