"""The sections of config.yaml about scheduled work: jobs and audit."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from node.config.sections import Section
from node.config.values import DAY, Duration, FileOrName, LocalFolder, SampleText, ScheduleText, Share, When, parse_when


class JobSettings(Section):
    """The keys that every job has."""

    enabled: bool = True
    when: ScheduleText

    @property
    def schedule(self) -> When | None:
        """The schedule; None if the job only runs on request."""
        return parse_when(self.when) if self.enabled else None


class ScrubSettings(JobSettings):
    when: ScheduleText = "daily 02:30"
    period: Duration = 30 * DAY
    orphan_grace: Duration = DAY
    keep_orphans: Duration = 30 * DAY


class _ReplicationSettings(JobSettings):
    to: Path | str | None

    @property
    def schedule(self) -> When | None:
        """The schedule; None without a folder or peer, so that the job only runs on request."""
        return super().schedule if self.to else None


class ReplicateSettings(_ReplicationSettings):
    when: ScheduleText = "daily 01:30"
    to: LocalFolder = None


class ReplicatePeerSettings(_ReplicationSettings):
    when: ScheduleText = "daily 02:00"
    to: str = ""


class PurgeSettings(JobSettings):
    when: ScheduleText = "daily 04:00"


class ReverifySettings(JobSettings):
    when: ScheduleText = "daily 03:30"


class ValidationSettings(JobSettings):
    enabled: bool = False
    when: ScheduleText = "sun 05:00"
    weights: FileOrName = "IMAGENET1K_V2"
    positive: str = ""
    margin: float = Field(default=0.02, gt=0, lt=0.5)
    folds: int = Field(default=5, ge=2, le=20)
    trials: int = Field(default=20, ge=1, le=1000)
    bootstrap: int = Field(default=2000, ge=100, le=100_000)


class JobsSettings(Section):
    lease: float = Field(default=60.0, ge=1, le=3600)
    poll: float = Field(default=2.0, gt=0)
    scrub: ScrubSettings = ScrubSettings()
    purge: PurgeSettings = PurgeSettings()
    reverify: ReverifySettings = ReverifySettings()
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


class AuditSettings(JobSettings):
    when: ScheduleText = "sun 05:00"
    sample: SampleText = "100"
    reserve: Share = 0.01
    tolerance: ToleranceSettings = ToleranceSettings()
    drift: DriftSettings = DriftSettings()

    @property
    def reserve_bound(self) -> str:
        """The hexadecimal text below which the SHA-256 of an original puts it in the reserve, on every node alike."""
        return "g" if self.reserve >= 1 else f"{int(self.reserve * 2**64):016x}" if self.reserve else ""
