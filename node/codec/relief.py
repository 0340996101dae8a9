"""Finer coding of the tiles of a balanced image that would take more bytes to mend than to code finer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from node.codec.balancing import PER_OCTAVE_OF_STEP, SAFE
from node.codec.tilemap import finest_step, place_of
from node.fidelity.gate import Survey, wrong_squares
from storage.coarseness import PER_OCTAVE, Coarseness
from storage.records import Thresholds

_SQUARE = 120.0
"""Bytes of the points that a square with too great errors takes, about."""
_AROUND = 0.3
"""What a tile beside the breast takes, of what one with breast takes."""
_ALMOST = 0.95
"""Of the gate's limit of a tile's shift, which nothing but exact pixels mends."""
_OF_A_STEP = 0.03
"""Of 1 - FSIM of a tile, what a step finer takes away where its neighbours stay as they are."""
_RELIEF, _MOST_RELIEF = 4, 10
"""Steps by which such a tile is coded finer: as many as its greatest error is above the limit."""


def relieved(
    map_: Coarseness,
    found: Survey,
    thresholds: Thresholds,
    headroom: float,
    tile_bytes: Mapping[tuple[int, int], float] | None = None,
    *,
    again: bool = False,
) -> Coarseness | None:
    """``map_`` finer in the tiles where mending what misses the gate would cost more than that; None where that is
    nowhere, or can be no finer. ``headroom``: octaves by which samples may be scaled up. ``tile_bytes``: what the
    tiles with breast take now, by row and column; without it only faults that are everywhere in a tile count, since
    what a smaller image cannot hold no finer coding brings back. ``again``: after relief that was too little."""
    shift = np.abs(found.shift) / thresholds.shift if thresholds.shift > 0 else np.zeros(len(found.shift))
    above = np.maximum(found.error_p999 / thresholds.error_p999, shift / _ALMOST)
    least = 2 * _RELIEF if again else _RELIEF
    finer = np.clip(np.ceil(PER_OCTAVE * np.log2(np.maximum(above, 1))), least, _MOST_RELIEF).astype(int)
    # nothing but exact squares, of hundreds of bytes each, mends a fault that is everywhere in a tile
    hopeless = np.asarray((shift > _ALMOST) | (found.fsim < thresholds.fsim_worst + SAFE))
    if tile_bytes is not None:
        around = _AROUND * float(np.median([*tile_bytes.values()]))
        coding = np.array([tile_bytes.get((int(row), int(column)), around) for row, column in found.corners])
        coding *= np.exp2(PER_OCTAVE_OF_STEP * finer / PER_OCTAVE) - 1
        hopeless |= _SQUARE * wrong_squares(found, thresholds) > coding
    before = map_.steps.astype(int)
    steps = before.copy()
    for number in np.flatnonzero(hopeless):
        place = place_of(*found.corners[number].tolist())
        steps[place] = min(steps[place], before[place] - finer[number])
    steps = np.maximum(steps, finest_step(headroom))
    return None if (steps == before).all() else replace(map_, steps=steps.astype(np.int8))


def nudged(map_: Coarseness, found: Survey, thresholds: Thresholds, headroom: float) -> Coarseness:
    """``map_`` a step finer in as many of the tiles with the lowest FSIM as should bring an image that has just failed
    as a whole back to its limits."""
    numbers = np.flatnonzero(found.breast)
    numbers = numbers[np.argsort(found.fsim[numbers])]
    errors = 1 - found.fsim[numbers]
    gained = np.cumsum(_OF_A_STEP * errors) / len(errors)
    enough = int(np.searchsorted(gained, thresholds.fsim_mean + SAFE - (1 - errors.mean()))) + 1
    below = int((1 - errors < thresholds.fsim_p5 + SAFE).sum())
    steps = map_.steps.astype(int)
    for number in numbers[: max(enough, below)]:
        place = place_of(*found.corners[number].tolist())
        steps[place] = max(steps[place] - 1, finest_step(headroom))
    return replace(map_, steps=steps.astype(np.int8))
