"""What of a received header a reconstruction cannot carry is left out, and named.

Most odd elements go over as their bytes (storage/dicom/writing.py). Left out is what no reader could read in any
encoding, such as a US of 3 bytes, and what would be false or out of place in an object with other pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.tag import BaseTag
from pydicom.valuerep import STANDARD_VR

_PIXELS = 0x7FE0
"""The group of offset tables and float pixels, which are those of the received object."""
_OUT_OF_PLACE = (0x0000, 0x0002, 0xFFFE)
"""Groups of the command set, of file meta information and of delimiters: none is of a data set (PS3.5 7.1)."""
_NAMED = 8
"""Tags that a note names; more are counted."""


def remove_uncarriable(header: Dataset) -> list[str]:
    """Leave out of a header, in place, what cannot be carried; the tags of what was odd, those inside sequences too."""
    odd = []
    for tag in sorted(header.keys()):
        if tag.group == _PIXELS:
            del header[tag]
        elif tag.group in _OUT_OF_PLACE:
            del header[tag]
            odd.append(_shown(tag))
    return [*odd, *_unreadable(header)]


def removal_note(odd: Sequence[str]) -> str:
    """What a description says of elements that were left out; empty where none was."""
    if not odd:
        return ""
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    return f"elements that cannot be read were left out: {', '.join(odd[:_NAMED])}{more}"


def _unreadable(dataset: Dataset) -> list[str]:
    odd: list[str] = []
    for tag in sorted(dataset.keys()):
        if not _can_be_read(dataset, tag):
            del dataset[tag]
            odd.append(_shown(tag))
            continue
        element = dataset.get_item(tag)
        if element.VR == "SQ" and not isinstance(element, RawDataElement):
            for item in element.value or ():
                odd += _unreadable(item)
    return odd


def _can_be_read(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element has values; a sequence is taken apart, and what has a VR that does not fit becomes UN."""
    raw: Any = dataset.get_item(tag)
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
            dataset[tag] = element
        elif attempt is not raw:
            dataset[tag] = attempt
        return True
    return False


def _shown(tag: BaseTag) -> str:
    return f"({tag.group:04X},{tag.element:04X})"
