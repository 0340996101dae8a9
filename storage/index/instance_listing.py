"""Selects instances by state, reason and study."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from storage.index.holdings import Index
from storage.index.tables import instance, series, study
from storage.records import InstanceState, ReasonCode, StoredInstance


def list_instances(
    index: Index, *, states: Sequence[InstanceState] = (), reason: str = "", study_uid: str = "", limit: int = 0
) -> list[StoredInstance]:
    """Instances, newest first; at most ``limit``, 0 for all.

    ``reason``: a value of ReasonCode, or a part of the sentence that gives the reason, in upper or lower case.
    """
    query = select(instance.c.key).order_by(instance.c.key.desc())
    if states:
        query = query.where(instance.c.state.in_([str(state) for state in states]))
    if reason in {str(code) for code in ReasonCode}:
        query = query.where(instance.c.reason_code == reason) if reason else query
    else:
        query = query.where(instance.c.reason.icontains(reason, autoescape=True))
    if study_uid:
        query = query.join(series, instance.c.series_key == series.c.key)
        query = query.join(study, series.c.study_key == study.c.key).where(study.c.study_instance_uid == study_uid)
    if limit:
        query = query.limit(limit)
    with index.engine.connect() as connection:
        keys = list(connection.execute(query).scalars())
    found = {one.key: one for one in index.by_keys(keys)}
    return [found[key] for key in keys if key in found]
