"""Amendments: corrections of patient and study attributes, as rows that are only ever added.

One transaction writes the amendment, the rows of the studies and patients that it corrects, and the trail entry. A
rebuilt index gets the amendments from the trail's journal, and applies them to instances that are received again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom.datadict import keyword_for_tag
from sqlalchemy import Connection, func, insert, select

from storage.dicom.header_amendments import (
    ISSUER,
    PATIENT_ID,
    AmendedStudy,
    Amendment,
    AmendmentKind,
    is_of_patient,
    keyword_of,
    patient_identity,
    taken_over,
)
from storage.dicom.levels import text_of
from storage.errors import ChangeRefused, UnknownUid
from storage.index.connection import now, writing
from storage.index.hierarchy import amendments, apply_amendments
from storage.index.reading import IndexPart, next_key, values_of
from storage.index.tables import amendment, instance, patient, series, study
from storage.index.trail_rows import append_in
from storage.records import DicomJson, TrailEntry, TrailRecord

_STUDIES_NAMED = 100
"""Maximum number of studies that the trail's entry names. Chosen, not measured."""


@dataclass(frozen=True)
class MadeAmendment:
    """An amendment and the studies that it changes. After a dry run, nothing is committed."""

    amendment: Amendment
    studies: tuple[AmendedStudy, ...]


class Amendments(IndexPart):
    """The amendments of one index. Every change is in the audit trail, in the same transaction."""

    def make(
        self, kind: AmendmentKind, target: str, changes: DicomJson, *, reason: str, who: str, dry_run: bool = False
    ) -> MadeAmendment:
        """Amend a patient (``target``: its identity) or a study (its UID). Raises UnknownUid, ChangeRefused."""
        with self._writing(dry_run) as connection:
            whole = _resolved(connection, kind, target, changes)
            new = {"kind": kind, "target": target, "changes": whole, "reason": reason, "made_by": who, "made_at": now()}
            return _carry_out(connection, new, _studies_of(connection, kind, target))

    def undo(self, number: int, *, reason: str, who: str, dry_run: bool = False) -> MadeAmendment:
        """Undo an amendment by adding another one. Raises UnknownUid, ChangeRefused."""
        with self._writing(dry_run) as connection:
            found = amendments(connection, amendment.c.key == number)
            if not found:
                raise UnknownUid(f"there is no amendment {number}; `latent-pacs amend list` lists all")
            if found[0].undone or found[0].undoes is not None:
                why = "it is undone already" if found[0].undone else "it undoes another one; make that again"
                raise ChangeRefused(f"amendment {number} cannot be undone: {why}")
            same = {"kind": found[0].kind, "target": found[0].target, "changes": {}}
            new = {**same, "reason": reason, "made_by": who, "made_at": now(), "undoes": number}
            return _carry_out(connection, new, _amended_by(connection, number))

    def all(self) -> list[Amendment]:
        """Every amendment, undone or not, oldest first."""
        with self._engine.connect() as connection:
            return amendments(connection)

    def studies(self, number: int) -> list[str]:
        """UIDs of the studies that an amendment applies to now."""
        with self._engine.connect() as connection:
            keys = _amended_by(connection, number)
            query = select(study.c.study_instance_uid).where(study.c.key.in_(keys)).order_by(study.c.key)
            return list(connection.execute(query).scalars())

    def catch_up(self, records: Iterable[TrailRecord]) -> int:
        """Make the amendments that the trail records and the index lacks, and return their number."""
        known = set(values_of(self._engine, select(amendment.c.key)))
        made = [one for one in records if one.entry.action == "amend"]
        missing = [one for one in made if json.loads(one.entry.detail)["number"] not in known]
        for record in missing:
            self._replay(record)
        return len(missing)

    def _replay(self, record: TrailRecord) -> None:
        """Apply a record of the trail to an index that lacks its effect."""
        made = json.loads(record.entry.detail)
        kind, made_at = AmendmentKind(made["kind"]), datetime.fromisoformat(made["at"])
        row = {name: made[name] for name in ("target", "changes", "reason", "undoes")}
        row |= {"key": made["number"], "kind": kind, "made_by": record.entry.who, "made_at": made_at}
        with writing(self._engine) as connection:
            undone = _amended_by(connection, made["undoes"]) if made["undoes"] is not None else []
            connection.execute(insert(amendment).values(row))
            for key in undone or _studies_of(connection, kind, made["target"]):
                apply_amendments(connection, key)

    @contextmanager
    def _writing(self, dry_run: bool) -> Iterator[Connection]:
        """A write transaction, which a dry run rolls back."""
        with writing(self._engine) as connection, connection.begin_nested() as whole:
            yield connection
            if dry_run:
                whole.rollback()


