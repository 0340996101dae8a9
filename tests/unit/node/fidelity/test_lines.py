"""Proves coherent error along lines (node/fidelity/lines.py) against plain convolution and planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from node.fidelity.lines import BINS_PER_UNIT, DIRECTIONS, SQUARE, STEPS, WIDTHS, LineNoise
from storage.formats.geometry import CELL

Float = NDArray[np.float32]
Values = NDArray[np.float64]
GREY = 2000.0
WINDOW = 2048.0


def noise(rows: int, columns: int, seed: int = 0, deviation: float = 12.0) -> Float:
    """A detector's noise on a uniform grey level."""
    grain = gaussian_filter(np.random.default_rng(seed).standard_normal((rows, columns)), 0.7)
    return (GREY + deviation * grain / grain.std()).astype(np.float32)


def everywhere(image: Float) -> NDArray[np.bool_]:
    return np.ones(image.shape, dtype=bool)


def noise_of(image: Float, inside: NDArray[np.bool_] | None = None) -> LineNoise:
    return LineNoise.of(image, everywhere(image) if inside is None else inside, WINDOW)


# --- the plain way --------------------------------------------------------------------------------------------


def halved(image: Values, times: int) -> Values:
    """Every second row and column, as weighted means of four with weights 1, 3, 3, 1. Borders are repeated."""
    for _ in range(times):
        for axis in (0, 1):
            size = image.shape[axis] // 2
            places = 2 * np.arange(size)[:, None] + np.arange(-1, 3)
            lines = np.take(image, np.clip(places, 0, image.shape[axis] - 1), axis=axis)
            image = np.moveaxis(np.tensordot(lines, np.array([1, 3, 3, 1]) / 8, axes=(axis + 1, 0)), -1, -1)
    return image


def plain_filters(level: int) -> list[Values]:
    """A ridge and an edge in each direction: the second and the first derivative of a Gaussian across a straight
    line."""
    blurred = (0, 0.75, 0.75 * 5)[level]  # the variance of the weights with which images were halved
    width, length = np.sqrt(WIDTHS[level] ** 2 - blurred) / 2**level, (8 * WIDTHS[level] + 13) / 2**level
    half, made = int(length * 0.75), []
    for number in range(DIRECTIONS):
        angle = np.pi * number / DIRECTIONS
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
        along, across = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / width
        line = np.exp(-(across**2) / 2) * (np.abs(along) <= length / 2)
        for kernel in ((1 - across**2) * line, across * line):
            centred = kernel - kernel.mean()
            made.append(centred / np.sqrt(np.sum(centred**2)))
    return made


def convolved(image: Values, kernel: Values) -> Values:
    from scipy.signal import fftconvolve  # slow to import, as piq and torchvision are elsewhere

    half = kernel.shape[0] // 2
    return np.asarray(fftconvolve(np.pad(image, half, mode="symmetric"), kernel, mode="valid"))


def plain_response(original: Values, error: Values, level: int) -> Values:
    """The strongest response over all filters. The unit of each filter is its own noise: the median over cells of 112
    pixels."""
    small, wrong, side = halved(original, level), halved(error, level), 112 >> level
    best = np.zeros(small.shape)
    for kernel in plain_filters(level):
        own = np.abs(convolved(small - small.mean(), kernel))
        cells = own.reshape(small.shape[0] // side, side, small.shape[1] // side, side).transpose(0, 2, 1, 3)
        step = 4 >> level
        cells = np.median(cells[:, :, ::step, ::step].reshape(*cells.shape[:2], -1), axis=2) / 0.6745
        local = np.maximum(linear(cells, small.shape, side), WINDOW / 256 / np.sqrt(12) / 2**level)
        best = np.maximum(best, np.abs(convolved(wrong, kernel)) / local)
    return best


def linear(cells: Values, shape: tuple[int, ...], side: int) -> Values:
    """Interpolate cells linearly between their centres. The outer cells are extended."""
    for axis in (0, 1):
        places = (np.arange(shape[axis]) + 0.5) / side - 0.5
        cells = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(line.size), line), axis, cells)
    return cells


