"""How coarsely to code each place of an image, so that it passes the gate as a whole in the fewest bytes.

The gate asks for a mean and a 5th percentile of tile FSIM. Coded alike everywhere, an image is better than that in
most tiles for the sake of a few, and pays most where noise is strongest. From one look at it, coded and measured,
follows how much coarser or finer each tile should be (a Lagrangian over tiles); the next look says how right that was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from node.codec.engine import Decoded, make_decoded
from node.codec.guide import Guide
from node.codec.guiding import Raising, equalised, raised
from node.codec.source import Original
from node.codec.tilemap import SCALED, TileMap, finest_step
from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference, psnr, tile_scores
from storage.coarseness import PER_OCTAVE, Coarseness
from storage.coders import step_octaves, top_sample
from storage.payload import Base
from storage.records import Rung, Thresholds

Floats = NDArray[np.float64]

_FINER, _COARSER = 1.25, 1.0
"""Octaves by which a tile may be finer or coarser than most are."""
_CAREFUL = 0.7
"""Of the first change: it is the greatest, and rests on typical answers."""
PER_OCTAVE_OF_STEP = 1.1
"""Octaves by which a tile's bytes fall where its quantisation becomes twice as coarse; measured on mammograms."""
_LOSS = (0.3, 0.55, 0.9)
"""Octaves by which 1 - FSIM rises then: least, typical, most."""
_STEP = 28.0
"""Quantisation step, in units of coded samples, of JPEG XL at distance 1: for what a tile costs beside others."""
SAFE = 0.0003
"""What tile FSIM is to have above the gate's limits: maps are rounded."""
_SOLVED = 2
"""Looks after which the next one is worked out for all tiles at once; from then on the image is moved to the limit."""
_MOST_LOOKS, _MORE_LOOKS = 6, 1
"""In all, and beyond that where no balanced image has passed yet."""
_MOST_MOVE = 0.4
"""Octaves by which the image is moved as one, either way."""
_DOUBT = 0.05
"""Squared octaves of moves of a tile at which it is believed as much as all tiles are."""
_MOST_MISSED = 0.005
"""Of tile FSIM: by how much farther above the limits is aimed where the last look fell short."""
_LEAST_FINER, _MORE_THAN_DOES = 0.06, 1.5
"""Octaves by which all of the image is made finer where two moves have not made it pass, and how much more than what
it misses asks for."""
_LEAST_GAIN = 0.97
"""What of the bytes of the smallest that has passed another look has to promise."""
_NEAR, _FEW, _AGAIN = 0.7, 8, 0.5
"""Octaves of error within which a tile is near the limit, how many of them say how far tiles scatter about what is
expected of them, and how much of that is expected again."""
_TOO_MUCH = 1.1
"""Of the bytes that are enough, what a search is given up for: that is a forecast, too."""
_HALVINGS, _PULLS = 8, 12
"""How often the move of an image is halved, and single tiles are made finer, until it is expected at the limits."""
_FAINTEST = 0.001
"""Of 1 - FSIM: what gates of 1 are taken for."""
_ROOM = {1: 0.4, 2: 0.9, 4: 0.9}
"""Octaves by which a rung is finer than the finest tile wants at first, by scale, for single tiles that need more: AV1
codes noise at full size best with coarse quantisers."""
_SWITCHED = {"avif": 0.2}
"""Octaves by which samples scaled down for a finer quantiser are coded more coarsely than those of a coarser one that
has the same step; measured on mammograms: 0 to 0.45."""
_BLOCK = 8


