"""The sample of an audit: stratified and random, reproducible from its seed."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from storage.index.audit_outcomes import AuditCandidate

AXES = ("device", "site", "point", "age")
Cell = tuple[str, str, str, str]
"""The value of an image on each of ``AXES``."""

_YOUNG, _YEAR = timedelta(days=30), timedelta(days=365)


def cell_of(candidate: AuditCandidate, now: datetime) -> Cell:
    """The cell of an image. ``now``: in UTC, without a zone."""
    since = now - candidate.verified_at
    age = "under 30 days" if since < _YOUNG else "under a year" if since < _YEAR else "over a year"
    return candidate.device, candidate.site, candidate.point, age


def draw(candidates: Sequence[AuditCandidate], sample: float | int, seed: int, now: datetime) -> list[AuditCandidate]:
    """A sample (a share as float, a number as int) proportional to the cells, with at least one image of each.

    Numbers are rounded by the largest remainder method. A sample smaller than the number of cells is drawn without
    regard to cells. All images that an audit flagged are added. The same arguments give the same sample.
    """
    cells: dict[Cell, list[AuditCandidate]] = defaultdict(list)
    for one in candidates:
        if not one.flagged:
            cells[cell_of(one, now)].append(one)
    count = sum(map(len, cells.values()))
    wanted = min(count, sample if isinstance(sample, int) else math.ceil(sample * count))
    lots = random.Random(seed)
    taken = [one for one in candidates if one.flagged]
    if wanted < len(cells):
        taken += lots.sample([one for one in candidates if not one.flagged], wanted)
    else:
        for cell, number in _allotted({cell: len(held) for cell, held in cells.items()}, wanted).items():
            taken += lots.sample(cells[cell], number)
    return sorted(taken, key=lambda one: one.instance_key)


def _allotted(sizes: dict[Cell, int], wanted: int) -> dict[Cell, int]:
    """Number of images per cell, ``wanted`` in total: at least one, at most the size of the cell."""
    cells = sorted(sizes)
    spread, left = wanted - len(cells), sum(sizes.values()) - len(cells)
    shares = {cell: spread * (sizes[cell] - 1) / left if left else 0.0 for cell in cells}
    numbers = {cell: 1 + int(shares[cell]) for cell in cells}
    by_remainder = sorted(cells, key=lambda cell: (int(shares[cell]) - shares[cell], cell))
    for cell in by_remainder[: wanted - sum(numbers.values())]:
        numbers[cell] += 1
    return numbers
