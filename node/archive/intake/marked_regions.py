"""Regions that must be stored exactly: those of the file in config.yaml, and those that annotations point at.

They count for every image, also for one encoded before they were named: such an image goes back to the archivist, which
gives it a rendition with patches there. UIDs may be those of originals or of reconstructions.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from node.archive.intake.annotation_regions import ANNOTATING, Box, clipped, merged, regions_of
from node.archive.originals.original_access import OriginalAccess
from node.codec.patches import cells_under, decode_patches
from storage.dicom.dicomfile import opened
from storage.errors import ConfigError, LatentPacsError
from storage.formats.payload import decode_base, decode_rendition
from storage.index import Index
from storage.index.instance_rows import held_in_study, uids_of
from storage.index.integrity import Integrity
from storage.objects.store import ObjectStore
from storage.records import InstanceState, ReasonCode, StoredInstance

LOGGER = logging.getLogger(__name__)

COLUMNS = ["sop_instance_uid", "row", "column", "height", "width"]
BACK_TO_WORK = "regions were named that its rendition does not hold exactly"


class MarkedRegions:
    """What is named, for the archivist. ``file``: the CSV of config.yaml, or None; ``in_file``: what it names."""

    def __init__(
        self,
        index: Index,
        store: ObjectStore,
        originals: OriginalAccess,
        file: Path | None,
        in_file: Mapping[str, list[Box]],
    ) -> None:
        self._index, self._store, self._originals = index, store, originals
        self._file, self._in_file = file, in_file
        self._seen: tuple[int, int] | None = (0, 0)
        self._told: set[tuple[str, Box]] = set()

    def of(self, instance: StoredInstance, rows: int, columns: int) -> tuple[Box, ...]:
        """Everything named on an image of that size, clipped to it."""
        uids = uids_of(self._index, instance.key)
        boxes: list[Box] = []
        for uid in sorted(uids):
            for box in self._in_file.get(uid, []):
                inside = clipped(box, rows, columns)
                if inside != box:
                    self._tell(uid, box, f"{rows} x {columns}", "clipped to it" if inside else "left out")
                boxes += [inside] if inside else []
        for annotation in held_in_study(self._index, instance.study_instance_uid, ANNOTATING):
            for uid, pointed in self.in_annotation(annotation).items():
                if uid in uids:
                    boxes += [inside for box in pointed if (inside := clipped(box, rows, columns))]
        return merged(boxes)

    def on(self, instance_key: int) -> tuple[Box, ...]:
        """Everything named on an image that has a rendition."""
        instance = self._index.by_key(instance_key)
        if instance is None or instance.rendition is None:
            return ()
        base = decode_base(self._store.read(instance.rendition.base_digest))
        return self.of(instance, base.rows, base.columns)

    def in_annotation(self, annotation: StoredInstance) -> Mapping[str, list[Box]]:
        """What a held annotation points at; nothing where it cannot be read."""
        try:
            with self._originals.borrowed(annotation.original_digest) as path, opened(path) as file:
                return regions_of(file.outline())
        except Exception as error:  # noqa: BLE001 - pydicom raises many kinds on hostile values
            # not the error's own text: it may quote what a peer sent
            uid, kind = annotation.sop_instance_uid, type(error).__name__
            LOGGER.error("annotation %s cannot be read (%s), and names no region", uid, kind)
            return {}

    def arrived(self, instance: StoredInstance) -> None:
        """An annotation came in: images of its study that lack patches where it points go back to work."""
        if instance.sop_class_uid in ANNOTATING:
            for uid in self.in_annotation(instance):
                self._recall(uid, instance.study_instance_uid)

    def look_again(self) -> None:
        """Read the file anew where it has changed since, and send back what lacks patches on its regions."""
        if self._file is None:
            return
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._in_file = read_regions(self._file)
        except ConfigError as error:
            LOGGER.error("%s; the regions read before stay in force", error)
            return
        self._told.clear()
        for uid in self._in_file:
            self._recall(uid, "")

    def lacking(self, instance: StoredInstance, regions: Iterable[Box]) -> bool:
        """Whether the current rendition holds some of those regions without exact patches."""
        if instance.rendition is None:
            return False
        base = decode_base(self._store.read(instance.rendition.base_digest))
        made = decode_rendition(self._store.read(instance.rendition.rendition_digest))
        wanted = cells_under(regions, base.rows, base.columns)
        return bool((wanted & ~decode_patches(made.patches).cells).any() if made.patches else wanted.any())

    def _tell(self, uid: str, box: Box, size: str, done: str) -> None:
        """Log a mistake in the file, once per version of it."""
        if (uid, box) not in self._told:
            self._told.add((uid, box))
            LOGGER.error(
                "%s: %s reaches outside image %s, %s, and is %s; mend the file", self._file, box, uid, size, done
            )

    def _recall(self, uid: str, study_instance_uid: str) -> None:
        """Send an image back where its rendition lacks patches on what is named now."""
        instance = self._index.by_uid(uid)
        if instance is None or study_instance_uid not in ("", instance.study_instance_uid):
            return
        if instance.rendition is None or instance.state not in (InstanceState.VERIFIED, InstanceState.MEASURED):
            return
        try:
            base = decode_base(self._store.read(instance.rendition.base_digest))
            if not self.lacking(instance, self.of(instance, base.rows, base.columns)):
                return
        except LatentPacsError as error:
            LOGGER.error("whether %s lacks patches cannot be told: %s", instance.sop_instance_uid, error)
            return
        self.send_back(instance)

    def send_back(self, instance: StoredInstance) -> None:
        """Give an image to the archivist once more; where its original is gone, say so."""
        if instance.purged or instance.original_lost:
            uid = instance.sop_instance_uid
            LOGGER.error("%s cannot get patches on regions named since: its original is not here", uid)
            return
        Integrity(self._index.engine).requeue(instance.key, ReasonCode.OTHER, BACK_TO_WORK)


def read_regions(file: Path) -> dict[str, list[Box]]:
    """The boxes of a CSV by SOP Instance UID. Raises ConfigError that names the line."""
    found: dict[str, list[Box]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(table, [])]
            if header != COLUMNS:
                raise ConfigError(f"{file} line 1: the columns must be {','.join(COLUMNS)}, not {','.join(header)}")
            for fields in table:
                if any(fields):  # a blank line names nothing
                    uid, box = _line(fields, f"{file} line {table.line_num}")
                    found.setdefault(uid, []).append(box)
    except OSError as error:
        raise ConfigError(f"gate.patches.regions: {file} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no CSV in UTF-8: {error}") from error
    return found


def _line(fields: list[str], where: str) -> tuple[str, Box]:
    if len(fields) != len(COLUMNS):
        raise ConfigError(f"{where}: {len(fields)} values, {len(COLUMNS)} are needed ({','.join(COLUMNS)})")
    uid, *numbers = (value.strip() for value in fields)
    if not uid or len(uid) > 64 or not set(uid) <= set("0123456789."):
        raise ConfigError(f"{where}: {uid!r} is no UID")
    for name, value in zip(COLUMNS[1:], numbers, strict=True):
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise ConfigError(f"{where}: {name} {value!r} is no whole number of pixels, 0 or more")
    box = Box(*(int(value) for value in numbers))
    if not box.height or not box.width:
        raise ConfigError(f"{where}: height and width must be 1 or more")
    return uid, box
