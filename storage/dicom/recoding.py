"""Text of a data set in another character set.

Each element is read as queries read it, not as pydicom would: text of which no character set is declared may be UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import PersonName

from storage.dicom.elements import IN_CHARACTER_SET, codecs_of, decoded, items_of
from storage.dicom.writing import vr_of

UTF_8 = "ISO_IR 192"
_ONE_VALUE = {"ST", "LT", "UT"}


def to_utf8(dataset: Dataset) -> None:
    """Write all text in UTF-8, at any depth, and declare it."""
    _recode(dataset, ("ascii",), ())
    dataset.SpecificCharacterSet = UTF_8


def undeclared_latin_1(dataset: Dataset) -> bool:
    """Whether no character set is declared, and some text is read as Latin 1, and none as UTF-8."""
    found = {_is_utf8(value) for value in _texts(dataset, ()) if not value.isascii()}
    return codecs_of(dataset) == ("ascii",) and found == {False}


def _recode(dataset: Dataset, inherited: Sequence[str], around: tuple[Dataset, ...]) -> None:
    codecs = codecs_of(dataset, inherited)
    around = (dataset, *around)
    for tag in sorted(dataset.keys()):
        element: Any = dataset.get_item(tag)
        vr = vr_of(element, around) if isinstance(element, RawDataElement) else str(element.VR)
        if vr == "SQ":
            items = _items(dataset, element, codecs)
            for item in items:
                _recode(item, codecs, around)
                if "SpecificCharacterSet" in item:
                    item.SpecificCharacterSet = UTF_8
            if items and isinstance(element, RawDataElement):
                dataset[tag] = DataElement(tag, "SQ", Items(items))
        elif vr in IN_CHARACTER_SET and isinstance(element, RawDataElement) and element.value:
            text = decoded(element.value, vr, codecs).rstrip("\0 ")
            values = [text] if vr in _ONE_VALUE else text.split("\\")
            made = [PersonName(value) for value in values] if vr == "PN" else values
            dataset[tag] = DataElement(tag, vr, made[0] if len(made) == 1 else made, already_converted=True)


def _texts(dataset: Dataset, around: tuple[Dataset, ...]) -> Iterator[bytes]:
    """The bytes of all text that was received, at any depth."""
    around = (dataset, *around)
    for tag in sorted(dataset.keys()):
        element: Any = dataset.get_item(tag)
        vr = vr_of(element, around) if isinstance(element, RawDataElement) else str(element.VR)
        if vr == "SQ":
            for item in _items(dataset, element, ("ascii",)):
                yield from _texts(item, around)
        elif vr in IN_CHARACTER_SET and isinstance(element, RawDataElement) and element.value:
            yield element.value


def _items(dataset: Dataset, element: DataElement | RawDataElement, codecs: Sequence[str]) -> list[Dataset]:
    try:
        return items_of(dataset, element.tag, codecs)
    except Exception:  # noqa: BLE001 - what is no sequence has no text that anybody could read
        return []


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeError:
        return False
    return True
