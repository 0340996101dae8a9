"""Measures coherent error along lines, which an eye would find in a difference image that should be noise only.

The difference of a structure from its original is filtered by ridges and edges of twelve directions and three widths.
Each response is divided by the response of the same filter to the original's noise at that place, so that the unit is
the local noise. The strongest response of all directions counts. If all noise is lost, and nothing else, the 99.9th
percentile is about 4 at the finest width; it is less at the wider ones, where less noise is lost. Blocks, bars, lost
vessels, lost spiculations and displaced edges give more.

The finest width is measured at full size, and each wider one on an image that is halved once more. Squares of 224 x 224
pixels with a rim of 16 pixels are filtered by FFT; squares without breast are skipped. Responses of the two finer
widths are computed at every second pixel of both axes, in a third of the time. That misses little, since lines are at
least 22 pixels long, and either the ridge or the edge responds between these pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores
from storage.formats.geometry import CELL, cell_grid, reduced

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

WIDTHS = (1.2, 2.5, 5.0)
"""Standard deviations of the filters' profiles across a line, in pixels of the full image. Chosen, not measured."""
DIRECTIONS = 12
"""Number of directions over half a turn, 15 degrees apart. Chosen, not measured."""
SQUARE = 224
"""Side of the squares that are filtered at once, in pixels of the filter's scale. With the rim it is 256, the size at
which the Fourier transform is fastest."""
BINS_PER_UNIT = 64
"""Bins of the histograms of responses per unit of local noise: percentiles are good to 1/64."""
BINS = 32 * BINS_PER_UNIT
"""Number of bins. Responses above 32 times the noise are in the last one."""
STEPS = (2, 2, 1)
"""Step between the rows, and between the columns, at which responses are computed, per width. For the widest, a sample
of an image has too few pixels for a larger step."""
_RIM = 16
"""Pixels around a square that its filters need: the longest filter has 33 pixels."""
_NOISE_CELL = 112
"""Side of the cells whose median absolute response gives the local noise, in pixels of the full image."""
_LEAST = 0.25
"""Smallest share of breast in a cell whose noise is measured. Other cells get the noise of the nearest such cell."""
_STRIP = 256
"""Lines of a halved image that one thread computes at once."""
_HALVING = 0.75
"""Variance of the weights with which an image is halved, in pixels squared."""
_MAD = 0.6745
"""Median of the absolute value of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Lines:
    """Responses to one error image, in units of the original's noise.

    ``counts``: per width, int64 (squares, BINS), histograms of the strongest response at the pixels of ``core``.
    ``worst``: float32 (widths, rows / CELL, columns / CELL), rounded up, the strongest response in each cell.
    """

    counts: tuple[NDArray[np.int64], ...]
    worst: Float

    def percentile(self, share: float, spared: float = 0.0) -> tuple[float, ...]:
        """Per width, the response that a share ``share`` (0..1) of all pixels does not exceed.

        ``spared``: share of the squares that are left out: those in which this percentile is greatest.
        """
        found = []
        for counts in self.counts:
            order = np.argsort(_percentiles(counts, share), kind="stable")
            kept = counts[order[: len(order) - int(len(order) * spared)]]
            found.append(float(_percentiles(kept.sum(axis=0)[None], share)[0]))
        return tuple(found)


def _percentiles(counts: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """The quantile ``share`` of each histogram (n, BINS): float64 (n,), the upper edges of bins."""
    running = np.cumsum(counts, axis=1)
    wanted = share * running[:, -1:]
    return np.asarray((running < wanted).sum(axis=1) + 1, dtype=np.float64) / BINS_PER_UNIT


@dataclass
class LineNoise:
    """The noise of each filter in one original, per cell, and the squares to measure.

    ``breast``: bool (rows, columns), the pixels to measure. ``core``: the part of it that histograms cover. ``floor``:
    the least noise that counts, in grey levels: that of rounding to the 256 steps of a display. Each halving of the
    image halves it. ``squares``: per width, their top left corners in pixels of its scale. ``noise``: per width,
    float32 (filters, cells down, cells across), standard deviation in grey levels.
    """

    breast: Mask
    core: Mask
    floor: float
    squares: list[list[tuple[int, int]]] = field(default_factory=list)
    noise: list[Float] = field(default_factory=list)

    @classmethod
    def of(cls, original: Float, breast: Mask, window_width: float, core: Mask | None = None) -> LineNoise:
        """Measure an original.

        ``original``: float32 (rows, columns), grey levels. ``breast``: bool, the same shape. ``window_width``: width of
        the display window, in grey levels. ``core``: the part of the breast that histograms cover; None means all.
        """
        found = cls(breast, breast if core is None else core, window_width / 256 / float(np.sqrt(12)))
        for level, small in enumerate(_pyramid(original)):
            inside, _ = found._inside(level)
            squares = [
                (row, column)
                for row in range(0, small.shape[0], SQUARE)
                for column in range(0, small.shape[1], SQUARE)
                if inside[row : row + SQUARE, column : column + SQUARE].any()
            ]
            cells = (-(-length // (_NOISE_CELL >> level)) for length in small.shape)
            noise = np.full((2 * DIRECTIONS, *cells), np.nan, dtype=np.float32)
            on_all_cores(partial(_measure_noise, small, inside, level, noise), squares)
            found.squares.append(squares)
            found.noise.append(_filled(noise))
        return found

    def look(
        self,
        error: Float,
        most: Sequence[float] = (math.inf,) * len(WIDTHS),
        before: Lines | None = None,
        changed: Mask | None = None,
    ) -> Lines:
        """Measure ``error``: float32 (rows, columns), a structure minus the original, in grey levels.

        ``most``: per width, the response above which a cell will be repaired anyway. Such a cell is in ``worst``, but
        is left out of ``counts``. ``before``: the result for an error that differs from this one only in the cells
        ``changed``, bool (rows / CELL, columns / CELL). Squares away from these cells are not measured again.
        """
        if before is None or changed is None:
            grid = cell_grid(*error.shape)
            changed = np.ones(grid, dtype=bool)
            counts = [np.zeros((len(squares), BINS), dtype=np.int64) for squares in self.squares]
            worst = np.zeros((len(WIDTHS), *grid), dtype=np.float32)
        else:
            counts, worst = [each.copy() for each in before.counts], before.worst.copy()
        for level, (squares, small) in enumerate(zip(self.squares, _pyramid(error), strict=True)):
            again = [number for number, square in enumerate(squares) if changed[_seen_by(square, level)].any()]
            one = partial(self._look_at, small, level, most[level], worst[level])
            found = on_all_cores(one, [squares[number] for number in again])
            for number, histogram in zip(again, found, strict=True):
                counts[level][number] = histogram
        return Lines(tuple(counts), worst)

    def _look_at(
        self, small: Float, level: int, most: float, worst: Float, square: tuple[int, int]
    ) -> NDArray[np.int64]:
        """The histogram of one square. The strongest responses of its cells are written into ``worst``."""
        (row, column), step = square, STEPS[level]
        side = (CELL >> level) // step
        # squares alternate between even and odd pixels, since errors may be greater at the borders of coded blocks
        top, left = row + row // SQUARE % step, column + column // SQUARE % step
        responses = _filtered(small, top, left, level, step)
        responses /= self._noise_at(level, row, column)
        strongest = np.maximum(responses.max(axis=0), -responses.min(axis=0))
        seen, counted = (
            inside[top : row + SQUARE : step, left : column + SQUARE : step] for inside in self._inside(level)
        )
        height, width = seen.shape
        strongest[:height, :width][~seen] = 0
        strongest[height:], strongest[:, width:] = 0, 0
        count = SQUARE // step // side
        cells = reduced(strongest, side, np.maximum)
        target = worst[row // step // side :, column // step // side :][:count, :count]
        target[:] = cells[: target.shape[0], : target.shape[1]]
        if cells.max() > most:
            broken = np.repeat(np.repeat(cells > most, side, axis=0), side, axis=1)
            counted = counted & ~broken[:height, :width]
        bins = np.minimum(strongest[:height, :width][counted] * BINS_PER_UNIT, BINS - 1).astype(np.int64)
        return np.asarray(np.bincount(bins, minlength=BINS), dtype=np.int64)

    def _inside(self, level: int) -> tuple[Mask, Mask]:
        """Breast and core at the scale of one width."""
        rows, columns = (length >> level << level for length in self.breast.shape)
        part = np.s_[: rows : 1 << level, : columns : 1 << level]
        return self.breast[part], self.core[part]

    def _noise_at(self, level: int, row: int, column: int) -> Float:
        """Noise of every filter at a square, interpolated bilinearly between the centres of cells: float32 (filters,
        SQUARE / step, SQUARE / step), grey levels."""
        noise, side = self.noise[level], _NOISE_CELL >> level
        down, first = _between(row, side, noise.shape[1], STEPS[level])
        across, left = _between(column, side, noise.shape[2], STEPS[level])
        part = noise[:, first : first + down.shape[1], left : left + across.shape[1]]
        fine: Float = np.matmul(np.matmul(down, part), across.T)
        return np.maximum(fine, np.float32(self.floor / (1 << level)), out=fine)


def _seen_by(square: tuple[int, int], level: int) -> tuple[slice, slice]:
    """The cells of the full image that the filters of one square see."""
    reach = _RIM + 2  # halving reaches two pixels further
    row, column = (
        slice(max((at - reach) << level, 0) // CELL, -(-((at + SQUARE + reach) << level) // CELL)) for at in square
    )
    return row, column


def _measure_noise(small: Float, inside: Mask, level: int, noise: Float, square: tuple[int, int]) -> None:
    """Write the robust standard deviation of each filter into the noise cells of one square."""
    side, step = _NOISE_CELL >> level, 4 >> level
    sizes = np.abs(_filtered(small, *square, level, step))
    for row in range(square[0], min(square[0] + SQUARE, inside.shape[0]), side):
        for column in range(square[1], min(square[1] + SQUARE, inside.shape[1]), side):
            seen = inside[row : row + side : step, column : column + side : step]
            if seen.mean() < _LEAST:
                continue
            top, left = (row - square[0]) // step, (column - square[1]) // step
            part = sizes[:, top : top + seen.shape[0], left : left + seen.shape[1]]
            noise[:, row // side, column // side] = medians(part[:, seen]) / _MAD


def medians(values: Float) -> Float:
    """Medians along the last axis. Sorting takes a third to a fifth of the time of ``numpy.median``."""
    ordered, count = np.sort(values, axis=-1), values.shape[-1]
    return np.asarray((ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / np.float32(2))


def _between(at: int, side: int, count: int, step: int) -> tuple[Float, int]:
    """Weights (SQUARE / step, cells) that interpolate linearly from cells to every ``step``-th pixel of a square, and
    the first cell."""
    places = np.clip((np.arange(at, at + SQUARE, step) + 0.5) / side - 0.5, 0, count - 1)
    low = np.minimum(places.astype(int), max(count - 2, 0))
    first, last = int(low.min()), int(min(low.max() + 1, count - 1))
    weights = np.zeros((len(places), last - first + 1), dtype=np.float32)
    share = (places - low).astype(np.float32)
    lines = np.arange(len(places))
    weights[lines, low - first] += 1 - share
    weights[lines, np.minimum(low + 1, count - 1) - first] += share
    return weights, first


def _filtered(image: Float, row: int, column: int, level: int, step: int) -> Float:
    """Responses of all filters at every ``step``-th pixel of one square: float32 (filters, SQUARE/step, SQUARE/step).

    Beyond its border the image is mirrored, since a repeated border would make lines.
    """
    import torch  # its transforms take half the time of scipy's

    rows, columns = image.shape
    top, left = max(row - _RIM, 0), max(column - _RIM, 0)
    bottom, right = min(row + SQUARE + _RIM, rows), min(column + SQUARE + _RIM, columns)
    part = image[top:bottom, left:right]
    pad = (
        (top - row + _RIM, row + SQUARE + _RIM - bottom),
        (left - column + _RIM, column + SQUARE + _RIM - right),
    )
    if any(any(sides) for sides in pad):
        part = np.pad(part, pad, mode="symmetric")
    seen = np.asarray(part - part.mean(), dtype=np.float32)  # filters ignore the mean
    kernels = _kernels(level, step)
    side = kernels.shape[-1]
    spectrum = torch.fft.fft2(torch.from_numpy(seen)).view(step, side, step, side)
    folded = spectrum[0, :, 0] * kernels[0, 0]
    for down, across in list(np.ndindex(step, step))[1:]:
        folded += spectrum[down, :, across] * kernels[down, across]
    responses = torch.view_as_real(torch.fft.ifft2(folded))
    inner = slice(_RIM // step, (_RIM + SQUARE) // step)
    measured = responses[:, inner, inner].permute(0, 3, 1, 2).contiguous()
    return measured.numpy().reshape(2 * DIRECTIONS, *measured.shape[2:])


@lru_cache(maxsize=2 * len(WIDTHS))
def _kernels(level: int, step: int) -> torch.Tensor:
    """Transforms of all filters of one width, cut into the parts of the spectrum that alias onto each other if only
    every ``step``-th pixel is computed: float32 (step, step, DIRECTIONS, side, side).

    A ridge is even, so its transform is real. An edge is odd, so i times its transform is real. Filtering
    with their sum gives both responses: the real part of the output is that to the ridge, the imaginary part that to
    the edge.
    """
    import torch

    side = SQUARE + 2 * _RIM
    halving = _HALVING * (4**level - 1) / 3  # the variance that all halvings have added
    width = float(np.sqrt(WIDTHS[level] ** 2 - halving)) / (1 << level)
    length = (8 * WIDTHS[level] + 13) / (1 << level)
    made = []
    for number in range(DIRECTIONS):
        ridge, edge = _ridge_and_edge(length, np.pi * number / DIRECTIONS, width)
        half = ridge.shape[0] // 2
        placed = np.zeros((side, side), dtype=np.complex64)
        placed[: 2 * half + 1, : 2 * half + 1] = ridge + 1j * edge
        made.append(np.fft.fft2(np.roll(placed, (-half, -half), axis=(0, 1))).real)
    parts = torch.from_numpy(np.asarray(made, dtype=np.float32) / np.float32(step * step))
    parts = parts.view(DIRECTIONS, step, side // step, step, side // step)
    return parts.permute(1, 3, 0, 2, 4).contiguous()


def _ridge_and_edge(length: float, angle: float, width: float) -> list[Float]:
    """A second derivative across a straight line (ridge) and a first one (edge), with unit energy and zero mean."""
    half = int(length * 0.75)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / width
    envelope = np.exp(-across * across / 2) * (np.abs(along) <= length / 2)
    centred = [kernel - kernel.mean() for kernel in ((1 - across * across) * envelope, across * envelope)]
    return [np.asarray(kernel / np.sqrt(np.square(kernel).sum()), dtype=np.float32) for kernel in centred]


def _pyramid(image: Float) -> list[Float]:
    """The image at the scale of each width, each half the size of the one before; an odd last line is dropped.

    The weights along both axes are 1, 3, 3, 1. A mean of 2 x 2 pixels would alias lost fine noise.
    """
    sizes = [image]
    for _ in WIDTHS[1:]:
        sizes.append(_half_size(sizes[-1]))
    return sizes


def _half_size(image: Float) -> Float:
    """The image halved along both axes, strip by strip in threads."""

    def strip(row: int) -> Float:
        """The lines of the halved image from ``row`` on. The strip has two more lines on each side, so that its borders
        do not change the result."""
        top = max(2 * row - 2, 0)
        lines = _halved(image[top : 2 * (row + _STRIP) + 2], 0)
        return _halved(lines[row - top // 2 :][:_STRIP], 1)

    return np.concatenate(on_all_cores(strip, range(0, max(len(image) // 2, 1), _STRIP)))


def _halved(image: Float, axis: int) -> Float:
    """The image halved along one axis: each line is a weighted mean of four; the border is repeated."""
    lines = image if axis == 0 else image.T
    count = len(lines) // 2
    if not count:
        return image[:0] if axis == 0 else image[:, :0]
    even, odd = lines[: 2 * count : 2], lines[1 : 2 * count : 2]
    inner = even + odd
    inner *= np.float32(3 / 8)
    outer = np.empty_like(inner)
    outer[0], outer[1:] = lines[0], odd[:-1]
    outer[:-1] += even[1:]
    outer[-1] += lines[-1] if len(lines) == 2 * count else lines[2 * count]
    outer *= np.float32(1 / 8)
    inner += outer
    return np.asarray(inner if axis == 0 else inner.T)


def _filled(cells: Float) -> Float:
    """``cells`` in which those that were not measured have the values of the nearest measured one; 0 if none was."""
    from scipy.ndimage import distance_transform_edt

    missing = np.isnan(cells[0])
    if not missing.any() or missing.all():
        return np.nan_to_num(cells)
    nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)
    return np.ascontiguousarray(cells[:, nearest[0], nearest[1]])
