"""Reads class labels from a CSV file, which names images by UID or by patient, laterality and view.

The first line has the columns ``sop_instance_uid,class`` (UID of the original or of a reconstruction) or
``patient_id,laterality,view,class``, in any order; other columns are ignored. Laterality is L or R. View is CC, MLO, ML
or LM, or equals View Position or the meaning of the view's code. Case is ignored in both.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import InputInvalid
from storage.index import Index
from storage.records import DicomJson, LabelledView

BY_UID = ("sop_instance_uid", "class")
BY_VIEW = ("patient_id", "laterality", "view", "class")

_IMAGE_LATERALITY, _LATERALITY, _VIEW_POSITION = "00200062", "00200060", "00185101"
_VIEW_CODE, _CODE_VALUE, _CODE_MEANING = "00540220", "00080100", "00080104"
_VIEWS = {
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
    "399260004": "ML",
    "R-10224": "ML",
    "399352003": "LM",
    "R-10228": "LM",
}
"""Views by their codes of PS3.16 CID 4014: SNOMED CT, and SRT, which older devices write."""


class LabelsInvalid(InputInvalid):
    """A label file is invalid. No label was set."""


@dataclass(frozen=True)
class Labelled:
    """Classes by SOP Instance UID, and the numbers of lines that match no image in the archive."""

    classes: dict[str, str]
    unmatched: tuple[int, ...]


def read_labels(path: Path, index: Index) -> Labelled:
    """Read a label file. Raises LabelsInvalid if it cannot be read, is malformed or gives an image two classes."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _labelled(csv.DictReader(file, strict=True), path, index)
    except OSError as error:
        raise LabelsInvalid(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise LabelsInvalid(f"{path} is not a CSV file in UTF-8: {error}") from error


def _labelled(reader: csv.DictReader[str], path: Path, index: Index) -> Labelled:
    columns = _columns(reader, path)
    rows = list(_rows(reader, columns, path))
    originals = index.classes.original_uids([values[0] for _, values in rows]) if columns == BY_UID else {}
    views: dict[str, list[LabelledView]] = {}
    classes: dict[str, tuple[str, int]] = {}
    unmatched = []
    for line, values in rows:
        if columns == BY_UID:
            uids = [originals[values[0]]] if values[0] in originals else []
        else:
            of_patient = views.setdefault(values[0], index.classes.views_of(values[0]))
            uids = [view.sop_instance_uid for view in of_patient if _is(view, values[1], values[2])]
        for uid in uids:
            name, before = classes.setdefault(uid, (values[-1], line))
            if name != values[-1]:
                raise LabelsInvalid(
                    f"{path}, line {line}: class {values[-1]!r} for an image that line {before} calls {name!r}"
                )
        if not uids:
            unmatched.append(line)
    return Labelled({uid: name for uid, (name, _) in classes.items()}, tuple(unmatched))


def _columns(reader: csv.DictReader[str], path: Path) -> tuple[str, ...]:
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    for columns in (BY_UID, BY_VIEW):
        if set(columns) <= set(reader.fieldnames):
            return columns
    raise LabelsInvalid(f"{path}: the first line must name the columns {','.join(BY_UID)} or {','.join(BY_VIEW)}")


def _rows(reader: csv.DictReader[str], columns: tuple[str, ...], path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    for row in reader:
        values = tuple((row[name] or "").strip() for name in columns)
        if not all(values):
            empty = columns[values.index("")]
            raise LabelsInvalid(f"{path}, line {reader.line_num}: {empty} is empty")
        if len(values[-1]) > 64:
            raise LabelsInvalid(f"{path}, line {reader.line_num}: a class has 64 characters at most")
        yield reader.line_num, values


def _is(view: LabelledView, laterality: str, name: str) -> bool:
    own = _first(view.instance, _IMAGE_LATERALITY) or _first(view.series, _LATERALITY)
    return own.upper() == laterality.upper() and name.upper() in _names(view.instance)


def _names(attributes: DicomJson) -> set[str]:
    """All names of a view, in upper case."""
    names = {_first(attributes, _VIEW_POSITION)}
    for item in attributes.get(_VIEW_CODE, {}).get("Value", []):
        names |= {_VIEWS.get(_first(item, _CODE_VALUE), ""), _first(item, _CODE_MEANING)}
    return {name.upper() for name in names if name}


def _first(attributes: DicomJson, tag: str) -> str:
    values = attributes.get(tag, {}).get("Value", [])
    return str(values[0]) if values else ""
