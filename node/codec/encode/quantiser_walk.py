"""Chooses the next JPEG XL distance from the burdens of the distances so far.

It uses the secant method on the logarithms of distance and burden. Once one distance passes and a greater one fails,
it interpolates linearly between their logarithms.
"""

from __future__ import annotations

import numpy as np

FINEST, COARSEST = 0.1, 15.0
"""Smallest and greatest JPEG XL distance that is tried. Chosen, not measured."""
SLOPE = 0.6
"""log2 increase of the burden per doubling of the distance, assumed until two trials have measured it. It is typical of
the images at hand."""
NEAR = 0.945
"""A search on the whole image ends when the burden lies between this and 1."""
AIM = 0.98
"""Burden that a search aims at. Chosen, not measured."""


class Walk:
    """The distances of one search.

    ``distance``: the next one to try. ``slope``: log2 increase of the burden per doubling of the distance, from 0.35 to
    1.2 once it is measured.
    """

    def __init__(self, start: float, slope: float = SLOPE) -> None:
        self.distance = start
        self.slope = slope
        self._seen: list[tuple[float, float]] = []

    def set_next_distance(self, burden: float) -> bool:
        """Set the next distance, given the burden at the present one. Returns False if none is left to try."""
        here = np.log2(self.distance), np.log2(max(burden, 1e-3) / AIM)
        if self._seen and abs(here[0] - self._seen[-1][0]) > 1e-6:
            self.slope = float(np.clip((here[1] - self._seen[-1][1]) / (here[0] - self._seen[-1][0]), 0.35, 1.2))
        self._seen.append(here)
        wanted = float(np.clip(here[0] - here[1] / self.slope, here[0] - 2, here[0] + 2))
        passing = [(x, y) for x, y in self._seen if y <= 0]
        failing = [(x, y) for x, y in self._seen if y > 0]
        if passing and failing:  # interpolate between the nearest two
            (low, under), (high, over) = max(passing), min(failing)
            if low < high:
                wanted = low + (high - low) * float(np.clip(under / (under - over), 0.1, 0.9))
        if not np.log2(FINEST) - 1 <= wanted <= np.log2(COARSEST) + 1:
            return False
        after = float(np.clip(2.0**wanted, FINEST, COARSEST))
        if abs(np.log2(after) - here[0]) < 0.02:
            return False
        self.distance = after
        return True
