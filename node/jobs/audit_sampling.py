"""Which images an audit looks at: a stratified random sample, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from storage.index.audit_outcomes import AuditCandidate

AXES = ("device", "site", "point", "age")
Cell = tuple[str, str, str, str]
"""Where an image belongs on each of ``AXES``."""

_YOUNG, _YEAR = timedelta(days=30), timedelta(days=365)


def cell_of(candidate: AuditCandidate, now: datetime) -> Cell:
    """``now`` as rows have it: UTC, without a zone."""
    since = now - candidate.verified_at
    age = "under 30 days" if since < _YOUNG else "under a year" if since < _YEAR else "over a year"
    return candidate.device, candidate.site, candidate.point, age


def draw(candidates: Sequence[AuditCandidate], sample: float | int, seed: int, now: datetime) -> list[AuditCandidate]:
    """A sample (a share as float, a number as int) in proportion to each cell, at least one of each.

    What is left over by rounding goes to the largest remainders. A sample too small to have one of each is drawn from
    all alike. Images that an audit flagged come on top, all of them.
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
    """How many of each cell, ``wanted`` together: at least one, never more than it has."""
    cells = sorted(sizes)
    spread, left = wanted - len(cells), sum(sizes.values()) - len(cells)
    shares = {cell: spread * (sizes[cell] - 1) / left if left else 0.0 for cell in cells}
    numbers = {cell: 1 + int(shares[cell]) for cell in cells}
    by_remainder = sorted(cells, key=lambda cell: (int(shares[cell]) - shares[cell], cell))
    for cell in by_remainder[: wanted - sum(numbers.values())]:
        numbers[cell] += 1
    return numbers
