"""config.yaml as frozen, strict settings. Every key has its default here; config.yaml explains each.

An unknown key is an error that names the nearest valid one. The only user of YAML.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlparse
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from storage.errors import ConfigError
from storage.records import Rung, Thresholds

FLOOR_FSIM_MEAN, FLOOR_FSIM_P5, FLOOR_PSNR_DB = 0.93, 0.90, 28.42
"""The floor of profile ``balanced``: config.yaml may raise these, never lower them."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _bytes(value: object) -> object:
    """``2GB`` and the like as a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", value.upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size; write a number with B, KB, MB, GB or TB")
    return int(float(match[1]) * _UNITS[match[2]])


_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 86400.0


def _seconds(value: object) -> object:
    """``30d`` and the like as a number of seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", value)
    if match is None:
        raise ValueError(f"{value!r} is no time span; write a number with s, m, h or d")
    return float(match[1]) * _DURATIONS[match[2]]


@dataclass(frozen=True)
class When:
    """When a job runs: at a time of day, on some or all days of the week, or every so many seconds."""

    days: tuple[str, ...] = ()
    hour: int = 0
    minute: int = 0
    every: float = 0.0

    @property
    def gap(self) -> float:
        """The longest time between two runs, in seconds."""
        if self.every:
            return self.every
        places = sorted(_DAYS.index(day) for day in self.days or _DAYS)
        return _DAY * max(
            (after - before) % 7 or 7 for before, after in zip(places, [*places[1:], places[0]], strict=True)
        )


def parse_when(text: str) -> When:
    """``daily 02:30``, ``mon,thu 02:30``, ``every 6h``. Raises ValueError."""
    word, _, rest = text.strip().lower().partition(" ")
    if word == "every":
        seconds = _seconds(rest)
        if not isinstance(seconds, float) or seconds < 60:
            raise ValueError(f"{text!r}: the shortest interval is 1m")
        return When(every=seconds)
    days = () if word == "daily" else tuple(word.split(","))
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", rest.strip())
    if match is None or not set(days) <= set(_DAYS):
        raise ValueError(f"{text!r} is no schedule; write daily 02:30, or mon,thu 02:30, or every 6h")
    return When(days, int(match[1]), int(match[2]))


def _schedule(value: str) -> str:
    parse_when(value)
    return value


def _ae_title(value: str) -> str:
    value = value.strip(" ")
    if not 1 <= len(value) <= 16 or "\\" in value or not value.isascii() or not value.isprintable():
        raise ValueError(f"{value!r} is no AE title: 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2)")
    return value


def _network(value: object) -> object:
    """An address or network of IPv4 or IPv6; bits beyond the mask are an error, since they hide a slip."""
    try:
        return ipaddress.ip_network(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{value!r} is no network, write 10.1.2.0/24 or 10.1.2.3: {error}") from error


def _uid(value: str) -> str:
    if len(value) > 64 or not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", value):
        raise ValueError(f"{value!r} is no UID (PS3.5 9.1)")
    return value


def _zone_name(value: str) -> str:
    try:
        return value and ZoneInfo(value).key
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{value!r} is no time zone; write Europe/Berlin for instance") from error


Uid = Annotated[str, AfterValidator(_uid)]


def _share(value: object) -> float:
    """``1%`` and the like as a share of one; a number from 0 to 1 is one already."""
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(value))
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{value!r} is no share; write 1% for instance")
    return float(match[1]) / 100


def parse_sample(text: object) -> float | int:
    """``5%`` of all images as a float, ``100`` images as an int. Raises ValueError."""
    value = str(text).strip()
    if value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    share = _share(value) if value.endswith("%") else 0.0
    if not share:
        raise ValueError(f"{text!r} is no sample; write a number of images, such as 100, or a share, such as 5%")
    return share


def _sample(value: object) -> str:
    parse_sample(value)
    return str(value)


def _age(value: object) -> object:
    """``forever`` as None, ``30d`` and the like as a span of time."""
    if value is None or isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([hdwy])\s*", str(value).lower())
    if str(value).strip().lower() == "forever":
        return None
    if match is None:
        raise ValueError(f"{value!r} is no time to keep; write forever, or a number with h, d, w or y, such as 30d")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]])


