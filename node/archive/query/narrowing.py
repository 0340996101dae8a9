"""SQL conditions that narrow a query to candidates. Every match meets them; ``matching`` decides afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from node.archive.query.matching import WILDCARD_VRS, Span, has_wildcard, name_groups, span
from node.archive.query.timezones import FARTHEST, day_text
from storage.dicom.query_keys import Key
from storage.index.query_pages import Narrow

COLUMNS = {
    "PatientID": "patient.patient_id",
    "PatientName": "patient.name",
    "PatientBirthDate": "patient.birth_date",
    "PatientSex": "patient.sex",
    "StudyInstanceUID": "study.study_instance_uid",
    "StudyDate": "study.study_date",
    "StudyTime": "study.study_time",
    "AccessionNumber": "study.accession_number",
    "StudyID": "study.study_id",
    "ModalitiesInStudy": "series.modality",
    "SOPClassesInStudy": "instance.sop_class_uid",
    "SeriesInstanceUID": "series.series_instance_uid",
    "Modality": "series.modality",
    "SOPClassUID": "instance.sop_class_uid",
}
"""Column by keyword; other keys are not narrowed."""


def narrows(key: Key, values: Sequence[Any], *, any_zone: bool) -> Iterator[Narrow]:
    """The conditions on columns for the values of a key. ``any_zone``: stored times may be in another time zone."""
    column = COLUMNS.get(key.keyword)
    if column is None or not values:
        return
    if key.vr in {"DA", "TM"}:
        covered = span(key.vr, values[0])
        if any_zone and key.keyword in {"StudyDate", "StudyTime"}:
            yield from _in_any_zone(column, key.vr, covered)
        else:
            yield Narrow(column, low=covered.low, high=covered.high)
    elif key.vr == "PN":
        yield from _name(column, values[0])
    elif key.vr not in WILDCARD_VRS or not any(map(has_wildcard, values)):
        yield Narrow(column, any_of=tuple(values))
    elif len(values) == 1:
        yield _wildcard(column, values[0])


def _in_any_zone(column: str, vr: str, covered: Span) -> Iterator[Narrow]:
    """Widened conditions: in another time zone, a date may differ by up to two days, and a time may be any."""
    if vr == "TM":
        return
    try:
        low, high = (datetime.strptime(end, "%Y%m%d") if end else None for end in (covered.low, covered.high))
        yield Narrow(
            column,
            low=day_text(low - FARTHEST) if low else "",
            high=day_text(high + FARTHEST) if high else "",
        )
    except (ValueError, OverflowError):  # the 30th of February, or the year 9999
        return


def _name(column: str, key: str) -> Iterator[Narrow]:
    """Conditions on a column that holds all component groups of a name, folded, the alphabetic one first."""
    groups = [(group, text) for group, text in name_groups(key) if text.strip("*")]
    if [group for group, _ in groups] != ["Alphabetic"]:
        yield Narrow(column, wildcard="*" + "*".join(text.replace("^", "*") for _, text in groups) + "*")
    elif has_wildcard(groups[0][1]):
        # stored names may lack a trailing delimiter, so the pattern does not require one
        yield _wildcard(column, groups[0][1].replace("^", "*") + "*", start=groups[0][1])
    else:
        yield Narrow(column, low=groups[0][1], high=groups[0][1] + "=\U0010ffff")


def _wildcard(column: str, pattern: str, *, start: str | None = None) -> Narrow:
    prefix = re.split(r"[*?]", start or pattern, maxsplit=1)[0]
    prefix = prefix.rstrip("^") if start else prefix
    is_prefix = bool(prefix) and not pattern[len(prefix) :].strip("*")
    return Narrow(column, prefix=prefix, wildcard="" if is_prefix else pattern)
