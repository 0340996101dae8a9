"""The sections of config.yaml, each with the defaults of its keys; config.yaml explains them."""

from __future__ import annotations

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
    Texture,
    Uid,
    Verb,
    When,
    WireSyntax,
    ZoneName,
    parse_when,
    secret,
)
from storage.dicom.decode_limits import DecodeLimits
from storage.records import OperatingPoint, Thresholds


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
    shutdown_timeout: float = Field(default=60.0, ge=0)

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
    texture: Texture | None = None
    references: Literal["keep", "rewrite"] = "keep"
    networks: tuple[Network, ...] = Field(default=(), alias="from")
    tls: bool = False
    tls_name: str = ""
    max_associations: int | None = Field(default=None, ge=1)
    max_associations_to: int = Field(default=0, ge=0)
    transfer_syntaxes: tuple[WireSyntax, ...] = ()

    @model_validator(mode="after")
    def _what_is_for_reconstructions(self) -> Peer:
        if self.references == "rewrite" and self.rendition is not RenditionPolicy.RECONSTRUCTED:
            raise ValueError("references: rewrite is for peers with rendition: reconstructed; others get originals")
        if bool(self.host) != bool(self.port):
            raise ValueError("host and port belong together: name both where images are moved to, or neither")
        if self.texture is not None and self.rendition is RenditionPolicy.ORIGINAL:
            raise ValueError("texture is for peers with rendition: reconstructed or auto; others get originals")
        return self

    @property
    def reachable(self) -> bool:
        """True when images can be moved to this peer."""
        return bool(self.host and self.port)


class UnknownPeers(Section):
    allow: tuple[Literal["echo", "store"], ...] = ("echo",)


_LIBRARIES = 4 << 30
"""Address space that torch and its libraries reserve when they are loaded: 3.5 GB as measured; they use a quarter."""


class LimitSettings(Section):
    """How much of this machine what peers send may take."""

    pixels: int = Field(default=128_000_000, ge=1_000_000)
    inflated: Size = 512 * 10**6
    ratio: int = Field(default=100, ge=1)
    decoder_memory: Size = 25 * 10**8
    encoder_memory: Size = 8 * 10**9
    idle: Span = 600.0
    connections_per_address: int = Field(default=50, ge=1)

    @property
    def decoders(self) -> DecodeLimits:
        """Of the processes that only decode, and of our own, which does not."""
        return DecodeLimits(self.pixels, self.inflated, self.ratio, self.decoder_memory)

    @property
    def encoders(self) -> DecodeLimits:
        """Of the processes that encode and reconstruct."""
        memory = self.encoder_memory + _LIBRARIES if self.encoder_memory else 0
        return DecodeLimits(self.pixels, self.inflated, self.ratio, memory)


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
    database: str = Field(default="", repr=False)
    min_free: Size = 10**9
    duplicates: Literal["keep"] = "keep"
    leading_zeros: Literal["accept", "refuse"] = "accept"

    @property
    def database_url(self) -> str:
        """The configured URL, or SQLite beside the objects. Raises ConfigError where ``secret`` does."""
        return secret("storage.database", self.database) or f"sqlite:///{self.root / 'index.sqlite'}"


class CodecSettings(Section):
    profile: Profile = Profile.BALANCED
    scales: tuple[Literal[1, 2, 4], ...] = Field(default=(2, 1), min_length=1)
    effort: int = Field(default=5, ge=1, le=9)

    @property
    def gated(self) -> bool:
        """False where reconstructions are only measured."""
        return self.profile is not Profile.PAPER

    @property
    def fixed_point(self) -> OperatingPoint | None:
        """The only operating point of profile ``paper``; None where one is searched for."""
        return None if self.gated else OperatingPoint(2, "png16", effort=6)


_BALANCED, _STRICT = Thresholds(), Thresholds(lines=(3.0, 1.0, 0.4), lost=(1.0, 0.9, 0.5, 0.2), shift=0.001, slow=0.002)
Positive = Annotated[float, Field(gt=0)]


class GateLimits(Section):
    """Thresholds of profile ``balanced``; storage.records.Thresholds says what each means."""

    lines: tuple[Positive, Positive, Positive] = _BALANCED.lines
    lines_most: float = Field(default=_BALANCED.lines_most, ge=1)
    lost: tuple[Positive, Positive, Positive, Positive] = _BALANCED.lost
    shift: Positive = _BALANCED.shift
    slow: Positive = _BALANCED.slow
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
    """Thresholds of profiles ``strict`` and ``us-mqsa``."""

    lines: tuple[Positive, Positive, Positive] = _STRICT.lines
    lost: tuple[Positive, Positive, Positive, Positive] = _STRICT.lost
    shift: Positive = _STRICT.shift
    slow: Positive = _STRICT.slow


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


class OriginalsSettings(Section):
    coder: Literal["jpegxl", "jpegls", "htj2k", "none"] = "jpegls"
    retain_for: Keep = None
    path: LocalFolder = None


class ArchivistSettings(Section):
    enabled: bool = True
    poll: float = Field(default=1.0, gt=0)
    lease: float = Field(default=900.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    concurrency: int = Field(default=0, ge=0, le=256)


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
    keep_orphans: Span = 30 * DAY


class ReplicateSettings(JobSettings):
    when: ScheduleText = "daily 01:30"
    to: LocalFolder = None

    @property
    def schedule(self) -> When | None:
        """None without a folder: then it only runs on request."""
        return parse_when(self.when) if self.enabled and self.to is not None else None


class ReplicatePeerSettings(JobSettings):
    when: ScheduleText = "daily 02:00"
    to: str = ""

    @property
    def schedule(self) -> When | None:
        """None without a peer: then it only runs on request."""
        return parse_when(self.when) if self.enabled and self.to else None


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
    replicate: ReplicateSettings = ReplicateSettings()
    replicate_peer: ReplicatePeerSettings = ReplicatePeerSettings()
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
    gate: float = Field(default=0.05, ge=0)


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