def _local_folder(value: object) -> object:
    """A folder, as a path or a file:// URL; empty is none."""
    if value is None or value == "":
        return None
    text = str(value)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    parsed = urlparse(text)
    if scheme != "file" or parsed.netloc not in ("", "localhost") or not rest:
        raise ValueError(f"{text!r} is not supported; give a folder, or its file:///absolute/path URL")
    return Path(unquote(parsed.path))


_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}

Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Span = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
ScheduleText = Annotated[str, AfterValidator(_schedule)]
Share = Annotated[float, BeforeValidator(_share)]
SampleText = Annotated[str, BeforeValidator(_sample)]
Keep = Annotated[timedelta | None, BeforeValidator(_age)]
LocalFolder = Annotated[Path | None, BeforeValidator(_local_folder)]
Port = Annotated[int, Field(ge=0, le=65535)]


class RenditionPolicy(StrEnum):
    """Which encoding of a reconstructable image a peer gets (DICOM_RULES, Renditions)."""

    ORIGINAL = "original"
    """Bit-exact while held, else that sub-operation fails."""
    RECONSTRUCTED = "reconstructed"
    """The reconstruction; images without one are sent bit-exact."""
    AUTO = "auto"
    """Bit-exact while held, else the reconstruction."""


class Profile(StrEnum):
    """How the archivist treats the gate."""

    BALANCED = "balanced"
    """Gate with the floor of the design; what does not pass stays exact."""
    STRICT = "strict"
    """A gate that lets less through, for more bytes."""
    US_MQSA = "us-mqsa"
    """The gate of ``strict``; originals are never purged (US rules for mammography)."""
    PAPER = "paper"
    """arXiv 2310.05299 as published: measured, not gated; originals of such images are never purged."""


Verb = Literal["echo", "store", "find", "move", "get", "commit"]


