"""Drift of a figure over runs: an EWMA control chart of its mean, and a threshold.

The exponentially weighted moving average chart is that of S. W. Roberts, "Control chart tests based on geometric moving
averages", Technometrics 1 (1959) 239-250, with limits as in NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.4.
Run t has n_t images with mean x_t, standardised by mean m and standard deviation s of the images of the first runs:

    u_t = (x_t - m) sqrt(n_t) / s        z_t = w u_t + (1 - w) z_(t-1)
    var z_t = w / (2 - w) (1 - (1 - w)^(2t)) + (n_t / N) (1 - (1 - w)^t)^2

The last term is the error of m itself, from N images, which all later runs share. There is only a lower limit, since
an improvement is not an alarm. Several charts share the false alarm rate of one (Bonferroni). A mean below the
threshold is an alarm only if chance would give it as rarely as the chart gives a false alarm: a run may have one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import NormalDist

from node.config import DriftSettings

_MIN_IMAGES = 20
"""Fewest images of the first runs for an estimate of their standard deviation. Chosen, not measured."""
_MIN_DEVIATION = 1e-9
"""Smallest standard deviation, in the unit of the figure; prevents division by zero."""


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """One run: when it ended (seconds since the epoch), images measured, mean and standard deviation of the figure."""

    at: float
    count: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class ControlChart:
    """``points`` in order of time. ``centre``: mean of the first runs, which are the first ``calibrated`` points;
    ``average`` and ``limit``: z_t and its lower limit for the later points. ``alarm``: why the newest point is an
    alarm, empty if it is not."""

    points: tuple[ChartPoint, ...]
    calibrated: int = 0
    centre: float = math.nan
    average: tuple[float, ...] = ()
    limit: tuple[float, ...] = ()
    alarm: str = ""

    def newest(self, count: int) -> ControlChart:
        """The same chart, with its last ``count`` points at most."""
        calibrated = max(self.calibrated - max(len(self.points) - count, 0), 0)
        ends = {name: getattr(self, name)[-count:] for name in ("points", "average", "limit")}
        return replace(self, calibrated=calibrated, **ends)


def control_chart(points: Sequence[ChartPoint], settings: DriftSettings, drop: float, charts: int = 1) -> ControlChart:
    """The chart of one figure. ``drop``: most that the newest mean may be below the centre, in the unit of the figure;
    ``charts``: number of charts that share the false alarm rate."""
    points = tuple(point for point in points if point.count)
    totals = list(accumulate(point.count for point in points))
    enough = (number for number, images in enumerate(totals, 1) if images >= _MIN_IMAGES)
    calibrated = max(settings.baseline, next(enough, len(points) + 1))
    if len(points) < calibrated:
        return ControlChart(points)
    first, later, images = points[:calibrated], points[calibrated:], totals[calibrated - 1]
    centre = sum(point.count * point.mean for point in first) / images
    squares = sum((point.count - 1) * point.deviation**2 + point.count * (point.mean - centre) ** 2 for point in first)
    spread = max(math.sqrt(squares / (images - 1)), _MIN_DEVIATION)
    reach, keep = _quantile(settings.limit, charts), 1 - settings.weight
    average, limit, z = [], [], 0.0
    for time, point in enumerate(later, 1):
        z = settings.weight * (point.mean - centre) * math.sqrt(point.count) / spread + keep * z
        own = settings.weight / (2 - settings.weight) * (1 - keep ** (2 * time))
        shared = point.count / images * (1 - keep**time) ** 2
        average.append(z)
        limit.append(-reach * math.sqrt(own + shared))
    alarm = ""
    if later:
        newest, count = later[-1].mean, later[-1].count
        by_chance = reach * spread * math.sqrt(1 / count + 1 / images)
        if newest < centre - max(drop, by_chance):
            alarm = f"mean {newest:.4f} is more than {drop:g} below {centre:.4f}, the mean of the first runs"
        elif average[-1] < limit[-1]:
            alarm = f"moving average {average[-1]:.2f} is below its control limit {limit[-1]:.2f} (mean {newest:.4f})"
    return ControlChart(points, calibrated, centre, tuple(average), tuple(limit), alarm)


def _quantile(limit: float, charts: int) -> float:
    """The limit, in standard deviations, at which ``charts`` charts have the false alarm rate of one at ``limit``."""
    normal = NormalDist()
    return -normal.inv_cdf(max(normal.cdf(-limit) / charts, 1e-300))
