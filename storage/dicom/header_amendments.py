"""Amendments of patient and study attributes: which may be amended, and the attributes that result.

An amendment never changes a stored object. It gives attributes of a patient or a study new values; ``folded`` applies
amendments to the received attributes, in the order in which they were made. UIDs are never amended.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydicom import Dataset
from pydicom.config import RAISE
from pydicom.valuerep import validate_value

from storage.dicom.elements import is_control
from storage.dicom.levels import columns_of, levels_of, text_of
from storage.dicom.query_keys import PATIENT_KEYS, STUDY_KEYS, Key
from storage.errors import InputInvalid
from storage.records import Applied, DicomJson, Levels

PATIENT_ID, ISSUER, STUDY_UID = "00100020", "00100021", "0020000D"
_IDENTIFYING = ("00100010", "00100030", "00100040")
"""Name, birth date and sex. A study that moves to a known patient gets those of that patient."""


class AmendmentKind(StrEnum):
    """The level whose attributes an amendment changes."""

    PATIENT = "patient"
    """All studies of a Patient ID and issuer. A new Patient ID renames the patient, or merges it with another."""
    STUDY = "study"
    """One study. A new Patient ID moves it to that patient."""


@dataclass(frozen=True)
class Amendment:
    """One amendment. ``target``: the identity of a patient (``patient_identity``) or a Study Instance UID.

    ``changes``: the new values in the DICOM JSON model, without ``Value`` if the attribute becomes empty.
    ``undoes``: the number of the amendment that this one reverts. ``undone``: whether a later one reverted this one.
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
        """The target for people: patient ID and issuer, or the Study Instance UID."""
        return self.target.rstrip("\t").replace("\t", " of ")


@dataclass(frozen=True)
class AmendedStudy:
    """The effect of an amendment on one study: the values that differ, by keyword."""

    study_instance_uid: str
    instances: int
    before: dict[str, str]
    after: dict[str, str]


@dataclass(frozen=True)
class Folded:
    """A study's attributes with its amendments applied, and every Patient ID that it has had."""

    patient: DicomJson
    study: DicomJson
    applied: tuple[Applied, ...]
    patient_ids: tuple[str, ...]

    def columns(self) -> dict[str, dict[str, Any]]:
        """Column values of the rows of patient and study."""
        return columns_of(Levels(self.patient, self.study, {}, {}))


# --- attributes that may be amended ---


def _amendable(keys: Iterable[Key]) -> dict[str, Key]:
    return {key.keyword: key for key in keys if key.vr not in ("SQ", "UI")}


AMENDABLE = {AmendmentKind.PATIENT: _amendable(PATIENT_KEYS), AmendmentKind.STUDY: _amendable(STUDY_KEYS)}
"""The attributes that may be amended, by level. A study's patient attributes change only if it moves to a patient."""
_BY_TAG = {key.json_tag: key for keys in AMENDABLE.values() for key in keys.values()}


def changes_of(values: Mapping[str, str]) -> DicomJson:
    """Values by keyword, in DICOM's notation, converted to the DICOM JSON model. Raises InputInvalid."""
    written, keys = Dataset(), {**AMENDABLE[AmendmentKind.PATIENT], **AMENDABLE[AmendmentKind.STUDY]}
    written.SpecificCharacterSet = "ISO_IR 192"
    changes: DicomJson = {}
    for keyword, value in values.items():
        if keyword not in keys:
            raise InputInvalid(f"{keyword} cannot be amended; these can: {', '.join(sorted(keys))}")
        key = keys[keyword]
        changes[key.json_tag] = {"vr": key.vr}
        if value:
            _check(key, value)
            try:
                written.add_new(key.tag, key.vr, int(value) if key.vr == "US" else value)
            except ValueError:
                raise _invalid(key, value, _FORMS.get(key.vr, "it cannot be written")) from None
    levels = levels_of(written)
    for tag in (tag for tag in changes if _BY_TAG[tag].tag in written):
        found = levels.patient.get(tag) or levels.study.get(tag)
        if found is None:
            raise _invalid(_BY_TAG[tag], values[keyword_of(tag)], _FORMS.get(_BY_TAG[tag].vr, "it cannot be searched"))
        changes[tag] = found
    return changes


