"""Kills the node at random moments and checks that no acknowledged image is lost; part of benchmarks.torture."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import generate_uid

from benchmarks.samples import MAMMOGRAPHY, breast, mammogram, write
from benchmarks.victim import Victim, killed
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.dicomfile import opened
from storage.errors import LatentPacsError
from storage.index import Index
from storage.records import InstanceState

SUCCESSES = (0x0000, 0xB007)
SMALL, LARGE = (64, 48), (400, 320)
"""Rows and columns: images below 256 pixels a side stay exact, larger ones are encoded."""

TASKS = 6
"""Number of interrupted tasks between two checks, with one to three kills each."""
PATIENCE = 2
"""Seconds to wait for a sender after the node is killed. The sender itself may wait longer for an answer."""


@dataclass(frozen=True)
class Acknowledged:
    """An image whose C-STORE succeeded, with the SHA-256 of its data set as it was sent."""

    study: str
    sha: str
    path: Path


class Kills:
    """A node that is killed repeatedly, the images it acknowledged, and its failures."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.victim = Victim(folder / "killed")
        self.chance = chance
        self.acknowledged: dict[str, Acknowledged] = {}
        self.kills: Counter[str] = Counter()
        self.lost: set[str] = set()
        self.wrong: set[str] = set()
        self.reconstructed: set[str] = set()
        self.crashes = 0
        self.found: list[str] = []
        self._unchecked: set[str] = set()
        self._seen: set[str] = set()
        self._pixels = {shape: breast(*shape) for shape in (SMALL, LARGE)}
        self._files, self._backup = folder / "sent", folder / "backup"
        self._files.mkdir()
        self._plan: list[Callable[[], None]] = []

    def round(self) -> None:
        """Kill a few times, then check the images acknowledged since the last round and a few older studies."""
        for _ in range(TASKS):
            if not self._plan:
                self._plan = [self._storing, self._storing, self._encoding, self._packing]
                self._plan += [self._storing, self._storing, self._purging, self._scrubbing]
                self._plan += [self._rebuilding, self._backing_up]
                self.chance.shuffle(self._plan)
            self._plan.pop()()
        self.check(everything=False)

    # --- interrupted tasks ---

    def _storing(self) -> None:
        if not self._up():
            return
        senders = [self._sender(SMALL, 12) for _ in range(2)]
        time.sleep(self.chance.uniform(0.02, 0.7))
        self._kill_node("storing")
        for each in senders:
            each.join(PATIENCE)

    def _encoding(self) -> None:
        """Store two images; kill workers while they encode and verify, and then the node."""
        if not self._up():
            return
        self._sender(LARGE, 2).join(20)
        for _ in range(2):
            time.sleep(self.chance.uniform(0.1, 3.0))
            self._kill_worker("encoding")
        time.sleep(self.chance.uniform(0.1, 3.0))
        self._kill_node("encoding")

    def _packing(self) -> None:
        """Kill the node just after an image is verified, when its original is packed."""
        if not self._up():
            return
        self._sender(LARGE, 1).join(20)
        deadline, index = time.monotonic() + 8, self.victim.index()
        uid = max(self._unchecked, key=list(self.acknowledged).index, default="")
        with suppress(LatentPacsError):
            while time.monotonic() < deadline:
                held = index.by_uid(uid)
                if held is None or held.state is not InstanceState.RECEIVED:
                    break
                time.sleep(0.02)
        index.close()
        time.sleep(self.chance.uniform(0.0, 0.2))
        self._kill_node("packing")

    def _purging(self) -> None:
        self._beside("purging", self.victim.command("purge") if self._up() else None, 0.8, 4.0)

    def _scrubbing(self) -> None:
        command = self.victim.command("scrub", "--full", "--remove-orphans") if self._up() else None
        self._beside("scrubbing", command, 0.8, 2.0)

    def _backing_up(self) -> None:
        command = self.victim.command("backup", "create", str(self._backup)) if self._up() else None
        self._beside("backing up", command, 0.8, 2.5)

    def _beside(self, name: str, command: subprocess.Popen[bytes] | None, least: float, most: float) -> None:
        """Kill the node while a command works; half of the time, kill the command first."""
        if command is None:
            return
        sender = self._sender(SMALL, 6)
        time.sleep(self.chance.uniform(least, most))
        if self.chance.random() < 0.5:
            self.kills[name] += killed(command)
        self._kill_node(name)
        sender.join(PATIENCE)
        try:
            command.wait(60)
        except subprocess.TimeoutExpired:
            self._note(f"{name}: the command does not end")
            killed(command)

    def _rebuilding(self) -> None:
        """Kill the rebuild of the index up to three times."""
        self._kill_node("rebuilding")
        for _ in range(3):
            command = self.victim.command("index", "rebuild")
            time.sleep(self.chance.uniform(0.5, 1.6))
            self.kills["rebuilding"] += killed(command)

    def _up(self) -> bool:
        if self.victim.start():
            return True
        self._note(f"the node does not start: {self.victim.last_words()}")
        self.victim.close()
        return False

    def _note(self, what: str) -> None:
        self.crashes += 1
        self.found.append(what)

    def _kill_node(self, name: str) -> None:
        if self.victim.process is not None and not self.victim.alive:
            self._note(f"{name}: the node had ended by itself")
        self.kills[name] += self.victim.kill()

    def _kill_worker(self, name: str) -> None:
        workers = self.victim.workers()
        if workers:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(workers), signal.SIGKILL)
                self.kills[name] += 1

    # --- senders ---

    def _sender(self, shape: tuple[int, int], count: int) -> threading.Thread:
        """A thread that stores images of a new study until all are sent or the node is dead."""
        study, series = generate_uid(), generate_uid()
        images = []
        for _ in range(count):
            ds = mammogram(self._pixels[shape], StudyInstanceUID=study, SeriesInstanceUID=series)
            images.append((ds, write(ds, self._files / f"{ds.SOPInstanceUID}.dcm")))
        again = [self.chance.choice(list(self.acknowledged.values()))] if self.acknowledged else []
        thread = threading.Thread(target=self._send, args=(images, again), daemon=True)
        thread.start()
        return thread

    def _send(self, images: list[tuple[Dataset, Path]], again: list[Acknowledged]) -> None:
        by_path = {path: str(ds.SOPInstanceUID) for ds, path in images}

        def answered(path: Path, status: int, seconds: float) -> None:
            if status in SUCCESSES and path in by_path:
                sent = Acknowledged(str(images[0][0].StudyInstanceUID), _sha(path), path)
                self.acknowledged[by_path[path]] = sent
                self._unchecked.add(by_path[path])

        paths = [*by_path, *(one.path for one in again)]
        with suppress(LatentPacsError, RuntimeError, OSError, ValueError):
            client.store(paths, self.victim.address, calling="MODALITY", each=answered)

    # --- checks ---

    def check(self, *, everything: bool) -> None:
        """Retrieve acknowledged images: originals, or reconstructions of those that were purged.

        ``everything``: whether to check all studies, not only the new ones and three others.
        """
        if not self._up():  # this is noted as a crash; images are lost only if they are missing at the end
            if everything:
                self.lost |= set(self.acknowledged)
            return
        studies: dict[str, list[str]] = defaultdict(list)
        for uid, sent in list(self.acknowledged.items()):
            studies[sent.study].append(uid)
        asked = {self.acknowledged[uid].study for uid in self._unchecked}
        older = sorted(set(studies) - asked)
        asked |= set(older if everything else self.chance.sample(older, min(3, len(older))))
        index = self.victim.index()
        try:
            for study in sorted(asked):
                self._check_study(study, studies[study], index)
        finally:
            index.close()
        self._unchecked.clear()

    def _check_study(self, study: str, uids: list[str], index: Index) -> None:
        with tempfile.TemporaryDirectory(dir=self._files) as folder:
            receiver = Receiver(Path(folder))
            try:
                asked = client.image_identifier(study)
                to = self.victim.address
                client.get(asked, to, calling="VIEWER", sop_classes=[MAMMOGRAPHY], receiver=receiver)
            except (LatentPacsError, RuntimeError, OSError) as error:
                self._note(f"C-GET of {len(uids)} images failed: {type(error).__name__}")
            for uid in uids:
                self._check_image(uid, receiver, index)

    def _check_image(self, uid: str, receiver: Receiver, index: Index) -> None:
        held = index.by_uid(uid)
        if uid in receiver.received:
            if _sha(receiver.received[uid]) == self.acknowledged[uid].sha:
                self._seen.add(uid)
                return
            self.wrong.add(uid)
            self.found.append(f"{uid}: retrieved with other bytes")
            return
        made = held.rendition if held is not None else None
        if held is not None and held.purged and held.state is InstanceState.VERIFIED and made is not None:
            path = receiver.received.get(made.derived_uid)
            if path is not None and _pixels(path) == made.output_digest:
                self.reconstructed.add(uid)
                self._seen.add(uid)
                return
        self.lost.add(uid)
        if uid not in self._seen:
            self.wrong.add(uid)
        self.found.append(f"{uid}: not retrieved, {held.state if held else 'not in the index'}")


def _sha(path: Path) -> str:
    """SHA-256 of the data set after the file meta information."""
    with opened(path) as file:
        return hashlib.sha256(file.data).hexdigest()


def _pixels(path: Path) -> str:
    with opened(path) as file:
        return hashlib.sha256(file.native_value()).hexdigest()
