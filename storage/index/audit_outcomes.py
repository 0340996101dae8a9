"""The audit's side of the index: which renditions there are to draw from, and what an audit makes of an image."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, or_, select, update

from storage.index.connection import writing
from storage.index.tables import instance, rendition, series
from storage.index.trail_rows import append_in
from storage.records import InstanceState, ReasonCode, TrailEntry

_MANUFACTURER, _MODEL, _INSTITUTION = "00080070", "00081090", "00080080"


@dataclass(frozen=True)
class AuditCandidate:
    """An image that a rendition stands for, or did until an audit flagged it (``flagged``)."""

    instance_key: int
    device: str
    site: str
    point: str
    verified_at: datetime
    flagged: bool


class AuditRows:
    """Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def candidates(self) -> list[AuditCandidate]:
        """Every image with a current rendition, by key. Device: manufacturer and model; site: institution, or, where
        the data set names none, the AE title that sent it."""
        flagged = and_(instance.c.state == InstanceState.FAILED, instance.c.reason_code == ReasonCode.AUDIT)
        standing = instance.c.state.in_([InstanceState.VERIFIED, InstanceState.MEASURED])
        query = (
            select(
                instance.c.key,
                instance.c.state,
                instance.c.calling_aet,
                _text(_MANUFACTURER),
                _text(_MODEL),
                _text(_INSTITUTION),
                rendition.c.point,
                rendition.c.verified_at,
            )
            .join(rendition, instance.c.rendition_key == rendition.c.key)
            .join(series, instance.c.series_key == series.c.key)
            .where(or_(standing, flagged))
            .order_by(instance.c.key)
        )
        with self._engine.connect() as connection:
            return [
                AuditCandidate(
                    key,
                    " ".join(filter(None, (maker, model))) or "unknown",
                    institution or sender,
                    point,
                    verified_at,
                    state == InstanceState.FAILED,
                )
                for key, state, sender, maker, model, institution, point, verified_at in connection.execute(query)
            ]

    def withdraw(self, instance_key: int, derived_uid: str, why: str, entry: TrailEntry) -> bool:
        """The rendition stands for its image no more, which is served bit-exact from now on; its UID keeps leading to
        it. False where meanwhile another rendition stands for the image, or somebody works on it."""
        with writing(self._engine) as connection:
            key = _current(connection, instance_key, derived_uid)
            if key is None:
                return False
            connection.execute(update(rendition).where(rendition.c.key == key).values(withdrawn=why))
            news = {"state": InstanceState.WITHDRAWN, **_told(why), "rendition_key": None}
            connection.execute(update(instance).where(instance.c.key == instance_key).values(news))
            append_in(connection, [entry])
        return True

    def flag(self, instance_key: int, derived_uid: str, why: str, entry: TrailEntry) -> bool:
        """There is no original to serve instead: the image is failed, and keeps its rendition, which another machine
        or model may yet make. False as of ``withdraw``."""
        with writing(self._engine) as connection:
            if _current(connection, instance_key, derived_uid) is None:
                return False
            news = {"state": InstanceState.FAILED, **_told(why)}
            connection.execute(update(instance).where(instance.c.key == instance_key).values(news))
            append_in(connection, [entry])
        return True

    def clear(self, instance_key: int, derived_uid: str, entry: TrailEntry) -> bool:
        """An image that was flagged passes now: its rendition stands for it again. False as of ``withdraw``."""
        with writing(self._engine) as connection:
            key = _current(connection, instance_key, derived_uid)
            if key is None:
                return False
            gated = connection.execute(select(rendition.c.gated).where(rendition.c.key == key)).scalar_one()
            state = InstanceState.VERIFIED if gated else InstanceState.MEASURED
            news = {"state": state, "reason": "", "reason_code": ReasonCode.NONE}
            connection.execute(update(instance).where(instance.c.key == instance_key).values(news))
            append_in(connection, [entry])
        return True


def _told(why: str) -> dict[str, str]:
    return {"reason": f"audit: {why}", "reason_code": ReasonCode.AUDIT}


def _text(tag: str) -> Any:
    """The first value of an attribute of the series, as text; NULL where it has none."""
    return series.c.attributes[(tag, "Value", 0)].as_string()


def _current(connection: Connection, instance_key: int, derived_uid: str) -> int | None:
    """The key of that rendition, where it is its image's current one and nobody works on the image."""
    query = (
        select(rendition.c.key)
        .join(instance, instance.c.rendition_key == rendition.c.key)
        .where(
            instance.c.key == instance_key,
            rendition.c.derived_uid == derived_uid,
            instance.c.state != InstanceState.RECEIVED,
            or_(instance.c.lease_until.is_(None), instance.c.lease_until < time.time()),
        )
        .with_for_update()
    )
    return connection.execute(query).scalar()
