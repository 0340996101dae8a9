"""Counts for monitoring: those of ``status``, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from storage.index.holdings import Index
from storage.index.tables import damage, instance
from storage.records import HoldingCounts, InstanceState, ReasonCode


@dataclass(frozen=True)
class MonitoringCounts:
    """One look at the index. ``gate_failures``: images of which nothing passed; ``damage``: found, not whole again."""

    counts: HoldingCounts
    gate_failures: int
    damage: int


def monitoring_counts(index: Index) -> MonitoringCounts:
    """Count everything once."""
    failed = (instance.c.state == InstanceState.EXACT, instance.c.reason_code == ReasonCode.GATE)
    with index.engine.connect() as connection:
        gate_failures = connection.execute(select(func.count()).select_from(instance).where(*failed)).scalar_one()
        open_damage = select(func.count()).select_from(damage).where(damage.c.closed_at.is_(None))
        return MonitoringCounts(index.counts(), int(gate_failures), int(connection.execute(open_damage).scalar_one()))
