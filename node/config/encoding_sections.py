"""The sections of config.yaml about encoding: codec, gate, eligibility, reconstruct and archivist."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from node.config.sections import Section
from node.config.values import FileOrName, FileText, Profile, Size, Texture, Uid
from storage.records import OperatingPoint, Thresholds


class CodecSettings(Section):
    profile: Profile = Profile.BALANCED
    scales: tuple[Literal[1, 2, 4], ...] = Field(default=(2, 1), min_length=1)
    effort: int = Field(default=5, ge=1, le=9)

    @property
    def gated(self) -> bool:
        """Whether the gate decides; profile ``paper`` only measures."""
        return self.profile is not Profile.PAPER

    @property
    def fixed_point(self) -> OperatingPoint | None:
        """The operating point of profile ``paper``; None if the encoder searches for one."""
        return None if self.gated else OperatingPoint(2, "png16", effort=6)


_BALANCED, _STRICT = Thresholds(), Thresholds(lines=(3.0, 1.0, 0.4), lost=(1.0, 0.9, 0.5, 0.2), shift=0.001, slow=0.002)
Positive = Annotated[float, Field(gt=0)]


class GateLimits(Section):
    """Limits of profile ``balanced``; ``storage.records.Thresholds`` explains each."""

    lines: tuple[Positive, Positive, Positive] = _BALANCED.lines
    lines_most: float = Field(default=_BALANCED.lines_most, ge=1)
    lost: tuple[Positive, Positive, Positive, Positive] = _BALANCED.lost
    shift: Positive = _BALANCED.shift
    slow: Positive = _BALANCED.slow
    periodic: Positive = _BALANCED.periodic
    outside: Positive = _BALANCED.outside
    speck: float = Field(default=_BALANCED.speck, ge=4.0)
    speck_near: float = Field(default=_BALANCED.speck_near, ge=4.0)
    speck_least: float = Field(default=_BALANCED.speck_least, ge=0.0, le=1.0)
    speck_most: float = Field(default=_BALANCED.speck_most, ge=1.0)
    speck_new: float = Field(default=_BALANCED.speck_new, ge=5.0)
    spectrum_db: Positive = _BALANCED.spectrum_db
    spectrum_tile_db: Positive = _BALANCED.spectrum_tile_db
    repeat: Positive = _BALANCED.repeat
    quiet: float = Field(default=_BALANCED.quiet, ge=0.0)


class StrictLimits(GateLimits):
    """Limits of profiles ``strict`` and ``us-mqsa``."""

    lines: tuple[Positive, Positive, Positive] = _STRICT.lines
    lost: tuple[Positive, Positive, Positive, Positive] = _STRICT.lost
    shift: Positive = _STRICT.shift
    slow: Positive = _STRICT.slow
    periodic: Positive = _STRICT.periodic


class PatchSettings(Section):
    share: float = Field(default=0.15, ge=0.0, le=1.0)
    regions: FileText = ""

    @property
    def file(self) -> Path | None:
        """The CSV of regions, if one is configured."""
        return Path(self.regions) if self.regions else None


class GateSettings(Section):
    balanced: GateLimits = GateLimits()
    strict: StrictLimits = StrictLimits()
    patches: PatchSettings = PatchSettings()


class EligibleClass(Section):
    sop_class: Uid
    modality: str = ""


class EligibilitySettings(Section):
    classes: tuple[EligibleClass, ...] = (EligibleClass(sop_class="1.2.840.10008.5.1.4.1.1.1.2"),)


class SdX2Settings(Section):
    weights: FileOrName = "stabilityai/sd-x2-latent-upscaler"
    steps: int = Field(default=20, ge=1, le=1000)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tile: int = Field(default=256, ge=64, multiple_of=32)
    overlap: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _tiles_overlap_by_half_at_most(self) -> SdX2Settings:
        if self.overlap > self.tile // 2:
            raise ValueError(f"overlap {self.overlap} is more than half a tile of {self.tile}")
        return self


class MammoSettings(Section):
    weights: FileText = ""
    older: tuple[FileText, ...] = ()
    steps: int = Field(default=0, ge=0, le=100)
    tile: int = Field(default=768, ge=64, multiple_of=64)


class ReconstructSettings(Section):
    upscaler: Literal["mammo", "bicubic", "sd_x2"] = "mammo"
    texture: Texture = Texture.DRAWN
    device: str = "auto"
    threads: int = Field(default=0, ge=0)
    cache: Size = 2 * 10**9
    prefetch_priors: int = Field(default=0, ge=0)
    mammo: MammoSettings = MammoSettings()
    sd_x2: SdX2Settings = SdX2Settings()


class ArchivistSettings(Section):
    enabled: bool = True
    poll: float = Field(default=1.0, gt=0)
    lease: float = Field(default=900.0, gt=0, le=3600)
    attempts: int = Field(default=3, ge=1)
    concurrency: int = Field(default=0, ge=0, le=256)
