"""The sections of config.yaml, each with the defaults of its keys; config.yaml explains them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from node.config.values import (
    DAY,
    AeTitle,
    Keep,
    LocalFolder,
    Network,
    Port,
    Profile,
    RenditionPolicy,
    SampleText,
    ScheduleText,
    Share,
    Size,
    Span,
    Uid,
    Verb,
    When,
    WireSyntax,
    ZoneName,
    parse_when,
)
from storage.records import Rung

FLOOR_FSIM_MEAN, FLOOR_FSIM_P5, FLOOR_PSNR_DB = 0.93, 0.90, 28.42
"""The floor of profile ``balanced``: config.yaml may raise these, never lower them."""


class Section(BaseModel):
    """One section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class NodeSettings(Section):
    ae_title: AeTitle = "LATENTPACS"
    host: str = "0.0.0.0"
    port: Port = 11112
    require_called_ae_title: bool = False
    max_associations: int = Field(default=100, ge=1)
    max_associations_per_peer: int = Field(default=50, ge=1)
    max_association_time: float = Field(default=86400.0, ge=0)
    max_pdu: int = Field(default=1048576, ge=0)
    max_instance: Size = 4 * 10**9
    network_timeout: float = Field(default=120.0, gt=0)
    dimse_timeout: float = Field(default=60.0, gt=0)
    keep_alive: float = Field(default=10.0, gt=0)
    storage_classes: tuple[Uid, ...] = ()
    timezone: ZoneName = ""
    drain: float = Field(default=60.0, ge=0)

    @property
    def zone(self) -> ZoneInfo | None:
        """The zone of images that state none, or None where it is not known."""
        return ZoneInfo(self.timezone) if self.timezone else None


class TlsSettings(Section):
    certificate: str = ""
    key: str = ""
    ca: str = ""
    port: Port = 2762
    only: bool = False
    clients: Literal["required", "optional"] = "required"
    minimum: Annotated[Literal["1.2", "1.3"], BeforeValidator(str)] = "1.2"

    @property
    def listens(self) -> bool:
        """True where peers can call over TLS."""
        return bool(self.certificate)

    @model_validator(mode="after")
    def _parts_belong_together(self) -> TlsSettings:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: name both PEM files, or neither")
        if self.listens and self.clients == "required" and not self.ca:
            raise ValueError("clients: required needs ca, a PEM file of the authorities that sign your peers")
        if self.only and not self.listens:
            raise ValueError("only: true needs certificate and key")
        return self


class Peer(Section):
    ae_title: AeTitle
    host: str = ""
    port: Port = 0
    allow: tuple[Verb, ...] = ("echo",)
    rendition: RenditionPolicy = RenditionPolicy.ORIGINAL
    references: Literal["keep", "rewrite"] = "keep"
    networks: tuple[Network, ...] = Field(default=(), alias="from")
    tls: bool = False
    tls_name: str = ""
    max_associations: int | None = Field(default=None, ge=1)
    max_associations_to: int = Field(default=0, ge=0)
    transfer_syntaxes: tuple[WireSyntax, ...] = ()

    @model_validator(mode="after")
    def _rewrites_for_reconstructions(self) -> Peer:
        if self.references == "rewrite" and self.rendition is not RenditionPolicy.RECONSTRUCTED:
            raise ValueError("references: rewrite is for peers with rendition: reconstructed; others get originals")
        return self

    @property
    def reachable(self) -> bool:
        """True when images can be moved to this peer."""
        return bool(self.host and self.port)


class UnknownPeers(Section):
    allow: tuple[Literal["echo", "store"], ...] = ("echo", "store")


class CommitmentSettings(Section):
    pin_for: Span | Literal["forever", "refuse"] = 365 * 86400.0
    retry: Span = 60.0
    give_up: Span = 7 * 86400.0

    @property
    def offered(self) -> bool:
        """False where storage commitment is not negotiated."""
        return self.pin_for != "refuse"

    @property
    def pin_seconds(self) -> float | None:
        """How long a committed original is kept from a purge; None for ever."""
        return self.pin_for if isinstance(self.pin_for, float) else None


class StorageSettings(Section):
    root: Path = Path("latent-pacs-data")
    database: str = ""
    min_free: Size = 10**9
    duplicates: Literal["keep"] = "keep"

    @property
    def database_url(self) -> str:
        """The configured URL, or SQLite beside the objects."""
        return self.database or f"sqlite:///{self.root / 'index.sqlite'}"


class RungSettings(Section):
    scale: Literal[1, 2, 4]
    coder: Literal["avif", "jpegxl", "jpegls", "png16"]
    distance: float = Field(default=0.0, ge=0, le=25)
    effort: int = Field(default=7, ge=1, le=9)
    sample_bits: int = Field(default=0, ge=0, le=16)

    @model_validator(mode="after")
    def _as_its_coder_does(self) -> RungSettings:
        if self.distance and self.coder not in ("avif", "jpegxl"):
            raise ValueError(f"coder {self.coder} is lossless: leave distance out")
        if self.coder == "avif" and not (self.distance and 0 < self.sample_bits <= 12):
            raise ValueError("coder avif is lossy and takes 12 bits: give it a distance, and sample_bits from 1 to 12")
        return self

    def rung(self) -> Rung:
        return Rung(**self.model_dump())


