"""Corrections of a header as values: which attributes may be amended, to what, and what that makes of a data set.

An amendment never touches an object. It says which attributes of a patient or a study have other values from now on;
``folded`` lays amendments over what a modality wrote, in the order in which they were made. UIDs are never amended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydicom import Dataset

from storage.dicom.dicomfile import quiet
from storage.dicom.levels import PATIENT_KEYS, STUDY_KEYS, Key, columns_of, levels_of
from storage.errors import CorrectionRefused
from storage.records import Applied, DicomJson, Levels

PATIENT_ID, ISSUER, STUDY_UID = "00100020", "00100021", "0020000D"
_IDENTIFYING = ("00100010", "00100030", "00100040")
"""Name, birth date and sex: a study that moves to a known patient takes that patient's."""


class AmendmentKind(StrEnum):
    """Whose attributes an amendment corrects."""

    PATIENT = "patient"
    """Of all studies of a Patient ID (and issuer); with a new Patient ID, this is a merge or a renaming."""
    STUDY = "study"
    """Of one study; with a new Patient ID it moves to that patient."""


@dataclass(frozen=True)
class Amendment:
    """One version. ``target``: the identity of a patient (``patient_identity``) or a Study Instance UID.

    ``changes``: the new values in the DICOM JSON model, without ``Value`` where the attribute becomes empty.
    ``undoes``: the amendment that this one takes back; ``undone``: whether a later one took this one back.
    """

    number: int
    kind: AmendmentKind
    target: str
    changes: DicomJson
    reason: str
    made_by: str
    made_at: datetime
    undoes: int | None = None
    undone: bool = False

    @property
    def shown_target(self) -> str:
        """The target without the empty issuer."""
        return self.target.rstrip("\t").replace("\t", " of ")


@dataclass(frozen=True)
class AmendedStudy:
    """What an amendment makes of one study: the values that differ, by keyword."""

    study_instance_uid: str
    instances: int
    before: dict[str, str]
    after: dict[str, str]


@dataclass(frozen=True)
class Folded:
    """A study's attributes with its amendments laid over them, and every Patient ID that it went by."""

    patient: DicomJson
    study: DicomJson
    applied: tuple[Applied, ...]
    patient_ids: tuple[str, ...]

    def columns(self) -> dict[str, dict[str, Any]]:
        """Columns of the rows of patient and study."""
        return columns_of(Levels(self.patient, self.study, {}, {}))


# --- what may be changed ---


def _amendable(keys: Iterable[Key]) -> dict[str, Key]:
    return {key.keyword: key for key in keys if key.vr not in ("SQ", "UI")}


AMENDABLE = {AmendmentKind.PATIENT: _amendable(PATIENT_KEYS), AmendmentKind.STUDY: _amendable(STUDY_KEYS)}
"""By the level that they belong to, the attributes that may be amended; a study's patient attributes only as a move."""
_BY_TAG = {key.json_tag: key for keys in AMENDABLE.values() for key in keys.values()}


def changes_of(values: Mapping[str, str]) -> DicomJson:
    """Values by keyword, as DICOM writes them, in the DICOM JSON model. Raises CorrectionRefused."""
    written, keys = Dataset(), {**AMENDABLE[AmendmentKind.PATIENT], **AMENDABLE[AmendmentKind.STUDY]}
    written.SpecificCharacterSet = "ISO_IR 192"
    changes: DicomJson = {}
    for keyword, value in values.items():
        if keyword not in keys:
            raise CorrectionRefused(f"{keyword} cannot be amended; these can: {', '.join(sorted(keys))}")
        key = keys[keyword]
        changes[key.json_tag] = {"vr": key.vr}
        if value:
            try:
                with quiet():
                    written.add_new(key.tag, key.vr, value)
            except ValueError:
                raise _no_value(key, value) from None
    levels = levels_of(written)
    for tag in (tag for tag in changes if _BY_TAG[tag].tag in written):
        found = levels.patient.get(tag) or levels.study.get(tag)
        if found is None:
            raise _no_value(_BY_TAG[tag], values[keyword_of(tag)])
        changes[tag] = found
    return changes


def _no_value(key: Key, value: str) -> CorrectionRefused:
    return CorrectionRefused(f"{key.keyword}: {value!r} is no value of its type ({key.vr})")


def is_of_patient(tag: str) -> bool:
    """Whether an attribute belongs to the patient, not to the study."""
    return _BY_TAG[tag].keyword in AMENDABLE[AmendmentKind.PATIENT]


def keyword_of(tag: str) -> str:
    return _BY_TAG[tag].keyword


def text_of(attribute: DicomJson | None) -> str:
    """A value for people, as DICOM writes it."""
    values = (attribute or {}).get("Value") or []
    return "\\".join(_joined(value) if isinstance(value, dict) else str(value or "") for value in values)


def _joined(name: dict[str, str]) -> str:
    return "=".join(name.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")


# --- what comes of it ---


def patient_identity(patient_id: str, issuer: str = "") -> str:
    """How the index knows a patient: by ID and issuer."""
    return f"{patient_id}\t{issuer}"


def overlaid(attributes: DicomJson, changes: DicomJson) -> DicomJson:
    """Attributes with changes laid over them; what becomes empty is absent, as in ``levels_of``."""
    result = {**attributes, **changes}
    return {tag: value for tag, value in result.items() if value.get("Value")}


def taken_over(known: DicomJson) -> DicomJson:
    """What moves with a study to a patient who is known already: that patient's name, birth date and sex."""
    return {tag: known.get(tag, {"vr": _BY_TAG[tag].vr}) for tag in _IDENTIFYING}


def folded(patient: DicomJson, study: DicomJson, amendments: Sequence[Amendment]) -> Folded:
    """Lay amendments, in order, over what was received. One of a patient applies where the study is that patient's."""
    study_uid = text_of(study.get(STUDY_UID))
    applied: list[Applied] = []
    ids = [text_of(patient.get(PATIENT_ID))]
    for one in amendments:
        mine = patient_identity(text_of(patient.get(PATIENT_ID)), text_of(patient.get(ISSUER)))
        if one.target != (study_uid if one.kind is AmendmentKind.STUDY else mine):
            continue
        of_patient = {tag: value for tag, value in one.changes.items() if is_of_patient(tag)}
        patient = overlaid(patient, of_patient)
        study = overlaid(study, {tag: value for tag, value in one.changes.items() if tag not in of_patient})
        ids.append(text_of(patient.get(PATIENT_ID)))
        applied.append(Applied(one.number, f"{one.made_at.isoformat(timespec='microseconds')}+00:00", one.changes))
    return Folded(patient, study, tuple(applied), tuple(dict.fromkeys(filter(None, ids))))


def version_of(applied: Sequence[Applied]) -> str:
    """A name for what those amendments make of a header; empty for none."""
    if not applied:
        return ""
    canonical = json.dumps([[one.number, one.at, one.changes] for one in applied], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
