"""What an upscaler is: a pure function from a base to a full-matrix image, plus what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from node.codec.guide import LEVEL_TILE, spread, tile_means
from storage.coarseness import Coarseness
from storage.records import Rung
from storage.resample import Operator

_MOST_GAIN = 4.0
"""By how much texture of one place is made stronger or fainter."""


@dataclass(frozen=True)
class UpscaleTask:
    """One image to upscale.

    ``base``: float32, shape (operator.low_rows, operator.low_columns), in the grey levels of the original
    (0 .. 2**bits_stored - 1). ``minimum`` and ``maximum``: the original's own extreme values, in grey levels.
    ``seed``: keys every random draw; ``steps``: sampling steps, ignored by upscalers that do not sample.
    ``rung`` and ``quantisation_rms`` (grey levels): how the base was made. ``levels``: the guide's map of how
    strong the missing detail is, uint8 per 64-pixel tile (guide.py); None where there is no guide. ``lifted``: the
    consistent base at full size where it was made already; not to be written to. ``coarseness``: the base's, or None.
    """

    base: NDArray[np.float32]
    operator: Operator
    minimum: int
    maximum: int
    seed: int
    steps: int
    rung: Rung
    quantisation_rms: float = 0.0
    levels: NDArray[np.uint8] | None = None
    lifted: NDArray[np.float32] | None = None
    coarseness: Coarseness | None = None

    def consistent_base(self) -> NDArray[np.float32]:
        """``operator.lift(base)``, an array to write to: float32, full size."""
        return self.operator.lift(self.base) if self.lifted is None else self.lifted.copy()


@dataclass(frozen=True)
class Upscaled:
    """What an upscaler made of a task: float32, shape (operator.rows, operator.columns), in grey levels.

    ``texture``: detail of the right strength that may be added to ``image``, or None.
    """

    image: NDArray[np.float32]
    texture: NDArray[np.float32] | None = None


class Upscaler(Protocol):
    """The contract every upscaler keeps; ``tests/test_upscalers.py`` holds each one to it.

    The same task on the same numerics gives bit-identical pixels, whatever ran before or beside it.
    """

    @property
    def name(self) -> str:
        """Name in config.yaml and in every rendition, for example ``bicubic``."""

    @property
    def method(self) -> str:
        """Term for Lossy Image Compression Method (0028,2114): at most 16 characters, one per family."""

    @property
    def generative(self) -> bool:
        """True when pixels may hold content that a model drew: sets Synthetic Data (0008,001C)."""

    @property
    def guided(self) -> bool:
        """True when the encoder writes a guide for it, and the engine weighs what it made by that guide."""

    @property
    def consistent(self) -> bool:
        """True when D of the result already equals the base, so that the engine need not project."""

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
    def detail(self) -> float:
        """How much texture a new rendition gets, 0 to 1; 0 where it has none to give."""

    @property
    def numerics(self) -> dict[str, str]:
        """What can change a grey level without changing the model: device, dtype, versions, kernels."""

    def upscale(self, task: UpscaleTask) -> Upscaled:
        """The full-matrix image."""


def hidden_from_base(
    texture: NDArray[np.float32], operator: Operator, strength: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``texture`` without what D would see of it, everywhere as strong as ``strength`` (grey levels) says.

    A draw may be loud in one place and faint in another; what D sees of it is more here than there, too.
    """
    texture = _hidden(texture, operator, strength)
    wanted, found = (tile_means(np.square(values), LEVEL_TILE) for values in (strength, texture))
    gain = np.clip(np.sqrt(wanted / np.maximum(found, 1e-9)), 1 / _MOST_GAIN, _MOST_GAIN)
    return _hidden(texture * spread(gain, LEVEL_TILE, *texture.shape), operator, strength)


def _hidden(texture: NDArray[np.float32], operator: Operator, strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without what D would see of it, and with the energy of ``strength`` as a whole."""
    texture = texture - operator.lift(operator.down(texture))
    energy, wanted = (float(np.square(values, dtype=np.float64).sum()) for values in (texture, strength))
    texture *= np.float32(np.sqrt(wanted / energy) if energy > 0 else 0.0)
    return texture
