"""config.yaml as frozen, strict settings. Every key has its default in ``sections``; config.yaml explains each.

An unknown key is an error that names the nearest valid one. The only user of YAML.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from node.config.sections import (
    ArchivistSettings,
    AuditSettings,
    CodecSettings,
    CommitmentSettings,
    DriftSettings,
    EligibilitySettings,
    EligibleClass,
    GateSettings,
    JobsSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    NodeSettings,
    OriginalsSettings,
    Peer,
    ReconstructSettings,
    SdX2Settings,
    Section,
    StorageSettings,
    TlsSettings,
    ToleranceSettings,
    UnknownPeers,
    ValidationSettings,
)
from node.config.values import (
    Profile,
    RenditionPolicy,
    Texture,
    Verb,
    When,
    WireSyntax,
    parse_sample,
    parse_when,
    retention_text,
)
from storage.errors import ConfigError
from storage.records import Thresholds

__all__ = [
    "AuditSettings",
    "CodecSettings",
    "CommitmentSettings",
    "DriftSettings",
    "EligibilitySettings",
    "EligibleClass",
    "LimitSettings",
    "LogSettings",
    "MetricsSettings",
    "NodeSettings",
    "Peer",
    "Profile",
    "ReconstructSettings",
    "RenditionPolicy",
    "SdX2Settings",
    "Settings",
    "StorageSettings",
    "Texture",
    "TlsSettings",
    "ToleranceSettings",
    "ValidationSettings",
    "Verb",
    "When",
    "WireSyntax",
    "load",
    "parse",
    "parse_sample",
    "parse_when",
    "retention_text",
]


class Settings(Section):
    """The whole of config.yaml."""

    node: NodeSettings = NodeSettings()
    tls: TlsSettings = TlsSettings()
    peers: tuple[Peer, ...] = ()
    unknown_peers: UnknownPeers = UnknownPeers()
    limits: LimitSettings = LimitSettings()
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
    def _replica_is_a_peer(self) -> Settings:
        title = self.jobs.replicate_peer.to
        peer = self.peer(title) if title else None
        if title and (peer is None or not peer.reachable):
            raise ValueError(
                f"jobs.replicate_peer.to: {title} is no peer with host and port; add it to peers, or empty it"
            )
        return self

    @model_validator(mode="after")
    def _originals_can_be_kept_so(self) -> Settings:
        if self.codec.profile is Profile.US_MQSA and self.originals.retain_for is not None:
            raise ValueError("originals.retain_for: profile us-mqsa keeps originals for ever; leave it at forever")
        if self.originals.path and self.originals.path.resolve() == self.storage.root.resolve():
            raise ValueError("originals.path is storage.root; leave it empty to keep originals there")
        return self

    @model_validator(mode="after")
    def _pixels_are_made_again_as_they_were(self) -> Settings:
        if self.reconstruct.upscaler == "sd_x2" and self.archivist.concurrency > 1:
            raise ValueError(
                "archivist.concurrency: what sd_x2 makes depends on the number of threads, so the worker that serves "
                "viewers has to encode too; leave it at 0 or 1"
            )
        return self

    @property
    def names_nobody(self) -> bool:
        """Whether config.yaml says nothing at all of who calls: then any AE title may store, or nobody could."""
        return not self.model_fields_set & {"peers", "unknown_peers"}

    @property
    def strangers_may(self) -> tuple[str, ...]:
        """What an AE title that is no configured peer may do."""
        return ("echo", "store") if self.names_nobody else self.unknown_peers.allow

    def peer(self, ae_title: str) -> Peer | None:
        """The configured peer of that AE title."""
        return next((peer for peer in self.peers if peer.ae_title == ae_title.strip()), None)


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
