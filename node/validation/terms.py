"""The data types of a validation: arms, images and measurements. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.records import StoredInstance, StoredRendition

MEASURES = ("psnr_db", "ssim", "fsim")
"""Measures of fidelity, in the order of ``Fidelity``'s columns."""


class Arm(StrEnum):
    """The kind of images that a classifier is trained or tested on."""

    SOURCE = "source"
    DECOMPRESSED = "decompressed"
    COMPRESSED = "compressed"


@dataclass(frozen=True)
class Fidelity:
    """MEASURES of one arm of one image. ``full``: whole frame, shape (3,). ``tiles``: (n, 3), per tile of 256 x 256
    pixels that contains breast; ``corners``: (n, 2), row and column of each tile."""

    full: NDArray[np.float64]
    tiles: NDArray[np.float64]
    corners: NDArray[np.intp]


@dataclass(frozen=True)
class Measured:
    """Measurements of an image in an arm. ``features``: float32 (features.COUNT,). ``fidelity``: None for sources."""

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
    """A labelled image of the validation. ``patient`` groups images: a patient is never in both training and test."""

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
        """Fidelity of the decompressed image."""
        found = self.arms[Arm.DECOMPRESSED].fidelity
        assert found is not None, "only the source has no fidelity"
        return found