@dataclass(frozen=True)
class Drawn:
    """A base of the image, and the pixels that come of it by ``guide``: uint16, full size."""

    base: Base
    decoded: Decoded
    guide: Guide
    output: NDArray[np.uint16]

    @classmethod
    def of(cls, original: Original, rung: Rung, coarseness: Coarseness | None, raising: Raising) -> Drawn:
        """Coded, and with the base's fine detail raised."""
        base, decoded = make_decoded(original, rung, coarseness)
        guide = equalised(base, raising)
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

    def tile_bytes(self, reference: Reference) -> dict[tuple[int, int], float]:
        """What each tile of ``reference.tiles`` takes of the base, about."""
        costs = _costs(self, reference)
        shares = self.payload_bytes * costs / max(float(costs.sum()), 1.0)
        return dict(zip(reference.tiles, shares.tolist(), strict=True))

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
    Given up where it takes much more than ``enough`` bytes."""
    balance = Balance(reference, thresholds, sorted(rungs, key=lambda rung: -rung.distance))
    seen, best = first, None
    while (wanted := balance.next(seen)) is not None and balance.expected_bytes <= _TOO_MUCH * enough:
        seen = Seen.of(reference, Drawn.of(original, *wanted, raising))
        passes = balance.passes(seen)
        if passes and (best is None or seen.payload_bytes < best.payload_bytes):
            best = seen  # one image is kept, not six
    if not balance.passes(first):
        return best or seen
    # without room to scale up, the first one could not be made finer in single places
    may_be_first = headroom_of(first.base, first.base.rung) > 0
    return first if best is None or (may_be_first and first.payload_bytes < best.payload_bytes) else best


@dataclass(frozen=True)
class _Look:
    """How coarsely each tile was coded, in octaves, and what was measured: 1 - FSIM, in octaves too."""

    rung: Rung
    octaves: Floats
    errors: Floats


@dataclass
class Balance:
    """The search for one scale and coder. ``rungs``: those that may be taken, coarsest first."""

    reference: Reference
    thresholds: Thresholds
    rungs: Sequence[Rung]
    _looks: list[_Look] = field(default_factory=list)
    _aim: Floats = field(init=False)
    _tiles: TileMap = field(init=False)
    _awaited: Floats | None = None
    _scatter: Floats = field(default_factory=lambda: np.zeros(1))
    _smallest: float = math.inf
    _margins: tuple[float, float] = (SAFE, SAFE)
    expected_bytes: float = 0.0
    """What the image asked for last will take, about."""

    def __post_init__(self) -> None:
        self._tiles = TileMap(self.reference)

    def passes(self, seen: Seen) -> bool:
        """Whether the gate lets the image pass as a whole."""
        return min(self._spare(seen)) >= 0 and seen.psnr_db >= self.thresholds.psnr_db

    def next(self, seen: Seen) -> tuple[Rung, Coarseness] | None:
        """How to code the image next, after what was ``seen`` last; None where nothing is to be won by that."""
        passes = self.passes(seen)
        if passes and seen.base.coarseness is not None:
            self._smallest = min(self._smallest, seen.payload_bytes)
        now = _octaves(seen.base, self.reference)
        self._looks.append(_Look(seen.base.rung, now, np.log2(np.maximum(1 - seen.scores, _FAINTEST))))
        self._learn_scatter(self._looks[-1].errors)
        looks = len(self._looks)
        most = _MOST_LOOKS + (_MORE_LOOKS if self._smallest == math.inf else 0)
        if looks >= most:
            return None
        if looks <= _SOLVED:
            change = self._change(seen, now)
            wanted = now + (change if looks > 1 else _CAREFUL * change)
            middle = float(np.median(wanted))
            wanted = np.clip(wanted, middle - _FINER, middle + _COARSER)
        else:
            self._learn_margins(seen)
            wanted = self._aim
        rung = seen.base.rung
        if seen.base.coarseness is None:
            rung = self._nominal(seen, wanted)
        headroom = headroom_of(seen.base, rung)
        lost = _SWITCHED.get(rung.coder, 0.0) if rung != seen.base.rung else 0.0
        last_try = (
            looks > _SOLVED
            and not passes
            and (looks == most - 1 or (self._smallest == math.inf and looks > _SOLVED + 1))
        )
        if last_try:
            steps = self._clipped(wanted + self._surely_finer(seen) - step_octaves(rung), headroom)
        else:
            steps = self._settled(wanted - step_octaves(rung), step_octaves(rung) + lost, headroom)
        if seen.psnr_db < self.thresholds.psnr_db:
            steps = self._clipped(steps - (self.thresholds.psnr_db - seen.psnr_db) / 3, headroom)
        self.expected_bytes = self._expected_bytes(seen, step_octaves(rung) + lost + self._tiles.octaves(steps))
        if self.expected_bytes >= _LEAST_GAIN * self._smallest:
            return None
        self._aim = step_octaves(rung) + steps  # what no map can say is not aimed at: tiles would not move from there
        wanted_map = self._tiles.map(steps, rung.coder)
        return None if wanted_map == seen.base.coarseness else (rung, wanted_map)

    def _spare(self, seen: Seen) -> tuple[float, float]:
        """Tile FSIM above the gate's limits: mean and 5th percentile."""
        return seen.mean - self.thresholds.fsim_mean, seen.p5 - self.thresholds.fsim_p5

    def _learn_margins(self, seen: Seen) -> None:
        """Aim farther above the limits where what was aimed at was not met."""
        if len(self._looks) > _SOLVED + 1:
            missed = np.clip(0.7 * (np.array(self._margins) - self._spare(seen)), 0, _MOST_MISSED)
            self._margins = SAFE + float(missed[0]), SAFE + float(missed[1])

    def _settled(self, steps: Floats, nominal: float, headroom: float) -> Floats:
        """``steps``, octaves of the map per tile, moved as one to where the image is expected to lie just above both
        limits; tiles that would hold the 5th percentile down are finer. ``nominal``: octaves of the coder's step."""
        answers = self._answers()
        least_mean, least_p5 = self._aims()
        low, high = -_MOST_MOVE, _MOST_MOVE
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            errors = self._foreseen(self._held(steps + middle, answers, nominal, headroom), answers, nominal)
            if np.mean(1 - np.exp2(errors)) >= least_mean and self._p5(errors) >= least_p5:
                low = middle
            else:
                high = middle
        held = self._held(steps + low, answers, nominal, headroom)
        self._awaited = self._foreseen(held, answers, nominal)
        return held

    def _aims(self) -> tuple[float, float]:
        """What mean and 5th percentile of tile FSIM are to be."""
        return self.thresholds.fsim_mean + self._margins[0], self.thresholds.fsim_p5 + self._margins[1]

    def _foreseen(self, steps: Floats, answers: Floats, nominal: float) -> Floats:
        """Errors of tiles, in octaves, that a map is expected to come to, by what was measured last."""
        last = self._looks[-1]
        octaves = nominal + self._tiles.octaves(steps)
        return np.asarray(last.errors + answers * (octaves - last.octaves))

    def _p5(self, errors: Floats) -> float:
        """The 5th percentile of tile FSIM where errors, in octaves, scatter about what is expected as they did."""
        return float(np.percentile(1 - np.exp2(errors[:, None] + self._scatter), 5))

    def _learn_scatter(self, errors: Floats) -> None:
        """How far tiles near the limit were off what had been expected of them."""
        if self._awaited is None:
            return
        near = np.abs(self._awaited - math.log2(max(1 - self.thresholds.fsim_p5, _FAINTEST))) < _NEAR
        off = (errors - self._awaited)[near]
        if len(off) >= _FEW:
            self._scatter = _AGAIN * (np.quantile(off, (np.arange(_FEW) + 0.5) / _FEW) - np.median(off))

    def _held(self, steps: Floats, answers: Floats, nominal: float, headroom: float) -> Floats:
        """``steps`` finer in the tiles that would hold the 5th percentile down, but for the one in twenty that may:
        those that would be worst."""
        aim = math.log2(max(1 - self._aims()[1], _FAINTEST))
        worst = max(math.log2(max(1 - self.thresholds.fsim_worst - 0.005, _FAINTEST)), aim)
        limit, steps = aim, self._clipped(steps, headroom)
        for pull in range(_PULLS):
            errors = self._foreseen(steps, answers, nominal)
            short = math.log2(max(1 - self._p5(errors), _FAINTEST)) - aim
            if short <= 0:
                break
            limit -= short if pull else 0.0
            limits = np.full(len(errors), limit)
            limits[np.argsort(-errors)[: int(0.05 * (len(errors) - 1))]] = worst
            steps = self._clipped(steps - np.maximum(errors - limits, 0) / answers, headroom)
        return steps

    def _clipped(self, steps: Floats, headroom: float) -> Floats:
        """Octaves of a map within what samples of that headroom can say."""
        return np.asarray(np.clip(steps, finest_step(headroom) / PER_OCTAVE, SCALED / PER_OCTAVE))

    def _expected_bytes(self, seen: Seen, octaves: Floats) -> float:
        """What an image coded so would take, by what the last one did."""
        costs = _costs(seen, self.reference)
        coarser = octaves - self._looks[-1].octaves
        return seen.payload_bytes * float((costs * np.exp2(-PER_OCTAVE_OF_STEP * coarser)).sum() / costs.sum())

    def _surely_finer(self, seen: Seen) -> Floats:
        """All tiles alike finer, by more than should do: neighbours, or the end of the map, can keep single ones from
        becoming what they should."""
        least = self.thresholds
        pairs = ((seen.mean, least.fsim_mean), (seen.p5, least.fsim_p5))
        ratio = max((1 - figure) / max(1 - limit, _FAINTEST) for figure, limit in pairs)
        finer = _LEAST_FINER + _MORE_THAN_DOES * math.log2(max(ratio, 1.0)) / float(np.median(self._answers()))
        return np.full(len(seen.scores), -min(finer, _MOST_MOVE))

    def _answers(self) -> Floats:
        """Octaves by which 1 - FSIM of each tile rises where it is coded one octave more coarsely: from what it did so
        far, as far as it was moved, and else from what all did."""
        last = self._looks[-1]
        moves, rises = [np.zeros(len(last.octaves))], [np.zeros(len(last.octaves))]
        for look in self._looks[:-1]:
            if look.rung == last.rung:
                moves.append(last.octaves - look.octaves)
                rises.append(last.errors - look.errors)
        moved, rose = np.array(moves), np.array(rises)
        square, product = np.square(moved).sum(axis=0), (moved * rose).sum(axis=0)
        doubt = _DOUBT * len(square)
        typical = (float(product.sum()) + _LOSS[1] * doubt) / (float(square.sum()) + doubt)
        typical = min(max(typical, _LOSS[0]), _LOSS[2])
        return np.asarray(np.clip((product + typical * _DOUBT) / (square + _DOUBT), _LOSS[0], _LOSS[2]))

    def _change(self, seen: Seen, now: Floats) -> Floats:
        """Octaves by which each tile should be coarser than ``now``."""
        finest = self.rungs[-1] if len(self._looks) == 1 else seen.base.rung
        room = np.maximum(now - step_octaves(finest) + headroom_of(seen.base, finest), 0)
        costs = _costs(seen, self.reference)
        costs = np.maximum(costs, max(float(np.median(costs)) / 50, 1.0))
        answers, cap = self._answers(), self._cap(seen)
        errors = np.maximum(1 - seen.scores, 0.005)
        spared = np.zeros(len(errors), dtype=bool)
        bound = self._within(costs, errors, answers, spared, cap)
        free = self._within(costs, errors, answers, ~spared, cap)
        dear = costs * (np.exp2(-PER_OCTAVE_OF_STEP * bound) - np.exp2(-PER_OCTAVE_OF_STEP * free))
        dear[bound < -room] = np.inf
        # the 5th percentile lets one tile in twenty be worse: those that can be no better, and would cost most
        spared[np.argsort(-dear)[: int(0.05 * (len(errors) - 1))]] = True
        return np.maximum(self._within(costs, errors, answers, spared, cap), -room)

    def _cap(self, seen: Seen) -> float:
        """What 1 - FSIM of a tile may be for the 5th percentile to pass: after a look, by how far off that was."""
        asked = 1 - self.thresholds.fsim_p5
        if len(self._looks) == 1:
            return asked - SAFE
        missed = self._spare(seen)[1] - SAFE
        return float(np.clip(asked - SAFE + 0.7 * missed, 0.8 * asked, 1.15 * asked))

    def _within(self, costs: Floats, errors: Floats, answers: Floats, spared: NDArray[np.bool_], cap: float) -> Floats:
        """The change with the fewest bytes with which the mean error is what it may be, and no tile's above ``cap``,
        or where it is spared, above what the gate asks of any."""
        at_most = 1 - self.thresholds.fsim_mean - SAFE
        worst = max(1 - self.thresholds.fsim_worst - 0.005, cap)
        limit = np.log2(np.maximum(np.where(spared, worst, cap), _FAINTEST) / errors) / answers
        even = np.log2(costs / (errors * answers))
        low, high = -12.0, 24.0
        for _ in range(40):
            middle = (low + high) / 2
            change = np.minimum((even - middle) / (PER_OCTAVE_OF_STEP + answers), limit)
            if float((errors * np.exp2(answers * change)).mean()) > at_most:
                low = middle
            else:
                high = middle
        return np.minimum((even - high) / (PER_OCTAVE_OF_STEP + answers), limit)

    def _nominal(self, seen: Seen, wanted: Floats) -> Rung:
        """The rung that the first one becomes: itself where samples can be scaled up, else the coarsest one that is as
        fine as the finest tile wants it."""
        if headroom_of(seen.base, seen.base.rung) >= _FINER:
            return seen.base.rung
        fine = [rung for rung in self.rungs if step_octaves(rung) <= float(wanted.min()) - _ROOM[seen.base.rung.scale]]
        return fine[0] if fine else self.rungs[-1]


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
    return nominal - np.array([float(np.log2(part).mean()) for part in cut])


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