@pytest.mark.slow
def test_responses_equal_plain_convolution() -> None:
    """The image has noise with a planted line, and lost and moved things. The maximum of each cell and the percentiles
    are compared for each width."""
    rows, columns = 336, 448
    original = noise(rows, columns)
    error = noise(rows, columns, seed=1, deviation=8.0) - GREY
    error[100:240, 300:303] += 30
    error[280:310, 50:300] -= 15
    found = noise_of(original).look(error)
    for level in range(len(WIDTHS)):
        step = STEPS[level]
        plain = plain_response(original.astype(float), error.astype(float), level)
        plain = plain[np.ix_(*(taken(length, step) for length in plain.shape))]
        side = (CELL >> level) // step
        cells = plain.reshape(rows // CELL, side, columns // CELL, side).max(axis=(1, 3))
        np.testing.assert_allclose(found.worst[level], cells, rtol=2e-3)
        for share in (0.5, 0.999):
            wanted = float(np.quantile(plain, share))
            assert found.percentile(share)[level] == pytest.approx(wanted, rel=6e-3, abs=2 / BINS_PER_UNIT)


def taken(length: int, step: int) -> list[int]:
    """The rows or columns at which responses are taken: the first and the second by turns, from square to square."""
    starts = range(0, length, SQUARE)
    return [at for start in starts for at in range(start + start // SQUARE % step, min(start + SQUARE, length), step)]


# --- what it finds --------------------------------------------------------------------------------------------


def test_lost_noise_alone_is_about_four() -> None:
    """The error is independent noise of the original's own strength. Four is about the 99.9th percentile of the maximum
    of 24 filters of a normal variable."""
    found = noise_of(noise(768, 768)).look(noise(768, 768, seed=1) - GREY)
    fine, *wider = found.percentile(0.999)
    assert 3.8 <= fine <= 4.3
    assert all(3.7 <= each <= 4.5 for each in wider)
    rim = np.concatenate([found.worst[:, [0, -1]].ravel(), found.worst[:, :, [0, -1]].ravel()])
    assert rim.max() < found.worst[:, 1:-1, 1:-1].max() + 0.5, "the border of the image is no line"
    half = noise_of(noise(768, 768)).look(0.5 * (noise(768, 768, seed=1) - GREY))
    assert half.percentile(0.999) == pytest.approx(tuple(each / 2 for each in found.percentile(0.999)), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "width"), list(enumerate(WIDTHS)))
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.1])
def test_a_lost_vessel_shows_at_its_width_and_place(level: int, width: float, angle: float) -> None:
    """The noise is white, so that the matched filter is the best. The vessel has the rims that sharpening gives it."""
    original = (GREY + 12 * np.random.default_rng(0).standard_normal((512, 512))).astype(np.float32)
    y, x = np.mgrid[0:512, 0:512]
    across = (y - 250) * np.cos(angle) - (x - 270) * np.sin(angle)
    along = (y - 250) * np.sin(angle) + (x - 270) * np.cos(angle)
    profile = (1 - (across / width) ** 2) * np.exp(-((across / width) ** 2) / 2)
    vessel = 40.0 * profile * (np.abs(along) < 4 * width + 6)
    worst = noise_of(original).look(-vessel.astype(np.float32)).worst
    assert int(np.argmax([each.max() for each in worst])) == level
    assert worst[level].max() > 6
    row, column = np.unravel_index(int(worst[level].argmax()), worst[level].shape)
    middle = (row * CELL + 8 - 250, column * CELL + 8 - 270)
    assert abs(middle[0] * np.cos(angle) - middle[1] * np.sin(angle)) < CELL
    assert np.hypot(*middle) < 4 * width + 6 + CELL
    far = (
        np.hypot(*(np.indices(worst[level].shape) * CELL + 8 - np.array([250, 270])[:, None, None]))
        > 4 * width + 6 + 64
    )
    assert worst[level][far].max() < 0.5


def test_the_edge_of_a_block_shows() -> None:
    """A step of two thirds of a standard deviation, as blocks leave, is below the noise of a pixel, and is found as a
    line."""
    error = np.zeros((512, 512), dtype=np.float32)
    error[:, 256:] = 8.0
    found = noise_of(noise(512, 512)).look(error)
    columns = found.worst[2].max(axis=0)
    assert columns[15:17].min() > 4
    assert columns[:12].max() < 1
    assert columns[20:].max() < 1
    assert (found.worst[:, 3:-3, 15:17].max(axis=0) > 3).all()


def test_a_constant_changes_nothing() -> None:
    original, error = noise(512, 400), noise(512, 400, seed=1) - GREY
    one, other = noise_of(original).look(error), noise_of(original + 1000).look(error + 300)
    np.testing.assert_allclose(one.worst, other.worst, rtol=2e-3, atol=2e-3)


def test_the_sign_changes_nothing() -> None:
    """In MONOCHROME1, what is dark in MONOCHROME2 is bright."""
    original, error = noise(400, 512), noise(400, 512, seed=1) - GREY
    one, other = noise_of(original).look(error), noise_of(4095 - original).look(-error)
    np.testing.assert_allclose(one.worst, other.worst, rtol=2e-3, atol=2e-3)
    assert one.percentile(0.999) == pytest.approx(other.percentile(0.999), abs=0.05)


