"""The elements of a response identifier, from values of the DICOM JSON model (PS3.18 F).

A pydicom DataElement converts its value when it is created and again when it is written, which takes most of the time
of many responses. If the encoding of the association is known, raw elements are created, whose bytes are written
without conversion.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.config import IGNORE
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.valuerep import format_number_as_ds

from storage.dicom.query_keys import Key
from storage.records import DicomJson

Element = DataElement | RawDataElement

_UTF8, _LATIN_1 = "ISO_IR 192", "ISO_IR 100"
_IN_LATIN_1 = re.compile(r"[\0-\x7f\xa0-\xff]*")
_NEVER_TEXT = {"DA", "DS", "DT", "IS", "TM", "UI"}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


def element(key: Key, values: Sequence[Any], implicit: bool | None = None, character_set: str = "") -> Element:
    """One attribute, of zero length without values. ``implicit``: whether it will be written in implicit VR little
    endian, None if that is not known; if it is known, the element is raw, with its text in that character set."""
    if key.vr == "SQ":
        return DataElement(key.tag, "SQ", [_item(key, item) for item in values])
    written = [_written(key.vr, value) for value in values]
    if implicit is not None:
        value = _bytes(key.vr, written, "latin-1" if character_set == _LATIN_1 else "utf-8")
        return RawDataElement(key.tag, key.vr, len(value), value, 0, implicit, True)
    if not values:
        return DataElement(key.tag, key.vr, empty_value_for_VR(key.vr))
    return DataElement(key.tag, key.vr, written[0] if len(written) == 1 else written, validation_mode=IGNORE)


def identifier(elements: Sequence[Element], implicit: bool | None, character_set: str = "") -> Dataset:
    """A data set of elements that ``element`` made with the same ``implicit``. ``character_set``: empty if all of their
    text is ASCII."""
    made = Dataset({one.tag: one for one in elements})
    if character_set:
        made.add_new(0x00080005, "CS", character_set)
    if implicit is not None:
        codecs = convert_encodings(character_set) if character_set else default_encoding
        made.set_original_encoding(implicit, True, codecs)
    return made


def stored(attributes: DicomJson, key: Key) -> list[Any]:
    """The values of an attribute; none if it is absent."""
    values: list[Any] = attributes.get(key.json_tag, {}).get("Value", [])
    return values


def character_set_of(attributes: DicomJson, keys: Iterable[Key], *, utf8: bool) -> str:
    """The character set for the text of these attributes; empty if it is ASCII, as numbers, UIDs and dates always are.

    Without ``utf8``, it is ISO_IR 100 if that has all characters: many older systems know no other.
    """
    texts = [stored(attributes, key) for key in keys if key.vr not in _NEVER_TEXT]
    if _all_text(texts, str.isascii):
        return ""
    latin_1 = not utf8 and _all_text(texts, lambda text: _IN_LATIN_1.fullmatch(text) is not None)
    return _LATIN_1 if latin_1 else _UTF8


def _all_text(value: Any, holds: Callable[[str], bool]) -> bool:
    if isinstance(value, str):
        return holds(value)
    if isinstance(value, dict):
        return all(_all_text(one, holds) for one in value.values())
    return not isinstance(value, list) or all(_all_text(one, holds) for one in value)


def _item(sequence: Key, item: DicomJson) -> Dataset:
    whole = Dataset()
    for key in sequence.items:
        if key.json_tag in item:
            whole[key.tag] = element(key, stored(item, key))
    return whole


def _bytes(vr: str, written: list[Any], codec: str) -> bytes:
    if vr in _BINARY:
        return b"".join(struct.pack("<" + _BINARY[vr], value) for value in written if value != "")
    text = "\\".join(map(str, written)).encode(codec)
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
