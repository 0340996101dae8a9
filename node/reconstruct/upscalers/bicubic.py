"""``bicubic``: the honest baseline, bicubic upsampling made exactly consistent with its base."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from node.reconstruct.numerics import cpu_numerics
from node.reconstruct.upscalers.protocol import UpscaleTask
from storage.resample import OPERATOR


class Bicubic:
    """``U M^-1 y`` (storage/resample.py): no weights, no randomness, D of it is the base again."""

    name = "bicubic"
    method = "BICUBIC_UP_1"
    generative = False
    consistent = True
    steps = 0
    weights_digest = hashlib.sha256(f"bicubic lift, {OPERATOR}".encode()).hexdigest()

    @property
    def numerics(self) -> dict[str, str]:
        return cpu_numerics()

    def upscale(self, task: UpscaleTask) -> NDArray[np.float32]:
        return task.operator.lift(task.base)