def test_flat_images_are_measured_against_rounding() -> None:
    """Where the original has no noise, the unit is one step of a display, so that responses stay finite."""
    flat = np.full((256, 256), GREY, dtype=np.float32)
    error = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    error *= np.float32(WINDOW / 256 / np.sqrt(12))
    found = noise_of(flat).look(error)
    assert 3 < found.percentile(0.999)[0] < 6
    assert not noise_of(flat).look(np.zeros_like(flat)).worst.any()


def test_only_the_breast_is_measured() -> None:
    original = noise(512, 512)
    inside = np.zeros((512, 512), dtype=bool)
    inside[:, :256] = True
    error = noise(512, 512, seed=1, deviation=5.0) - GREY
    quiet = noise_of(original, inside).look(error)
    error[100:400, 400:403] += 500  # a marker, out of it
    original[:, 300:] = 0
    found = noise_of(original, inside).look(error)
    assert not found.worst[:, :, 17:].any()
    counted = [counts.sum() for counts in found.counts]
    assert counts_near(counted, [256 * 128, 128 * 64, 128 * 64])
    assert found.percentile(0.999) == pytest.approx(quiet.percentile(0.999), rel=0.03)


def counts_near(found: list[int], wanted: list[int]) -> bool:
    return all(abs(one - other) <= 0.01 * other for one, other in zip(found, wanted, strict=True))


def test_nothing_is_measured_without_a_breast() -> None:
    original = noise(256, 256)
    found = noise_of(original, np.zeros((256, 256), dtype=bool)).look(original)
    assert not found.worst.any()
    assert all(len(counts) == 0 for counts in found.counts)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(300, 700), (257, 255), (513, 259), (131, 90)])
def test_sides_that_are_no_multiple_of_a_square(shape: tuple[int, int]) -> None:
    """The percentile is that of a large image, and a fault beside the far border is found at its place."""
    original, error = noise(*shape), noise(*shape, seed=1) - GREY
    found = noise_of(original).look(error)
    assert found.worst.shape == (3, -(-shape[0] // CELL), -(-shape[1] // CELL))
    assert 3.3 <= found.percentile(0.999)[0] <= 4.7
    assert found.counts[0].sum() == len(taken(shape[0], STEPS[0])) * len(taken(shape[1], STEPS[0]))
    planted = np.zeros(shape, dtype=np.float32)
    planted[20:60, shape[1] - 6 : shape[1] - 3] = 60
    worst = noise_of(original).look(planted).worst[0]
    row, column = np.unravel_index(int(worst.argmax()), worst.shape)
    assert abs(column * CELL + 8 - (shape[1] - 5)) <= CELL
    assert 20 - CELL <= row * CELL <= 60


# --- summaries ------------------------------------------------------------------------------------------------


def test_places_that_are_repaired_do_not_count() -> None:
    """Their cells and the cells around them do not count. The percentiles of the rest are as without the fault."""
    original = noise(512, 512)
    error = 0.5 * (noise(512, 512, seed=1) - GREY)
    quiet = noise_of(original).look(error)
    error[100:400, 200:203] += 200
    found, limited = noise_of(original).look(error), noise_of(original).look(error, (3.0, 3.0, 3.0))
    assert found.percentile(0.999)[0] > 3 * quiet.percentile(0.999)[0]
    assert limited.percentile(0.999) == pytest.approx(quiet.percentile(0.999), rel=0.15)
    assert max(limited.percentile(1.0)) <= 3.1
    share = limited.counts[0].sum() / quiet.counts[0].sum()
    assert 0.8 < share < 0.95
    assert np.array_equal(limited.worst, found.worst)


def test_only_what_changed_is_measured_again() -> None:
    """An error was changed in one place. Its figures equal those of a new measurement."""
    original, error = noise(700, 900), noise(700, 900, seed=1, deviation=6.0) - GREY
    lines = noise_of(original)
    before = lines.look(error)
    error[300:330, 405:440] *= 3
    changed = np.zeros((44, 57), dtype=bool)
    changed[18:21, 25:28] = True
    again, fresh = lines.look(error, before=before, changed=changed), lines.look(error)
    assert np.array_equal(again.worst, fresh.worst)
    assert all(np.array_equal(one, other) for one, other in zip(again.counts, fresh.counts, strict=True))
    assert not np.array_equal(before.worst, fresh.worst)
    kept = lines.look(error * 0, before=before, changed=np.zeros_like(changed))
    assert np.array_equal(kept.worst, before.worst), "where nothing is said to have changed nothing is looked at"
