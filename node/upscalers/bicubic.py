"""``bicubic``: the honest baseline, bicubic upsampling made exactly consistent with its base.

With ``detail`` it also gives the cheapest texture there is: white noise in the null space of D.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.codec.guide import share_map, unit_map
from node.upscalers.noise import noise_rows
from node.upscalers.numerics import cpu_numerics
from node.upscalers.protocol import Upscaled, UpscaleTask, hidden_from_base
from storage.resample import OPERATOR


class Bicubic:
    """``U M^-1 y`` (storage/resample.py): no weights, no randomness, D of it is the base again."""

    name = "bicubic"
    method = "BICUBIC_UP_1"
    consistent = True
    files: tuple[tuple[str, Path], ...] = ()
    weights_digest = hashlib.sha256(f"bicubic lift, {OPERATOR}".encode()).hexdigest()

    def __init__(self, detail: float = 0.0) -> None:
        self.detail = detail
        self.generative = self.guided = detail > 0
        self.steps = int(detail > 0)

    @property
    def numerics(self) -> dict[str, str]:
        return cpu_numerics()

    def upscale(self, task: UpscaleTask) -> Upscaled:
        image = task.consistent_base()
        return Upscaled(image, self._texture(task) if task.levels is not None and task.steps else None)

    def _texture(self, task: UpscaleTask) -> NDArray[np.float32]:
        """Noise of unit variance without what D would see of it, times the guide's standard deviation."""
        assert task.levels is not None
        operator = task.operator
        strength = unit_map(task.levels, operator.rows, operator.columns)
        strength *= share_map(task.levels, operator.rows, operator.columns)
        noise = noise_rows(task.seed, range(operator.rows), operator.columns)
        noise *= strength
        return hidden_from_base(noise, operator, strength)
