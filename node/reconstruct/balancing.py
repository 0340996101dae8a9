"""How coarsely to code each place of an image, so that it passes the gate as a whole in the fewest bytes.

The gate asks for a mean and a 5th percentile of tile FSIM. Coded alike everywhere, an image is better than that in
most tiles for the sake of a few, and pays most where noise is strongest. From one look at it, coded and measured,
follows how much coarser or finer each tile should be (a Lagrangian over tiles); the next look says how right that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference, Survey, psnr, tile_scores
from node.reconstruct.engine import Decoded, Original, make_base
from node.reconstruct.guide import Guide
from node.reconstruct.guiding import Raising, equalised, raised
from storage.coarseness import LIMIT, PER_OCTAVE, Coarseness
from storage.coders import step_octaves, top_sample
from storage.payload import Base
from storage.records import Rung, Thresholds

Floats = NDArray[np.float64]

_FINER, _COARSER = 1.25, 1.0
"""Octaves by which a tile may be finer or coarser than most are."""
_SCALED = 24
"""The largest step of a map: what rounding leaves of samples scaled down further would be measured as detail."""
_CAREFUL = 0.7
"""Of the first change: it is the greatest, and rests on typical answers."""
_PER_OCTAVE_OF_STEP = 1.1
"""Octaves by which a tile's bytes fall where its quantisation becomes twice as coarse; measured on mammograms."""
_LOSS = (0.3, 0.55, 0.9)
"""Octaves by which 1 - FSIM rises then: least, typical, most."""
_STEP = 28.0
"""Quantisation step, in units of coded samples, of JPEG XL at distance 1: for what a tile costs beside others."""
_SAFE = 0.0003
"""What tile FSIM is to have above the gate's limits: maps are rounded."""
_NEAR = (0.0010, 0.0015)
"""An image that passes with no more than this to spare, in mean or in 5th percentile, is balanced."""
_SOLVED = 3
"""Looks after which the next one is worked out tile by tile; from then on the image is made coarser or finer as one."""
_PASSES_WITH = 1.25
"""How much larger than what is found in the end an image may be that passes."""
_MOST_LOOKS, _MORE_LOOKS = 7, 3
"""In all, and beyond that where no balanced image has passed yet."""
_FARTHER = 0.1
"""Octaves coarser where the image passes and no failure is known."""
_LEAST_CHANGE = 0.08
"""Octaves; less than that, and steps of the map would round it away."""
_FAINTEST = 0.001
"""Of 1 - FSIM: what gates of 1 are taken for."""
_ROOM = {1: 0.4, 2: 0.9, 4: 0.9}
"""Octaves by which a rung is finer than the finest tile wants at first, by scale, for single tiles that need more: AV1
codes noise at full size best with coarse quantisers."""
_CROWDED = 4
"""Squares of a tile with too great errors from which it is coded finer."""
_ALMOST = 0.95
"""Of the gate's limit of a tile's shift, which nothing but exact pixels mends."""
_RELIEF = 4
"""Steps by which such a tile is coded finer at a time."""
_BLOCK = 8


@dataclass(frozen=True)
class Drawn:
    """A base of the image, and the pixels that come of it by ``guide``: uint16, full size."""

    base: Base
    decoded: Decoded
    guide: Guide
    output: NDArray[np.uint16]

    @classmethod
    def of(cls, base: Base, raising: Raising) -> Drawn:
        """With the base's fine detail raised."""
        decoded, guide = Decoded.of(base), equalised(base, raising)
        return cls(base, decoded, guide, raised(base, decoded, guide))