def _carry_out(connection: Connection, new: dict[str, Any], keys: Sequence[int]) -> MadeAmendment:
    new = next_key(connection, amendment.c.key) | new
    number = int(connection.execute(insert(amendment).values(new).returning(amendment.c.key)).scalar_one())
    before = [_seen(connection, key) for key in keys]
    for key in keys:
        apply_amendments(connection, key)
    studies = tuple(map(_difference, before, (_seen(connection, key) for key in keys)))
    (made,) = amendments(connection, amendment.c.key == number)
    recorded = {
        "number": number,
        "kind": made.kind,
        "target": made.target,
        "changes": made.changes,
        "undoes": made.undoes,
        "at": made.made_at.isoformat(timespec="microseconds"),
        "reason": made.reason,
    }
    uids = tuple(one.study_instance_uid for one in studies)[:_STUDIES_NAMED]
    detail = json.dumps(recorded, separators=(",", ":"))
    append_in(connection, [TrailEntry("amend", made.made_by, "study", uids, detail=detail)])
    return MadeAmendment(made, studies)


def _resolved(connection: Connection, kind: AmendmentKind, target: str, changes: DicomJson) -> DicomJson:
    """``changes``, completed: a new Patient ID brings its issuer, and name, birth date and sex of a known patient.

    Raises UnknownUid, ChangeRefused.
    """
    if not changes:
        raise ChangeRefused("an amendment changes at least one attribute: --set KEYWORD=VALUE")
    own = _patient_of(connection, kind, target)
    if own is None:
        raise UnknownUid(f"no {kind} {target.replace(chr(9), ' ').strip()} is held here")
    wrong = [keyword_of(tag) for tag in changes if not is_of_patient(tag)]
    if kind is AmendmentKind.PATIENT and wrong:
        raise ChangeRefused(f"{', '.join(wrong)}: attributes of a study; use `latent-pacs amend study UID`")
    of_patient = {tag: value for tag, value in changes.items() if is_of_patient(tag)}
    if not of_patient:
        return changes
    identity = {tag: changes.get(tag) or own.get(tag, {"vr": "LO"}) for tag in (PATIENT_ID, ISSUER)}
    name, issuer = (text_of(value) for value in identity.values())
    if not name:
        raise ChangeRefused("PatientID cannot be empty: nothing else distinguishes this patient from others")
    moves = patient_identity(name, issuer) != patient_identity(text_of(own.get(PATIENT_ID)), text_of(own.get(ISSUER)))
    if not moves:
        if kind is AmendmentKind.STUDY:
            raise ChangeRefused(
                f"{', '.join(map(keyword_of, of_patient))}: attributes of the patient; use `latent-pacs amend patient "
                "ID`, or name the other patient that the study belongs to by PatientID"
            )
        return changes
    known = _attributes_of(connection, patient_identity(name, issuer))
    if not known:
        return {**changes, **identity}
    besides = [keyword_of(tag) for tag in of_patient if tag not in identity]
    if besides:
        raise ChangeRefused(f"patient {name} is known here; amend {', '.join(besides)} of that patient, not with it")
    return {**changes, **identity, **taken_over(known)}


def _patient_of(connection: Connection, kind: AmendmentKind, target: str) -> DicomJson | None:
    if kind is AmendmentKind.PATIENT:
        return _attributes_of(connection, target) or None
    query = select(patient.c.attributes).join(study, study.c.patient_key == patient.c.key)
    return connection.execute(query.where(study.c.study_instance_uid == target)).scalar()


def _attributes_of(connection: Connection, identity: str) -> DicomJson:
    """Each attribute of a patient as the newest study that has it states it; none for an unknown patient."""
    query = select(patient.c.attributes).join(study, study.c.patient_key == patient.c.key).order_by(study.c.key)
    rows = connection.execute(query.where(patient.c.identity == identity, patient.c.patient_id != "")).scalars()
    return {tag: value for attributes in rows for tag, value in attributes.items()}


def _studies_of(connection: Connection, kind: AmendmentKind, target: str) -> list[int]:
    query = select(study.c.key).join(patient, study.c.patient_key == patient.c.key)
    column = patient.c.identity if kind is AmendmentKind.PATIENT else study.c.study_instance_uid
    return list(connection.execute(query.where(column == target).order_by(study.c.key)).scalars())


def _amended_by(connection: Connection, number: int) -> list[int]:
    rows = connection.execute(select(study.c.key, study.c.amended).where(study.c.amended.is_not(None)))
    return [row.key for row in rows if any(one["number"] == number for one in row.amended)]


def _seen(connection: Connection, study_key: int) -> tuple[str, int, DicomJson]:
    counted = (
        select(func.count())
        .select_from(instance)
        .join(series, instance.c.series_key == series.c.key)
        .where(series.c.study_key == study.c.key)
        .scalar_subquery()
    )
    query = select(study.c.study_instance_uid, counted, study.c.attributes, patient.c.attributes)
    row = connection.execute(query.join(patient, study.c.patient_key == patient.c.key).where(study.c.key == study_key))
    uid, count, of_study, of_patient = row.one()
    return uid, count, {**of_patient, **of_study}


def _difference(before: tuple[str, int, DicomJson], after: tuple[str, int, DicomJson]) -> AmendedStudy:
    (uid, count, old), (_, _, new) = before, after
    changed = sorted(tag for tag in {*old, *new} if old.get(tag) != new.get(tag))
    texts = [{keyword_for_tag(int(tag, 16)): text_of(values.get(tag)) for tag in changed} for values in (old, new)]
    return AmendedStudy(uid, count, *texts)
