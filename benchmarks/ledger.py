"""Records what was sent, acknowledged and deleted, and finds answers that contradict it; part of benchmarks.load."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from storage.dicom.dicomfile import opened
from storage.index import Index

SUCCESSES = (0x0000, 0xB007)
NEVER = float("inf")


@dataclass
class Sent:
    """An image that was sent. Times are those of ``time.monotonic``; NEVER means that it did not happen."""

    uid: str
    study: str
    path: Path
    sha: str
    """SHA-256 of the data set."""
    pixels: str
    """SHA-256 of the value of its pixel data."""
    acknowledged: float = NEVER
    deleted: float = NEVER
    """When the deletion of this image was reported."""
    deleting: int = 0
    """Number of deletions in progress that may delete this image."""
    disturbed: float = 0.0
    """When the last deletion in the study of this image ended."""


class Ledger:
    """All images by UID, the amended studies, and the answers that contradict them. Threads may share a ledger."""

    def __init__(self) -> None:
        self.images: dict[str, Sent] = {}
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.reconstructed: set[str] = set()
        """Images that were retrieved as their reconstructions."""
        self._amended: set[str] = set()
        self._deleting: Counter[str] = Counter()
        self._lock = threading.Lock()

    # --- stores ---

    def sends(self, ds: Dataset, path: Path) -> Sent:
        """Note an image before it is sent."""
        uid, study = str(ds.SOPInstanceUID), str(ds.StudyInstanceUID)
        sums = digests(path)
        with self._lock:
            return self.images.setdefault(uid, Sent(uid, study, path, *sums, deleting=self._deleting[study]))

    def stored(self, one: Sent, status: int, began: float) -> None:
        """Note the status of a C-STORE that began at the time ``began``."""
        with self._lock:
            if status not in SUCCESSES:
                self.refused[f"store {status:04X}"] += 1
            elif one.deleted < began:
                self.wrong.append(f"{one.uid}: stored with success after it was deleted")
            else:
                one.acknowledged = min(one.acknowledged, time.monotonic())

    def refuse(self, what: str) -> None:
        with self._lock:
            self.refused[what] += 1

    def note(self, what: str) -> None:
        """Note a wrong success."""
        with self._lock:
            self.wrong.append(what)

    # --- deletions and amendments ---

    def deletes(self, study: str) -> None:
        """Note that a deletion of a study begins. Until ``deleted`` is called, its images may be held or not."""
        with self._lock:
            self._deleting[study] += 1
            for one in self._of(study):
                one.deleting += 1

    def deleted(self, study: str, uids: Collection[str]) -> None:
        """Note that a deletion ended, and which images it reported as deleted."""
        at = time.monotonic()
        with self._lock:
            self._deleting[study] -= 1
            for one in self._of(study):
                one.deleting -= 1
                one.disturbed = at
                if one.uid in uids:
                    one.deleted = min(one.deleted, at)

    def amends(self, study: str) -> None:
        """Note that headers of that study may have changed."""
        with self._lock:
            self._amended.add(study)

    def undone(self) -> None:
        """Note that no amendment is in force any more."""
        with self._lock:
            self._amended.clear()

    # --- what is held ---

    def studies(self) -> list[str]:
        """Studies with acknowledged images that are not deleted, oldest first."""
        with self._lock:
            return list(dict.fromkeys(one.study for one in self.images.values() if _is_held(one)))

    def held(self, study: str = "") -> list[Sent]:
        """Acknowledged images that are not deleted, of one study or of all."""
        with self._lock:
            return [one for one in self.images.values() if _is_held(one) and study in ("", one.study)]

    def gone(self) -> list[Sent]:
        """Deleted images."""
        with self._lock:
            return [one for one in self.images.values() if one.deleted < NEVER]

    # --- answers ---

    def found(self, study: str, began: float, uids: Collection[str], index: Index) -> None:
        """Compare the answers to a query for the images of a study with what is held. ``began``: start of the query."""
        own = {self._original(uid, index) for uid in uids}
        with self._lock:
            for one in self._of(study):
                if one.uid in own and one.deleted < began:
                    self.wrong.append(f"{one.uid}: found after it was deleted")
                if one.uid not in own and _must_be_held(one, began):
                    self.wrong.append(f"{one.uid}: not found by a query that succeeded")

    def retrieved(
        self, study: str, began: float, status: int | None, files: Mapping[str, Path], index: Index
    ) -> set[str]:
        """Compare the files that a retrieve of a study received with what was sent; return the UIDs of correct images.

        ``status``: the final status, or None if there was none. Images may be missing if it is not success. It is then
        counted as a refusal.
        """
        right = {uid for name, path in files.items() if (uid := self._right(name, path, began, index))}
        own = {self._original(uid, index) for uid in files}
        with self._lock:
            missing = [one.uid for one in self._of(study) if one.uid not in own and _must_be_held(one, began)]
            if status == 0x0000:
                self.wrong += [f"{uid}: left out by a retrieve that succeeded" for uid in missing]
            elif status is not None:
                self.refused[f"retrieve {status:04X}"] += 1
        return right

    def _right(self, name: str, path: Path, began: float, index: Index) -> str:
        """The original's UID if a received file is correct; otherwise empty. Notes what is wrong with it."""
        uid = self._original(name, index)
        one = self.images.get(uid)
        if one is None:
            return ""  # a reconstruction whose image was deleted meanwhile
        if one.deleted < began:
            self.note(f"{uid}: retrieved after it was deleted")
            return ""
        sha, pixels = digests(path)
        if name == uid:
            if sha == one.sha or (one.study in self._amended and pixels == one.pixels):
                return uid
            self.note(f"{uid}: retrieved with other bytes")
            return ""
        made = index.rendition(name)
        if made is not None and made.output_digest != pixels:
            self.note(f"{uid}: retrieved as a reconstruction with other pixels than the verified ones")
            return ""
        self.reconstructed.add(uid)
        return uid

    def _original(self, uid: str, index: Index) -> str:
        """The SOP Instance UID of the original that has this original or derived UID; the UID itself if none has."""
        if uid in self.images:
            return uid
        held = index.by_uid(uid)
        return uid if held is None else held.sop_instance_uid

    def _of(self, study: str) -> list[Sent]:
        return [one for one in self.images.values() if one.study == study]


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 of the data set after the file meta information, and of the value of its pixel data."""
    with opened(path) as file:
        return hashlib.sha256(file.data).hexdigest(), hashlib.sha256(file.native_value()).hexdigest()


def _is_held(one: Sent) -> bool:
    return one.acknowledged < NEVER and one.deleted == NEVER


def _must_be_held(one: Sent, since: float) -> bool:
    """Whether an image was held at the time ``since``, and no deletion may have affected it since then."""
    return one.acknowledged < since and one.deleted == NEVER and not one.deleting and one.disturbed < since