def _check(key: Key, value: str) -> None:
    """Raises InputInvalid for a value that the standard forbids, even if the same value is stored when received."""
    texts = ("LT", "ST")
    values = [value] if key.vr in texts else value.split("\\")
    if key.single and len(values) > 1:
        raise _invalid(key, value, "it takes one value, and a backslash separates values")
    for each in values:
        try:
            if key.vr == "US" and not re.fullmatch("[0-9]{1,5}", each):
                raise ValueError("it is no number")
            validate_value(key.vr, int(each) if key.vr == "US" else each, RAISE)
            if key.vr == "DA":
                datetime.strptime(each, "%Y%m%d")
        except ValueError as error:
            raise _invalid(key, value, _FORMS.get(key.vr) or str(error).partition(" Please see")[0]) from None
        enumerated, bare = _ENUMERATED.get(key.keyword), each.lstrip("0") if key.vr == "US" else each.strip(" ")
        if enumerated and bare not in enumerated:
            raise _invalid(key, value, f"write one of {', '.join(enumerated)}")
        if key.vr == "PN" and any(group.count("^") > 4 for group in each.split("=")):
            raise _invalid(key, value, "a name has at most five components, with ^ between them")
        allowed = "\t\n\f\r" if key.vr in texts else ""
        if any(is_control(one) or one in _REORDERING for one in each if one not in allowed):
            raise _invalid(key, value, "it has a control character")


_ENUMERATED = {
    "PatientSex": ("F", "M", "O"),
    "QualityControlSubject": ("YES", "NO"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "PatientSexNeutered": ("ALTERED", "UNALTERED"),
    "SmokingStatus": ("YES", "NO", "UNKNOWN"),
    "PregnancyStatus": ("1", "2", "3", "4"),
}
"""Enumerated values of PS3.3 C.7.1.1 and C.7.2.2."""
_REORDERING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Controls that change the order in which characters are shown."""
_FORMS = {
    "AS": "write an age such as 045Y",
    "CS": "write at most 16 capital letters, digits, spaces and underscores",
    "DA": "write a date such as 19650131",
    "DS": "write a number of at most 16 characters, such as 1.75",
    "TM": "write a time such as 142500",
    "US": "write a whole number from 0 to 65535",
}


def _invalid(key: Key, value: str, why: str) -> InputInvalid:
    return InputInvalid(f"{key.keyword}: {value!r} is not a valid value ({key.vr}): {why}")


def is_of_patient(tag: str) -> bool:
    """Whether an attribute belongs to the patient rather than to the study."""
    return _BY_TAG[tag].keyword in AMENDABLE[AmendmentKind.PATIENT]


def keyword_of(tag: str) -> str:
    return _BY_TAG[tag].keyword


# --- applying amendments ---


def patient_identity(patient_id: str, issuer: str = "") -> str:
    """The identity of a patient in the index: ID and issuer."""
    return f"{patient_id}\t{issuer}"


def overlaid(attributes: DicomJson, changes: DicomJson) -> DicomJson:
    """Attributes with changes applied. An attribute that becomes empty is removed, as in ``levels_of``."""
    result = {**attributes, **changes}
    return {tag: value for tag, value in result.items() if value.get("Value")}


def taken_over(known: DicomJson) -> DicomJson:
    """The changes for a study that moves to a known patient: that patient's name, birth date and sex."""
    return {tag: known.get(tag, {"vr": _BY_TAG[tag].vr}) for tag in _IDENTIFYING}


def folded(patient: DicomJson, study: DicomJson, amendments: Sequence[Amendment]) -> Folded:
    """Apply amendments to received attributes, in order.

    An amendment of a patient applies only if the study belongs to that patient at this point of the order.
    """
    study_uid = text_of(study.get(STUDY_UID))
    applied: list[Applied] = []
    ids = [text_of(patient.get(PATIENT_ID))]
    for one in amendments:
        identity = patient_identity(text_of(patient.get(PATIENT_ID)), text_of(patient.get(ISSUER)))
        if one.target != (study_uid if one.kind is AmendmentKind.STUDY else identity):
            continue
        of_patient = {tag: value for tag, value in one.changes.items() if is_of_patient(tag)}
        patient = overlaid(patient, of_patient)
        study = overlaid(study, {tag: value for tag, value in one.changes.items() if tag not in of_patient})
        ids.append(text_of(patient.get(PATIENT_ID)))
        applied.append(Applied(one.number, f"{one.made_at.isoformat(timespec='microseconds')}+00:00", one.changes))
    return Folded(patient, study, tuple(applied), tuple(dict.fromkeys(filter(None, ids))))


def version_of(applied: Sequence[Applied]) -> str:
    """A digest of the amendments, 16 hex digits; empty if there are none."""
    if not applied:
        return ""
    canonical = json.dumps([[one.number, one.at, one.changes] for one in applied], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
