"""Chooses the next JPEG XL distance from the burdens of the distances so far.

It is the secant method on logarithms; between a distance that passes and one that fails it is linear interpolation.
"""

from __future__ import annotations

import numpy as np

FINEST, COARSEST = 0.1, 15.0
"""Least and greatest JPEG XL distance; a scale that needs another one is given up."""
SLOPE = 0.6
"""log2 increase of the burden per doubling of the distance, assumed until two looks measure it; typical."""
NEAR = 0.945
"""A search ends when the burden lies between this and 1."""
AIM = 0.98
"""Burden that a search aims at."""


class Walk:
    """``distance``: the next one to try. ``slope``: log2 increase of the burden per doubling of the distance."""

    def __init__(self, start: float, slope: float = SLOPE) -> None:
        self.distance = start
        self.slope = slope
        self._seen: list[tuple[float, float]] = []

    def set_next_distance(self, burden: float) -> bool:
        """Set the next distance, given the burden at this one; returns False if no other distance is left."""
        here = np.log2(self.distance), np.log2(max(burden, 1e-3) / AIM)
        if self._seen and abs(here[0] - self._seen[-1][0]) > 1e-6:
            self.slope = float(np.clip((here[1] - self._seen[-1][1]) / (here[0] - self._seen[-1][0]), 0.35, 1.2))
        self._seen.append(here)
        wanted = float(np.clip(here[0] - here[1] / self.slope, here[0] - 2, here[0] + 2))
        passing = [(x, y) for x, y in self._seen if y <= 0]
        failing = [(x, y) for x, y in self._seen if y > 0]
        if passing and failing:  # between the nearest two
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
