"""The sections of config.yaml about the node, its peers and its storage, each with its defaults; config.yaml explains
every key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from node.config.values import (
    AeTitle,
    DatabaseText,
    Duration,
    FileText,
    Folder,
    LocalFolder,
    Network,
    Port,
    RenditionPolicy,
    Retention,
    Size,
    Texture,
    Uid,
    Verb,
    WireSyntax,
    ZoneName,
    secret,
)
from storage.dicom.decode_limits import DecodeLimits
from storage.errors import ConfigError


class Section(BaseModel):
    """The base of all sections: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where a number or a text belongs; pydantic would read them as 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are not valid here")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _is_not_too_large(cls, value: object) -> object:
        """Refuse numbers that are too large for a timeout of a system call, or for a column of the index."""
        most = {float: 4e9, int: 2**62}.get(type(value))
        if most is not None and not value <= most:  # type: ignore[operator]
            raise ValueError(f"it is larger than {most:.0f}, the largest possible value")
        return value


_MOST_ASSOCIATIONS = 250
"""``select`` takes descriptors below 1024. A C-MOVE needs three: two sockets, and the image that is sent. Connections
without an association need up to 128, which leaves 146 for the index, the workers and the log."""


class NodeSettings(Section):
    ae_title: AeTitle = "LATENTPACS"
    host: str = "0.0.0.0"
    port: Port = 11112
    require_called_ae_title: bool = False
    max_associations: int = Field(default=100, ge=1, le=_MOST_ASSOCIATIONS)
    max_associations_per_peer: int = Field(default=50, ge=1)
    max_association_time: float = Field(default=86400.0, ge=0)
    max_pdu: int = Field(default=1048576, ge=0, lt=2**32)
    max_instance: Size = 4 * 10**9
    network_timeout: float = Field(default=120.0, gt=0)
    dimse_timeout: float = Field(default=60.0, gt=0)
    keep_alive: float = Field(default=10.0, gt=0)
    storage_classes: tuple[Uid, ...] = ()
    timezone: ZoneName = ""
    shutdown_timeout: float = Field(default=60.0, ge=0)

    @property
    def zone(self) -> ZoneInfo | None:
        """The time zone of images that state none; None if it is not configured."""
        return ZoneInfo(self.timezone) if self.timezone else None


class TlsSettings(Section):
    certificate: FileText = ""
    key: FileText = ""
    ca: FileText = ""
    port: Port = 2762
    only: bool = False
    clients: Literal["required", "optional"] = "required"
    minimum: Annotated[Literal["1.2", "1.3"], BeforeValidator(str)] = "1.2"

    @property
    def listens(self) -> bool:
        """Whether the node listens for TLS."""
        return bool(self.certificate)

    @model_validator(mode="after")
    def _parts_belong_together(self) -> TlsSettings:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: name both PEM files, or neither")
        if self.listens and self.clients == "required" and not self.ca:
            raise ValueError(
                "clients: required needs ca, a PEM file of the authorities that sign your peers' certificates"
            )
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
    def _options_match_the_rendition(self) -> Peer:
        if self.references == "rewrite" and self.rendition is RenditionPolicy.AUTO:
            raise ValueError("references: rewrite is not for peers with rendition: auto, which may get either object")
        if bool(self.host) != bool(self.port):
            raise ValueError("host and port belong together: name both or neither")
        if self.texture is not None and self.rendition is RenditionPolicy.ORIGINAL:
            raise ValueError("texture is for peers with rendition: reconstructed or auto; others get originals")
        return self

    @property
    def reachable(self) -> bool:
        """Whether images can be sent to this peer."""
        return bool(self.host and self.port)

    @property
    def rewrites(self) -> bool:
        """Whether annotations are sent to it as copies whose references name what it gets."""
        return self.references == "rewrite"


class UnknownPeers(Section):
    allow: tuple[Literal["echo", "store"], ...] = ("echo",)


_TORCH_RESERVES = 4 << 30
"""Bytes of address space that torch and its libraries reserve when they are loaded: 3.5 GB measured, rounded up."""


class LimitSettings(Section):
    """Limits on the resources that data from peers may use."""

    pixels: int = Field(default=128_000_000, ge=1_000_000)
    inflated: Size = 512 * 10**6
    ratio: int = Field(default=100, ge=1)
    decoder_memory: Size = 25 * 10**8
    decoder_time: Duration = 60.0
    encoder_memory: Size = 8 * 10**9
    idle: Duration = 600.0
    connections_per_address: int = Field(default=50, ge=1)

    @property
    def decoders(self) -> DecodeLimits:
        """Limits of processes that only decode, and of the node's own process."""
        return DecodeLimits(self.pixels, self.inflated, self.ratio, self.decoder_memory, self.decoder_time)

    @property
    def encoders(self) -> DecodeLimits:
        """Limits of processes that encode and reconstruct."""
        memory = self.encoder_memory + _TORCH_RESERVES if self.encoder_memory else 0
        return DecodeLimits(self.pixels, self.inflated, self.ratio, memory)


class CommitmentSettings(Section):
    pin_for: Duration | Literal["forever", "refuse"] = 365 * 86400.0
    retry: Duration = 60.0
    give_up: Duration = 7 * 86400.0

    @property
    def offered(self) -> bool:
        """Whether storage commitment is negotiated."""
        return self.pin_for != "refuse"

    @property
    def pin_seconds(self) -> float | None:
        """Seconds for which a committed original is protected from a purge; None means for ever."""
        return self.pin_for if isinstance(self.pin_for, float) else None


DEFAULT_ROOT = Path("latent-pacs-data")


class StorageSettings(Section):
    root: Folder = DEFAULT_ROOT
    database: DatabaseText = Field(default="", repr=False)
    min_free: Size = 10**9
    duplicates: Literal["keep"] = "keep"
    leading_zeros: Literal["accept", "refuse"] = "accept"

    @property
    def database_url(self) -> str:
        """The configured URL, or a SQLite file in ``root``. Raises ConfigError, which does not show a password."""
        url = secret("storage.database", self.database) or f"sqlite:///{self.root / 'index.sqlite'}"
        if url.startswith("postgresql+psycopg://") or re.fullmatch("sqlite:///[^:].*", url):
            return url
        raise ConfigError(
            "storage.database is neither a SQLite file nor a PostgreSQL database: write sqlite:////folder/index.sqlite "
            "or postgresql+psycopg://user@host/name, or leave it empty"
        )


class OriginalsSettings(Section):
    coder: Literal["jpegxl", "jpegls", "htj2k", "none"] = "jpegls"
    retain_for: Retention = None
    path: LocalFolder = None


class MetricsSettings(Section):
    port: Port = 0
    host: str = "127.0.0.1"


class LogSettings(Section):
    format: Literal["text", "json"] = "text"
