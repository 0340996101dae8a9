"""Selects instances by state, reason, SOP class and study, and the prior images of a study's patient."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Engine, select

from storage.index.holdings import Index
from storage.index.reading import values_of, with_patient, with_study
from storage.index.tables import instance, patient, series, study
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
    """Keys of at most ``limit`` instances with a rendition, of earlier studies of a study's patient, newest first.

    A patient is identified by Patient ID and issuer (storage.dicom.levels); one without an ID has no other studies.
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
