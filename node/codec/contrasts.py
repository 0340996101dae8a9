"""What a reader sees of a calcification, its core against the ring around it, brought back speck by speck.

The gate asks about single specks by their filters' responses; a cluster is read by the contrast of all its specks, the
faint ones too. So every speck that is listed is measured as a disc of its own size, and where several strong ones lie
together, so are all within reach that noise would hide anywhere else. A spot restores what is missing; each costs
about four bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from node.codec.points import REACH, SIGMAS, Point, grey_levels, level_of, profile
from node.fidelity.fsim import TILE
from node.fidelity.reference import Reference
from node.fidelity.specks import Found, all_specks
from node.fidelity.survey import on_all_cores

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]
Places = NDArray[np.int64]

_RADII = (1.0, 1.5, 2.5, 3.5, 4.7)
"""Of the core, in pixels, one per size of spot. A speck is measured by the one of the filter that it was found with,
and by the one that stands out most from its ring, of that and the next two."""
_WINDOW = 15
"""Pixels to each side of a speck that its ring may take."""
_MOAT = 2.5
"""Pixels between core and ring."""
_FAINTEST_IN_CLUSTERS = 3.0
_CLUSTERS = ((60.0, 5.5, 3.7), (40.0, 5.0, 3.0))
"""What counts as a cluster: radius in pixels (60 are 3 to 6 mm), and the sum, over the specks within it, of their
strength above a least one. Specks of less than 5 are everywhere: noise has eight within 60 pixels."""
_AIM, _SPARE = 1.15, 0.15
"""The share of its contrast that a speck gets, and how much less is let go: neighbours pull, pixels are rounded,
heights are in tenths, and the faintest of a cluster, which are not listed, lack theirs."""
_ROUNDS = 3

_away = np.hypot(*np.mgrid[-_WINDOW : _WINDOW + 1, -_WINDOW : _WINDOW + 1])
_CORES = [_away <= radius for radius in _RADII]
_RINGS = [(_away > radius + _MOAT) & (_away < _WINDOW) for radius in _RADII]
_middle = _away[_WINDOW - REACH : _WINDOW + REACH + 1, _WINDOW - REACH : _WINDOW + REACH + 1]


def contrast_spots(reference: Reference, current: Pixels) -> list[Point]:
    """Points that give the specks of the original back the contrast that ``current`` (uint16, its shape) lacks."""
    found = _within(_specks(reference), current.shape)
    if not len(found):
        return []
    places, filters = found[:, :2], found[:, 2]
    sign = np.float32(-1 if reference.inverted else 1)
    truth = _windows(sign * reference.pixels.astype(np.float32), places)
    measured = np.stack([_contrasts(truth, size) for size in range(len(_RADII))])
    above = np.arange(len(_RADII))[:, None] - filters
    areas = np.sqrt([core.sum() for core in _CORES])
    widest = np.where((above >= 0) & (above <= 2), measured * areas[:, None], -np.inf).argmax(axis=0)
    twice = np.concatenate([np.arange(len(found)), np.flatnonzero(widest != filters)])
    sizes = np.concatenate([widest, filters[widest != filters]])
    places, wanted = places[twice], measured[sizes, twice]
    made = []
    image = sign * current.astype(np.float32)
    for _ in range(_ROUNDS):
        more = list(_missing(image, places, sizes, wanted))
        made += more
        if not more:
            break
    return [point._replace(height=int(sign) * point.height) for point in made]


def _missing(image: Float, places: Places, sizes: Places, wanted: Float) -> Iterator[Point]:
    """A spot for each speck that lacks contrast; drawn into ``image``, so that the next one sees it."""
    now = np.zeros(len(places), dtype=np.float32)
    windows = _windows(image, places)
    for size in range(len(_RADII)):
        of_size = sizes == size
        now[of_size] = _contrasts(windows[of_size], size)
    for number in np.flatnonzero((now < (_AIM - _SPARE) * wanted) & (wanted > 0)):
        (row, column), size = places[number], int(sizes[number])
        lacking = _AIM * wanted[number] - _contrasts(_windows(image, places[number : number + 1]), size)[0]
        spot = profile(size)
        height = level_of(float(lacking / spot[_middle <= _RADII[size]].mean()))
        if lacking > 0 and height:
            image[row - REACH : row + REACH + 1, column - REACH : column + REACH + 1] += grey_levels(height) * spot
            yield Point(int(row), int(column), size, height)


def _windows(image: Float, places: Places) -> Float:
    """What lies around each place: float32, (n, 31, 31)."""
    sides = np.arange(-_WINDOW, _WINDOW + 1)
    rows, columns = places[:, 0, None] + sides, places[:, 1, None] + sides
    return np.asarray(image[rows[:, :, None], columns[:, None, :]])


def _contrasts(windows: Float, size: int) -> Float:
    """Mean of the core less the median of the ring: float32, (n,), in grey levels."""
    return np.asarray(windows[:, _CORES[size]].mean(axis=1) - np.median(windows[:, _RINGS[size]], axis=1))


def _specks(reference: Reference) -> Places:
    """Row, column and filter of the specks that count: int (n, 3), each once."""
    from scipy.spatial import KDTree

    listed = [(tile, reference.truth(tile).specks) for tile in reference.tiles]
    strong = np.concatenate([_in_image(tile, found) for tile, found in listed])
    if not len(strong):
        return strong
    strengths = np.concatenate([found.strengths for _, found in listed])
    tree = KDTree(strong[:, :2])

    def clustered(places: NDArray[np.float64] | Places, own: Float, farther: float = 0.0) -> NDArray[np.bool_]:
        """Which places, of that strength themselves, are in a cluster, or at most so much farther away."""
        found = np.zeros(len(places), dtype=bool)
        for radius, least, enough in _CLUSTERS:
            weights = np.maximum(strengths - least, 0)
            near = tree.query_ball_point(places, radius + farther)
            others = np.array([weights[each].sum() for each in near])
            found |= others + np.maximum(own - least, 0) >= enough
        return found

    def faint(tile: tuple[int, int]) -> Places:
        found = all_specks(reference.bright(reference.pixels, tile), reference.truth(tile), _FAINTEST_IN_CLUSTERS)
        places = _in_image(tile, found)
        return np.asarray(places[clustered(places[:, :2], found.strengths)])

    middles = np.array(reference.tiles) + TILE / 2
    strongest = np.array([reference.truth(tile).strongest.max() for tile in reference.tiles], dtype=np.float32)
    worth = clustered(middles, strongest, TILE / np.sqrt(2))
    tiles = [tile for tile, some in zip(reference.tiles, worth, strict=True) if some]
    return np.unique(np.concatenate([strong, *on_all_cores(faint, tiles)]), axis=0)


def _in_image(tile: tuple[int, int], found: Found) -> Places:
    return np.column_stack([found.rows + tile[0], found.columns + tile[1], found.filters]).astype(np.int64)


def _within(places: Places, shape: tuple[int, ...]) -> Places:
    """Those whose window lies in the image."""
    middles = places[:, :2]
    inside = (middles >= _WINDOW).all(axis=1) & (middles < np.array(shape[:2]) - _WINDOW).all(axis=1)
    return places[inside]


assert len(_RADII) == len(SIGMAS)
