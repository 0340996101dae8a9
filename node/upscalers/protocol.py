"""What an upscaler is: it makes a full-matrix structure of a base, and may shape the noise that is drawn into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.formats.resample import Operator
from storage.records import OperatingPoint

Float = NDArray[np.float32]


@dataclass(frozen=True)
class UpscaleTask:
    """One image to upscale.

    ``samples``: float32 (operator.low_rows, operator.low_columns), the decoded base in the grey levels of the
    original. ``upsampled``: float32, full size, the smooth image whose downsampling gives
    them back (``Operator.lift``); not to be written to. ``point`` and
    ``quantisation_rms`` (grey levels): how the base was made. ``deviation``: float32, full size, standard deviation of
    the noise that the upsampled base lacks, in grey levels; 0 where it lacks none. An upscaler that does not need it
    gets zeros.
    """

    samples: Float
    operator: Operator
    upsampled: Float
    point: OperatingPoint
    quantisation_rms: float
    deviation: Float
    seed: int = 0
    steps: int = 0


class Upscaler(Protocol):
    """The contract every upscaler keeps; ``tests/contracts/test_upscalers.py`` holds each one to it.

    The same task on the same numerics gives bit-identical results, whatever ran before or beside it.
    """

    @property
    def name(self) -> str:
        """Name in config.yaml and in every rendition, for example ``bicubic``."""

    @property
    def method(self) -> str:
        """Term for Lossy Image Compression Method (0028,2114): at most 16 characters, one per family."""

    @property
    def generative(self) -> bool:
        """True when the structure may hold content that a model drew."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights, hex; for an upscaler without weights, of its definition."""

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """Name and place of each file that the archive keeps, so that renditions outlive the installed model.

        With them in a folder under these names the upscaler is the same; empty where it has no files.
        """

    @property
    def steps(self) -> int:
        """Sampling steps this upscaler would use for a new rendition; 0 when it does not sample."""

    @property
    def numerics(self) -> dict[str, str]:
        """What can change a grey level without changing the model: device, dtype, versions, kernels."""

    @property
    def needs_deviation(self) -> bool:
        """True when ``structure`` looks at ``task.deviation``, which takes time to measure."""

    def structure(self, task: UpscaleTask) -> Float:
        """The full-matrix structure, without noise: float32 (operator.rows, operator.columns), grey levels."""

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        """The noise to add to a structure, grey levels, made of the drawn Gaussian ``noise``; by default just that."""
