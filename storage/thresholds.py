"""Compares the figures of a verdict with the thresholds of the gate."""

from __future__ import annotations

from collections.abc import Mapping

from storage.records import Thresholds

WIDTHS = ("1.2", "2.5", "5")
"""Widths of the line filters, in pixels, as they occur in the names of figures."""


def limits_of(thresholds: Thresholds) -> dict[str, float]:
    """The largest absolute value that each figure of a passing verdict may have, by name.

    Limits of single tiles are not included, because a verdict has no figures for them.
    """
    lines = dict(zip(WIDTHS, thresholds.lines, strict=True))
    return {
        **{f"lines_{width}": limit for width, limit in lines.items()},
        **{f"lines_most_{width}": limit * thresholds.lines_most for width, limit in lines.items()},
        **{f"lost_{number}": limit for number, limit in enumerate(thresholds.lost, start=1)},
        "shift": thresholds.shift,
        "slow": thresholds.slow,
        "periodic": thresholds.periodic,
        "outside": thresholds.outside,
        "specks_lost": 0.0,
        "specks_invented": 0.0,
        **{f"spectrum_db_{number}": thresholds.spectrum_db for number in range(1, len(thresholds.lost) + 1)},
        "spectrum_tile_db": thresholds.spectrum_tile_db,
        "repeat": thresholds.repeat,
        "quiet": thresholds.quiet,
    }


def shares_of(figures: Mapping[str, float], thresholds: Thresholds) -> dict[str, float]:
    """The ratio of each figure's absolute value to its limit. It is above 1 if the figure fails.

    If the limit is 0, the value is 1 plus the figure, or 0 for a figure of 0.
    """
    return {
        name: abs(figures[name]) / limit if limit else (abs(figures[name]) + 1.0) * (figures[name] != 0)
        for name, limit in limits_of(thresholds).items()
        if name in figures
    }


def burden_of(figures: Mapping[str, float], thresholds: Thresholds) -> float:
    """The largest of ``shares_of``; 0 if there are no figures."""
    return max(shares_of(figures, thresholds).values(), default=0.0)
