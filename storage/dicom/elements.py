"""Decodes data elements to Python values, whatever a modality wrote into them.

Decoding does not change the data set (raw elements stay raw), and needs no warning filters, which are not thread-safe.
``values_of`` only decodes, as the ranges and wildcards of a query require. ``checked`` then verifies that a decoded
value is valid for its VR (PS3.5 section 6.2).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, PersonName
from pydicom.values import convert_SQ, convert_value

from storage.dicom import iso2022

# --- decoding ---


def codecs_of(dataset: Dataset, inherited: Sequence[str] = ("ascii",)) -> Sequence[str]:
    """The Python codecs of Specific Character Set (PS3.3 C.12.1.1.2), or ``inherited`` if it is absent."""
    if _CHARACTER_SET not in dataset:
        return inherited
    try:
        terms = values_of(dataset, _CHARACTER_SET, "CS", ("ascii",))
        return tuple(_codec(term) for term in terms) or inherited
    except Exception:  # noqa: BLE001 - a hostile character set counts as unknown
        return inherited


def values_of(dataset: Dataset, tag: BaseTag, vr: str, codecs: Sequence[str], *, single: bool = False) -> list[Any]:
    """The values of one element: ``str`` for text VRs, numbers for binary VRs.

    ``single``: the attribute has VM 1, so a backslash is not a delimiter. May raise any error on hostile content.
    """
    element: Any = dataset.get_item(tag, keep_deferred=True)
    if element is None or element.value is None or element.value == b"":
        return []
    if not isinstance(element, RawDataElement):
        values = [] if element.is_empty else _converted(element, vr)
        return ["\\".join(values)] if len(values) > 1 and single and vr not in _BINARY else values
    if vr in _BINARY:
        number = convert_value(vr, element)
        return [number] if isinstance(number, int | float) else list(number)
    text = decoded(element.value, vr, codecs)
    one = single or vr in _ONE_TEXT
    return [_unpadded(value, vr) for value in ([text] if one else text.split("\\"))]


def items_of(dataset: Dataset, tag: BaseTag, codecs: Sequence[str]) -> list[Dataset]:
    """The items of a sequence. May raise any error on hostile content."""
    element: Any = dataset.get_item(tag, keep_deferred=True)
    value: Any = None if element is None else element.value
    if isinstance(element, RawDataElement) and isinstance(value, bytes):
        # Items of a sequence of VR UN are in implicit VR little endian (PS3.5 6.2.2), and some wrongly in explicit VR.
        # ``convert_SQ`` detects explicit VR, unless its second argument says that the VR is implicit.
        unknown = element.VR == "UN"
        value = convert_SQ(value, element.is_implicit_VR, element.is_little_endian or unknown, list(codecs))
    return [item for item in value or [] if isinstance(item, Dataset)]


def readable(dataset: Dataset, keyword: str) -> Any:
    """The value of an attribute as pydicom converts it; None if it is absent or cannot be read."""
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return None


def readable_items(dataset: Dataset, tag: BaseTag, codecs: Sequence[str]) -> list[Dataset]:
    """The items of a sequence; none if it cannot be read."""
    try:
        return items_of(dataset, tag, codecs)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return []


def set_items(dataset: Dataset, tag: BaseTag, items: Iterable[Dataset]) -> None:
    """Set a sequence without pydicom's assignment.

    That reads Pixel Representation (0028,0103) of the data set and of the items, and raises if one of them is invalid.
    """
    dataset._dict[tag] = DataElement(tag, "SQ", Items(items))


def append_item(dataset: Dataset, keyword: str, item: Dataset) -> None:
    """Append an item to a sequence. A sequence that is absent or cannot be read is replaced."""
    tag = BaseTag(tag_for_keyword(keyword) or 0)
    set_items(dataset, tag, [*readable_items(dataset, tag, codecs_of(dataset)), item])


def _codec(term: str) -> str:
    """The codec of a defined term or of one of its common misspellings; ASCII for an unknown term."""
    known = _KNOWN.get(term) or _KNOWN.get(term.upper())
    number = re.fullmatch(r"ISO[ _-]?(2022[ _-]?)?(?:IR)?[ _-]?(\d+)", term.upper())
    if known is None and number:
        known = _KNOWN.get(("ISO 2022 IR " if number[1] else "ISO_IR ") + number[2])
    if known is None and term.upper().replace("-", "") == "UTF8":
        known = "utf-8"
    return "ascii" if known in {None, "iso8859"} else str(known)


def decoded(value: bytes, vr: str, codecs: Sequence[str]) -> str:
    """The text of a value as queries read it. Never raises: text of a wrong or undeclared character set is guessed."""
    if b"\x1b" in value and vr in CUSTOMIZABLE_CHARSET_VR:  # code extensions, PS3.5 section 6.1.2.5
        try:
            return iso2022.decoded(value, codecs, b"\\^=" if vr == "PN" else b"\\")
        except UnicodeError:  # keep at least what the first codec can decode
            return value.decode(codecs[0], errors="replace")
    if vr not in CUSTOMIZABLE_CHARSET_VR:
        return value.decode("latin-1")
    for codec in (codecs[0], "utf-8"):  # undeclared UTF-8 and Latin-1 are common
        try:
            return value.decode(codec)
        except UnicodeError:
            continue
    return value.decode("latin-1" if codecs[0] in {"ascii", "UTF8"} else codecs[0], errors="replace")


def _converted(element: DataElement | RawDataElement, vr: str) -> list[Any]:
    """The values of an element that pydicom has already converted, or that a program made."""
    value: Any = element.value
    one = isinstance(value, str | bytes | int | float | PersonName) or not isinstance(value, Iterable)
    values = [value] if one else list(value)
    if vr in _BINARY:
        return values
    if vr in {"DS", "IS"}:
        values = [getattr(each, "original_string", each) for each in values]
    return [_unpadded(str(each), vr) for each in values]


def _unpadded(text: str, vr: str) -> str:
    """Text without padding (PS3.5 section 6.2), and without control characters if the VR forbids them."""
    if vr in {"ST", "LT", "UT"}:
        return text.replace("\0", "").rstrip()
    if not text.isprintable():  # an ideographic or no-break space, or a joiner, is not printable either, and stays
        text = "".join(character for character in text if not is_control(character))
    return text.strip(" ")


def is_control(character: str) -> bool:
    """Whether no value of one line may hold the character (PS3.5 section 6.1.3): controls, and ends of lines."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


