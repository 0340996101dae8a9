"""Counts over all instances, for ``latent-pacs status`` and for monitoring."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, case, func, select

from storage.index.tables import damage, instance, original, quarantine, rendition
from storage.records import HoldingCounts, InstanceState, ReasonCode


def monitoring_counts(engine: Engine) -> tuple[HoldingCounts, int]:
    """All counts, and the number of images for which no operating point passed the gate."""
    failed = (instance.c.state == InstanceState.EXACT, instance.c.reason_code == ReasonCode.GATE)
    with engine.connect() as connection:
        gate_failures = _total(connection, select(func.count()).select_from(instance).where(*failed))
        return holding_counts(connection), gate_failures


def holding_counts(connection: Connection) -> HoldingCounts:
    """Counts and bytes. In ``bytes_by_kind``, an object that two rows share counts once."""
    reconstructable = instance.c.rendition_key.is_not(None)
    states = select(instance.c.state, func.count().label("n")).group_by(instance.c.state)
    by_state = {row.state: int(row.n) for row in connection.execute(states)}
    payload_bytes = func.sum(rendition.c.base_bytes + rendition.c.rendition_bytes)
    payloads = select(payload_bytes).join(instance, instance.c.rendition_key == rendition.c.key)
    uncompressed = case((instance.c.pixel_bytes > 0, instance.c.pixel_bytes), else_=instance.c.original_bytes)
    pixels = select(func.sum(instance.c.pixel_bytes)).where(reconstructable)
    in_use = rendition.c.withdrawn == ""
    return HoldingCounts(
        by_state={state.value: by_state.get(state.value, 0) for state in InstanceState},
        bytes_by_kind={
            "original": _distinct_bytes(connection, original.c.object_digest, original.c.object_bytes),
            "base": _distinct_bytes(connection, rendition.c.base_digest, rendition.c.base_bytes, in_use),
            "rendition": _distinct_bytes(connection, rendition.c.rendition_digest, rendition.c.rendition_bytes, in_use),
        },
        backlog=by_state.get(InstanceState.RECEIVED.value, 0),
        quarantined=_total(connection, select(func.count()).select_from(quarantine)),
        damaged=_total(connection, select(func.count()).select_from(damage).where(damage.c.closed_at.is_(None))),
        reconstructable_pixel_bytes=_total(connection, pixels),
        reconstructable_payload_bytes=_total(connection, payloads),
        all_pixel_bytes=_total(connection, select(func.sum(uncompressed))),
        left_out=_left_out(connection),
    )


def _left_out(connection: Connection) -> dict[str, int]:
    """EXACT instances by the sentence of their code, most first; those whose code has none come last, as ``other``."""
    query = (
        select(instance.c.reason_code, func.count().label("n"))
        .where(instance.c.state == InstanceState.EXACT)
        .group_by(instance.c.reason_code)
    )
    counts = {ReasonCode(row.reason_code): int(row.n) for row in connection.execute(query)}
    found = sorted((-count, code.sentence) for code, count in counts.items() if code.sentence)
    others = sum(count for code, count in counts.items() if not code.sentence)
    return {sentence: -count for count, sentence in found} | ({"other": others} if others else {})


def _distinct_bytes(connection: Connection, digest: Any, size: Any, *which: Any) -> int:
    once = select(func.max(size).label("bytes")).where(*which).group_by(digest).subquery()
    return _total(connection, select(func.sum(once.c.bytes)))


def _total(connection: Connection, query: Any) -> int:
    return int(connection.execute(query).scalar() or 0)
