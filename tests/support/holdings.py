"""Makes an archive of small objects with their rows, without a node, for tests of scrub, backup and rebuild."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

from storage.index import Index
from storage.index.connection import writing
from storage.index.original_locations import insert_original
from storage.index.tables import instance, patient, rendition, series, study
from storage.objects.store import ObjectStore
from storage.records import InstanceState

LONG_AGO = 1_000_000_000.0
POINT = "x2 jpegxl d0.3"


@dataclass
class Holdings:
    """A consistent store and index. ``objects``: the bytes of every object, by digest."""

    root: Path
    index: Index
    store: ObjectStore
    objects: dict[str, bytes] = field(default_factory=dict)
    originals: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    renditions: list[str] = field(default_factory=list)

    def put(self, data: bytes) -> str:
        """Write an object without a row, whose time is as old as that of orphans. Returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.store.path(digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (LONG_AGO, LONG_AGO))
        self.objects[digest] = data
        return digest

    def restore(self, digest: str) -> None:
        """Write the original bytes of an object again, whatever is in its place."""
        path = self.store.path(digest)
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(self.objects[digest])

    def of(self, number: int) -> Any:
        """The instance of that number."""
        found = self.index.by_uid(uid_of(number))
        assert found is not None
        return found


def uid_of(number: int) -> str:
    return f"1.2.3.{number}"


def filled(root: Path, images: int, *, seed: int = 0) -> Holdings:
    """An archive of ``images`` verified instances, with three objects each, of 1 to 3000 random bytes."""
    chance = random.Random(seed)
    made = Holdings(root, Index.open(f"sqlite:///{root / 'index.sqlite'}"), ObjectStore(root))
    now = datetime.now(UTC).replace(tzinfo=None)
    instances, renditions = [], []
    for number in range(1, images + 1):
        three = [made.put(f"{number} {kind}".encode() + chance.randbytes(chance.randint(1, 3000))) for kind in "obr"]
        original, base, made_of_it = three
        for name, digest in zip((made.originals, made.bases, made.renditions), three, strict=True):
            name.append(digest)
        instances.append(_instance(number, original, len(made.objects[original]), now))
        renditions.append(_rendition(number, base, made_of_it, now))
    with writing(made.index.engine) as connection:
        none: dict[str, Any] = {"key": 1, "attributes": {}}
        connection.execute(insert(patient).values(**none, identity="P", patient_id="P", name="", birth_date="", sex=""))
        study_row = {"study_instance_uid": "1.2", "study_date": "", "study_time": "", "accession_number": ""}
        connection.execute(insert(study).values(**none, **study_row, patient_key=1, study_id=""))
        connection.execute(insert(series).values(**none, study_key=1, series_instance_uid="1.2.3", modality="MG"))
        connection.execute(insert(instance), instances)
        for row in instances:
            insert_original(connection, row["key"], row["original_digest"], row["original_bytes"])
        connection.execute(insert(rendition), renditions)
        connection.execute(update(instance).values(rendition_key=instance.c.key))
    return made


def _instance(number: int, digest: str, size: int, now: datetime) -> dict[str, Any]:
    return {
        "key": number,
        "series_key": 1,
        "sop_instance_uid": uid_of(number),
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "attributes": {},
        "original_digest": digest,
        "original_bytes": size,
        "pixel_bytes": size,
        "pixel_warning": "",
        "calling_aet": "MODALITY",
        "received_at": now,
        "state": InstanceState.VERIFIED,
        "reason": "",
        "reason_code": "",
        "attempts": 1,
    }


def _rendition(number: int, base: str, digest: str, now: datetime) -> dict[str, Any]:
    return {
        "key": number,
        "instance_key": number,
        "derived_uid": f"2.25.{number}",
        "structure_uid": f"2.25.9{number}",
        "base_digest": base,
        "base_bytes": 1,
        "rendition_digest": digest,
        "rendition_bytes": 1,
        "point": {"scale": 2, "coder": "jpegxl", "distance": 0.3, "effort": 7},
        "upscaler": "bicubic",
        "weights_digest": "",
        "output_digest": "",
        "structure_digest": "",
        "psnr_db": 40.0,
        "fsim_mean": 0.95,
        "fsim_p5": 0.92,
        "tiles": 4,
        "figures": {},
        "gated": 1,
        "recipe": "steps 0",
        "tried": [{"point": POINT, "upscaler": "bicubic", "payload_bytes": 2, "failures": [], "seconds": 1.0}],
        "seconds": 1.0,
        "verified_at": now,
    }
