"""Encodes a data set in a native transfer syntax, whatever a modality wrote into it.

An unchanged element is written with the received bytes of its value, which are not parsed. Invalid values (a DS of 20
characters, ``10:1``, text in an IS) are therefore preserved, and only the element's header changes. An element without
a valid VR is written as UN in explicit VR (PS3.5 6.2.2). pydicom writes elements that a program made or changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, DEFAULT_CHARSET_VR, EXPLICIT_VR_LENGTH_32, STANDARD_VR
from pydicom.values import convert_SQ

from storage.dicom.element_walk import UNDEFINED
from storage.dicom.elements import values_of

_LONGEST_SHORT = 0xFFFE
"""Maximum bytes of a value with a 16-bit length, which must be even (PS3.5 7.1.1)."""
_TEXT_VRS = (DEFAULT_CHARSET_VR | CUSTOMIZABLE_CHARSET_VR) - {"UI"}
"""VRs that are padded with a space (PS3.5 6.2). All others are padded with a zero byte."""
_NUMBER_BYTES = {"AT": 4, "US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "SV": 8, "UV": 8}
"""Bytes of one value of a binary VR (PS3.5 6.2)."""
_WORD_BYTES = _NUMBER_BYTES | {"AT": 2, "OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
"""Bytes of the word whose byte order is reversed (PS3.5 7.3)."""
_LENGTH_TO_END = 0x00080001
_LAST_OF_MESSAGES = 6
"""The last group of command sets and file meta information, which need their lengths."""
ALL = range(0x100000000)
"""All tags."""


def encode(dataset: Dataset, syntax: UID, *, verbatim: bool = False, within: range = ALL) -> bytes:
    """A data set as bytes in a native transfer syntax, in ascending order of tags.

    Group lengths and Length to End are left out: they are retired, and would be wrong after a change.

    ``verbatim``: elements that already have this encoding are copied, including odd lengths and unknown VRs.
    ``within``: the tags of the top level that are written. Raises pydicom's errors if an element that a program made
    cannot be written.
    """
    return _Writer(syntax, verbatim=verbatim).data_set(dataset, _Context(), within)


@dataclass(frozen=True)
class _Context:
    """The context of an item. ``data_sets``: those that contain it, innermost first. ``characters``: the character set,
    as terms or codecs. ``changed``: whether that is another character set than that of received text."""

    data_sets: tuple[Dataset, ...] = ()
    characters: Any = "iso8859"
    changed: bool = False


class _Writer:
    def __init__(self, syntax: UID, *, verbatim: bool) -> None:
        self._implicit, self._little, self._verbatim = syntax.is_implicit_VR, syntax.is_little_endian, verbatim
        self._order = "<" if syntax.is_little_endian else ">"

    def data_set(self, dataset: Dataset, outer: _Context, within: range = ALL) -> bytes:
        tags = [tag for tag in sorted(dataset.keys()) if int(tag) in within and not _is_length(tag)]
        # raw elements are taken before pydicom converts any; without keep_deferred, it would convert empty ones here
        elements = [dataset.get_item(tag, keep_deferred=True) for tag in tags]
        context = _context_of(dataset, outer)
        return b"".join(self._element(element, context) for element in elements)

    def _element(self, element: DataElement | RawDataElement, context: _Context) -> bytes:
        if isinstance(element, DataElement):
            return self._made(element, context)
        vr = vr_of(element, context.data_sets)
        if context.changed and vr in CUSTOMIZABLE_CHARSET_VR and element.length != UNDEFINED:
            return self._made(context.data_sets[0][element.tag], context)
        return self._received(element, vr, context)

    # --- received elements ---

    def _received(self, raw: RawDataElement, vr: str, context: _Context) -> bytes:
        value = raw.value or b""
        unchanged = (raw.is_implicit_VR, raw.is_little_endian) == (self._implicit, self._little)
        if raw.length == UNDEFINED:  # encapsulated pixels, or a value whose end pydicom does not find
            vr = vr if vr in EXPLICIT_VR_LENGTH_32 else "UN"  # other VRs have no undefined length (PS3.5 7.1.2)
            return self._head(raw.tag, vr, UNDEFINED) + value + self._delimiter(0xE0DD)
        if self._verbatim and unchanged and (self._implicit or raw.VR):
            return self._head(raw.tag, raw.VR or "UN", len(value)) + value
        if vr == "SQ":
            items = _items(raw, context.data_sets[0])
            if items is not None:
                return self._sequence(raw.tag, items, context, undefined=False)
            vr = "UN"
        if raw.is_little_endian != self._little:
            value = swapped(value, vr)
        return self._plain(raw.tag, vr, value)

    def _plain(self, tag: BaseTag, vr: str, value: bytes) -> bytes:
        """An element of defined length, its value padded to an even length."""
        if len(value) % _NUMBER_BYTES.get(vr, 1):  # not a whole number of values
            vr = "UN"
        value = padded(value, vr)
        if vr not in EXPLICIT_VR_LENGTH_32 and len(value) > _LONGEST_SHORT:
            vr = "UN"
        return self._head(tag, vr, len(value)) + value

    # --- elements that a program made ---

    def _made(self, element: DataElement, context: _Context) -> bytes:
        if " or " in element.VR:
            data_sets = list(context.data_sets)
            corrected = correct_ambiguous_vr_element(element, data_sets[0], self._little, data_sets)
            element = cast(DataElement, corrected)
            if " or " in element.VR:
                element = DataElement(element.tag, _ob_or_ow(element.tag), element.value, already_converted=True)
        if element.VR == "SQ":
            undefined = bool(element.is_undefined_length)
            return self._sequence(element.tag, element.value or (), context, undefined=undefined)
        if isinstance(element.value, bytes) and not element.is_undefined_length:
            vr = str(element.VR) if element.VR in STANDARD_VR else "UN"
            return self._plain(element.tag, vr, element.value)
        out = DicomBytesIO()
        out.is_implicit_VR, out.is_little_endian = self._implicit, self._little
        write_data_element(out, element, context.characters)
        return out.getvalue()

    # --- encoding (PS3.5 7.1, 7.5) ---

    def _sequence(self, tag: BaseTag, items: Sequence[Dataset], context: _Context, *, undefined: bool) -> bytes:
        parts = []
        for item in items:
            data = self.data_set(item, context)
            if getattr(item, "is_undefined_length_sequence_item", False):
                parts += [self._item(UNDEFINED), data, self._delimiter(0xE00D)]
            else:
                parts += [self._item(len(data)), data]
        value = b"".join(parts)
        if undefined:
            return self._head(tag, "SQ", UNDEFINED) + value + self._delimiter(0xE0DD)
        return self._head(tag, "SQ", len(value)) + value

    def _head(self, tag: BaseTag, vr: str, length: int) -> bytes:
        if self._implicit:
            return struct.pack(self._order + "HHI", tag.group, tag.element, length)
        if vr in EXPLICIT_VR_LENGTH_32:
            return struct.pack(self._order + "HH2sHI", tag.group, tag.element, vr.encode("ascii"), 0, length)
        return struct.pack(self._order + "HH2sH", tag.group, tag.element, vr.encode("ascii"), length)

    def _item(self, length: int) -> bytes:
        return struct.pack(self._order + "HHI", 0xFFFE, 0xE000, length)

    def _delimiter(self, element: int) -> bytes:
        return struct.pack(self._order + "HHI", 0xFFFE, element, 0)


def _is_length(tag: BaseTag) -> bool:
    """Whether an element states the bytes of its group, or of all that follows."""
    return tag == _LENGTH_TO_END or (tag.element == 0 and tag.group > _LAST_OF_MESSAGES)


def _context_of(dataset: Dataset, outer: _Context) -> _Context:
    """The context of the elements of a data set that is itself in the context ``outer``."""
    data_sets = (dataset, *outer.data_sets)
    try:
        own = dataset.get("SpecificCharacterSet")
        if own or not outer.data_sets:
            changed = bool(dataset.original_character_set != dataset._character_set)
            return _Context(data_sets, own or outer.characters, changed)
    except Exception:  # noqa: BLE001 - a hostile character set counts as unknown, and text is copied
        pass
    return _Context(data_sets, outer.characters, outer.changed)


def vr_of(raw: RawDataElement, data_sets: tuple[Dataset, ...]) -> str:
    """The VR for explicit encodings: the received one if PS3.5 has it, or that of the dictionary if none was received.

    Otherwise it is UN.

    ``data_sets``: the data sets that contain the element, innermost first.
    """
    if raw.VR is not None:
        return str(raw.VR) if raw.VR in STANDARD_VR else "UN"
    try:
        vr = str(_private_vr(raw.tag, data_sets[0]) if raw.tag.is_private else dictionary_VR(raw.tag))
    except Exception:  # noqa: BLE001 - KeyError, or any error on a hostile private creator
        return "UN"
    if vr == "US or SS":
        return "SS" if _is_signed(data_sets) else "US"
    return _ob_or_ow(raw.tag) if " or " in vr else vr


def padded(value: bytes, vr: str) -> bytes:
    """The value with an even length (PS3.5 6.2). Text that ends with NUL gets another NUL: before a space, the first
    would be a character of the value."""
    if len(value) % 2 == 0:
        return value
    return value + (b" " if vr in _TEXT_VRS and not value.endswith(b"\0") else b"\0")


def swapped(value: bytes, vr: str) -> bytes:
    """The value in the other byte order; unchanged if it is not a whole number of words."""
    size = _WORD_BYTES.get(vr, 1)
    if size == 1 or len(value) % size:
        return value
    return np.frombuffer(value, f"u{size}").byteswap().tobytes()


def _items(raw: RawDataElement, dataset: Dataset) -> Items | None:
    """The items of a sequence of defined length; None if its value is not a sequence."""
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


def _ob_or_ow(tag: BaseTag) -> str:
    """The VR of an element that may be OB or OW.

    In implicit VR, pixels, overlays and tables are words (PS3.5 A.1). The retired groups 50xx of curves are bytes
    (PS3.5-2004 A.1; dcmconv does the same).
    """
    return "OB" if tag.group & 0xFF00 == 0x5000 else "OW"


def _is_signed(data_sets: tuple[Dataset, ...]) -> bool:
    """Whether the innermost Pixel Representation (0028,0103) means two's complement."""
    for dataset in data_sets:
        try:
            found = values_of(dataset, BaseTag(0x00280103), "US", ("ascii",))
        except Exception:  # noqa: BLE001 - ignore a value that is not a number
            continue
        if found:
            return bool(found[0] == 1)
    return False
