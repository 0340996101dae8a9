"""The elements of a response identifier, from values of the DICOM JSON model (PS3.18 F).

A pydicom DataElement converts its value when it is created and again when it is written, which takes most of the time
of many responses. If the encoding of the association is known, raw elements are created, whose bytes are written
without conversion.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.config import IGNORE
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.valuerep import format_number_as_ds

from storage.dicom.query_keys import Key
from storage.records import DicomJson

Element = DataElement | RawDataElement

_UTF8 = "ISO_IR 192"
_NEVER_TEXT = {"DA", "DS", "DT", "IS", "TM", "UI"}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


def element(key: Key, values: Sequence[Any], implicit: bool | None = None) -> Element:
    """One attribute, of zero length without values. ``implicit``: whether it will be written in implicit VR little
    endian, None if that is not known; if it is known, the element is raw, with its text in UTF-8."""
    if key.vr == "SQ":
        return DataElement(key.tag, "SQ", [_item(key, item) for item in values])
    written = [_written(key.vr, value) for value in values]
    if implicit is not None:
        value = _bytes(key.vr, written)
        return RawDataElement(key.tag, key.vr, len(value), value, 0, implicit, True)
    if not values:
        return DataElement(key.tag, key.vr, empty_value_for_VR(key.vr))
    return DataElement(key.tag, key.vr, written[0] if len(written) == 1 else written, validation_mode=IGNORE)


def identifier(elements: Sequence[Element], implicit: bool | None, *, utf8: bool) -> Dataset:
    """A data set of elements that ``element`` made with the same ``implicit``. ``utf8``: whether some of their text
    is not ASCII."""
    made = Dataset({one.tag: one for one in elements})
    if utf8:
        made.add_new(0x00080005, "CS", _UTF8)
    if implicit is not None:
        made.set_original_encoding(implicit, True, convert_encodings(_UTF8) if utf8 else default_encoding)
    return made


def stored(attributes: DicomJson, key: Key) -> list[Any]:
    """The values of an attribute; none if it is absent."""
    values: list[Any] = attributes.get(key.json_tag, {}).get("Value", [])
    return values


def all_ascii(attributes: DicomJson, keys: Iterable[Key]) -> bool:
    """Whether the text of these attributes is ASCII; numbers, UIDs, dates and times always are."""
    return all(_is_ascii(stored(attributes, key)) for key in keys if key.vr not in _NEVER_TEXT)


def _is_ascii(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii()
    if isinstance(value, dict):
        return all(map(_is_ascii, value.values()))
    return not isinstance(value, list) or all(map(_is_ascii, value))


def _item(sequence: Key, item: DicomJson) -> Dataset:
    whole = Dataset()
    for key in sequence.items:
        if key.json_tag in item:
            whole[key.tag] = element(key, stored(item, key))
    return whole


def _bytes(vr: str, written: list[Any]) -> bytes:
    if vr in _BINARY:
        return b"".join(struct.pack("<" + _BINARY[vr], value) for value in written if value != "")
    text = "\\".join(map(str, written)).encode()
    return text + (b"\0" if vr == "UI" else b" ") if len(text) % 2 else text


def _written(vr: str, value: Any) -> Any:
    """A value of the DICOM JSON model as pydicom writes it."""
    if value is None:
        return ""
    if vr == "PN":
        return "=".join(value.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")
    if vr == "DS":
        text = str(value)
        return text if len(text) <= 16 else format_number_as_ds(value)
    return str(value) if vr == "IS" else value
