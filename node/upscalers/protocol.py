"""The interface of upscalers: from a base to a full-size structure, and optionally to the noise added to it."""

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

    ``samples``: float32 (operator.low_rows, operator.low_columns), the decoded base in grey levels of the original.
    ``upsampled``: float32, full size, the smooth image whose downsampling equals ``samples`` (``Operator.lift``);
    read only. ``point``: operating point of the base. ``quantisation_rms``: RMS coding error of the base, in grey
    levels. ``deviation``: float32, full size, standard deviation of the noise missing in the upsampled base, in grey
    levels; all 0 for an upscaler that does not need it. ``seed`` and ``steps``: those of the sampling.
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
    """The contract of all upscalers; ``tests/contracts/test_upscalers.py`` tests each one against it.

    The same task on the same numerics gives bit-identical results, whatever else the process runs.
    """

    @property
    def name(self) -> str:
        """Name in config.yaml and in renditions, for example ``bicubic``."""

    @property
    def method(self) -> str:
        """Term for Lossy Image Compression Method (0028,2114), at most 16 characters."""

    @property
    def generative(self) -> bool:
        """Whether a model may have generated parts of the structure."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 (hex) of the weights; of the definition for an upscaler without weights."""

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """Name and path of each model file that the archive keeps, so that renditions outlive the installed model.

        A folder with these files under these names gives the same upscaler. Empty if there are no files.
        """

    @property
    def steps(self) -> int:
        """Sampling steps for a new rendition; 0 if the upscaler does not sample."""

    @property
    def numerics(self) -> dict[str, str]:
        """Everything apart from the model that can change a grey level: device, dtype, versions, kernels."""

    @property
    def needs_deviation(self) -> bool:
        """Whether ``structure`` reads ``task.deviation``, which takes time to measure."""

    def structure(self, task: UpscaleTask) -> Float:
        """The full-size structure without noise: float32 (operator.rows, operator.columns), grey levels."""

    def grain(self, task: UpscaleTask, structure: Float, noise: Float) -> Float:
        """The noise to add to ``structure``, in grey levels, made from drawn Gaussian ``noise``; may be ``noise``."""


@dataclass(frozen=True)
class Installed:
    """A model installed on the machine of the workers.

    ``recipe``: the sampling steps, as renditions record them. ``files``: as in Upscaler.
    """

    upscaler: str
    weights_digest: str
    recipe: str
    files: tuple[tuple[str, Path], ...]

    @classmethod
    def of(cls, upscaler: Upscaler) -> Installed:
        """The model of an upscaler. Raises ModelMissing if its weights cannot be read."""
        return cls(upscaler.name, upscaler.weights_digest, f"steps {upscaler.steps}", upscaler.files)