@dataclass(frozen=True)
class Seen:
    """What was measured of an image drawn from a base: FSIM per tile of ``reference.tiles``, PSNR in dB."""

    drawn: Drawn
    scores: Floats
    psnr_db: float

    @classmethod
    def of(cls, reference: Reference, drawn: Drawn) -> Seen:
        scores, squares = tile_scores(reference, drawn.output)
        error = sum(squares) / (len(squares) * TILE * TILE)
        return cls(drawn, np.array(scores), psnr(error, reference.window.width))

    @property
    def base(self) -> Base:
        return self.drawn.base

    @property
    def payload_bytes(self) -> int:
        return len(self.base.coded)

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def p5(self) -> float:
        return float(np.percentile(self.scores, 5))


def balanced(
    original: Original,
    reference: Reference,
    thresholds: Thresholds,
    raising: Raising,
    rungs: Sequence[Rung],
    first: Seen,
    enough: float,
) -> Seen:
    """Of the bases that came after ``first``, and this one, the smallest that passes as a whole; the last where none
    does. ``rungs``: those that differ from the first one's in nothing but distance; ``raising``: as of the first.
    Given up where it takes more than ``enough`` bytes."""
    balance = Balance(reference, thresholds, sorted(rungs, key=lambda rung: -rung.distance))
    seen, best = first, None
    while (wanted := balance.next(seen)) is not None:
        seen = Seen.of(reference, Drawn.of(make_base(original, *wanted), raising))
        passes = balance.passes(seen)
        if passes and (best is None or seen.payload_bytes < best.payload_bytes):
            best = seen  # one image is kept, not six
        if balance.solved and seen.payload_bytes > enough * (_PASSES_WITH if passes else 1):
            break
    if not balance.passes(first):
        return best or seen
    # without room to scale up, the first one could not be made finer in single places
    may_be_first = headroom_of(first.base, first.base.rung) > 0
    return first if best is None or (may_be_first and first.payload_bytes < best.payload_bytes) else best


