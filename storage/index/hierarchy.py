"""The patient, study and series rows of an instance, inserted if they are new.

The attributes of a study and its patient come from the first instance of the study that is received. Later ones add
those that it lacked. Amendments replace them, also for instances that are received later. Studies with the same
attributes of the patient share a patient row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, insert, select, update

from storage.dicom.header_amendments import (
    ISSUER,
    PATIENT_ID,
    Amendment,
    AmendmentKind,
    Folded,
    folded,
    patient_identity,
)
from storage.dicom.levels import columns_of, text_of
from storage.dicom.query_keys import OFFSET_FROM_UTC
from storage.index.connection import now
from storage.index.lease import FREE
from storage.index.reading import record_of
from storage.index.tables import amendment, former_patient, instance, patient, series, study
from storage.records import DicomJson, InstanceState, Levels, NewInstance, ReasonCode

_STUDY_DATE, _OFFSET = "00080020", OFFSET_FROM_UTC.json_tag


TO_ENCODE: dict[str, Any] = {
    "state": InstanceState.RECEIVED,
    "reason": "",
    "reason_code": ReasonCode.NONE,
    "attempts": 0,
    **FREE,
}
"""Column values of an instance that waits for the archivist."""


def instance_row(connection: Connection, new: NewInstance) -> dict[str, Any]:
    """The columns of a received instance; its series, study and patient rows are inserted if they are new."""
    columns = columns_of(new.levels)
    untrusted = {"state": InstanceState.EXACT, "reason": new.pixel_warning, "reason_code": ReasonCode.PIXELS}
    # a sender may reuse a Series Instance UID in another study: that makes another series here, so no image is hidden
    in_study = {**columns["series"], "study_key": _study_key(connection, new.levels)}
    return {
        **columns["instance"],
        "series_key": key_of(connection, series, in_study, "study_key", "series_instance_uid"),
        "sop_instance_uid": new.sop_instance_uid,
        "sop_class_uid": new.sop_class_uid,
        "transfer_syntax_uid": new.transfer_syntax_uid,
        "original_digest": new.original_digest,
        "original_bytes": new.original_bytes,
        "pixel_bytes": new.pixel_bytes,
        "pixel_warning": new.pixel_warning,
        "calling_aet": new.calling_aet,
        "received_at": now(),
        **(TO_ENCODE | (untrusted if new.pixel_warning else {})),
    }


def _study_key(connection: Connection, levels: Levels) -> int:
    """The key of the study of an instance with those attributes; inserts study and patient if they are new."""
    uid = columns_of(levels)["study"]["study_instance_uid"]
    query = select(study.c.key, patient.c.patient_id).join(patient, study.c.patient_key == patient.c.key)
    known = connection.execute(query.where(study.c.study_instance_uid == uid)).first()
    if known is not None:
        _add_missing(connection, known.key, levels)
        stated = columns_of(levels)["patient"]["patient_id"]
        if stated != known.patient_id:
            add_former_patients(connection, known.key, [stated], known.patient_id)
        return int(known.key)
    received = {"patient": levels.patient, "study": levels.study}
    made = _folded(connection, uid, received)
    columns = made.columns()
    row = {**columns["study"], "patient_key": _patient_key(connection, columns["patient"])}
    if made.applied:
        row |= {"received": received, "amended": [asdict(one) for one in made.applied]}
    key = key_of(connection, study, row, "study_instance_uid")
    add_former_patients(connection, key, made.patient_ids, columns["patient"]["patient_id"])
    _add_missing(connection, key, levels)
    return key


def _add_missing(connection: Connection, study_key: int, levels: Levels) -> None:
    """Add attributes that a study and its patient lack, so that queries find them. For example, a report that arrives
    first may have no accession number.

    An amended study is not changed, since an amendment may have emptied an attribute.
    """
    row = connection.execute(
        select(study.c.attributes, study.c.received, study.c.patient_key, patient.c.attributes.label("of_patient"))
        .join(patient, study.c.patient_key == patient.c.key)
        .where(study.c.key == study_key)
    ).one()
    if row.received is not None:
        return
    of_study = {**levels.study, **row.attributes}
    if _OFFSET not in row.attributes and _STUDY_DATE in row.attributes:
        of_study.pop(_OFFSET, None)  # it belongs to the dates of the other instance
    same = _identity(levels.patient, {}) == _identity(row.of_patient, {})
    of_patient = {**levels.patient, **row.of_patient} if same else row.of_patient
    columns = columns_of(Levels(of_patient, of_study, {}, {}))
    if of_study != row.attributes:
        connection.execute(update(study).where(study.c.key == study_key).values(columns["study"]))
    if of_patient != row.of_patient:
        news = {"patient_key": _patient_key(connection, columns["patient"])}
        connection.execute(update(study).where(study.c.key == study_key).values(news))
        drop_empty(connection, patient, study.c.patient_key, [row.patient_key])


def _patient_key(connection: Connection, row: dict[str, Any]) -> int:
    """The key of the patient row with exactly those attributes, inserted if there is none."""
    # concat keeps the index of names from being used: many patients may have no name
    alike = (patient.c.identity == row["identity"], patient.c.name.concat("") == row["name"])
    for known in connection.execute(select(patient.c.key, patient.c.attributes).where(*alike)):
        if known.attributes == row["attributes"]:
            return int(known.key)
    return int(connection.execute(insert(patient).values(row).returning(patient.c.key)).scalar_one())


def states_another_patient(connection: Connection, levels: Levels) -> bool:
    """Whether an instance with those attributes states a Patient ID that its study does not have, and did not have
    before it was amended."""
    columns = columns_of(levels)
    stated, uid = columns["patient"]["patient_id"], columns["study"]["study_instance_uid"]
    query = select(study.c.received, patient.c.patient_id).join(patient, study.c.patient_key == patient.c.key)
    row = connection.execute(query.where(study.c.study_instance_uid == uid)).one_or_none()
    if row is None or not stated or not row.patient_id or stated == row.patient_id:
        return False
    return row.received is None or stated not in _folded(connection, uid, row.received).patient_ids


def _folded(connection: Connection, study_uid: str, received: dict[str, DicomJson]) -> Folded:
    """A study's ``received`` attributes, its patient's and its own, with the amendments in force applied."""
    of_patient = received["patient"]
    return folded(of_patient, received["study"], _amendments_in_force(connection, study_uid, of_patient))


def _amendments_in_force(connection: Connection, study_uid: str, received: DicomJson) -> list[Amendment]:
    """The amendments in force that may apply to a study with those received patient attributes, by number."""
    of_study = _in_force(connection, and_(amendment.c.kind == AmendmentKind.STUDY, amendment.c.target == study_uid))
    found = {one.number: one for one in of_study}
    looked: set[str] = set()
    names = {_identity(received, {}), *(_identity(received, one.changes) for one in of_study)}
    while names - looked:  # a patient may have been merged into another, which was merged into a third
        targets, looked = names - looked, looked | names
        where = and_(amendment.c.kind == AmendmentKind.PATIENT, amendment.c.target.in_(targets))
        for one in _in_force(connection, where):
            found[one.number] = one
            names.add(_identity(received, one.changes))
    return [found[number] for number in sorted(found)]


def _identity(received: DicomJson, changes: DicomJson) -> str:
    merged = {**received, **changes}
    return patient_identity(text_of(merged.get(PATIENT_ID)), text_of(merged.get(ISSUER)))


def _in_force(connection: Connection, where: Any) -> list[Amendment]:
    undoing = amendment.alias()
    undone = select(1).where(undoing.c.undoes == amendment.c.key).exists()
    return amendments(connection, where, amendment.c.undoes.is_(None), ~undone)


def amendments(connection: Connection, *where: Any) -> list[Amendment]:
    """The amendments for which all conditions ``where`` hold, in ascending order of number."""
    undoing = amendment.alias()
    undone = select(1).where(undoing.c.undoes == amendment.c.key).exists().label("undone")
    rows = connection.execute(select(amendment, undone).where(*where).order_by(amendment.c.key))
    return [
        record_of(Amendment, row, number=row.key, kind=AmendmentKind(row.kind), undone=bool(row.undone)) for row in rows
    ]


def add_former_patients(connection: Connection, study_key: int, ids: Iterable[str], current: str) -> None:
    """Store former Patient IDs of a study, and others that its images state, so that legal holds on them cover it."""
    mine = former_patient.c.study_key == study_key
    known = set(connection.execute(select(former_patient.c.patient_id).where(mine)).scalars())
    for one in sorted(set(ids) - known - {current, ""}):
        connection.execute(insert(former_patient).values(study_key=study_key, patient_id=one))


def apply_amendments(connection: Connection, study_key: int) -> None:
    """Update the row of a study according to its amendments, and refer it to the patient row that results."""
    row = connection.execute(
        select(study, patient.c.attributes.label("of_patient"), patient.c.patient_id)
        .join(patient, study.c.patient_key == patient.c.key)
        .where(study.c.key == study_key)
    ).one()
    received = row.received or {"patient": row.of_patient, "study": row.attributes}
    made = _folded(connection, row.study_instance_uid, received)
    columns = made.columns()
    patient_key = _patient_key(connection, columns["patient"])
    amended = [asdict(one) for one in made.applied] or None
    news = {**columns["study"], "patient_key": patient_key, "received": received, "amended": amended}
    connection.execute(update(study).where(study.c.key == study_key).values(news))
    add_former_patients(connection, study_key, [*made.patient_ids, row.patient_id], columns["patient"]["patient_id"])
    drop_empty(connection, patient, study.c.patient_key, [row.patient_key])


def take_attributes_of(connection: Connection, series_key: int, levels: Levels) -> None:
    """Take the attributes of series, study and patient from an instance that is now the only one in them."""
    below = select(instance.c.key).join(series, instance.c.series_key == series.c.key)
    study_key = connection.execute(select(series.c.study_key).where(series.c.key == series_key)).scalar_one()
    if len(connection.execute(below.where(series.c.key == series_key).limit(2)).all()) == 1:
        news = columns_of(levels)["series"]
        connection.execute(update(series).where(series.c.key == series_key).values(news))
    if len(connection.execute(below.where(series.c.study_key == study_key).limit(2)).all()) == 1:
        received = {"patient": levels.patient, "study": levels.study}
        connection.execute(update(study).where(study.c.key == study_key).values(received=received))
        apply_amendments(connection, study_key)


def drop_empty(connection: Connection, table: Table, below: Any, keys: Iterable[int]) -> None:
    """Delete the rows of ``table`` with one of ``keys`` to which no value of the column ``below`` refers."""
    unused = ~select(1).where(below == table.c.key).exists()
    connection.execute(delete(table).where(table.c.key.in_(list(keys)), unused))


def drop_empty_above(connection: Connection, series_keys: Iterable[int]) -> None:
    """Delete those series, their studies and patients, if no instance is left in them."""
    keys = list(dict.fromkeys(series_keys))
    above = select(series.c.study_key, study.c.patient_key).join(study, series.c.study_key == study.c.key)
    rows = connection.execute(above.where(series.c.key.in_(keys)).distinct()).all()
    drop_empty(connection, series, instance.c.series_key, keys)
    drop_empty(connection, study, series.c.study_key, [row.study_key for row in rows])
    drop_empty(connection, patient, study.c.patient_key, [row.patient_key for row in rows])


def key_of(connection: Connection, table: Table, row: dict[str, Any], *unique: str) -> int:
    """The key of the row with those unique values, inserted if it is new; an existing row stays as it is."""
    found = select(table.c.key).where(*(table.c[name] == row[name] for name in unique))
    key = connection.execute(found).scalar()
    if key is not None:
        return int(key)
    return int(connection.execute(insert(table).values(row).returning(table.c.key)).scalar_one())
