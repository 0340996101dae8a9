"""References of annotations, and copies of annotations that reference reconstructions instead of originals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID

from node.archive.serve.amended_header import amend, note_former, write_edited
from storage.records import Applied, ReferencingCopy

_CLASSES = ("1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.88.")
"""Presentation states; structured reports and key object selections."""


def references_of(header: Dataset) -> tuple[str, ...]:
    """The SOP Instance UIDs that an annotation references; none for other objects, or if it cannot be read."""
    if not str(header.get("SOPClassUID", "")).startswith(_CLASSES):
        return ()
    try:
        found = {str(item.ReferencedSOPInstanceUID) for item in _references(header)}
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return ()
    return tuple(sorted(uid for uid in found if len(uid) <= 64))


def write_copy(source: Path, target: Path, copy: ReferencingCopy, applied: Sequence[Applied] = ()) -> None:
    """Write the copy of an annotation, which differs in its references and its UID. Raises Unparseable."""

    def edit(header: Dataset) -> None:
        amend(header, applied)
        derived = dict(copy.pairs)
        for item in _references(header):
            uid = str(item.ReferencedSOPInstanceUID)
            item.ReferencedSOPInstanceUID = UID(derived.get(uid, uid))
        former = Dataset()
        former.SOPInstanceUID = header.SOPInstanceUID
        note_former(header, former, copy.made_at.strftime("%Y%m%d%H%M%S.%f") + "+0000", "COERCE")
        header.SOPInstanceUID = UID(copy.uid)

    write_edited(source, target, edit)


def _references(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset.iterall():
        if element.VR == "SQ":
            yield from (item for item in element.value if "ReferencedSOPInstanceUID" in item)
