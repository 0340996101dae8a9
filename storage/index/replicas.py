"""Which held originals a peer has acknowledged, and which are still to be sent to it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, func, insert, or_, select, update

from storage.dicom.header_amendments import version_of
from storage.index.connection import now, writing
from storage.index.reading import IndexPart, rows_of, value_of, values_of, with_study
from storage.index.tables import instance, original, replica, series, study
from storage.records import OriginalForm, StoredInstance


class Replicas(IndexPart):
    def candidates(self, peer: str) -> list[int]:
        """Keys of the instances whose original is held and may have to be sent, study by study.

        They include all instances of studies with former or present amendments; ``lacking`` selects from them.
        """
        acknowledged = and_(replica.c.instance_key == instance.c.key, replica.c.peer == peer)
        query = (
            with_study(select(instance.c.key).join(original, original.c.instance_key == instance.c.key))
            .outerjoin(replica, acknowledged)
            .where(
                original.c.form != OriginalForm.PURGED,
                or_(
                    replica.c.peer.is_(None),
                    replica.c.original_digest != instance.c.original_digest,
                    replica.c.version != "",
                    study.c.amended.is_not(None),
                ),
            )
            .order_by(series.c.study_key, series.c.key, instance.c.key)
        )
        return values_of(self._engine, query)

    def lacking(self, peer: str, instances: Sequence[StoredInstance]) -> list[StoredInstance]:
        """Those of the instances whose present bytes and header amendments the peer has not acknowledged."""
        keys = [one.key for one in instances]
        query = select(replica).where(replica.c.peer == peer, replica.c.instance_key.in_(keys))
        rows = rows_of(self._engine, query)
        known = {row.instance_key: (row.original_digest, row.version) for row in rows}
        return [one for one in instances if known.get(one.key) != (one.original_digest, version_of(one.amended))]

    def acknowledged(self, peer: str, sent: StoredInstance) -> None:
        """Commit that the peer answered the C-STORE of an instance with success."""
        row = {"original_digest": sent.original_digest, "version": version_of(sent.amended), "acknowledged_at": now()}
        this = and_(replica.c.instance_key == sent.key, replica.c.peer == peer)
        there = select(instance.c.key).where(instance.c.key == sent.key)
        with writing(self._engine) as connection:
            if connection.execute(there).first() is None:  # deleted while it was sent
                return
            if not connection.execute(update(replica).where(this).values(row)).rowcount:
                connection.execute(insert(replica).values(instance_key=sent.key, peer=peer, **row))

    def count(self, peer: str) -> int:
        """How many originals the peer has acknowledged."""
        query = select(func.count()).select_from(replica).where(replica.c.peer == peer)
        return int(value_of(self._engine, query))
