"""Class labels of images for a validation, and the hold on their originals until a validation has used them.

While an original is kept for this, its study has the label HOLD_LABEL, on which there is a legal hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from storage.index.connection import writing
from storage.index.holds import add_hold_in, put_label_in, take_label_in
from storage.index.reading import IndexPart, batches, record_of, rows_of, values_of, with_patient, with_study
from storage.index.tables import class_label, hold, instance, patient, rendition, series, study
from storage.index.trail_rows import append_in
from storage.records import ClassLabel, HoldKind, LabelledView, TrailEntry, TrailRecord

HOLD_LABEL = "validation"
_UIDS_AT_ONCE = 200
"""Maximum number of UIDs in one entry of the trail. Chosen, not measured."""


class ClassLabels(IndexPart):
    """The classes of images in one index. Every change is in the audit trail, in the same transaction."""

    def put(self, classes: Mapping[str, str], *, who: str) -> int:
        """Set classes by SOP Instance UID, and hold the originals. Returns how many labels are new or changed."""
        changed = 0
        with writing(self._engine) as connection:
            for name in sorted(set(classes.values())):
                uids = sorted(uid for uid, of in classes.items() if of == name)
                for some in batches(uids, _UIDS_AT_ONCE):
                    same = (class_label.c.sop_instance_uid.in_(some), class_label.c.class_name == name)
                    known = connection.execute(select(func.count()).where(*same)).scalar_one()
                    changed += len(some) - int(known)
                    _put(connection, some, name)
                    append_in(connection, [TrailEntry("class.put", who, "image", some, detail=name)])
            for study_uid in _studies(connection, classes):
                put_label_in(connection, HOLD_LABEL, study_uid, who=who)
            in_force = (hold.c.kind == HoldKind.LABEL, hold.c.value == HOLD_LABEL, hold.c.released_at.is_(None))
            if connection.execute(select(hold.c.key).where(*in_force)).first() is None:
                reason = "labelled images, until a validation has used them"
                add_hold_in(connection, HoldKind.LABEL, HOLD_LABEL, reason=reason, who=who)
        return changed

    def release(self, uids: Sequence[str], *, who: str, why: str) -> int:
        """End the hold on the originals of these images, which keep their classes. Returns how many were held.

        The hold covers all originals of a study, until no labelled image of the study is held.
        """
        released = 0
        with writing(self._engine) as connection:
            for some in batches(sorted(set(uids)), _UIDS_AT_ONCE):
                there = (class_label.c.sop_instance_uid.in_(some), class_label.c.held == 1)
                count = connection.execute(update(class_label).where(*there).values(held=0)).rowcount
                if count:
                    append_in(connection, [TrailEntry("class.release", who, "image", some, detail=why)])
                released += count
            for study_uid in _studies(connection, uids):
                if not connection.execute(_held_in(study_uid)).first():
                    take_label_in(connection, HOLD_LABEL, study_uid, who=who)
        return released

    def all(self) -> list[ClassLabel]:
        """Every label by UID, whether the image is held here or not."""
        query = select(class_label).order_by(class_label.c.sop_instance_uid)
        return [record_of(ClassLabel, row, held=bool(row.held)) for row in rows_of(self._engine, query)]

    def instance_keys(self) -> list[int]:
        """Keys of the labelled images that are held here."""
        labelled = instance.c.sop_instance_uid == class_label.c.sop_instance_uid
        return values_of(self._engine, select(instance.c.key).join(class_label, labelled))

    def original_uids(self, uids: Sequence[str]) -> dict[str, str]:
        """SOP Instance UIDs of originals held here, by UID; a UID may be that of a reconstruction."""
        found: dict[str, str] = {}
        own, objects = instance.c.sop_instance_uid, (rendition.c.derived_uid, rendition.c.structure_uid)
        with self._engine.connect() as connection:
            for some in batches(uids):
                for uid in objects:
                    query = select(uid, own).join(instance, rendition.c.instance_key == instance.c.key)
                    found |= {row[0]: row[1] for row in connection.execute(query.where(uid.in_(some)))}
                found |= {uid: uid for uid in connection.execute(select(own).where(own.in_(some))).scalars()}
        return found

    def views_of(self, patient_id: str) -> list[LabelledView]:
        """The images of a patient with the attributes that give the view of each."""
        images = select(instance.c.sop_instance_uid, instance.c.attributes, series.c.attributes)
        query = with_patient(images).where(patient.c.patient_id == patient_id).order_by(instance.c.key)
        return [LabelledView(*row) for row in rows_of(self._engine, query)]

    def catch_up(self, records: Iterable[TrailRecord]) -> int:
        """Write the labels that the trail records, and that the index lacks or has otherwise. Returns their number."""
        told: dict[str, ClassLabel] = {}
        for record in records:
            entry = record.entry
            if entry.action == "class.put":
                told |= {uid: ClassLabel(uid, entry.detail, True) for uid in entry.uids}
            elif entry.action == "class.release":
                told |= {uid: replace(told[uid], held=False) for uid in entry.uids if uid in told}
        known = set(self.all())
        stale = [one for one in told.values() if one not in known]
        with writing(self._engine) as connection:
            for one in stale:
                _put(connection, [one.sop_instance_uid], one.class_name, held=one.held)
        return len(stale)


def _put(connection: Connection, uids: Sequence[str], name: str, *, held: bool = True) -> None:
    connection.execute(delete(class_label).where(class_label.c.sop_instance_uid.in_(uids)))
    rows = [{"sop_instance_uid": uid, "class_name": name, "held": int(held)} for uid in uids]
    connection.execute(insert(class_label), rows)


def _studies(connection: Connection, uids: Collection[str]) -> list[str]:
    found: set[str] = set()
    query = with_study(select(study.c.study_instance_uid).select_from(instance))
    for some in batches(uids):
        found.update(connection.execute(query.where(instance.c.sop_instance_uid.in_(some))).scalars())
    return sorted(found)


def _held_in(study_uid: str) -> Select[Any]:
    labelled = select(class_label.c.key).join(instance, instance.c.sop_instance_uid == class_label.c.sop_instance_uid)
    return with_study(labelled).where(study.c.study_instance_uid == study_uid, class_label.c.held == 1)