WireSyntax = Literal["original", "htj2k", "jpegls", "jpeg2000", "jpegxl", "rle", "explicit", "implicit"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class NodeSettings(_Section):
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
    timezone: Annotated[str, AfterValidator(_zone_name)] = ""
    drain: float = Field(default=60.0, ge=0)

    @property
    def zone(self) -> ZoneInfo | None:
        """The zone of images that state none, or None where it is not known."""
        return ZoneInfo(self.timezone) if self.timezone else None


class TlsSettings(_Section):
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


class Peer(_Section):
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


class UnknownPeers(_Section):
    allow: tuple[Literal["echo", "store"], ...] = ("echo", "store")


class CommitmentSettings(_Section):
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


class StorageSettings(_Section):
    root: Path = Path("latent-pacs-data")
    database: str = ""
    min_free: Size = 10**9
    duplicates: Literal["keep"] = "keep"

    @property
    def database_url(self) -> str:
        """The configured URL, or SQLite beside the objects."""
        return self.database or f"sqlite:///{self.root / 'index.sqlite'}"


class RungSettings(_Section):
    scale: Literal[1, 2, 4]
    coder: Literal["jpegxl", "jpegls", "png16"]
    distance: float = Field(default=0.0, ge=0, le=25)
    effort: int = Field(default=7, ge=1, le=9)
    sample_bits: int = Field(default=0, ge=0, le=16)

    @model_validator(mode="after")
    def _lossy_is_jpegxl(self) -> RungSettings:
        if self.distance and self.coder != "jpegxl":
            raise ValueError(f"coder {self.coder} is lossless: leave distance out")
        return self

    def rung(self) -> Rung:
        return Rung(**self.model_dump())


def _jpegxl(scale: Literal[1, 2, 4], distance: float) -> RungSettings:
    return RungSettings(scale=scale, coder="jpegxl", distance=distance, sample_bits=12)


_DISTANCES_2 = (1.2, 1.0, 0.85, 0.75, 0.67, 0.6, 0.54, 0.48, 0.43, 0.38, 0.34, 0.3, 0.26, 0.22, 0.18, 0.14, 0.1)
_DISTANCES_1 = (3.0, 2.6, 2.3, 2.1, 1.9, 1.75, 1.6, 1.45, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6)

_STRICT = (
    *(_jpegxl(2, distance) for distance in (0.3, 0.22, 0.16, 0.1)),
    *(_jpegxl(1, distance) for distance in (1.2, 1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)),
)
_LADDERS: dict[Profile, tuple[RungSettings, ...]] = {
    Profile.BALANCED: (
        _jpegxl(4, 0.3),
        *(_jpegxl(2, distance) for distance in _DISTANCES_2),
        *(_jpegxl(1, distance) for distance in _DISTANCES_1),
    ),
    Profile.STRICT: _STRICT,
    Profile.US_MQSA: _STRICT,
    Profile.PAPER: (RungSettings(scale=2, coder="png16", effort=6),),
}
_LADDERS[Profile.US_MQSA] = _LADDERS[Profile.BALANCED]


class CodecSettings(_Section):
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


class GateLimits(_Section):
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


class PatchSettings(_Section):
    share: float = Field(default=0.15, ge=0.0, le=1.0)
    regions: str = ""

    @property
    def file(self) -> Path | None:
        """The CSV of regions, where there is one."""
        return Path(self.regions) if self.regions else None


class GateSettings(_Section):
    balanced: GateLimits = GateLimits()
    strict: StrictLimits = StrictLimits()
    patches: PatchSettings = PatchSettings()


class EligibleClass(_Section):
    sop_class: str
    modality: str = ""


class EligibilitySettings(_Section):
    classes: tuple[EligibleClass, ...] = (EligibleClass(sop_class="1.2.840.10008.5.1.4.1.1.1.2"),)


class SdX2Settings(_Section):
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


class MammoSettings(_Section):
    weights: str = ""
    older: tuple[str, ...] = ()
    steps: int = Field(default=3, ge=2, le=100)
    tile: int = Field(default=768, ge=64, multiple_of=64)


class ReconstructSettings(_Section):
    upscaler: Literal["mammo", "bicubic", "sd_x2"] = "mammo"
    detail: float = Field(default=0.0, ge=0, le=1)
    device: str = "auto"
    threads: int = Field(default=0, ge=0)
    cache: Size = 2 * 10**9
    priors: int = Field(default=0, ge=0)
    mammo: MammoSettings = MammoSettings()
    sd_x2: SdX2Settings = SdX2Settings()


class OriginalsSettings(_Section):
    coder: Literal["jpegxl", "jpegls", "htj2k", "none"] = "jpegls"
    keep: Keep = None
    path: LocalFolder = None


class ArchivistSettings(_Section):
    enabled: bool = True
    poll: float = Field(default=1.0, gt=0)
    lease: float = Field(default=900.0, gt=0)
    attempts: int = Field(default=3, ge=1)


class JobSettings(_Section):
    """What every job has."""

    enabled: bool = True
    when: ScheduleText

    @property
    def schedule(self) -> When | None:
        """When it runs by itself; None where it only runs on request."""
        return parse_when(self.when) if self.enabled else None


class ScrubSettings(JobSettings):
    when: ScheduleText = "daily 02:30"
    period: Span = 30 * _DAY
    orphan_grace: Span = _DAY


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


class JobsSettings(_Section):
    lease: float = Field(default=60.0, ge=1)
    poll: float = Field(default=2.0, gt=0)
    scrub: ScrubSettings = ScrubSettings()
    purge: PurgeSettings = PurgeSettings()
    reverify: ReverifySettings = ReverifySettings()
    audit: AuditJobSettings = AuditJobSettings()
    validation: ValidationSettings = ValidationSettings()


class DriftSettings(_Section):
    fsim: float = Field(default=0.01, gt=0)
    psnr_db: float = Field(default=1.0, gt=0)
    weight: float = Field(default=0.2, gt=0, le=1)
    limit: float = Field(default=3.0, gt=0)
    baseline: int = Field(default=5, ge=2)


class ToleranceSettings(_Section):
    fsim: float = Field(default=0.005, ge=0)
    psnr_db: float = Field(default=0.3, ge=0)


class AuditSettings(_Section):
    sample: SampleText = "100"
    reserve: Share = 0.01
    tolerance: ToleranceSettings = ToleranceSettings()
    drift: DriftSettings = DriftSettings()

    @property
    def reserve_bound(self) -> str:
        """Originals with a SHA-256 below this text are the reserve: a draw that nobody steers, the same everywhere."""
        return "g" if self.reserve >= 1 else f"{int(self.reserve * 2**64):016x}" if self.reserve else ""


class MetricsSettings(_Section):
    port: Port = 0
    host: str = "127.0.0.1"


class LogSettings(_Section):
    format: Literal["text", "json"] = "text"


class Settings(_Section):
    """The whole of config.yaml."""

    node: NodeSettings = NodeSettings()
    tls: TlsSettings = TlsSettings()
    peers: tuple[Peer, ...] = ()
    unknown_peers: UnknownPeers = UnknownPeers()
    commitment: CommitmentSettings = CommitmentSettings()
    storage: StorageSettings = StorageSettings()
    codec: CodecSettings = CodecSettings()
    gate: GateSettings = GateSettings()
    eligibility: EligibilitySettings = EligibilitySettings()
    reconstruct: ReconstructSettings = ReconstructSettings()
    archivist: ArchivistSettings = ArchivistSettings()
    jobs: JobsSettings = JobsSettings()
    audit: AuditSettings = AuditSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    originals: OriginalsSettings = OriginalsSettings()

    @model_validator(mode="after")
    def _titles_are_unique(self) -> Settings:
        titles = [peer.ae_title for peer in self.peers]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"peers: AE title {twice[0]} appears more than once")
        return self

    @property
    def thresholds(self) -> Thresholds:
        """What the gate asks of a reconstruction, by the profile; ``paper`` is held against ``balanced``, ungated."""
        strict = self.codec.profile in (Profile.STRICT, Profile.US_MQSA)
        return Thresholds(**(self.gate.strict if strict else self.gate.balanced).model_dump())

    @model_validator(mode="after")
    def _tls_peers_can_call(self) -> Settings:
        deaf = [peer.ae_title for peer in self.peers if peer.tls and not peer.reachable and not self.tls.listens]
        if deaf:
            raise ValueError(f"peers: {deaf[0]} has tls: true, but there is no tls.certificate to take its calls with")
        return self

    @model_validator(mode="after")
    def _originals_can_be_kept_so(self) -> Settings:
        if self.codec.profile is Profile.US_MQSA and self.originals.keep is not None:
            raise ValueError("originals.keep: profile us-mqsa keeps originals for ever; leave it at forever")
        if self.originals.path and self.originals.path.resolve() == self.storage.root.resolve():
            raise ValueError("originals.path is storage.root; leave it empty to keep originals there")
        return self

    def peer(self, ae_title: str) -> Peer | None:
        """The configured peer of that AE title."""
        return next((peer for peer in self.peers if peer.ae_title == ae_title.strip()), None)


def keep_text(keep: timedelta | None) -> str:
    """``originals.keep`` as config.yaml writes it."""
    if keep is None:
        return "forever"
    hours = int(keep.total_seconds() // 3600)
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"


def load(path: Path) -> Settings:
    """Read and check config.yaml. Raises ConfigError that names file, key and what would be right."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; pass --config FILE") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return parse(raw or {}, str(path))


def parse(raw: Any, source: str) -> Settings:
    """Settings from plain data. Raises ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: the top level must be a mapping of sections")
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_problem(detail) for detail in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def _problem(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "settings"
    if detail["type"] != "extra_forbidden":
        return f"{where}: {detail['msg'].removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(detail["loc"][-1]), _keys_at(detail["loc"][:-1]), n=1, cutoff=0.0)
    return f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else "")


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """Valid keys of the section at ``location``, found by walking the models' annotations."""
    model: Any = Settings
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [arg for arg in getattr(annotation, "__args__", ()) if isinstance(arg, type)]
        model = annotation if isinstance(annotation, type) and not inner else inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]
