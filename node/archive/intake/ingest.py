"""Ingest: stores a spooled data set as a durable original with a row in the index, quarantines it, or refuses it.

The object is written first, then its row; only then is success reported. The result is a receipt or an error;
node/dimse/dimse_status.py has the DICOM status of each.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID

from node.archive.originals.original_access import OriginalAccess
from node.archive.serve.amended_header import write_amended
from node.archive.serve.annotation_references import references_of, write_copy
from node.archive.serve.derived_object import DerivedParts, changed_attributes, safe_text
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import CheckRequest, CompareRequest, DigestRequest
from storage.dicom.dicomfile import DataSetFile, opened
from storage.dicom.levels import levels_of
from storage.dicom.pixels import PixelShape, counted_bytes, native_pixel_warning
from storage.errors import (
    ChangedMeanwhile,
    ClassMismatch,
    Deleted,
    Duplicate,
    InvalidUid,
    MissingUid,
    ObjectDamaged,
    ObjectMissing,
    OriginalPurged,
    OutOfTime,
    PixelError,
    RepeatedUid,
    WorkerDied,
)
from storage.index import Index
from storage.index.hierarchy import states_another_patient
from storage.index.holdings import Added
from storage.index.quarantined import REPLACED
from storage.index.resent_originals import drop_copy, insert_lost_row, replace_lost
from storage.index.rewritten_annotations import copy_of_uid
from storage.objects.inspection import examine as examine_object
from storage.objects.store import ObjectStore
from storage.records import NewInstance, ReferencingCopy, StoredInstance, StoredRendition, Tier

LOGGER = logging.getLogger(__name__)

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_LENIENT_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
"""Also matches UIDs with leading zeros in a component, which PS3.5 9.1 forbids, but which some modalities write."""


@dataclass(frozen=True)
class Receipt:
    """The result for an accepted data set. ``warning``: why its pixels are not trusted, empty if they are.

    ``note``: a remark for the audit trail, or empty.
    """

    sop_instance_uid: str
    new: bool
    warning: str = ""
    note: str = ""


class Ingest:
    """Stores spooled files. ``decoders`` checks codestreams outside this process.

    ``arrived`` is called with the Study Instance UID of each image that is new, or was sent again with the same bytes,
    which may heal it. ``leading_zeros``: whether UIDs with leading zeros in a component are accepted.
    """

    def __init__(
        self,
        index: Index,
        store: ObjectStore,
        originals: OriginalAccess,
        decoders: WorkerPool,
        arrived: Callable[[str], None],
        *,
        leading_zeros: bool = True,
    ) -> None:
        self._index, self._store, self._originals = index, store, originals
        self._decoders, self._arrived, self._leading_zeros = decoders, arrived, leading_zeros

    def receive(self, spooled: Path, *, sop_class: str, sop_instance: str, calling_aet: str) -> Receipt:
        """Store a spooled Part 10 file. On return it is durable and indexed, and the spooled name is gone.

        ``sop_class`` and ``sop_instance`` are the command's Affected UIDs. Raises Duplicate and Deleted (the file is in
        quarantine), DataSetError such as ClassMismatch, StoreFull, ChangedMeanwhile or ObjectMissing. After an error,
        the caller removes the spooled file, if it still exists.
        """
        self._store.check_room()
        check_uid("Affected SOP Instance UID", sop_instance, leading_zeros=self._leading_zeros)
        new = examine(spooled, calling_aet, self._decoders, leading_zeros=self._leading_zeros, repeated_uids=False)
        if (new.sop_class_uid, new.sop_instance_uid) != (sop_class, sop_instance):
            raise ClassMismatch("SOP Class or SOP Instance UID of the data set is not that of the command")
        own = self._index.rendition(new.sop_instance_uid)
        if own is not None:
            return self._own_reconstruction(spooled, new, own)
        copy = copy_of_uid(self._index.engine, new.sop_instance_uid)
        if copy is not None:
            return self._own_copy(spooled, new, copy)
        digest = self._store.adopt(spooled)
        new = replace(new, original_digest=digest)
        added = self._add(new)
        if added in (Added.GONE, Added.DERIVED):
            raise ChangedMeanwhile(_GONE)
        if added is Added.DELETED:
            self._refuse_return(new)
        if added is Added.HELD:
            self._settle_duplicate(new)
        stored = added in (Added.NEW, Added.AGAIN)
        if stored or added is Added.SAME_BYTES:
            self._arrived(new.study_instance_uid)
        return Receipt(new.sop_instance_uid, stored, new.pixel_warning, self._note(new) if stored else "")

    def _note(self, new: NewInstance) -> str:
        """A note for an instance that states another Patient ID than its study; empty for others."""
        with self._index.engine.connect() as connection:
            if not states_another_patient(connection, new.levels):
                return ""
        LOGGER.warning(
            "%s from %s %s: study %s", new.sop_instance_uid, new.calling_aet, ANOTHER_PATIENT, new.study_instance_uid
        )
        return ANOTHER_PATIENT

    def _add(self, new: NewInstance) -> Added:
        """Commit an instance. If it is held with the same bytes, make sure that its original is whole."""
        engine, present = self._index.engine, self._store.has
        for _ in range(_ATTEMPTS):
            added = self._index.add(new, present=present)
            if added is not Added.SAME_BYTES:
                return added
            held = self._index.originals.of_digest(new.original_digest)
            if held is None:
                if insert_lost_row(engine, new, present):
                    return added
                continue
            if held.purged:
                continue
            if self._originals.whole(held):
                if drop_copy(engine, held, new.original_digest):
                    return added
            elif replace_lost(engine, held, new, present):
                LOGGER.warning("the original of %s was lost or damaged, and was sent again", new.sop_instance_uid)
                return added
        raise ObjectMissing(f"original {new.original_digest} was moved at each attempt to check it; try again")

    def _own_reconstruction(self, spooled: Path, new: NewInstance, own: StoredRendition) -> Receipt:
        """Accept a reconstruction that this archive sent; quarantine one with other pixels or attributes.

        Different attributes mean that another system corrected the object, so a person should see it.
        """
        draw = new.sop_instance_uid == own.derived_uid
        try:
            digest = self._decoders.submit(DigestRequest(spooled), Priority.VIEWER).result()
            same = digest == own.pixel_digest(draw=draw)
        except (PixelError, WorkerDied):
            same = False
        others = self._other_attributes(spooled, own, draw) if same else ()
        kept = self._is_kept(own)
        if same and kept and others == ():
            spooled.unlink()
            return Receipt(new.sop_instance_uid, False)
        digest = self._store.adopt(spooled)
        if not same:
            what = "other pixels"
        elif others:
            what = f"another {', '.join(others)}"
        else:
            what = "a header that cannot be compared with ours now" if kept else "a payload that is lost here"
        reason = f"carries the UID of a reconstruction of this archive, with {what}"
        self._quarantine(replace(new, original_digest=digest), reason)
        raise Duplicate(f"{new.sop_instance_uid} {reason}; it is in quarantine")

    def _is_kept(self, own: StoredRendition) -> bool:
        """Whether a reconstruction can be made again, since its payload or its original is whole."""
        if all(examine_object(self._store, digest).whole for digest in (own.base_digest, own.rendition_digest)):
            return True
        held = self._index.by_uid(own.derived_uid)
        original = held.held if held is not None and own.withdrawn != REPLACED else None
        return original is not None and not original.purged and self._originals.whole(original)

    def _other_attributes(self, returned: Path, own: StoredRendition, draw: bool) -> tuple[str, ...] | None:
        """The attributes of a returned reconstruction that differ from ours, with and without amendments; None if ours
        cannot be made now."""
        held = self._index.by_uid(own.derived_uid)
        if held is None:
            raise ChangedMeanwhile(_GONE)  # deleted at this moment
        try:
            base, rendition = self._store.held(own.base_digest), self._store.held(own.rendition_digest)
        except ObjectMissing:
            return None
        found: tuple[str, ...] = ()
        for applied in (held.amended, ()) if held.amended else ((),):
            parts = DerivedParts(base, rendition, own.payload_bytes, own.verified_at, applied=applied, draw=draw)
            try:
                found = changed_attributes(parts, returned, self._store.spool)
            except Exception as error:  # noqa: BLE001 - whatever it is, a person should see the returned file
                LOGGER.error("header of rendition %s cannot be made: %s", own.derived_uid, safe_text(error))
                return None
            if not found:
                break
        return found

    def _own_copy(self, spooled: Path, new: NewInstance, copy: ReferencingCopy) -> Receipt:
        """Accept the copy of an annotation that this archive made for a peer; quarantine one with other content."""
        held = self._index.by_key(copy.instance_key)
        if held is None:
            raise ChangedMeanwhile(_GONE)  # deleted at this moment
        new = replace(new, original_digest=self._store.adopt(spooled))
        reason = "carries the UID of a copy that this archive made of an annotation, "
        try:
            if self._is_copy_of(held, copy, new.original_digest):
                self._discard(new.original_digest)
                return Receipt(new.sop_instance_uid, False)
            reason += "with other content"
        except (ObjectMissing, ObjectDamaged):
            reason += "which is lost here"
        self._quarantine(new, reason)
        raise Duplicate(f"{new.sop_instance_uid} {reason}; it is in quarantine")

    def _is_copy_of(self, held: StoredInstance, copy: ReferencingCopy, received: str) -> bool:
        """Whether a received file has the content of this copy of ``held``. Raises ObjectMissing, ObjectDamaged."""
        original = held.held
        if original is not None and not self._originals.whole(original):
            raise ObjectDamaged(f"original {held.original_digest} is missing or damaged")
        with (
            self._originals.borrowed(held.original_digest) as path,
            tempfile.NamedTemporaryFile(dir=self._store.spool) as made,
        ):
            write_copy(path, Path(made.name), copy, held.amended)
            return self._compare(Path(made.name), received)

    def _refuse_return(self, new: NewInstance) -> None:
        """Quarantine an image that was deleted here; a person may allow its return. Raises Deleted."""
        stone = self._index.tombstones.in_force(new.sop_instance_uid)
        if stone is None:
            raise ChangedMeanwhile(_GONE)  # its return was allowed at this moment
        what = "its SOP Instance UID" if stone.uid == stone.original_uid else f"{stone.original_uid}, its original,"
        self._quarantine(new, f"{what} was deleted here on {stone.deleted_at:%Y-%m-%d}")
        raise Deleted("was deleted here, and is in quarantine now")

    def _quarantine(self, new: NewInstance, reason: str) -> None:
        present = self._store.has
        if not self._index.quarantine.put(
            new.original_digest, new.sop_instance_uid, new.calling_aet, reason, present=present
        ):
            raise ChangedMeanwhile(_GONE)

    def _settle_duplicate(self, new: NewInstance) -> None:
        """Discard a file with the content of the held original, and quarantine any other. Raises Duplicate."""
        held = self._index.by_uid(new.sop_instance_uid)
        if held is None:
            raise ChangedMeanwhile(_GONE)  # deleted at this moment
        reason = "another data set is held under this SOP Instance UID"
        original = held.held
        try:
            if original is not None and not original.purged and not self._originals.whole(original):
                same, reason = False, "the original of this SOP Instance UID is lost or damaged, and had other bytes"
            else:
                same = self._is_same(held, new.original_digest)
        except OriginalPurged:
            same, reason = False, "the original of this SOP Instance UID was purged, and had other bytes"
        if same:
            self._discard(new.original_digest)
            return
        self._quarantine(new, reason)
        raise Duplicate(f"{new.sop_instance_uid}: {reason}; the first is kept, this one is in quarantine")

    def _discard(self, digest: str) -> None:
        """Unlink a received file that is not needed, unless a row, such as one of the quarantine, needs that object."""
        self._index.garbage.mark(digest, Tier.HOT)
        self._index.garbage.collect({Tier.HOT: self._store})

    def _is_same(self, held: StoredInstance, received: str) -> bool:
        """Whether a received file has the content of the original, as received or as amended."""
        with self._originals.borrowed(held.original_digest) as path:
            if self._compare(path, received):
                return True
            if not held.amended:
                return False
            with tempfile.NamedTemporaryFile(dir=self._store.spool) as amended:
                write_amended(path, Path(amended.name), held.amended)
                return self._compare(Path(amended.name), received)

    def _compare(self, one: Path, received: str) -> bool:
        """Whether a received file has the content of another; False if a decoder crashes on them or takes too long."""
        request = CompareRequest(one, self._store.path(received))
        try:
            return self._decoders.submit(request, Priority.VIEWER).result()
        except (WorkerDied, OutOfTime):
            return False


def examine(
    path: Path, calling_aet: str, decoders: WorkerPool, *, leading_zeros: bool = True, repeated_uids: bool = True
) -> NewInstance:
    """The row of a Part 10 file, without its digest; ``leading_zeros`` as in ``check_uid``. Raises DataSetError.

    ``repeated_uids``: whether a UID that names the instance may occur more than once with different values, as in files
    that an earlier version accepted. The last value counts.
    """
    with opened(path) as file:
        if file.layout.ambiguous and not repeated_uids:
            raise RepeatedUid(f"{file.layout.ambiguous[0]} occurs twice with different values (PS3.5 7.1)")
        header = file.outline()
        uids = {name: _required_uid(header, name, leading_zeros=leading_zeros) for name in _IDENTITY}
        shape = PixelShape.of(header)
        warning = native_pixel_warning(file, shape) or _codestream_warning(file, path, decoders)
        return NewInstance(
            sop_instance_uid=uids["SOPInstanceUID"],
            sop_class_uid=uids["SOPClassUID"],
            study_instance_uid=uids["StudyInstanceUID"],
            transfer_syntax_uid=str(file.transfer_syntax),
            levels=levels_of(header),
            original_digest="",
            original_bytes=path.stat().st_size,
            pixel_bytes=counted_bytes(file, shape, warning, decodable=str(file.transfer_syntax) in DECODABLE),
            calling_aet=calling_aet,
            references=references_of(header),
            pixel_warning=warning,
        )


def _codestream_warning(file: DataSetFile, path: Path, decoders: WorkerPool) -> str:
    if not file.layout.encapsulated or str(file.transfer_syntax) not in DECODABLE:
        return ""
    try:
        return decoders.submit(CheckRequest(path), Priority.VIEWER).result()
    except OutOfTime as error:
        return f"codestream cannot be decoded: {error}"
    except WorkerDied:
        return "codestream cannot be decoded: the decoder crashed on it"


_ATTEMPTS = 5
"""Most attempts to check an original that is being moved, packed or removed meanwhile. Chosen, not measured."""
ANOTHER_PATIENT = "states another Patient ID than its study, and is found under the patient of the study"
_GONE = "it was being removed while it was received again; send it once more"
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

DECODABLE = {
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{part}" for part in (50, 51, 57, 70, 80, 81, 90, 91, 110, 111, 112, 201, 202, 203)),
}
"""Encapsulated transfer syntaxes (PS3.5 section 8.2) that this archive can decode, and so check for damage."""


def check_uid(name: str, value: str, *, leading_zeros: bool = True) -> None:
    """Raises InvalidUid unless PS3.5 9.1 allows the value; ``leading_zeros``: whether components may have them."""
    if not value:
        raise InvalidUid(f"the {name} is missing")
    if len(value) > 64 or not (_LENIENT_UID if leading_zeros else _UID).fullmatch(value):
        raise InvalidUid(f"{name} is no valid UID: {value[:70]!r}")


def _required_uid(header: Dataset, name: str, *, leading_zeros: bool) -> str:
    try:
        value = header.get(name)
    except Exception as error:
        raise InvalidUid(f"{name} cannot be read: {error}") from error
    if value is None or str(value).strip("\0 ") == "":
        raise MissingUid(f"data set has no {name}")
    if not isinstance(value, (str, UID)):
        raise InvalidUid(f"{name} has more than one value")
    check_uid(name, str(value), leading_zeros=leading_zeros)
    return str(value)
