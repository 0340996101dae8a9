"""Everything the index knows of one image: its row, its patient, every rendition ever made of it, open damage.

Also what a study holds of given SOP classes, and which UIDs an image was ever known by.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from storage.index.holdings import Index
from storage.index.integrity import trials_of, verdict_of
from storage.index.tables import damage, instance, patient, quarantine, rendition, series, study
from storage.records import DicomJson, OperatingPoint, StoredInstance, Trial, Verdict


@dataclass(frozen=True)
class RenditionRow:
    """One rendition with all that its row tells. ``withdrawn``: why it stands for its image no more; empty: it does."""

    derived_uid: str
    structure_uid: str
    base_digest: str
    base_bytes: int
    rendition_digest: str
    rendition_bytes: int
    point: str
    operating_point: OperatingPoint
    upscaler: str
    weights_digest: str
    output_digest: str
    structure_digest: str
    verdict: Verdict
    seconds: float
    verified_at: datetime
    gated: bool
    current: bool
    withdrawn: str
    tried: tuple[Trial, ...]


@dataclass(frozen=True)
class OpenDamage:
    """What a scrub found of one of the image's objects, not whole again yet."""

    kind: str
    digest: str
    condition: str
    action: str


@dataclass(frozen=True)
class InstanceRows:
    """All rows of one image. ``patient``: attributes in the DICOM JSON model. ``quarantined``: other objects that
    arrived under its UID."""

    instance: StoredInstance
    modality: str
    pixel_warning: str
    attempts: int
    patient: DicomJson
    renditions: tuple[RenditionRow, ...]
    damage: tuple[OpenDamage, ...]
    quarantined: int


def instance_rows(index: Index, uid: str) -> InstanceRows | None:
    """The rows of the image that an original or derived UID leads to; None where it leads to none."""
    found = index.by_uid(uid)
    if found is None:
        return None
    here = instance.c.key == found.key
    levels = (
        select(instance.c.pixel_warning, instance.c.attempts, instance.c.rendition_key)
        .add_columns(series.c.modality, patient.c.attributes)
        .join(series, instance.c.series_key == series.c.key)
        .join(study, series.c.study_key == study.c.key)
        .join(patient, study.c.patient_key == patient.c.key)
        .where(here)
    )
    made = select(rendition).where(rendition.c.instance_key == found.key).order_by(rendition.c.key)
    hurt = select(damage).where(damage.c.instance_key == found.key, damage.c.closed_at.is_(None))
    aside = select(quarantine.c.key).where(quarantine.c.sop_instance_uid == found.sop_instance_uid)
    with index.engine.connect() as connection:
        row = connection.execute(levels).one()
        renditions = tuple(_rendition(one, row.rendition_key) for one in connection.execute(made))
        harm = tuple(OpenDamage(one.kind, one.digest, one.condition, one.action) for one in connection.execute(hurt))
        others = len(connection.execute(aside).all())
    return InstanceRows(found, row.modality, row.pixel_warning, row.attempts, row.attributes, renditions, harm, others)


def uids_of(index: Index, instance_key: int) -> set[str]:
    """Every UID an image was ever known by: its own, and those of its renditions."""
    own = select(instance.c.sop_instance_uid).where(instance.c.key == instance_key)
    objects = (rendition.c.derived_uid, rendition.c.structure_uid)
    derived = [select(uid).where(rendition.c.instance_key == instance_key) for uid in objects]
    with index.engine.connect() as connection:
        return {uid for query in (own, *derived) for uid in connection.execute(query).scalars()}


def held_in_study(index: Index, study_instance_uid: str, sop_classes: Collection[str]) -> list[StoredInstance]:
    """The instances of those SOP classes that a study holds, oldest first."""
    query = (
        select(instance.c.key)
        .join(series, instance.c.series_key == series.c.key)
        .join(study, series.c.study_key == study.c.key)
        .where(study.c.study_instance_uid == study_instance_uid, instance.c.sop_class_uid.in_(sop_classes))
        .order_by(instance.c.key)
    )
    with index.engine.connect() as connection:
        keys = list(connection.execute(query).scalars())
    return index.by_keys(keys)


def _rendition(row: Row[Any], current: int | None) -> RenditionRow:
    plain = {name: getattr(row, name) for name in RenditionRow.__dataclass_fields__ if hasattr(row, name)}
    told = {
        "gated": bool(row.gated),
        "tried": trials_of(row.tried),
        "current": row.key == current,
        "operating_point": OperatingPoint(**row.operating_point),
        "verdict": verdict_of(row),
    }
    return RenditionRow(**{**plain, **told})
