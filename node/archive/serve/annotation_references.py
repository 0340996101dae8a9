"""References of annotations, and copies of annotations that reference reconstructions instead of originals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import UID

from node.archive.serve.amended_header import CREATION, amend, note_former, write_edited
from storage.dicom.elements import append_item, codecs_of, readable_items, set_items, values_of
from storage.dicom.writing import vr_of
from storage.records import Applied, ReferencingCopy

_CLASSES = ("1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.88.")
"""Presentation states; structured reports and key object selections."""
_KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"


def references_of(header: Dataset) -> tuple[str, ...]:
    """The SOP Instance UIDs that an annotation references; none for other objects, or if it is unreadable."""
    if not str(header.get("SOPClassUID", "")).startswith(_CLASSES):
        return ()
    try:
        found = {_uid(item) for item in _references(header)}
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return ()
    return tuple(sorted(uid for uid in found if 0 < len(uid) <= 64))


def write_copy(source: Path, target: Path, copy: ReferencingCopy, applied: Sequence[Applied] = ()) -> None:
    """Write the copy of an annotation, which differs in its references and its UID. Raises Unparseable."""

    def edit(header: Dataset) -> None:
        amend(header, applied)
        former = Dataset()
        _move(header, former, (*CREATION, _IDENTICAL))
        derived = dict(copy.pairs)
        for item in _references(header):
            uid = derived.get(_uid(item))
            if uid is not None:
                item.add_new(_REFERENCED, "UI", UID(uid))
        former.SOPInstanceUID = header.SOPInstanceUID
        if header.SOPClassUID.startswith(_CLASSES[1]) and header.SOPClassUID != _KEY_OBJECTS:
            _mark_as_changed_report(header, former)
        note_former(header, former, copy.made_at.strftime("%Y%m%d%H%M%S.%f") + "+0000", "COERCE")
        header.SOPInstanceUID = UID(copy.uid)

    write_edited(source, target, edit)


def _mark_as_changed_report(header: Dataset, former: Dataset) -> None:
    """Name the predecessor, and take the verification away: the observer did not see this content (PS3.3 C.17.2)."""
    if values_of(header, _FLAG, "CS", ("ascii",)) == ["VERIFIED"]:
        _move(header, former, (_FLAG, _OBSERVERS))
        header.add_new(_FLAG, "CS", "UNVERIFIED")
    predecessor = Dataset()
    predecessor.ReferencedSOPClassUID, predecessor.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    of_series = Dataset()
    of_series.SeriesInstanceUID = header.SeriesInstanceUID
    of_series.ReferencedSOPSequence = Items([predecessor])
    of_study = Dataset()
    of_study.StudyInstanceUID = header.StudyInstanceUID
    of_study.ReferencedSeriesSequence = Items([of_series])
    append_item(header, "PredecessorDocumentsSequence", of_study)


def _move(header: Dataset, former: Dataset, tags: Iterable[int]) -> None:
    for tag in tags:
        if tag in header:
            former[tag] = header.get_item(tag, keep_deferred=True)
            del header[tag]


_IDENTICAL = 0x0040A525
"""Identical Documents Sequence (PS3.3 C.17.2, C.17.6.2); the copy is not identical to those documents."""
_FLAG, _OBSERVERS = BaseTag(0x0040A493), BaseTag(0x0040A073)
"""Verification Flag, and Verifying Observer Sequence, which verified documents have."""


def _references(
    dataset: Dataset, inherited: Sequence[str] = ("ascii",), around: tuple[Dataset, ...] = ()
) -> Iterator[Dataset]:
    """The items at any depth that reference an object. Other elements stay raw, so that their bytes are copied."""
    codecs, around = codecs_of(dataset, inherited), (dataset, *around)
    for tag in sorted(dataset.keys()):
        element: Any = dataset.get_item(tag, keep_deferred=True)
        raw = isinstance(element, RawDataElement)
        if not _is_sequence(tag, vr_of(element, around) if raw else element.VR):
            continue
        items = readable_items(dataset, tag, codecs)
        found = [one for item in items for one in _references(item, codecs, around)]
        found = [item for item in items if _REFERENCED in item] + found
        if raw and found:
            set_items(dataset, tag, items)
        yield from found


def _is_sequence(tag: BaseTag, vr: str) -> bool:
    """Whether an element is a sequence, also one of the dictionary that was sent as UN (PS3.5 6.2.2)."""
    return vr == "SQ" or (vr == "UN" and dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ")


def _uid(item: Dataset) -> str:
    return "\\".join(values_of(item, _REFERENCED, "UI", ("ascii",)))


_REFERENCED = BaseTag(0x00081155)
"""Referenced SOP Instance UID."""
