"""The attributes of an instance that C-FIND can match and return, and the index columns made of them.

``levels_of`` never raises for one bad element: a value that is invalid for its VR is left out, as if it were absent.
Values stay as received: no time zone is applied, and case is kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset

from storage.dicom.elements import BadValueError, checked, codecs_of, items_of, values_of
from storage.dicom.query_keys import IMAGE_KEYS, OFFSET_FROM_UTC, PATIENT_KEYS, SERIES_KEYS, STUDY_KEYS, Key
from storage.records import DicomJson, Levels

NAME_WIDTH = 200
_INDEXED = {
    "PatientID": 64,
    "IssuerOfPatientID": 64,
    "PatientName": NAME_WIDTH,
    "PatientSex": 16,
    "AccessionNumber": 64,
    "StudyID": 64,
    "Modality": 16,
}
"""Characters of the columns in storage/index/tables. A longer value is left out, never truncated."""
_MAX_ITEMS = 100
"""Maximum number of items of a sequence; a longer sequence is left out. Chosen, not measured."""
_MAX_BYTES = 1 << 18
"""Maximum bytes of a sequence, since all its items are parsed before they are counted. Chosen, not measured."""


def levels_of(dataset: Dataset) -> Levels:
    """The supported attributes of a data set by level, in the DICOM JSON model (PS3.18 F). Never raises."""
    codecs = codecs_of(dataset)
    return Levels(
        patient=_attributes(dataset, PATIENT_KEYS, codecs),
        study=_attributes(dataset, (*STUDY_KEYS, OFFSET_FROM_UTC), codecs),
        series=_attributes(dataset, (*SERIES_KEYS, OFFSET_FROM_UTC), codecs),
        instance=_attributes(dataset, (*IMAGE_KEYS, OFFSET_FROM_UTC), codecs),
    )


def _attributes(dataset: Dataset, keys: tuple[Key, ...], codecs: Sequence[str]) -> DicomJson:
    found: DicomJson = {}
    for key in keys:
        if key.tag not in dataset:
            continue
        try:
            values = _values(dataset, key, codecs)
        except Exception:  # noqa: BLE001 - one hostile element must not lose the others
            continue
        if any(value is not None for value in values):
            found[key.json_tag] = {"vr": key.vr, "Value": values}
    return found


def _values(dataset: Dataset, key: Key, codecs: Sequence[str]) -> list[Any]:
    if key.vr == "SQ":
        raw: Any = dataset.get_item(key.tag, keep_deferred=True)
        if isinstance(raw.value, bytes) and len(raw.value) > _MAX_BYTES:
            raise BadValueError("SQ")
        items = items_of(dataset, key.tag, codecs)
        if len(items) > _MAX_ITEMS:
            raise BadValueError("SQ")
        return [kept for item in items if (kept := _attributes(item, key.items, codecs_of(item, codecs)))]
    values = values_of(dataset, key.tag, key.vr, codecs, single=key.single)
    if key.keyword == "PatientName" and any(len(fold_name(value)) > NAME_WIDTH for value in values):
        raise BadValueError("PN")
    if key.single and len(values) > 1:
        raise BadValueError("more than one value")
    longest = _INDEXED.get(key.keyword)
    return [None if value == "" else checked(value, key.vr, longest) for value in values]


def columns_of(levels: Levels) -> dict[str, dict[str, Any]]:
    """Column values by table of storage/index/tables, ``attributes`` included.

    ``identity`` is patient ID and issuer. For a patient without an ID it contains the Study Instance UID instead, so
    that anonymous patients are never merged. ``name`` is folded (fold_name), ``study_time`` filled (fill_time).
    """
    patient_id = text_of(levels.patient.get("00100020"))
    issuer = text_of(levels.patient.get("00100021"))
    study_uid = text_of(levels.study.get("0020000D"))
    number = levels.instance.get("00200013", {}).get("Value", [None])[0]
    return {
        "patient": {
            "identity": f"{patient_id}\t{issuer}" if patient_id else f"\t{study_uid}",
            "patient_id": patient_id,
            "name": fold_name(text_of(levels.patient.get("00100010"))),
            "birth_date": text_of(levels.patient.get("00100030")),
            "sex": text_of(levels.patient.get("00100040")),
            "attributes": levels.patient,
        },
        "study": {
            "study_instance_uid": study_uid,
            "study_date": text_of(levels.study.get("00080020")),
            "study_time": fill_time(text_of(levels.study.get("00080030"))),
            "accession_number": text_of(levels.study.get("00080050")),
            "study_id": text_of(levels.study.get("00200010")),
            "attributes": levels.study,
        },
        "series": {
            "series_instance_uid": text_of(levels.series.get("0020000E")),
            "modality": text_of(levels.series.get("00080060")),
            "attributes": levels.series,
        },
        "instance": {
            "sop_instance_uid": text_of(levels.instance.get("00080018")),
            "sop_class_uid": text_of(levels.instance.get("00080016")),
            "instance_number": number,
            "attributes": levels.instance,
        },
    }


def text_of(attribute: DicomJson | None) -> str:
    """The values of an attribute as one text, as DICOM writes them with backslashes; empty if there are none."""
    values = (attribute or {}).get("Value") or []
    return "\\".join(_joined(value) if isinstance(value, dict) else str(value or "") for value in values)


def _joined(name: dict[str, str]) -> str:
    return "=".join(name.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")


def fold_name(name: str) -> str:
    """A person name in the form in which names are compared: without case, accents, width variants and empty
    trailing components.

    PS3.4 C.2.2.2.1.1 leaves this to the implementation. Accents are U+0300 to U+036F, not the Japanese voiced mark.
    """
    if not name.isascii():
        decomposed = unicodedata.normalize("NFKD", name)
        name = unicodedata.normalize("NFC", "".join(c for c in decomposed if not "\u0300" <= c <= "\u036f"))
    groups = name.casefold().split("=")
    return "=".join("^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups)


def fill_time(time: str) -> str:
    """A TM value with all components, HHMMSS.FFFFFF: the earliest time that it can mean."""
    if not time:
        return ""
    whole, _, fraction = time.partition(".")
    return f"{whole:0<6}.{fraction:0<6}"
