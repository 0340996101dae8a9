"""Sends mutated PDUs, messages and files to a running node and measures its growth; part of benchmarks.torture."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

from benchmarks.kills import SUCCESSES
from benchmarks.mutations import (
    changed_command,
    changed_data_set,
    changed_pdu,
    command_set,
    commands,
    data_sets,
    element,
    requests,
)
from benchmarks.samples import MAMMOGRAPHY
from benchmarks.upper_layer import DATA, IMPLICIT, VERIFICATION, associate, context, echo, pdu, received
from benchmarks.victim import Victim
from node.dimse import client
from node.dimse.client import Receiver
from storage.errors import LatentPacsError

EXPLICIT = ExplicitVRLittleEndian.encode()
SETTLING = 20
"""Seconds for connections and threads to end before they are counted."""


class Attack:
    """An attacked node, the number of inputs sent to it, and its failures."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.victim = Victim(folder / "attacked", network_timeout=10)
        self.chance = chance
        self.tried = self.crashes = 0
        self.taken: dict[str, str] = {}
        self.wrong: set[str] = set()
        self.found: list[str] = []
        self._folder = folder / "returned"
        self._folder.mkdir()
        [(_, self._uid, self._body), *_] = [each for each in data_sets() if each[0] == ExplicitVRLittleEndian]
        self._requests, self._commands = requests(), commands()
        self._before: dict[str, float] = {}
        self._unchecked: dict[str, str] = {}

    def round(self, inputs: int) -> None:
        """Send ``inputs`` inputs; then the node must answer a C-ECHO and return every image that it accepted."""
        if not self.victim.start():
            self._note("the attacked node does not start")
            return
        for _ in range(inputs // 3):
            self._request()
            self._message()
        self._files(inputs - inputs // 3 * 2)
        if not self.victim.alive:
            self._note("the attacked node ended")
        elif not self.victim.answers():
            self._note("the attacked node does not answer a C-ECHO")
        else:
            self._retrieve()

    def begin_to_measure(self) -> None:
        """Take the node's present resources as the baseline of ``growth``."""
        self._before = self._settled()

    def growth(self) -> dict[str, float]:
        """Growth of memory, file descriptors and threads of the node since ``begin_to_measure``."""
        if not self.victim.alive or not self._before:
            return {"rss_mb": 0.0, "fd": 0, "threads": 0}
        after = self._settled()
        return {name: round(after[name] - before, 1) for name, before in self._before.items()}

    def _settled(self) -> dict[str, float]:
        deadline, usage = time.monotonic() + SETTLING, self.victim.usage()
        while time.monotonic() < deadline:
            if self._before and all(usage[name] <= self._before[name] for name in ("fd", "threads")):
                break
            time.sleep(0.5)
            now = self.victim.usage()
            still = all(now[name] == usage[name] for name in ("fd", "threads"))
            usage = now
            if still and not self._before:
                break
        return usage

    def _note(self, what: str) -> None:
        self.crashes += 1
        self.found.append(what)

    # --- inputs ---

    def _request(self) -> None:
        """Send a mutated association request, and then a mutated message, whatever the answer is."""
        with suppress(OSError), self._connected() as connection:
            connection.sendall(changed_pdu(self.chance, self.chance.choice(self._requests)))
            self._answer(connection)
            connection.sendall(changed_pdu(self.chance, echo()))
            self._answer(connection)
        self.tried += 1

    def _message(self) -> None:
        """Send a mutated message of any service, sometimes as a mutated PDU, on a valid association."""
        contexts = context(1, VERIFICATION, IMPLICIT), context(3, MAMMOGRAPHY.encode(), EXPLICIT)
        with suppress(OSError), self._connected() as connection:
            connection.sendall(associate(*contexts, calling=b"MODALITY"))
            self._answer(connection)
            command = changed_command(self.chance, self.chance.choice(self._commands))
            whole = _data(3, 3, command) + _data(3, 2, changed_data_set(self.chance, self._body))
            if self.chance.random() < 0.3:
                whole = changed_pdu(self.chance, whole)
            connection.sendall(whole)
            self._answer(connection)
        self.tried += 1

    def _files(self, count: int) -> None:
        """Send mutated data sets by valid C-STORE requests on one association. If it ends, open a new one."""
        connection: socket.socket | None = None
        for _ in range(count):
            self.tried += 1
            uid = f"2.25.{self.chance.randrange(10 ** (len(self._uid) - 6), 10 ** (len(self._uid) - 5))}"
            body = changed_data_set(self.chance, self._body.replace(self._uid.encode(), uid.encode()))
            with suppress(OSError):
                if connection is None:
                    connection = self._connected(20)
                    connection.sendall(associate(context(3, MAMMOGRAPHY.encode(), EXPLICIT), calling=b"MODALITY"))
                    received(connection)
                named = element(2, MAMMOGRAPHY.encode()), element(0x1000, uid.encode())
                connection.sendall(_data(3, 3, command_set(0x01, *named)) + _data(3, 2, body))
                status = _status(received(connection))
                if status in SUCCESSES:
                    self._unchecked[uid] = hashlib.sha256(body).hexdigest()
                if status is not None:
                    continue
                self.found.append(f"a mutated file got no status, seed input {self.tried}")
            if connection is not None:
                connection.close()
            connection = None
        if connection is not None:
            connection.close()

    def _connected(self, seconds: float = 0.05) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.victim.port), 10)
        made.settimeout(seconds)
        return made

    def _answer(self, connection: socket.socket) -> None:
        """Wait for any answer, at most for the connection's timeout."""
        with suppress(TimeoutError):
            connection.recv(65536)

    # --- what was accepted ---

    def _retrieve(self) -> None:
        """Check that every image stored with success is retrieved byte for byte."""
        index = self.victim.index()
        for uid, sha in self._unchecked.items():
            held = index.by_uid(uid)
            receiver = Receiver(self._folder)
            if held is not None:
                asked = client.image_identifier(held.study_instance_uid, held.series_instance_uid, uid)
                with suppress(LatentPacsError, RuntimeError, OSError):
                    to = self.victim.address
                    client.get(asked, to, calling="VIEWER", sop_classes=[MAMMOGRAPHY], receiver=receiver)
            path = receiver.received.get(uid)
            if path is None or _sha(path) != sha:
                self.wrong.add(uid)
                self.found.append(
                    f"a mutated file was stored and {'not retrieved' if path is None else 'retrieved with other bytes'}"
                )
        index.close()
        self.taken |= self._unchecked
        self._unchecked = {}


def _data(number: int, flags: int, value: bytes) -> bytes:
    """A P-DATA-TF PDU of one fragment (PS3.8 9.3.5)."""
    return pdu(DATA, struct.pack(">IBB", len(value) + 2, number, flags) + value)


def _status(answer: bytes) -> int | None:
    """The status of a response; None if the answer is not a response."""
    at = answer.find(struct.pack("<HHI", 0, 0x900, 2))
    return int(struct.unpack_from("<H", answer, at + 8)[0]) if answer[:1] == bytes((DATA,)) and at > 0 else None


def _sha(path: Path) -> str:
    """SHA-256 of the bytes after the file meta information."""
    whole = path.read_bytes()
    return hashlib.sha256(whole[144 + struct.unpack_from("<I", whole, 140)[0] :]).hexdigest()
