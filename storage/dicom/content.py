"""Compares the content of data sets by a digest over elements and pixels, not over bytes.

A study that is sent twice often differs in transfer syntax, sequence lengths or group lengths only. Data sets that
cannot be compared count as different, because the second of two equal ones is discarded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag

from storage.dicom.codestreams import codestreams_begun
from storage.dicom.dicomfile import DataSetFile, opened
from storage.dicom.element_walk import UNDEFINED
from storage.dicom.pixels import PixelShape, check_frames, decode_frame
from storage.dicom.unused_bits import decoder_options, sign_extended
from storage.dicom.writing import padded, swapped, vr_of
from storage.errors import PixelError, Unparseable

_OF_ENCODING = {0x00080001, 0xFFFCFFFC, 0x7FE00001, 0x7FE00002, 0x7FE00003}
"""Length to End (retired), Data Set Trailing Padding, and the Extended Offset Table of encapsulated pixels with its
lengths and their total."""


def content_digest(path: Path) -> str:
    """SHA-256, hex, over all elements except group lengths, padding and offset tables, and over the decoded pixels, or
    the encoded ones if there are more frames than the header states.

    Raises Unparseable, and PixelError if encapsulated pixels cannot be decoded.
    """
    with opened(path) as file:
        header = file.header()
        elements = _elements(header)
        shape = PixelShape.of(header)
        digest = hashlib.sha256(json.dumps(elements, sort_keys=True).encode())
        if not file.layout.has_pixels:
            return digest.hexdigest()
        if not file.layout.encapsulated:
            digest.update(_native_pixels(file, shape))
            return digest.hexdigest()
        if codestreams_begun(file.native_value(), file.transfer_syntax) > shape.frames:
            digest.update(file.native_value())
            return digest.hexdigest()
    digest.update(_decoded_pixels(path, shape, file.transfer_syntax))
    return digest.hexdigest()


def same_content(one: Path, other: Path) -> bool:
    """Whether both files have the same elements and pixels; False if that cannot be determined."""
    try:
        return content_digest(one) == content_digest(other)
    except (PixelError, Unparseable):
        return False


@dataclass(frozen=True)
class Difference:
    """An element, or the pixels, in which two data sets differ. Values are truncated; an absent value is empty."""

    tag: str
    name: str
    one: str
    other: str


def differences(one: Path, other: Path) -> tuple[Difference, ...]:
    """The differences between two Part 10 files. Raises Unparseable."""
    with opened(one) as first, opened(other) as second:
        headers = first.header(), second.header()
        elements = [dict(_elements(header)) for header in headers]
        tags = sorted(tag for tag in {*elements[0], *elements[1]} if elements[0].get(tag) != elements[1].get(tag))
        found = [Difference(_shown(tag), keyword_for_tag(tag), *(_text(each, tag) for each in headers)) for tag in tags]
        if first.data[first.layout.pixel_start :] != second.data[second.layout.pixel_start :]:
            found.append(Difference("", "pixel data", *(_size(each) for each in (first, second))))
    return tuple(found)


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _text(header: Dataset, tag: int) -> str:
    if tag not in header:
        return ""
    try:
        return str(header[tag].value)[:64]
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return "(cannot be read)"


def _size(file: DataSetFile) -> str:
    return f"{file.layout.value_end - file.layout.value_start} bytes, {file.transfer_syntax}"


def _native_pixels(file: DataSetFile, shape: PixelShape) -> bytes:
    """The pixels without the pad byte; the whole value if its length does not match the header."""
    value = bytes(file.native_value())
    if not file.transfer_syntax.is_little_endian:
        value = swapped(value, file.layout.pixel_vr)
    return value[: shape.native_bytes] if len(value) - shape.native_bytes in (0, 1) else value


def _decoded_pixels(path: Path, shape: PixelShape, syntax: str) -> bytes:
    if shape.frames == 1:
        return decode_frame(path).tobytes()
    check_frames(path)
    try:
        pixels = pixel_array(path, raw=True, **decoder_options(syntax, shape.bits_allocated))
        return sign_extended(pixels, syntax, shape.bits_stored, shape.high_bit).tobytes()
    except Exception as error:
        raise PixelError(f"codestream cannot be decoded: {error}") from error


def _elements(dataset: Dataset) -> list[Any]:
    tags = [tag for tag in sorted(dataset.keys()) if tag.element != 0 and tag not in _OF_ENCODING]
    return [[int(tag), _value(dataset, tag)] for tag in tags]


def _value(dataset: Dataset, tag: BaseTag) -> Any:
    """A value in the DICOM JSON model, or its bytes in little endian, hex, if pydicom would guess, lose characters or
    fail."""
    raw: Any = dataset.get_item(tag, keep_deferred=True)
    if isinstance(raw, RawDataElement) and raw.value and raw.length not in (len(raw.value), UNDEFINED):
        return f"{_bytes(dataset, raw).hex()} of {raw.length} bytes"  # it reaches beyond the end of its item
    try:
        element = _element(dataset, tag, raw)
        if element.VR == "SQ":
            return [_elements(item) for item in element.value]
        value = element.to_json_dict(None, 0)
        complete = len(value) > 1 or not isinstance(raw, RawDataElement) or not (raw.value or b"").strip(b" \0")
        if (
            _has_one_vr(tag)
            and complete
            and not element.VR.startswith("O")
            and "\ufffd" not in json.dumps(value, ensure_ascii=False)
        ):
            return value
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        pass
    if isinstance(raw, RawDataElement):
        return _bytes(dataset, raw).hex()
    data = b"" if raw.value is None else raw.value
    return data.hex() if isinstance(data, bytes) else str(data)


def _element(dataset: Dataset, tag: BaseTag, raw: Any) -> DataElement:
    """An element with the VR of the dictionary, whatever VR was received, since a copy in implicit VR has that VR."""
    if isinstance(raw, RawDataElement) and raw.VR not in (None, "UN", "SQ") and _has_one_vr(tag):
        vr = dictionary_VR(tag)
        if vr not in (raw.VR, "SQ"):
            raw = raw._replace(VR=vr, value=_bytes(dataset, raw) or None, is_little_endian=True)
            return convert_raw_data_element(raw, encoding=dataset.original_character_set, ds=dataset)
    return dataset[tag]


def _bytes(dataset: Dataset, raw: RawDataElement) -> bytes:
    """A received value as other systems write it: in little endian, with an even length."""
    data = padded(raw.value or b"", vr_of(raw, (dataset,)))
    return data if raw.is_little_endian else swapped(data, raw.VR or "")


def _has_one_vr(tag: BaseTag) -> bool:
    """Whether an element has the same VR in implicit and explicit encodings (PS3.5 section 7.1.3)."""
    return not tag.is_private and dictionary_has_tag(tag) and " or " not in dictionary_VR(tag)
