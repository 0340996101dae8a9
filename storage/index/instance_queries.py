"""Finds instances: by state, reason, SOP class and study, and the prior images of a study's patient.

Also all rows of one image, and every UID that it was known by.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, select

from storage.index.holdings import Index
from storage.index.reading import record_of, values_of, with_patient, with_study
from storage.index.rendition_rows import stored_rendition
from storage.index.tables import damage, instance, patient, quarantine, rendition, series, study
from storage.records import DicomJson, InstanceState, ReasonCode, StoredInstance, StoredRendition


@dataclass(frozen=True)
class OpenDamage:
    """An object of the image that a scrub found damaged or missing, and that is not whole again."""

    kind: str
    digest: str
    condition: str
    action: str


@dataclass(frozen=True)
class InstanceRows:
    """All rows of one image. ``patient``: attributes in the DICOM JSON model. ``quarantined``: how many other objects
    arrived under its UID."""

    instance: StoredInstance
    modality: str
    pixel_warning: str
    attempts: int
    patient: DicomJson
    renditions: tuple[StoredRendition, ...]
    damage: tuple[OpenDamage, ...]
    quarantined: int


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
        query = with_study(query).where(study.c.study_instance_uid == study_uid)
    if limit:
        query = query.limit(limit)
    keys = values_of(index.engine, query)
    found = {one.key: one for one in index.by_keys(keys)}
    return [found[key] for key in keys if key in found]


def held_in_study(index: Index, study_instance_uid: str, sop_classes: Collection[str]) -> list[StoredInstance]:
    """The instances of those SOP classes in a study, oldest first."""
    wanted = (study.c.study_instance_uid == study_instance_uid, instance.c.sop_class_uid.in_(sop_classes))
    query = with_study(select(instance.c.key)).where(*wanted).order_by(instance.c.key)
    return index.by_keys(values_of(index.engine, query))


def prior_keys(engine: Engine, study_instance_uid: str, limit: int) -> list[int]:
    """Keys of at most ``limit`` instances with a rendition in other studies of a study's patient, newest first.

    The other studies are those of the same or an earlier date. A patient is identified by Patient ID and issuer
    (storage.dicom.levels); a patient without an ID has no other studies.
    """
    current, same = study.alias("current"), patient.alias("same")
    found = (
        with_patient(select(instance.c.key))
        .join(same, same.c.identity == patient.c.identity)
        .join(current, current.c.patient_key == same.c.key)
        .where(
            current.c.study_instance_uid == study_instance_uid,
            study.c.key != current.c.key,
            study.c.study_date <= current.c.study_date,
            instance.c.rendition_key.is_not(None),
        )
        .order_by(study.c.study_date.desc(), study.c.study_time.desc(), series.c.key, instance.c.key)
        .limit(limit)
    )
    return values_of(engine, found)


def instance_rows(index: Index, uid: str) -> InstanceRows | None:
    """The rows of the image of an original or derived UID; None if there is none."""
    found = index.by_uid(uid)
    if found is None:
        return None
    levels = with_patient(
        select(instance.c.pixel_warning, instance.c.attempts, series.c.modality, patient.c.attributes)
    ).where(instance.c.key == found.key)
    made = select(rendition).where(rendition.c.instance_key == found.key).order_by(rendition.c.key)
    damaged = select(damage).where(damage.c.instance_key == found.key, damage.c.closed_at.is_(None))
    others = select(quarantine.c.key).where(quarantine.c.sop_instance_uid == found.sop_instance_uid)
    with index.engine.connect() as connection:
        row = connection.execute(levels).one()
        renditions = tuple(map(stored_rendition, connection.execute(made)))
        found_damage = tuple(record_of(OpenDamage, one) for one in connection.execute(damaged))
        quarantined = len(connection.execute(others).all())
    return InstanceRows(
        found, row.modality, row.pixel_warning, row.attempts, row.attributes, renditions, found_damage, quarantined
    )


def uids_of(index: Index, instance_key: int) -> set[str]:
    """Every UID that an image was known by: its own, and those of its renditions."""
    own = select(instance.c.sop_instance_uid).where(instance.c.key == instance_key)
    objects = (rendition.c.derived_uid, rendition.c.structure_uid)
    derived = [select(uid).where(rendition.c.instance_key == instance_key) for uid in objects]
    with index.engine.connect() as connection:
        return {uid for query in (own, *derived) for uid in connection.execute(query).scalars()}