def relieved(map_: Coarseness, found: Survey, thresholds: Thresholds, headroom: float) -> Coarseness | None:
    """``map_`` finer in the tiles where so much misses the gate that storing it exactly would cost more than that;
    None where that is nowhere, or can be no finer. ``headroom``: octaves by which samples may be scaled up."""
    wrong = np.maximum(found.worst_error / thresholds.error_max, found.outside / thresholds.outside)
    crowded = (wrong > 1).sum(axis=(1, 2)) >= _CROWDED
    bad = crowded | (found.error_p999 > thresholds.error_p999) | (np.abs(found.shift) > _ALMOST * thresholds.shift)
    bad |= found.fsim < thresholds.fsim_worst + _SAFE
    steps = map_.steps.astype(int)
    for row, column in found.corners[bad]:
        steps[-(-row // TILE), -(-column // TILE)] -= _RELIEF
    steps = np.maximum(steps, max(-LIMIT, -int(PER_OCTAVE * headroom)))
    return None if (steps == map_.steps).all() else replace(map_, steps=steps.astype(np.int8))


@dataclass
class Balance:
    """The search for one scale and coder. ``rungs``: those that may be taken, coarsest first."""

    reference: Reference
    thresholds: Thresholds
    rungs: Sequence[Rung]
    _looks: int = 0
    _loss: float = _LOSS[1]
    _cap: float = field(init=False)
    _before: tuple[Rung, Floats, float] | None = None
    _passing: Floats | None = None
    _failing: Floats | None = None

    def __post_init__(self) -> None:
        self._cap = 1 - self.thresholds.fsim_p5 - _SAFE

    @property
    def solved(self) -> bool:
        """Whether the map is as good as this finds it, but for how coarse the image is as a whole."""
        return self._looks >= _SOLVED - 1

    def passes(self, seen: Seen) -> bool:
        """Whether the gate lets the image pass as a whole."""
        return min(self._spare(seen)) >= 0 and seen.psnr_db >= self.thresholds.psnr_db

    def next(self, seen: Seen) -> tuple[Rung, Coarseness] | None:
        """How to code the image next, after what was ``seen`` last; None where nothing is to be won by that."""
        self._looks += 1
        near = any(spare <= enough for spare, enough in zip(self._spare(seen), _NEAR, strict=True))
        most = _MOST_LOOKS if self._passing is not None else _MOST_LOOKS + _MORE_LOOKS
        if self._looks >= most or (self._looks > _SOLVED and self.passes(seen) and near):
            return None
        now = _octaves(seen.base, self.reference)
        self._learn(seen, now)
        if self._looks <= _SOLVED:
            change = self._change(seen)
            wanted = now + (change if self._looks > 1 else _CAREFUL * change)
            middle = float(np.median(wanted))
            wanted = np.clip(wanted, middle - _FINER, middle + _COARSER)
        elif self._passing is None:
            wanted = now - self._lacking(seen)
        elif self._failing is None:
            wanted = now + _FARTHER
        else:
            wanted = (self._passing + self._failing) / 2
        if seen.psnr_db < self.thresholds.psnr_db:
            wanted = wanted - (self.thresholds.psnr_db - seen.psnr_db) / 3
        rung = self._nominal(seen, wanted) if seen.base.coarseness is None else seen.base.rung
        return rung, self._map(wanted - step_octaves(rung), headroom_of(seen.base, rung))

    def _spare(self, seen: Seen) -> tuple[float, float]:
        """Tile FSIM above the gate's limits: mean and 5th percentile."""
        return seen.mean - self.thresholds.fsim_mean, seen.p5 - self.thresholds.fsim_p5

    def _learn(self, seen: Seen, now: Floats) -> None:
        """From the last look to this one: how FSIM answers to coarseness, and how far off the 5th percentile was."""
        if seen.base.coarseness is not None:
            if self.passes(seen):
                self._passing = now
            else:
                self._failing = now
        if self._before is not None:
            rung, octaves, mean = self._before
            coarser = float(now.mean() - octaves.mean())
            if rung == seen.base.rung and abs(coarser) > 0.1 and max(mean, seen.mean) < 1:
                answer = float(np.log2((1 - seen.mean) / (1 - mean))) / coarser
                self._loss = float(np.clip(answer, _LOSS[0], _LOSS[2]))
            asked = 1 - self.thresholds.fsim_p5
            self._cap = float(np.clip(self._cap + 0.7 * (self._spare(seen)[1] - _SAFE), 0.8 * asked, 1.15 * asked))
        self._before = seen.base.rung, now, seen.mean

    def _lacking(self, seen: Seen) -> float:
        """Octaves by which all of the image has to be finer to pass, by the least answer: rather too many."""
        least = self.thresholds
        pairs = (seen.mean, least.fsim_mean + _SAFE), (seen.p5, least.fsim_p5 + _SAFE)
        over = (max(1 - value, _FAINTEST) / max(1 - floor, _FAINTEST) for value, floor in pairs)
        return max(_LEAST_CHANGE, *(float(np.log2(ratio)) / _LOSS[0] for ratio in over))

    def _change(self, seen: Seen) -> Floats:
        """Octaves by which each tile should be coarser than it was."""
        costs = _costs(seen, self.reference)
        costs = np.maximum(costs, max(float(np.median(costs)) / 50, 1.0))
        errors = np.maximum(1 - seen.scores, 0.005)
        at_most = 1 - self.thresholds.fsim_mean - _SAFE
        even = np.log2(costs / errors) / (_PER_OCTAVE_OF_STEP + self._loss)
        spared = np.zeros(len(errors), dtype=bool)
        bound = self._within(even, errors, at_most, spared)
        free = self._within(even, errors, at_most, ~spared)
        dear = costs * (np.exp2(-_PER_OCTAVE_OF_STEP * bound) - np.exp2(-_PER_OCTAVE_OF_STEP * free))
        # the 5th percentile lets one tile in twenty be worse: those that would cost most
        spared[np.argsort(-dear)[: int(0.05 * (len(errors) - 1))]] = True
        return self._within(even, errors, at_most, spared)

    def _within(self, even: Floats, errors: Floats, at_most: float, spared: NDArray[np.bool_]) -> Floats:
        """``even`` moved as a whole so that the mean error is ``at_most``, no tile's above what it may be."""
        worst = max(1 - self.thresholds.fsim_worst - 0.005, self._cap)
        limit = np.log2(np.maximum(np.where(spared, worst, self._cap), _FAINTEST) / errors) / self._loss
        low, high = -12.0, 12.0
        for _ in range(40):
            middle = (low + high) / 2
            change = np.minimum(even - middle, limit)
            if float((errors * np.exp2(self._loss * change)).mean()) > at_most:
                low = middle
            else:
                high = middle
        return np.minimum(even - high, limit)

    def _nominal(self, seen: Seen, wanted: Floats) -> Rung:
        """The rung that the first one becomes: itself where samples can be scaled up, else the coarsest one that is as
        fine as the finest tile wants it."""
        if headroom_of(seen.base, seen.base.rung) >= _FINER:
            return seen.base.rung
        fine = [rung for rung in self.rungs if step_octaves(rung) <= float(wanted.min()) - _ROOM[seen.base.rung.scale]]
        return fine[0] if fine else self.rungs[-1]

    def _map(self, octaves: Floats, headroom: float) -> Coarseness:
        """A value per tile of the map; tiles without breast take their neighbours'."""
        from scipy.ndimage import distance_transform_edt

        rows, columns = self.reference.pixels.shape
        values = np.full((-(-rows // TILE), -(-columns // TILE)), np.nan)
        for (row, column), value in zip(self.reference.tiles, octaves, strict=True):
            values[-(-row // TILE), -(-column // TILE)] = value
        nearest = distance_transform_edt(np.isnan(values), return_distances=False, return_indices=True)
        steps = np.rint(PER_OCTAVE * values[tuple(nearest)])
        finest = max(-LIMIT, -int(PER_OCTAVE * headroom))
        return Coarseness(rows, columns, np.clip(steps, finest, _SCALED).astype(np.int8))


def headroom_of(base: Base, rung: Rung) -> float:
    """Octaves by which samples may be scaled up until the largest is all that the coder takes."""
    largest = ((1 << base.bits_stored) - 1) * 2.0**base.exponent
    return max(float(np.log2(top_sample(rung.coder) / largest)), 0.0)


def _octaves(base: Base, reference: Reference) -> Floats:
    """How coarsely each tile was coded: octaves of the coder's step, and what the map adds to it."""
    nominal = step_octaves(base.rung)
    if base.coarseness is None:
        return np.full(len(reference.tiles), nominal)
    scaling = base.coarseness.scaling(16)
    side = TILE // 16
    cut = [scaling[row // 16 : row // 16 + side, column // 16 : column // 16 + side] for row, column in reference.tiles]
    return nominal - np.log2([float(part.mean()) for part in cut])


def _costs(seen: Seen, reference: Reference) -> Floats:
    """What each tile costs beside the others: bits of its 8 x 8 cosine transform in steps of the quantisation."""
    from scipy.fft import dctn

    base, scale = seen.base, seen.base.rung.scale
    side = TILE // scale
    coarser = _octaves(base, reference) - step_octaves(base.rung)
    units = (2.0**base.exponent / (_STEP * base.rung.distance) / np.exp2(coarser)).astype(np.float32)
    costs = []
    for (row, column), unit in zip(reference.tiles, units, strict=True):
        tile = seen.drawn.decoded.samples[row // scale : row // scale + side, column // scale : column // scale + side]
        rows, columns = (size // _BLOCK for size in tile.shape)
        blocks = tile[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2)
        waves = dctn(blocks, axes=(2, 3), norm="ortho") * unit
        waves[..., 0, 0] = 0
        costs.append(float(np.log2(1 + np.square(waves)).sum()))
    return np.array(costs)
