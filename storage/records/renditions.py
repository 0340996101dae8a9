"""Renditions: how an image was encoded, what the gate measured, and the row that is committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from pydantic import Field

from storage.records.states import InstanceState


@dataclass(frozen=True)
class OperatingPoint:
    """How a base is encoded.

    ``scale``: downsampling per axis (1, 2, 4). ``coder``: name in storage/formats/coders.py. ``distance``: Butteraugli
    distance of JPEG XL; 0 for a lossless base. ``effort``: coder effort, 1 to 9. ``companded``: samples are mapped so
    that the image's own noise has the same strength at every grey level.
    """

    scale: Annotated[int, Field(ge=1, le=16)]
    coder: str
    distance: float = 0.0
    effort: Annotated[int, Field(ge=0, le=100)] = 7
    companded: bool = False

    def __str__(self) -> str:
        lossy = f" d{self.distance:.3g}" if self.distance else ""
        return f"x{self.scale} {self.coder}{lossy}{' companded' if self.companded else ''}"


@dataclass(frozen=True)
class Verdict:
    """The gate's measurements of one reconstruction against its original.

    ``psnr_db``, ``fsim_mean``, ``fsim_p5``: measured on the served image for comparison with the paper; the gate does
    not use them. Both cover the tiles of 256 x 256 pixels with breast. The peak of PSNR is the width of the display
    window. ``figures``: every further measure by name (docs/METRICS.md). ``failures``: one sentence for each limit that
    was missed.
    """

    psnr_db: float
    fsim_mean: float
    fsim_p5: float
    tiles: Annotated[int, Field(ge=0, le=2**31)]
    figures: dict[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    gated: bool = True

    @property
    def passed(self) -> bool:
        return self.gated and not self.failures


@dataclass(frozen=True)
class Thresholds:
    """The gate's limits for a reconstruction against its original; config.yaml says how each value was found.

    For the structure (the reconstruction before noise is drawn):

    - ``lines``: 99.9th percentile of coherent error along lines at widths of 1.2, 2.5 and 5 pixels, in units of the
      original's noise in the same filters, without the worst tenth of all squares; ``lines_most`` times that at any
      pixel;
    - ``lost``: share of the RMS of each octave band (about 2, 4, 8 and 16 pixels) that is lost;
    - ``shift`` of any tile's mean, and ``slow``, the RMS of the error below all bands, in window widths;
    - ``periodic``: greatest autocorrelation of the error beyond 48 pixels, as a share of the original's energy with
      periods below 8 pixels;
    - ``outside``: greatest error outside the breast, in window widths;
    - ``speck``: strength (contrast over what noise does to the same filter) from which a bright speck counts, and
      ``speck_near`` for specks near two such ones; ``speck_least`` and ``speck_most``: share of its contrast that it
      must keep and may not exceed; ``speck_new``: strength from which a speck counts as invented if the original is
      less than half as strong.

    For the served image: ``spectrum_db``, the ratio of each band's energy to the original's, for the image, and
    ``spectrum_tile_db`` in 95% of its tiles; ``repeat``: as ``periodic``, of the drawn noise;
    ``quiet``: greatest change by drawing where the original is flat, in window widths.
    """

    lines: tuple[float, float, float] = (4.3, 1.8, 1.0)
    lines_most: float = 1.8
    lost: tuple[float, float, float, float] = (1.05, 1.0, 0.75, 0.35)
    shift: float = 0.002
    slow: float = 0.004
    periodic: float = 0.02
    outside: float = 0.1
    speck: float = 5.0
    speck_near: float = 4.0
    speck_least: float = 0.95
    speck_most: float = 1.05
    speck_new: float = 6.0
    spectrum_db: float = 1.0
    spectrum_tile_db: float = 2.0
    repeat: float = 0.04
    quiet: float = 0.002


@dataclass(frozen=True)
class Trial:
    """One operating point that was tried on one image.

    ``sample``: whether only a sample of the image was encoded, so that ``payload_bytes`` is an estimate.
    """

    point: str
    upscaler: str
    payload_bytes: int
    failures: tuple[str, ...]
    seconds: float
    sample: bool = False


@dataclass(frozen=True)
class NewRendition:
    """A rendition to be committed, with its base.

    It represents two derived objects. The one with drawn noise has ``derived_uid`` and ``output_digest``, and the one
    without has ``structure_uid`` and ``structure_digest``. ``recipe``: the sampling steps that the model was used with.
    ``numerics_digest``: SHA-256 of the numerics, which can change a grey level as the model can.
    """

    derived_uid: str
    structure_uid: str
    base_digest: str
    base_bytes: int
    rendition_digest: str
    rendition_bytes: int
    point: OperatingPoint
    upscaler: str
    weights_digest: str
    output_digest: str
    structure_digest: str
    verdict: Verdict
    tried: tuple[Trial, ...]
    seconds: float
    recipe: str = ""
    numerics_digest: str = ""

    @property
    def payload_bytes(self) -> int:
        return self.base_bytes + self.rendition_bytes

    @property
    def state(self) -> InstanceState:
        """The state of an image that this rendition represents."""
        return InstanceState.VERIFIED if self.verdict.passed else InstanceState.MEASURED

    def uid(self, *, draw: bool) -> str:
        """The SOP Instance UID of the object with drawn noise, or of the one without."""
        return self.derived_uid if draw else self.structure_uid

    def pixel_digest(self, *, draw: bool) -> str:
        """The digest of that object's pixels."""
        return self.output_digest if draw else self.structure_digest


@dataclass(frozen=True, kw_only=True)
class StoredRendition(NewRendition):
    """A rendition row. ``withdrawn``: why it no longer represents its image; empty while it does."""

    verified_at: datetime
    withdrawn: str = ""
