"""The words of a validation: its arms, its images, and what was measured of each. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.records import StoredInstance, StoredRendition

MEASURES = ("psnr_db", "ssim", "fsim")


class Arm(StrEnum):
    """Which images a classifier is trained on."""

    SOURCE = "source"
    DECOMPRESSED = "decompressed"
    COMPRESSED = "compressed"


@dataclass(frozen=True)
class Fidelity:
    """MEASURES of one arm of one image. ``full``: of the whole frame, shape (3,); ``tiles``: per tile of 256 pixels
    with breast in it, (n, 3), at ``corners`` (n, 2)."""

    full: NDArray[np.float64]
    tiles: NDArray[np.float64]
    corners: NDArray[np.intp]


@dataclass(frozen=True)
class Measured:
    """``features``: float32, shape (features.COUNT,). ``fidelity``: None for the source."""

    features: NDArray[np.float32]
    fidelity: Fidelity | None


@dataclass(frozen=True)
class Files:
    """Part 10 files of the original and of its reconstruction, and the base of the payload."""

    original: Path
    reconstructed: Path
    base: Path


@dataclass(frozen=True)
class Subject:
    """A labelled image that takes part. ``patient``: who is never in training and in test at once."""

    instance: StoredInstance
    rendition: StoredRendition
    class_name: str
    patient: str
    arms: dict[Arm, Measured] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return self.instance.sop_instance_uid

    @property
    def fidelity(self) -> Fidelity:
        """Of the decompressed image."""
        found = self.arms[Arm.DECOMPRESSED].fidelity
        assert found is not None, "only the source has none"
        return found
