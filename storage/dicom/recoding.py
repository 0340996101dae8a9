"""Converts the text of a data set to UTF-8.

Text is decoded as queries decode it, not as pydicom would: text without a declared character set may be UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, PersonName

from storage.dicom.elements import codecs_of, decoded, readable_items, set_items
from storage.dicom.writing import vr_of

UTF_8 = "ISO_IR 192"
_ONE_VALUE = {"ST", "LT", "UT"}
"""VRs in which a backslash does not separate values."""


def to_utf8(dataset: Dataset) -> None:
    """Convert all text, at any depth, to UTF-8, and set Specific Character Set."""
    _convert(dataset, ("ascii",), ())
    declare(dataset, UTF_8)


def declare(dataset: Dataset, character_set: str) -> None:
    """Set Specific Character Set, also if it was received with another VR, which pydicom would keep."""
    dataset.add_new(0x00080005, "CS", character_set)


def undeclared_latin_1(dataset: Dataset) -> bool:
    """Whether no character set is declared, and all non-ASCII text is decoded as Latin-1 because it is not UTF-8."""
    found = {_is_utf8(value) for value in _received_text(dataset, ()) if not value.isascii()}
    return codecs_of(dataset) == ("ascii",) and found == {False}


def _convert(dataset: Dataset, inherited: Sequence[str], around: tuple[Dataset, ...]) -> None:
    codecs = codecs_of(dataset, inherited)
    around = (dataset, *around)
    for tag in sorted(dataset.keys()):
        element: Any = dataset.get_item(tag, keep_deferred=True)
        vr = vr_of(element, around) if isinstance(element, RawDataElement) else str(element.VR)
        if vr == "SQ":
            items = readable_items(dataset, tag, codecs)
            for item in items:
                _convert(item, codecs, around)
                if "SpecificCharacterSet" in item:
                    declare(item, UTF_8)
            if items and isinstance(element, RawDataElement):
                set_items(dataset, tag, items)
        elif vr in CUSTOMIZABLE_CHARSET_VR and isinstance(element, RawDataElement) and element.value:
            text = decoded(element.value, vr, codecs).rstrip("\0 ")
            values = [text] if vr in _ONE_VALUE else text.split("\\")
            converted = [PersonName(value) for value in values] if vr == "PN" else values
            value = converted[0] if len(converted) == 1 else converted
            dataset[tag] = DataElement(tag, vr, value, already_converted=True)


def _received_text(dataset: Dataset, around: tuple[Dataset, ...]) -> Iterator[bytes]:
    """The raw bytes of all received text, at any depth."""
    around = (dataset, *around)
    for tag in sorted(dataset.keys()):
        element: Any = dataset.get_item(tag, keep_deferred=True)
        vr = vr_of(element, around) if isinstance(element, RawDataElement) else str(element.VR)
        if vr == "SQ":
            for item in readable_items(dataset, tag, ("ascii",)):
                yield from _received_text(item, around)
        elif vr in CUSTOMIZABLE_CHARSET_VR and isinstance(element, RawDataElement) and element.value:
            yield element.value


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeError:
        return False
    return True