def _avif(scale: Literal[1, 2, 4], *quantisers: int) -> Iterator[RungSettings]:
    """Rungs by AV1's quantiser, each with the distance that stands for it (storage.coders.quantiser)."""
    for quantiser in quantisers:
        distance = float(f"{2 ** ((quantiser - 27) / 9):.2g}")
        yield RungSettings(scale=scale, coder="avif", distance=distance, sample_bits=12)


def _jpegxl(scale: Literal[1, 2, 4], *distances: float) -> Iterator[RungSettings]:
    """At effort 6: as good as 7 by tile FSIM and PSNR, and a third faster."""
    for distance in distances:
        yield RungSettings(scale=scale, coder="jpegxl", distance=distance, effort=6, sample_bits=12)


_STRICT = (
    *_avif(2, *range(16, 3, -2)),
    *_avif(1, *range(36, 3, -3)),
    *_jpegxl(2, 0.4, 0.33, 0.27, 0.22, 0.18, 0.14, 0.1),
    *_jpegxl(1, 1.5, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2),
)
_BALANCED = (
    *_avif(4, 14, 11, 8, 5),
    *_avif(2, 30, 26, *range(23, 4, -3)),
    *_avif(1, *range(44, 8, -3)),
    *_jpegxl(2, 0.5, 0.42, 0.35, 0.28, 0.22, 0.18, 0.14, 0.1),
    *_jpegxl(1, 3.0, 2.4, 1.9, 1.5, 1.2, 0.95, 0.75, 0.6),
)
FORMER_RUNGS = tuple(
    Rung(scale, "jpegxl", distance, 7, bits)
    for scale, bits, distances in (
        (4, 12, (0.3,)),
        (2, 12, (1.2, 1.1, 1.0, 0.92, 0.85, 0.8, 0.75, 0.71, 0.67, 0.63, 0.6, 0.57, 0.54, 0.51, 0.5, 0.48, 0.45, 0.43)),
        (2, 12, (0.4, 0.38, 0.36, 0.34, 0.32, 0.3, 0.28, 0.26, 0.24, 0.22, 0.2, 0.18, 0.16, 0.14, 0.12, 0.1)),
        (2, 11, (0.49, 0.47, 0.46, 0.44, 0.42, 0.41, 0.39, 0.37)),
        (1, 12, (3.0, 2.8, 2.6, 2.45, 2.3, 2.2, 2.1, 2.0, 1.9, 1.82, 1.75, 1.67, 1.6, 1.52, 1.45, 1.37, 1.3, 1.25)),
        (1, 12, (1.2, 1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2)),
        (2, 12, (0.42, 0.35, 0.33, 0.27)),
        (1, 12, (2.4, 1.5)),
    )
    for distance in distances
)
"""Of the ladders of earlier builds: a base that was lost is made again with the rung it had."""

_LADDERS: dict[Profile, tuple[RungSettings, ...]] = {
    Profile.BALANCED: _BALANCED,
    Profile.STRICT: _STRICT,
    Profile.US_MQSA: _STRICT,
    Profile.PAPER: (RungSettings(scale=2, coder="png16", effort=6),),
}


class CodecSettings(Section):
    profile: Profile = Profile.BALANCED
    ladder: tuple[RungSettings, ...] = ()

    @property
    def gated(self) -> bool:
        """False where reconstructions are only measured."""
        return self.profile is not Profile.PAPER

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The configured ladder, or the profile's own."""
        return tuple(step.rung() for step in self.ladder or _LADDERS[self.profile])


class GateLimits(Section):
    """Thresholds of profile ``balanced``; storage.records.Thresholds says what each means."""

    fsim_mean: float = Field(default=FLOOR_FSIM_MEAN, ge=FLOOR_FSIM_MEAN, le=1.0)
    fsim_p5: float = Field(default=FLOOR_FSIM_P5, ge=FLOOR_FSIM_P5, le=1.0)
    psnr_db: float = Field(default=FLOOR_PSNR_DB, ge=FLOOR_PSNR_DB, le=200.0)
    fsim_worst: float = Field(default=0.85, ge=0.0, le=1.0)
    error_p999: float = Field(default=10.0, gt=0)
    error_max: float = Field(default=20.0, gt=0)
    shift: float = Field(default=0.002, gt=0)
    outside: float = Field(default=0.10, gt=0)
    speck: float = Field(default=5.0, ge=4.0)
    speck_near: float = Field(default=4.0, ge=4.0)
    speck_kept: float = Field(default=0.95, ge=0.0, le=1.0)
    speck_new: float = Field(default=6.0, ge=5.0)


