"""Audits in the index: the renditions to sample from, and the results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from storage.index.connection import writing
from storage.index.lease import is_free
from storage.index.reading import IndexPart, rows_of
from storage.index.rendition_rows import withdraw_in
from storage.index.tables import instance, rendition, series
from storage.index.trail_rows import append_in
from storage.records import RENDITION_STATES, InstanceState, OperatingPoint, ReasonCode, TrailEntry

_MANUFACTURER, _MODEL, _INSTITUTION = "00080070", "00081090", "00080080"


@dataclass(frozen=True)
class AuditCandidate:
    """An image with a current rendition. ``flagged``: an audit failed it, and it has no original."""

    instance_key: int
    device: str
    site: str
    point: str
    verified_at: datetime
    flagged: bool


class AuditRows(IndexPart):
    def candidates(self) -> list[AuditCandidate]:
        """Every image whose current rendition represents it, and every flagged image, by key.

        Device: manufacturer and model. Site: institution, or the AE title of the sender if the data set has none.
        """
        flagged = and_(instance.c.state == InstanceState.FAILED, instance.c.reason_code == ReasonCode.AUDIT)
        standing = instance.c.state.in_(RENDITION_STATES)
        own = (instance.c.key, instance.c.state, instance.c.calling_aet)
        device = map(_text, (_MANUFACTURER, _MODEL, _INSTITUTION))
        query = (
            select(*own, *device, rendition.c.point, rendition.c.verified_at)
            .join(rendition, instance.c.rendition_key == rendition.c.key)
            .join(series, instance.c.series_key == series.c.key)
            .where(or_(standing, flagged))
            .order_by(instance.c.key)
        )
        return [
            AuditCandidate(
                key,
                " ".join(filter(None, (maker, model))) or "unknown",
                institution or sender,
                str(OperatingPoint(**point)),
                verified_at,
                state == InstanceState.FAILED,
            )
            for key, state, sender, maker, model, institution, point, verified_at in rows_of(self._engine, query)
        ]

    def withdraw(self, instance_key: int, derived_uid: str, why: str, entry: TrailEntry) -> bool:
        """Withdraw a rendition. Its image is then served bit-exact, its UIDs still lead to the image, and its objects
        are marked as garbage.

        Returns False if the image has another rendition by now, waits to be encoded, or is being worked on.
        """
        news = {"state": InstanceState.WITHDRAWN, **_audit_reason(why)}
        return self._change(instance_key, derived_uid, entry, news, withdrawn=why)

    def flag(self, instance_key: int, derived_uid: str, why: str, entry: TrailEntry) -> bool:
        """Set an image without original to FAILED. It keeps its rendition, which may still be decoded on another
        machine. Returns False as ``withdraw`` does."""
        news = {"state": InstanceState.FAILED, **_audit_reason(why)}
        return self._change(instance_key, derived_uid, entry, news)

    def clear(self, instance_key: int, derived_uid: str, state: InstanceState, entry: TrailEntry) -> bool:
        """Restore the state of a flagged image that passes now. Returns False as ``withdraw`` does."""
        news = {"state": state, "reason": "", "reason_code": ReasonCode.NONE}
        return self._change(instance_key, derived_uid, entry, news)

    def _change(
        self, instance_key: int, derived_uid: str, entry: TrailEntry, news: dict[str, str], *, withdrawn: str = ""
    ) -> bool:
        """Change an image if it still has that rendition. ``withdrawn``: why to withdraw the rendition, or empty."""
        with writing(self._engine) as connection:
            key = _current(connection, instance_key, derived_uid)
            if key is None:
                return False
            if withdrawn:
                withdraw_in(connection, key, withdrawn)
            connection.execute(update(instance).where(instance.c.key == instance_key).values(news))
            append_in(connection, [entry])
        return True


def _audit_reason(why: str) -> dict[str, str]:
    return {"reason": f"audit: {why}", "reason_code": ReasonCode.AUDIT}


def _text(tag: str) -> Any:
    """The first value of an attribute of the series, as text; NULL if it has none."""
    return series.c.attributes[(tag, "Value", 0)].as_string()


def _current(connection: Connection, instance_key: int, derived_uid: str) -> int | None:
    """The key of that rendition, if it is its image's current one, and the image neither waits nor is worked on."""
    query = select(rendition.c.key).join(instance, instance.c.rendition_key == rendition.c.key)
    wanted = (
        instance.c.key == instance_key,
        rendition.c.derived_uid == derived_uid,
        instance.c.state != InstanceState.RECEIVED,
        is_free(instance),
    )
    return connection.execute(query.where(*wanted)).scalar()
