"""The whole of config.yaml, and the rules that concern more than one section."""

from __future__ import annotations

from pydantic import model_validator

from node.config.encoding_sections import (
    ArchivistSettings,
    CodecSettings,
    EligibilitySettings,
    GateSettings,
    ReconstructSettings,
)
from node.config.job_sections import AuditSettings, JobsSettings
from node.config.sections import (
    CommitmentSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    NodeSettings,
    OriginalsSettings,
    Peer,
    Section,
    StorageSettings,
    TlsSettings,
    UnknownPeers,
)
from node.config.values import Profile, Texture
from storage.records import Thresholds


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
        """The limits of the gate for the configured profile; ``paper`` is measured, not gated, against ``balanced``."""
        strict = self.codec.profile in (Profile.STRICT, Profile.US_MQSA)
        return Thresholds(**(self.gate.strict if strict else self.gate.balanced).model_dump())

    @model_validator(mode="after")
    def _tls_peers_can_call(self) -> Settings:
        unable = [peer.ae_title for peer in self.peers if peer.tls and not peer.reachable and not self.tls.listens]
        if unable:
            raise ValueError(f"peers: {unable[0]} has tls: true, but without tls.certificate it cannot call this node")
        return self

    @model_validator(mode="after")
    def _replica_is_a_peer(self) -> Settings:
        title = self.jobs.replicate_peer.to
        peer = self.peer(title) if title else None
        if title and (peer is None or not peer.reachable):
            raise ValueError(
                f"jobs.replicate_peer.to: {title} is not a peer with host and port; add it to peers or empty the key"
            )
        return self

    @model_validator(mode="after")
    def _originals_are_kept_as_the_profile_demands(self) -> Settings:
        if self.codec.profile is Profile.US_MQSA and self.originals.retain_for is not None:
            raise ValueError("originals.retain_for: profile us-mqsa never removes originals; leave it at forever")
        if self.originals.path and self.originals.path.resolve() == self.storage.root.resolve():
            raise ValueError("originals.path is storage.root; leave it empty to keep originals there")
        return self

    @model_validator(mode="after")
    def _sd_x2_encodes_in_one_worker(self) -> Settings:
        if self.reconstruct.upscaler == "sd_x2" and self.archivist.concurrency > 1:
            raise ValueError(
                "archivist.concurrency: the pixels of sd_x2 depend on the number of threads, so the worker that serves "
                "viewers must encode too; leave it at 0 or 1"
            )
        return self

    @property
    def lists_no_peers(self) -> bool:
        """Whether config.yaml has neither ``peers`` nor ``unknown_peers``; then any AE title may store."""
        return not self.model_fields_set & {"peers", "unknown_peers"}

    @property
    def allowed_to_unknown_peers(self) -> tuple[str, ...]:
        """The requests that an AE title without an entry in ``peers`` may make."""
        return ("echo", "store") if self.lists_no_peers else self.unknown_peers.allow

    def draws(self, peer: Peer) -> bool:
        """Whether reconstructions are sent to a peer with drawn noise."""
        return (peer.texture or self.reconstruct.texture) is Texture.DRAWN

    def caller(self, ae_title: str) -> Peer:
        """The peer with that AE title. Without an entry in ``peers``, it may do what unknown peers may."""
        allow = self.allowed_to_unknown_peers
        return self.peer(ae_title) or Peer.model_construct(ae_title=ae_title, allow=allow)

    def peer(self, ae_title: str) -> Peer | None:
        return next((peer for peer in self.peers if peer.ae_title == ae_title.strip()), None)