class StrictLimits(GateLimits):
    """Thresholds of profiles ``strict`` and ``us-mqsa``; the floor of ``balanced`` holds here too."""

    fsim_mean: float = Field(default=0.95, ge=FLOOR_FSIM_MEAN, le=1.0)
    fsim_p5: float = Field(default=0.92, ge=FLOOR_FSIM_P5, le=1.0)
    psnr_db: float = Field(default=30.0, ge=FLOOR_PSNR_DB, le=200.0)
    fsim_worst: float = Field(default=0.88, ge=0.0, le=1.0)
    error_p999: float = Field(default=6.0, gt=0)
    error_max: float = Field(default=12.0, gt=0)
    shift: float = Field(default=0.001, gt=0)
    outside: float = Field(default=0.03, gt=0)
    speck_kept: float = Field(default=1.0, ge=0.0, le=1.0)
    speck_new: float = Field(default=5.0, ge=5.0)


class PatchSettings(Section):
    share: float = Field(default=0.15, ge=0.0, le=1.0)
    regions: str = ""

    @property
    def file(self) -> Path | None:
        """The CSV of regions, where there is one."""
        return Path(self.regions) if self.regions else None


class GateSettings(Section):
    balanced: GateLimits = GateLimits()
    strict: StrictLimits = StrictLimits()
    patches: PatchSettings = PatchSettings()


class EligibleClass(Section):
    sop_class: str
    modality: str = ""


class EligibilitySettings(Section):
    classes: tuple[EligibleClass, ...] = (EligibleClass(sop_class="1.2.840.10008.5.1.4.1.1.1.2"),)


class SdX2Settings(Section):
    weights: str = "stabilityai/sd-x2-latent-upscaler"
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
    weights: str = ""
    older: tuple[str, ...] = ()
    steps: int = Field(default=3, ge=2, le=100)
    tile: int = Field(default=768, ge=64, multiple_of=64)


class ReconstructSettings(Section):
    upscaler: Literal["mammo", "bicubic", "sd_x2"] = "mammo"
    detail: float = Field(default=0.0, ge=0, le=1)
    device: str = "auto"
    threads: int = Field(default=0, ge=0)
    cache: Size = 2 * 10**9
    priors: int = Field(default=0, ge=0)
    mammo: MammoSettings = MammoSettings()
    sd_x2: SdX2Settings = SdX2Settings()


class OriginalsSettings(Section):
    coder: Literal["jpegxl", "jpegls", "htj2k", "none"] = "jpegls"
    keep: Keep = None
    path: LocalFolder = None


class ArchivistSettings(Section):
    enabled: bool = True
    poll: float = Field(default=1.0, gt=0)
    lease: float = Field(default=900.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    at_once: int = Field(default=0, ge=0, le=256)


class JobSettings(Section):
    """What every job has."""

    enabled: bool = True
    when: ScheduleText

    @property
    def schedule(self) -> When | None:
        """When it runs by itself; None where it only runs on request."""
        return parse_when(self.when) if self.enabled else None


class ScrubSettings(JobSettings):
    when: ScheduleText = "daily 02:30"
    period: Span = 30 * DAY
    orphan_grace: Span = DAY


class PurgeSettings(JobSettings):
    when: ScheduleText = "daily 04:00"


class ReverifySettings(JobSettings):
    when: ScheduleText = "daily 03:30"


class AuditJobSettings(JobSettings):
    when: ScheduleText = "sun 05:00"


class ValidationSettings(JobSettings):
    enabled: bool = False
    when: ScheduleText = "sun 05:00"
    weights: str = "IMAGENET1K_V2"
    positive: str = ""
    margin: float = Field(default=0.02, gt=0, lt=0.5)
    folds: int = Field(default=5, ge=2, le=20)
    trials: int = Field(default=20, ge=1, le=1000)
    bootstrap: int = Field(default=2000, ge=100, le=100_000)


class JobsSettings(Section):
    lease: float = Field(default=60.0, ge=1)
    poll: float = Field(default=2.0, gt=0)
    scrub: ScrubSettings = ScrubSettings()
    purge: PurgeSettings = PurgeSettings()
    reverify: ReverifySettings = ReverifySettings()
    audit: AuditJobSettings = AuditJobSettings()
    validation: ValidationSettings = ValidationSettings()


class DriftSettings(Section):
    fsim: float = Field(default=0.01, gt=0)
    psnr_db: float = Field(default=1.0, gt=0)
    weight: float = Field(default=0.2, gt=0, le=1)
    limit: float = Field(default=3.0, gt=0)
    baseline: int = Field(default=5, ge=2)


class ToleranceSettings(Section):
    fsim: float = Field(default=0.005, ge=0)
    psnr_db: float = Field(default=0.3, ge=0)


class AuditSettings(Section):
    sample: SampleText = "100"
    reserve: Share = 0.01
    tolerance: ToleranceSettings = ToleranceSettings()
    drift: DriftSettings = DriftSettings()

    @property
    def reserve_bound(self) -> str:
        """Originals with a SHA-256 below this text are the reserve: a draw that nobody steers, the same everywhere."""
        return "g" if self.reserve >= 1 else f"{int(self.reserve * 2**64):016x}" if self.reserve else ""


class MetricsSettings(Section):
    port: Port = 0
    host: str = "127.0.0.1"


class LogSettings(Section):
    format: Literal["text", "json"] = "text"