_CHARACTER_SET = BaseTag(0x00080005)
_KNOWN = python_encoding | {"ISO_IR 203": "iso8859_15", "ISO 2022 IR 203": "iso8859_15"}
"""Python codecs by defined term. Latin alphabet No. 9 is not in pydicom 3.0."""
_BINARY = frozenset({"US", "UL", "SS", "SL", "FL", "FD"})
_ONE_TEXT = frozenset({"ST", "LT", "UT", "UR"})

# --- checking ---


class BadValueError(ValueError):
    """The value of an element is invalid for its VR."""


def checked(value: Any, vr: str, longest: int | None = None) -> Any:
    """A decoded value in the DICOM JSON model (PS3.18 F.2). Raises BadValueError if it is invalid for its VR.

    ``longest``: maximum characters, instead of the VR's own maximum.
    """
    if vr in _PATTERNS:
        value = _without_delimiters(value, vr)
        if not _PATTERNS[vr].fullmatch(value):
            raise BadValueError(vr)
        return value
    if vr in _NUMBERS:
        return _NUMBERS[vr](value)
    if len(value) > (longest or _LONGEST.get(vr, 1024)):
        raise BadValueError(vr)
    text = value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    return _person_name(text) if vr == "PN" else text


def _without_delimiters(value: str, vr: str) -> str:
    """A date without delimiters, or a time without colons and with at most six digits of a second; another value
    unchanged.

    ``2024.01.02`` and ``10:11:12`` are forms of ACR-NEMA 300 that archives should read (PS3.5-2004 table 6.2-1). Some
    systems write seven digits after the second.
    """
    if vr == "DA" and _DELIMITED_DATE.fullmatch(value):
        return value.replace(value[4], "")
    if vr == "TM" and _LOOSE_TIME.fullmatch(value):
        whole, point, fraction = value.replace(":", "").partition(".")
        return whole + point + fraction[:6]
    return value


def _person_name(text: str) -> dict[str, str] | None:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {group: name.strip() for group, name in groups if name.strip()} or None


def _integer(value: str) -> int:
    if not _INTEGER.fullmatch(value) or not -(2**31) <= int(value) < 2**31:
        raise BadValueError("IS")
    return int(value)


def _decimal(value: str) -> int | float:
    if not _DECIMAL.fullmatch(value) or not math.isfinite(float(value)):
        raise BadValueError("DS")
    return int(value) if value.lstrip("+-").isdigit() else float(value)


def _finite(value: int | float) -> int | float:
    if not math.isfinite(value):
        raise BadValueError("FD")
    return value


_INTEGER = re.compile(r"[+-]?\d{1,12}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([Ee][+-]?\d{1,3})?", re.ASCII)
_DELIMITED_DATE = re.compile(r"\d{4}([.\-/])\d\d\1\d\d", re.ASCII)
_LOOSE_TIME = re.compile(r"(\d\d:\d\d(:\d\d)?|\d{6})(\.\d+)?", re.ASCII)
_DATE = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
_TIME = r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"
_PATTERNS = {
    vr: re.compile(pattern, re.ASCII)
    for vr, pattern in {
        "DA": _DATE,
        "TM": _TIME,
        "DT": rf"(\d{{4}}|\d{{4}}(0[1-9]|1[0-2])|{_DATE}({_TIME})?)([+-]\d{{4}})?",
        "AS": r"\d{3}[DWMY]",
        "UI": r"[0-9.]{1,64}",
    }.items()
}
_NUMBERS: dict[str, Callable[[Any], int | float]] = {"IS": _integer, "DS": _decimal} | dict.fromkeys(_BINARY, _finite)
_LONGEST = {"LT": 10240, "UT": 10240, "ST": 4096}
"""Maximum characters of long text VRs. The limit of UT, and 1024 for all other VRs, are our own."""
