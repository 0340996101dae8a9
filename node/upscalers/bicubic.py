"""The baseline: consistent bicubic upsampling of the base (``Operator.lift``), and the image's own Gaussian noise as it
was drawn."""

from __future__ import annotations

import hashlib
from pathlib import Path

from node.upscalers.numerics import cpu_numerics
from node.upscalers.protocol import Float, UpscaleTask
from storage.formats.resample import OPERATOR


class Bicubic:
    """Bicubic upsampling whose downsampling gives the base back, in float32 on the CPU."""

    name = "bicubic"
    method = "LPACS_BICUBIC"
    generative = False
    files: tuple[tuple[str, Path], ...] = ()
    steps = 0
    needs_deviation = False

    @property
    def weights_digest(self) -> str:
        """There are no weights: the digest is that of the definition."""
        return hashlib.sha256(f"bicubic/lift/{OPERATOR}".encode()).hexdigest()

    @property
    def numerics(self) -> dict[str, str]:
        return cpu_numerics()

    def structure(self, task: UpscaleTask) -> Float:
        return task.upsampled.copy()

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        return noise
