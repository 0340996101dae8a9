"""All rows of one image: its instance, its patient, every rendition, open damage.

Also every UID that an image was known by.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from storage.index.holdings import Index
from storage.index.reading import record_of, with_patient
from storage.index.rendition_rows import stored_rendition
from storage.index.tables import damage, instance, patient, quarantine, rendition, series
from storage.records import DicomJson, StoredInstance, StoredRendition


@dataclass(frozen=True)
class OpenDamage:
    """A damaged object of the image that is not whole again."""

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
