"""Runs peers of a node that store, query and retrieve; part of benchmarks.load."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid

from benchmarks.ledger import SUCCESSES, Ledger, Sent
from benchmarks.samples import MAMMOGRAPHY, breast, mammogram, write
from node.dimse import client
from node.dimse.client import Address, Receiver
from storage.errors import LatentPacsError
from storage.index import Index

SMALL, LARGE = (64, 48), (288, 272)
"""Rows and columns: images below 256 pixels a side stay exact, larger ones are encoded."""
SENDERS = 10
"""Number of senders that send one instance at the same moment."""
STUDIES = 14
"""Number of studies of several images that are held, and of studies of one image. Others are deleted, so that the
archive does not grow."""
UNREACHABLE = (LatentPacsError, RuntimeError, OSError, ValueError)


class Mover(Receiver):
    """A move destination. One thread at a time uses it, and empties ``received`` first."""

    def _store(self, event: Any) -> int:
        path = self.folder / f"{time.monotonic_ns()}.dcm"
        path.write_bytes(event.encoded_dataset())
        self.received[str(event.request.AffectedSOPInstanceUID)] = path
        return 0x0000


def series_of(study: str) -> str:
    """The UID of the one series of a study."""
    return str(generate_uid(entropy_srcs=[study]))


class Traffic:
    """The peers of one node. ``counts``: number of answered requests of each kind."""

    def __init__(self, folder: Path, address: Address, index: Index, ledger: Ledger, mover: Mover) -> None:
        self.counts: Counter[str] = Counter()
        self._address, self._index, self._ledger, self._mover = address, index, ledger, mover
        self._files = folder / "sent"
        self._files.mkdir()
        self._textures = {shape: [breast(*shape, seed=number) for number in range(4)] for shape in (SMALL, LARGE)}
        self._moving, self._counting = threading.Lock(), threading.Lock()

    def tasks(self) -> list[Callable[[random.Random], None]]:
        """The tasks that peers repeat, each in a thread of its own. The argument is the thread's random generator."""
        return [self.send_study, self.send_study, self.send_together, self.get_any, self.move_any, self.find_any]

    # --- stores ---

    def image(self, chance: random.Random, shape: tuple[int, int], study: str = "") -> Dataset:
        """A new image, of a new study unless one is given."""
        study = study or generate_uid()
        changes = {"PatientID": f"P{study[-6:]}", "StudyInstanceUID": study, "SeriesInstanceUID": series_of(study)}
        return mammogram(chance.choice(self._textures[shape]), **changes)

    def written(self, ds: Dataset) -> Path:
        return write(ds, self._files / f"{generate_uid()}.dcm")

    def new(self, chance: random.Random, shape: tuple[int, int], study: str = "") -> Sent:
        """A new image, written to a file and noted in the ledger."""
        ds = self.image(chance, shape, study)
        return self._ledger.sends(ds, self.written(ds))

    def send_study(self, chance: random.Random) -> None:
        """Send a study of two small images and one that is encoded, unless the archive holds enough studies."""
        if len(self._ledger.studies()) < 2 * STUDIES:
            first = self.new(chance, LARGE)
            self.send([first, *(self.new(chance, SMALL, first.study) for _ in range(2))])
        time.sleep(chance.uniform(0.5, 2))

    def send(self, images: Sequence[Sent]) -> None:
        """Send images over one association."""
        by_path = {one.path: one for one in images}
        began = [time.monotonic()]

        def answered(path: Path, status: int, _: float) -> None:
            self._ledger.stored(by_path[path], status, began[-1])
            self._count("stores")
            began.append(time.monotonic())

        self._reach("store", lambda: client.store(list(by_path), self._address, calling="MODALITY", each=answered))

    def send_together(self, chance: random.Random) -> None:
        """Send one instance from ten senders at once; sometimes half of them send other content under its UID.

        All senders that get a success must have sent the same content, and it must be retrieved.
        """
        ds = self.image(chance, SMALL if chance.random() < 0.7 else LARGE)
        paths = [self.written(ds)]
        if chance.random() < 0.3:
            ds.InstanceNumber = 2
            paths.append(self.written(ds))
        gate, answers = threading.Barrier(SENDERS), list[tuple[Path, int]]()

        def one_sender(path: Path) -> None:
            gate.wait(60)
            self._reach("store", lambda: client.store([path], self._address, calling="MODALITY", each=answered))

        def answered(path: Path, status: int, _: float) -> None:
            answers.append((path, status))
            self._count("stores")

        began = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as together:
            list(together.map(one_sender, [paths[number % len(paths)] for number in range(SENDERS)]))
        winners = {path for path, status in answers if status in SUCCESSES}
        if len(winners) > 1:
            self._ledger.note(f"{ds.SOPInstanceUID}: two contents were stored with success under one UID")
        sent = self._ledger.sends(ds, min(winners, default=paths[0]))
        for _, status in answers:
            self._ledger.stored(sent, status, began)
        self.get(sent.study)
        time.sleep(chance.uniform(1, 4))

    # --- retrieves and queries ---

    def get_any(self, chance: random.Random) -> None:
        self._any(chance, self.get)

    def move_any(self, chance: random.Random) -> None:
        self._any(chance, self.move)

    def find_any(self, chance: random.Random) -> None:
        self._any(chance, self.find)

    def get(self, study: str) -> set[str]:
        """Retrieve a study by C-GET; return the UIDs of the correct images."""
        with tempfile.TemporaryDirectory(dir=self._files) as folder:
            receiver, began, status = Receiver(Path(folder)), time.monotonic(), Dataset()

            def ask() -> None:
                nonlocal status
                asked = client.image_identifier(study)
                options: dict[str, Any] = {"sop_classes": [MAMMOGRAPHY], "receiver": receiver}
                status = client.get(asked, self._address, calling="VIEWER", **options)

            self._reach("retrieve", ask)
            return self._judge(study, began, status, receiver)

    def move(self, study: str) -> None:
        """Retrieve a study by C-MOVE."""
        with self._moving:
            self._mover.received.clear()
            began, status = time.monotonic(), Dataset()

            def ask() -> None:
                nonlocal status
                asked = client.image_identifier(study)
                status = client.move(asked, self._address, calling="MOVER", destination="MOVER")

            self._reach("retrieve", ask)
            self._judge(study, began, status, self._mover)
            for path in self._mover.folder.iterdir():
                path.unlink()

    def find(self, study: str) -> None:
        """Query for the images of a study."""
        asked = client.image_identifier(study, series_of(study))
        began, answers = time.monotonic(), list[Dataset]()

        def ask() -> None:
            answers.extend(client.find(asked, self._address, calling="VIEWER"))
            self._count("finds")
            self._ledger.found(study, began, [str(one.SOPInstanceUID) for one in answers], self._index)

        self._reach("find", ask)

    def accession(self, study: str) -> set[str]:
        """The accession numbers with which a query finds a study; empty if it finds nothing."""
        asked, answers = client.image_identifier(study), list[Dataset]()
        asked.AccessionNumber = ""
        self._reach("find", lambda: answers.extend(client.find(asked, self._address, calling="VIEWER")))
        return {str(one.get("AccessionNumber", "")) for one in answers}

    def _judge(self, study: str, began: float, status: Dataset, receiver: Receiver) -> set[str]:
        code = int(status.Status) if "Status" in status else None
        if code is not None:
            self._count("retrieves")
        return self._ledger.retrieved(study, began, code, dict(receiver.received), self._index)

    def _any(self, chance: random.Random, ask: Callable[[str], Any]) -> None:
        studies = self._ledger.studies()
        if studies:
            ask(chance.choice(studies))
        time.sleep(chance.uniform(0.2, 1.5))

    def _reach(self, what: str, ask: Callable[[], None]) -> None:
        """Ask the node. An association that is lost or not accepted counts as a refusal."""
        try:
            ask()
        except UNREACHABLE as error:
            self._ledger.refuse(f"{what} {type(error).__name__}")

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1
