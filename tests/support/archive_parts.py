"""The parts of an archive that keep originals, without a network and without worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from node.archive.audit_trail import AuditTrail
from node.archive.originals.original_access import OriginalAccess
from node.archive.originals.packing import Packer
from node.archive.originals.retention import Retention
from node.archive.rendered_cache import RenderedCache
from node.config import parse
from node.upscalers.catalogue import Catalogue
from node.workers.requests import Answer, Request
from storage.formats.packed_original import restore_original
from storage.index import Index
from storage.index.connection import FOLLOWER
from storage.index.holdings import Added
from storage.index.journal_writer import TrailFollower
from storage.objects.store import ObjectStore
from storage.objects.trail_journal import TrailJournal
from storage.records import InstanceState, OriginalForm, ReasonCode, StoredRendition, Tier
from tests.support.index_rows import new_instance, new_rendition
from tests.support.samples import breast, mammogram, write


class Killed(BaseException):
    """Stands for the end of the process."""


class InlineWorkers:
    """Workers that answer each request at once, in this process."""

    catalogue = Catalogue(parse({}, "test").reconstruct)
    size = 1

    def submit(self, request: Request[Answer], priority: object) -> Future[Answer]:
        done: Future[Answer] = Future()
        try:
            done.set_result(request.answer(self.catalogue))
        except Exception as error:
            done.set_exception(error)
        return done


class RestlessPacker(Packer):
    """A packer that looks for originals to move at each step, however long the last search took."""

    def step(self) -> bool:
        self._look_again = 0.0
        return super().step()


class ArchiveParts:
    """The parts of one archive, without network. A test can create them repeatedly on the same folder."""

    def __init__(self, root: Path, reserve: str = "0%", **originals: Any) -> None:
        self.root = root
        raw = {"storage": {"root": str(root), "min_free": 0}, "originals": {"retain_for": "0d", **originals}}
        raw["audit"] = {"reserve": reserve}
        self.settings = parse(raw, "test")
        self.hot = ObjectStore(root)
        self.stores = {Tier.HOT: self.hot}
        if self.settings.originals.path:
            self.stores[Tier.COLD] = ObjectStore(self.settings.originals.path)
        self.index = Index.open(self.settings.storage.database_url)
        self.journal = TrailJournal(root / "journal")
        follower = TrailFollower(self.index.trail, self.journal)
        self.index.engine.update_execution_options(**{FOLLOWER: follower})
        follower()
        self.trail = AuditTrail(self.index, self.journal)
        self.originals = OriginalAccess(self.index, self.stores, RenderedCache(root / "rendered", 0), restore_original)
        parts = self.index, self.originals, InlineWorkers(), self.settings
        self.packer = RestlessPacker(*parts)  # type: ignore[arg-type]
        self.rendered: list[str] = []
        self.retention = self.purging_with(lambda _, rendition: self.rendered.append(rendition.derived_uid))

    def purging_with(self, render: Callable[[int, StoredRendition], None]) -> Retention:
        return Retention(self.index, self.stores, self.settings, render)

    def receive(
        self, uid: str, *, state: InstanceState = InstanceState.VERIFIED, pixels: NDArray[np.uint16] | None = None
    ) -> bytes:
        """Store an instance and set its state. Returns the received bytes."""
        pixels = breast(300, 280) if pixels is None else pixels
        path = write(mammogram(pixels, SOPInstanceUID=uid), self.root / f"{uid}.dcm")
        data = path.read_bytes()
        self.hot.adopt(path)
        digest = hashlib.sha256(data).hexdigest()
        assert self.index.add(new_instance(uid, original_digest=digest, original_bytes=len(data))) is Added.NEW
        if state is InstanceState.RECEIVED:
            return data
        claim = self.index.claim("test", 60)
        assert claim is not None
        if state in (InstanceState.VERIFIED, InstanceState.MEASURED):
            base, rendition = self.hot.put(f"base {uid}".encode()), self.hot.put(f"rendition {uid}".encode())
            derived_uid = f"2.25.{uid.rpartition('.')[2]}"
            made = new_rendition(derived_uid, base_digest=base, rendition_digest=rendition)
            self.index.finish_with(claim, state, made)
        else:
            self.index.finish(claim, state, ReasonCode.OTHER, "because")
        return data

    def read(self, data: bytes) -> bytes:
        with self.originals.borrowed(hashlib.sha256(data).hexdigest()) as path:
            return path.read_bytes()

    def work(self) -> int:
        """Run the packer until nothing is left to do. Returns the number of steps."""
        steps = 0
        while self.packer.step():
            steps += 1
        return steps

    def check_promises(self) -> None:
        """Check that every original that a row names is there, and gives the received bytes."""
        with self.index.engine.connect() as connection:
            for row in connection.execute(
                text("SELECT o.*, i.original_digest FROM original o JOIN instance i ON i.key = o.instance_key")
            ):
                if row.form != OriginalForm.PURGED:
                    assert self.stores[Tier(row.tier)].read(row.object_digest)
                    with self.originals.borrowed(row.original_digest) as path:
                        assert hashlib.sha256(path.read_bytes()).hexdigest() == row.original_digest

    def files(self) -> int:
        return sum(len(list(store.digests())) for store in self.stores.values())


def in_the_cold_store(folder: Path, uid: str) -> ArchiveParts:
    """An archive whose only original, with that UID, is in the cold store."""
    parts = ArchiveParts(folder / "archive", coder="none", path=str(folder / "cold"))
    parts.receive(uid)
    assert parts.work() == 1
    return parts
