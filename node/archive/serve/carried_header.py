"""Removes the elements of a received header that a reconstruction cannot carry, and lists them.

Most invalid elements are copied as bytes (storage/dicom/writing.py). An element is removed only
if no reader could read it in any encoding, such as a US of 3 bytes, or if it would be wrong beside other pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.tag import BaseTag
from pydicom.valuerep import STANDARD_VR

from storage.dicom.elements import set_items
from storage.dicom.encapsulate import drop_encapsulated_icon

_PIXELS = 0x7FE0
"""The group of offset tables and float pixels, which belong to the received object."""
_NOT_OF_DATA_SETS = (*range(8), 0xFFFE, 0xFFFF)
"""Groups of command sets, file meta information and delimiters, and groups that are never used (PS3.5 7.1, 7.8.1).
A reader may take their elements for the end of the data set."""
_LISTED = 8
"""Most tags that a note lists; the others are only counted."""


def remove_uncarriable(header: Dataset) -> list[str]:
    """Remove elements that cannot be carried, in place. Returns the tags of invalid ones, at any depth."""
    invalid = []
    for tag in sorted(header.keys()):
        if tag.group == _PIXELS:
            del header[tag]
        elif tag.group in _NOT_OF_DATA_SETS:
            del header[tag]
            invalid.append(str(tag))
    drop_encapsulated_icon(header)
    return [*invalid, *_unreadable(header)]


def removal_note(invalid: Sequence[str]) -> str:
    """The note on removed elements for the Derivation Description; empty if there are none."""
    if not invalid:
        return ""
    more = f" and {len(invalid) - _LISTED} more" if len(invalid) > _LISTED else ""
    return f"elements that cannot be read were left out: {', '.join(invalid[:_LISTED])}{more}"


def _unreadable(dataset: Dataset) -> list[str]:
    """Remove elements that cannot be read, at any depth, and return their tags."""
    invalid: list[str] = []
    for tag in sorted(dataset.keys()):
        if not _can_be_read(dataset, tag):
            del dataset[tag]
            invalid.append(str(tag))
            continue
        element = dataset.get_item(tag, keep_deferred=True)
        if element.VR == "SQ" and not isinstance(element, RawDataElement):
            for item in element.value or ():
                invalid += _unreadable(item)
    return invalid


def _can_be_read(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element can be read. Sequences are parsed, and elements whose VR does not fit become UN, in place."""
    raw: Any = dataset.get_item(tag, keep_deferred=True)
    if not isinstance(raw, RawDataElement):
        return True
    known = raw.VR is None or raw.VR in STANDARD_VR
    attempts = [raw] if known else []
    if not known or (tag.is_private and raw.VR is not None):
        attempts.append(raw._replace(VR="UN"))
    for attempt in attempts:
        try:
            element = convert_raw_data_element(attempt, encoding=dataset.original_character_set or None, ds=dataset)
        except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
            continue
        if element.VR == "SQ":
            set_items(dataset, tag, element.value or ())
        elif attempt is not raw:
            dataset[tag] = attempt
        return True
    return False
