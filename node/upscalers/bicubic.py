"""The baseline: consistent bicubic upsampling of the base (``Operator.lift``), with drawn noise unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path

from node.upscalers.numerics import device_of, numerics_of
from node.upscalers.protocol import Float, UpscaleTask
from storage.formats.resample import OPERATOR


class Bicubic:
    """Bicubic upsampling in float32 on the CPU; downsampled, the result equals the base."""

    name = "bicubic"
    method = "LPACS_BICUBIC"
    generative = False
    files: tuple[tuple[str, Path], ...] = ()
    steps = 0
    needs_deviation = False

    @property
    def weights_digest(self) -> str:
        """Digest of the definition, since there are no weights."""
        return hashlib.sha256(f"bicubic/lift/{OPERATOR}".encode()).hexdigest()

    @property
    def numerics(self) -> dict[str, str]:
        return numerics_of(device_of("cpu"), "float32")

    def structure(self, task: UpscaleTask) -> Float:
        return task.upsampled.copy()

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        return noise
