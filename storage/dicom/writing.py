"""A data set as bytes in a native transfer syntax, whatever a modality wrote into it.

An element that nobody touched goes over as the bytes of its value. Nothing of it is parsed, so no odd value (a DS of 20
characters, ``10:1``, text in an IS) can fail, and nothing of it changes but the header around it. What explicit VR has
no VR for is carried as UN (PS3.5 6.2.2). Elements that a program made or changed are written by pydicom.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import STANDARD_VR
from pydicom.values import convert_SQ

from storage.dicom.elements import values_of

_UNDEFINED = 0xFFFFFFFF
_LONGEST_SHORT = 0xFFFE
"""Bytes of the longest value that a 16-bit length can announce, which has to be even (PS3.5 7.1.1)."""
_LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_TEXT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"})
"""VRs whose values are padded with a space (PS3.5 6.2); all others are padded with a zero byte."""
_IN_CHARACTER_SET = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_NUMBER_BYTES = {"AT": 4, "US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "SV": 8, "UV": 8}
_WORD_BYTES = _NUMBER_BYTES | {"AT": 2, "OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
"""Bytes of what the byte order reverses (PS3.5 7.3)."""


ALL = range(0x100000000)
"""Every tag."""


def written(dataset: Dataset, syntax: UID, *, verbatim: bool = False, within: range = ALL) -> bytes:
    """The data set in ascending order of tags, without group lengths (retired, and wrong once anything changed).

    ``verbatim``: elements that are in that encoding already are left as they are, odd lengths and unknown VRs too.
    ``within``: which tags of the top level are written. Raises what pydicom raises where an element that a program made
    cannot be written.
    """
    return _Writer(syntax, verbatim=verbatim).data_set(dataset, _Outside(), within)


@dataclass(frozen=True)
class _Outside:
    """What holds around an item: the data sets, from the inside; the character set (terms or codecs), and whether it
    is another than the bytes of received text are in."""

    data_sets: tuple[Dataset, ...] = ()
    characters: Any = "iso8859"
    changed: bool = False


class _Writer:
    def __init__(self, syntax: UID, *, verbatim: bool) -> None:
        self._implicit, self._little, self._verbatim = syntax.is_implicit_VR, syntax.is_little_endian, verbatim
        self._order = "<" if syntax.is_little_endian else ">"

    def data_set(self, dataset: Dataset, outside: _Outside, within: range = ALL) -> bytes:
        tags = [tag for tag in sorted(dataset.keys()) if int(tag) in within and (tag.element != 0 or tag.group <= 6)]
        elements = [dataset.get_item(tag) for tag in tags]  # before anything below makes pydicom convert one
        around = _around(dataset, outside)
        return b"".join(self._element(element, around) for element in elements)

    def _element(self, element: DataElement | RawDataElement, around: _Outside) -> bytes:
        if isinstance(element, DataElement):
            return self._made(element, around)
        vr = vr_of(element, around.data_sets)
        if around.changed and vr in _IN_CHARACTER_SET:
            return self._made(around.data_sets[0][element.tag], around)
        return self._received(element, vr, around)

    # --- what was received ---

    def _received(self, raw: RawDataElement, vr: str, around: _Outside) -> bytes:
        value = raw.value or b""
        as_it_is = (raw.is_implicit_VR, raw.is_little_endian) == (self._implicit, self._little)
        if raw.length == _UNDEFINED:  # encapsulated pixels, or what has no end that pydicom knows
            return self._head(raw.tag, vr, _UNDEFINED) + value + self._delimiter(0xE0DD)
        if self._verbatim and as_it_is and (self._implicit or raw.VR):
            return self._head(raw.tag, raw.VR or "UN", len(value)) + value
        if vr == "SQ":
            items = _items(raw, around.data_sets[0])
            if items is not None:
                return self._sequence(raw.tag, items, around, undefined=False)
            vr = "UN"
        if raw.is_little_endian != self._little:
            value = _swapped(value, vr)
        return self._plain(raw.tag, vr, value)

    def _plain(self, tag: BaseTag, vr: str, value: bytes) -> bytes:
        """An element of a defined length, its value of an even length."""
        if len(value) % _NUMBER_BYTES.get(vr, 1):  # no numbers of that VR
            vr = "UN"
        value += (b" " if vr in _TEXT_VRS else b"\0") * (len(value) % 2)
        if vr not in _LONG_VRS and len(value) > _LONGEST_SHORT:
            vr = "UN"
        return self._head(tag, vr, len(value)) + value

    # --- what a program made ---

    def _made(self, element: DataElement, around: _Outside) -> bytes:
        if " or " in element.VR:
            data_sets = list(around.data_sets)
            corrected = correct_ambiguous_vr_element(element, data_sets[0], self._little, data_sets)
            element = cast(DataElement, corrected)
            if " or " in element.VR:
                element = DataElement(element.tag, _of_two(element.tag), element.value, already_converted=True)
        if element.VR == "SQ":
            undefined = bool(element.is_undefined_length)
            return self._sequence(element.tag, element.value or (), around, undefined=undefined)
        if isinstance(element.value, bytes) and not element.is_undefined_length:
            vr = str(element.VR) if element.VR in STANDARD_VR else "UN"
            return self._plain(element.tag, vr, element.value)
        out = DicomBytesIO()
        out.is_implicit_VR, out.is_little_endian = self._implicit, self._little
        write_data_element(out, element, around.characters)
        return out.getvalue()

    # --- encoding (PS3.5 7.1, 7.5) ---

    def _sequence(self, tag: BaseTag, items: Sequence[Dataset], around: _Outside, *, undefined: bool) -> bytes:
        parts = []
        for item in items:
            data = self.data_set(item, around)
            if getattr(item, "is_undefined_length_sequence_item", False):
                parts += [self._item(_UNDEFINED), data, self._delimiter(0xE00D)]
            else:
                parts += [self._item(len(data)), data]
        value = b"".join(parts)
        if undefined:
            return self._head(tag, "SQ", _UNDEFINED) + value + self._delimiter(0xE0DD)
        return self._head(tag, "SQ", len(value)) + value

    def _head(self, tag: BaseTag, vr: str, length: int) -> bytes:
        if self._implicit:
            return struct.pack(self._order + "HHI", tag.group, tag.element, length)
        if vr in _LONG_VRS:
            return struct.pack(self._order + "HH2sHI", tag.group, tag.element, vr.encode("ascii"), 0, length)
        return struct.pack(self._order + "HH2sH", tag.group, tag.element, vr.encode("ascii"), length)

    def _item(self, length: int) -> bytes:
        return struct.pack(self._order + "HHI", 0xFFFE, 0xE000, length)

    def _delimiter(self, element: int) -> bytes:
        return struct.pack(self._order + "HHI", 0xFFFE, element, 0)


def _around(dataset: Dataset, outside: _Outside) -> _Outside:
    """What holds around the elements of a data set."""
    data_sets = (dataset, *outside.data_sets)
    try:
        own = dataset.get("SpecificCharacterSet")
        if own or not outside.data_sets:
            changed = bool(dataset.original_character_set != dataset._character_set)
            return _Outside(data_sets, own or outside.characters, changed)
    except Exception:  # noqa: BLE001 - a hostile character set is an unknown one, and no text is coded anew
        pass
    return _Outside(data_sets, outside.characters, outside.changed)


def vr_of(raw: RawDataElement, around: tuple[Dataset, ...]) -> str:
    """The VR of explicit encodings: as received, by the dictionary where none was, UN where nobody knows.

    ``around``: the data sets that the element is in, from the inside.
    """
    if raw.VR is not None:
        return str(raw.VR) if raw.VR in STANDARD_VR else "UN"
    try:
        vr = str(_private_vr(raw.tag, around[0]) if raw.tag.is_private else dictionary_VR(raw.tag))
    except Exception:  # noqa: BLE001 - KeyError, or whatever a hostile creator leads to
        return "UN"
    if vr == "US or SS":
        return "SS" if _is_signed(around) else "US"
    return _of_two(raw.tag) if " or " in vr else vr


def _items(raw: RawDataElement, dataset: Dataset) -> Items | None:
    """The items of a sequence of defined length; None where its value is none."""
    try:
        codecs = dataset.original_character_set or "iso8859"
        encoding = [codecs] if isinstance(codecs, str) else list(codecs)
        return convert_SQ(raw.value or b"", raw.is_implicit_VR, raw.is_little_endian, encoding)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return None


def _private_vr(tag: BaseTag, dataset: Dataset) -> str:
    if tag.is_private_creator:
        return "LO"
    creator = values_of(dataset, BaseTag(tag.group << 16 | tag.element >> 8), "LO", ("ascii",))
    return str(private_dictionary_VR(tag, str(creator[0]))) if creator else "UN"


def _of_two(tag: BaseTag) -> str:
    """The VR of what may be bytes or words.

    Pixels, overlays and tables are words in implicit VR (PS3.5 A.1), and what the retired groups 50xx of curves hold
    was bytes there (PS3.5-2004 A.1; dcmconv writes it so).
    """
    return "OB" if tag.group & 0xFF00 == 0x5000 else "OW"


def _is_signed(around: tuple[Dataset, ...]) -> bool:
    """Whether Pixel Representation (0028,0103), of the nearest data set that has one, says two's complement."""
    for dataset in around:
        try:
            found = values_of(dataset, BaseTag(0x00280103), "US", ("ascii",))
        except Exception:  # noqa: BLE001 - a value that is no number says nothing
            continue
        if found:
            return bool(found[0] == 1)
    return False


def _swapped(value: bytes, vr: str) -> bytes:
    """The value in the other byte order; as it is where it is no whole number of words."""
    size = _WORD_BYTES.get(vr, 1)
    if size == 1 or len(value) % size:
        return value
    swapped = bytearray(len(value))
    for place in range(size):
        swapped[place::size] = value[size - 1 - place :: size]
    return bytes(swapped)
