"""Decisions of people and their record: legal holds, class labels, the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from storage.records.instances import DicomJson


class HoldKind(StrEnum):
    """What a legal hold covers."""

    STUDY = "study"
    PATIENT = "patient"
    LABEL = "label"


@dataclass(frozen=True)
class Hold:
    """A legal hold: no original that it covers is removed until it is released."""

    key: int
    kind: HoldKind
    value: str
    reason: str
    placed_by: str
    placed_at: datetime
    released_by: str
    released_at: datetime | None
    release_reason: str


@dataclass(frozen=True)
class ClassLabel:
    """The class of an image for a validation. ``held``: its original is kept until a validation has used it."""

    sop_instance_uid: str
    class_name: str
    held: bool


@dataclass(frozen=True)
class LabelledView:
    """An image, with the attributes of its instance and series (DICOM JSON) that give its laterality and view."""

    sop_instance_uid: str
    instance: DicomJson
    series: DicomJson


@dataclass(frozen=True)
class TrailEntry:
    """An event for the audit trail. ``level`` says what the ``uids`` are (study, image, patient ...).

    ``who``: a peer's AE title, ``user:NAME`` for the command line, or ``job:NAME``. ``rendition``: original or
    reconstructed, if that matters.
    """

    action: str
    who: str
    level: str = ""
    uids: tuple[str, ...] = ()
    rendition: str = ""
    outcome: str = "success"
    detail: str = ""


@dataclass(frozen=True)
class TrailRecord:
    """An entry in the trail: numbered, dated (UTC, ISO 8601), and chained to the record before it.

    ``digest`` is the SHA-256 of ``previous`` and everything else in the record.
    """

    number: int
    at: str
    entry: TrailEntry
    previous: str
    digest: str
