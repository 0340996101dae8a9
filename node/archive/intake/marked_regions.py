"""Marked regions, which must be stored exactly: those of the CSV file in config.yaml, and those of annotations.

An image that was encoded before a region was marked goes back to the archivist, which adds exact patches. Regions may
be marked by the UID of an original or of a reconstruction.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from node.archive.intake.annotation_regions import (
    ANNOTATING,
    Box,
    Sources,
    clipped,
    mirrored,
    regions_of,
    sources_of,
)
from node.archive.originals.original_access import OriginalAccess
from node.codec.patches import cells_under, decode_patches
from storage.dicom.dicomfile import opened
from storage.errors import ConfigError, LatentPacsError, is_no_fault_of_a_file
from storage.formats.payload import decode_base, decode_rendition
from storage.index import Index
from storage.index.instance_queries import held_in_study, list_instances, uids_of
from storage.index.integrity import Integrity
from storage.objects.store import ObjectStore
from storage.records import RENDITION_STATES, ReasonCode, StoredInstance

LOGGER = logging.getLogger(__name__)

COLUMNS = ["sop_instance_uid", "row", "column", "height", "width"]
_REASON = "regions were marked that its rendition does not hold exactly"


class MarkedRegions:
    """The marked regions of an archive. ``file``: the CSV of config.yaml, or None.

    Raises ConfigError if it cannot be read.
    """

    def __init__(self, index: Index, store: ObjectStore, originals: OriginalAccess, file: Path | None) -> None:
        self._index, self._store, self._originals = index, store, originals
        self._file, self._in_file = file, read_regions(file) if file else {}
        self._version: tuple[int, int] | None = (0, 0)
        self._logged: set[tuple[str, Box]] = set()

    def on_image(self, instance: StoredInstance, rows: int, columns: int, sources: Sources) -> tuple[Box, ...]:
        """The regions marked on an image of that size, or on its ``sources``, clipped to it."""
        uids = uids_of(self._index, instance.key)
        boxes: list[Box] = []
        for uid in sorted(uids):
            for box in self._in_file.get(uid, []):
                inside = clipped(box, rows, columns)
                if inside != box:
                    self._log_outside(uid, box, f"{rows} x {columns}", "clipped to it" if inside else "left out")
                boxes += [inside] if inside else []
        places = {**sources, **dict.fromkeys(uids, (False, False))}
        for annotation in held_in_study(self._index, instance.study_instance_uid, ANNOTATING):
            for uid, marked in self.in_annotation(annotation).items():
                if uid in places:
                    here = [mirrored(box, rows, columns, *places[uid]) for box in marked]
                    boxes += [inside for box in here if (inside := clipped(box, rows, columns))]
        return tuple(sorted(set(boxes)))

    def on_rendition(self, instance_key: int) -> tuple[Box, ...]:
        """The regions marked on an image that has a rendition."""
        instance = self._index.by_key(instance_key)
        if instance is None or instance.rendition is None:
            return ()
        base = decode_base(self._store.read(instance.rendition.base_digest))
        return self.on_image(instance, base.rows, base.columns, sources_of(base.header.dataset()))

    def in_annotation(self, annotation: StoredInstance) -> Mapping[str, list[Box]]:
        """The boxes of a held annotation by image UID; none if it is damaged or lost.

        Raises errors that are no fault of the file: the image would be encoded without its regions.
        """
        try:
            with self._originals.borrowed(annotation.original_digest) as path, opened(path) as file:
                return regions_of(file.outline())
        except Exception as error:
            if is_no_fault_of_a_file(error):
                raise
            # pydicom raises many kinds on hostile values; not the error's own text: it may quote a peer's data
            uid, kind = annotation.sop_instance_uid, type(error).__name__
            LOGGER.error("annotation %s cannot be read (%s); no region is taken from it", uid, kind)
            return {}

    def send_back_if_annotation(self, instance: StoredInstance) -> None:
        """Send images back to the archivist that lack patches on the regions of an annotation of their study.

        Other objects are ignored.
        """
        if instance.sop_class_uid not in ANNOTATING:
            return
        study, marked = instance.study_instance_uid, self.in_annotation(instance)
        for uid in marked:
            self._send_back_unpatched(uid, study)
        for image in list_instances(self._index, states=RENDITION_STATES, study_uid=study) if marked else ():
            if marked.keys() & self._sources(image).keys():
                self._send_back_unpatched(image.sop_instance_uid, study)

    def _sources(self, image: StoredInstance) -> Sources:
        """The sources of an image with a rendition; none if that cannot be read."""
        assert image.rendition is not None
        try:
            return sources_of(decode_base(self._store.read(image.rendition.base_digest)).header.dataset())
        except LatentPacsError:
            return {}

    def reload_file(self) -> None:
        """Read the file again if it has changed, and send back images that lack patches on its regions."""
        if self._file is None:
            return
        try:
            stat = self._file.stat()
            version = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            version = None
        if version == self._version:
            return
        try:
            self._in_file = read_regions(self._file)
        except ConfigError as error:
            self._version = version
            LOGGER.error("%s; the regions read before remain in force", error)
            return
        self._logged.clear()
        for uid in self._in_file:
            self._send_back_unpatched(uid, "")
        self._version = version  # if the index could not be written, the file is read again

    def lacks_patches(self, instance: StoredInstance, regions: Iterable[tuple[int, int, int, int]]) -> bool:
        """Whether the current rendition lacks exact patches on some of those regions.

        Raises ObjectMissing, ObjectDamaged.
        """
        if instance.rendition is None:
            return False
        base = decode_base(self._store.read(instance.rendition.base_digest))
        made = decode_rendition(self._store.read(instance.rendition.rendition_digest))
        cells = cells_under(regions, base.rows, base.columns)
        return bool((cells & ~decode_patches(made.patches).cells).any() if made.patches else cells.any())

    def _log_outside(self, uid: str, box: Box, size: str, action: str) -> None:
        """Log a box outside its image, once per version of the file."""
        if (uid, box) not in self._logged:
            self._logged.add((uid, box))
            LOGGER.error(
                "%s: %s reaches outside image %s, %s, and is %s; correct the file", self._file, box, uid, size, action
            )

    def _send_back_unpatched(self, uid: str, study_instance_uid: str) -> None:
        """Send an image back if its rendition lacks patches on marked regions, and the image is in that study (``""``:
        any study)."""
        instance = self._index.by_uid(uid)
        if instance is None or study_instance_uid not in ("", instance.study_instance_uid):
            return
        if instance.served_rendition is None:
            return
        try:
            if not self.lacks_patches(instance, self.on_rendition(instance.key)):
                return
        except LatentPacsError as error:
            if is_no_fault_of_a_file(error):
                raise
            LOGGER.error("the patches of %s cannot be checked: %s", instance.sop_instance_uid, error)
            return
        self.send_back(instance)

    def send_back(self, instance: StoredInstance) -> None:
        """Send an image back to the archivist; only log an error if its original is gone."""
        if instance.original_gone:
            uid = instance.sop_instance_uid
            LOGGER.error("%s cannot get patches on newly marked regions: its original is not here", uid)
            return
        Integrity(self._index.engine).requeue(instance.key, ReasonCode.OTHER, _REASON)


def read_regions(file: Path) -> dict[str, list[Box]]:
    """The boxes of a CSV file by SOP Instance UID. Raises ConfigError, which names the line."""
    found: dict[str, list[Box]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(table, [])]
            if header != COLUMNS:
                raise ConfigError(f"{file} line 1: the columns must be {','.join(COLUMNS)}, not {','.join(header)}")
            for fields in table:
                if any(fields):  # blank lines are allowed
                    uid, box = _line(fields, f"{file} line {table.line_num}")
                    found.setdefault(uid, []).append(box)
    except OSError as error:
        raise ConfigError(f"gate.patches.regions: {file} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not CSV in UTF-8: {error}") from error
    return found


def _line(fields: list[str], where: str) -> tuple[str, Box]:
    if len(fields) != len(COLUMNS):
        raise ConfigError(f"{where}: {len(fields)} values, {len(COLUMNS)} are needed ({','.join(COLUMNS)})")
    uid, *numbers = (value.strip() for value in fields)
    if not uid or len(uid) > 64 or not set(uid) <= set("0123456789."):
        raise ConfigError(f"{where}: {uid!r} is not a UID")
    for name, value in zip(COLUMNS[1:], numbers, strict=True):
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise ConfigError(f"{where}: {name} {value!r} is not a whole number of pixels, 0 or more")
    box = Box(*(int(value) for value in numbers))
    if not box.height or not box.width:
        raise ConfigError(f"{where}: height and width must be 1 or more")
    return uid, box
