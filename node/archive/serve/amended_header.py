"""Amended headers: the corrected header around unchanged pixel data.

The received bytes remain in the store. An amended original is sent in its own transfer syntax, with its pixel data
element byte for byte; Original Attributes Sequence (PS3.3 C.12.1, SOP Common Module) states the changes and the former
values. Digital signatures are removed, since they sign the former header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path

from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ImplicitVRLittleEndian

from storage.dicom.dicomfile import DataSetFile, file_meta, opened, write_preamble
from storage.dicom.element_walk import looks_implicit
from storage.dicom.elements import append_item, codecs_of
from storage.dicom.inflating import DEFLATED, deflated
from storage.dicom.recoding import declare, to_utf8, undeclared_latin_1
from storage.dicom.writing import ALL, encode
from storage.errors import Unparseable
from storage.records import Applied

NOT_OF_THIS_HEADER = (0xFFFAFFFA, 0x4FFE0001, 0xFFFCFFFC)
"""Digital signatures, their MAC parameters, and trailing padding, which are valid for the received bytes only."""

CREATION = (0x00080012, 0x00080013, 0x00080014)
"""Instance Creation Date, Time and Creator UID. A derived object has neither those of its source nor its own: without
Timezone Offset From UTC, its own date and time would have no time zone."""


def write_amended(source: Path, target: Path, applied: Sequence[Applied]) -> None:
    """Write an amended Part 10 file with the same UIDs, transfer syntax and pixel data. Raises Unparseable."""
    write_edited(source, target, lambda header: amend(header, applied))


def write_edited(source: Path, target: Path, edit: Callable[[Dataset], None]) -> None:
    """Write a Part 10 file with an edited header and unchanged pixel data. Raises Unparseable."""
    with opened(source) as file, target.open("wb") as out:
        # many items stay unparsed bytes: parsing them would delay the associations of this process
        header = file.header(deferred=file.has_large_sequences())
        try:
            edit(header)
        except Exception as error:  # pydicom raises many kinds on hostile values
            raise Unparseable(f"the header cannot be edited: {type(error).__name__}") from error
        drop(header, NOT_OF_THIS_HEADER)
        write_preamble(out, file_meta(header.SOPClassUID, header.SOPInstanceUID, str(file.transfer_syntax)))
        pieces = _pieces(header, file)
        out.writelines(deflated(pieces) if file.transfer_syntax in DEFLATED else pieces)


def amend(header: Dataset, applied: Iterable[Applied]) -> None:
    """Correct a header in place; each amendment adds an item to Original Attributes Sequence."""
    for one in applied:
        changes = Dataset.from_json(one.changes)
        _fit_character_set(changes, header)
        former = Dataset()
        for element in changes:
            if element.tag in header:
                former[element.tag] = deepcopy(header.get_item(element.tag))
            elif element.is_empty:  # absent before and after
                continue
            header[element.tag] = element
        note_former(header, former, _date_time(one.at), "CORRECT")


def note_former(header: Dataset, former: Dataset, when: str, reason: str) -> None:
    """Add an item with former values to Original Attributes Sequence. ``when``: DT; ``reason``: CORRECT or COERCE."""
    item = Dataset()
    item.AttributeModificationDateTime = when
    item.ModifyingSystem = "Latent PACS"
    item.SourceOfPreviousValues = ""
    item.ReasonForTheAttributeModification = reason
    item.ModifiedAttributesSequence = Items([former])
    append_item(header, "OriginalAttributesSequence", item)


_WIDER = {"shift_jis", "iso2022_jp", "iso2022_jp_2"}
"""Python codecs that encode more characters than the character sets for which pydicom uses them. ISO_IR 13, for
example, has no kanji: pydicom would write question marks."""


def drop(header: Dataset, tags: Iterable[int]) -> None:
    """Remove elements, and all group lengths (retired), from the top level of a header, in place."""
    lengths = [tag for tag in header.keys() if tag.element == 0]  # noqa: SIM118 - iterating would parse every value
    for tag in (*tags, *lengths):
        if tag in header:
            del header[tag]


def _fit_character_set(changes: Dataset, header: Dataset) -> None:
    """Change the character set if that of the header cannot encode the new values."""
    texts = [str(value) for element in changes for value in _values(element.value)]
    codecs = codecs_of(header)
    if _can_write(texts, codecs[0] if len(codecs) == 1 and codecs[0] not in _WIDER else "ascii"):
        return
    if undeclared_latin_1(header) and _can_write(texts, "latin-1"):
        declare(header, "ISO_IR 100")  # no value needs to be encoded again
    else:
        to_utf8(header)


def _can_write(texts: Iterable[str], codec: str) -> bool:
    try:
        for text in texts:
            text.encode(codec)
    except UnicodeError:
        return False
    return True


def _values(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def _pieces(header: Dataset, file: DataSetFile) -> list[bytes | memoryview]:
    """The data set in pieces: the encoded header before and after the unchanged pixel data element."""
    layout, syntax = file.layout, file.transfer_syntax
    as_received = UID(ImplicitVRLittleEndian if looks_implicit(file.data) else syntax)
    if not layout.has_pixels:
        return [encode(header, as_received, verbatim=True)]
    pixels = file.data[layout.pixel_start : layout.pixel_end]
    group, element = struct.unpack_from("<HH" if syntax.is_little_endian else ">HH", pixels)
    tag = group << 16 | element
    before, after = (
        encode(header, as_received, verbatim=True, within=part) for part in (range(tag), range(tag, ALL.stop))
    )
    return [before, pixels, after]


def _date_time(at: str) -> str:
    """A time in ISO 8601, in UTC, as a value of VR DT."""
    moment = at.removesuffix("+00:00").replace("-", "").replace(":", "").replace("T", "")
    return f"{moment}+0000"
