"""Feeds mutated inputs to decoders and parsers, in a separate process; part of benchmarks.torture.

An input can be reproduced from the seed and its number. It must be accepted or raise an error that the archive defines.
Any other exception, the death of the process and a duration of 20 s count as crashes.

    python -m benchmarks.mutations SEED FIRST COUNT SECONDS REPORT
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu import P_DATA_TF

from benchmarks.mutants import changed_bytes, changed_container, opened_container, use
from benchmarks.samples import MAMMOGRAPHY, breast, mammogram, write_body
from benchmarks.upper_layer import IMPLICIT, VERIFICATION, associate, context, item, pdu, user_information
from benchmarks.victim import ROOT
from node.dimse import pynetdicom_patches
from node.dimse.pynetdicom_patches.association_request import repaired_request
from node.dimse.pynetdicom_patches.association_spool import remove_association_spool
from node.dimse.pynetdicom_patches.entity import ArchiveEntity, UpperLayer
from node.dimse.spool import Allowance
from node.workers.memory import limit_to
from storage.dicom.dicomfile import accept_odd_values, opened
from storage.dicom.self_check import fault_of_object
from storage.dicom.writing import encode
from storage.errors import LatentPacsError

MEMORY = 6 << 30
"""Limit of the address space, in bytes."""
LONGEST = 20
"""Limit of the duration of one input, in seconds."""
GOLDEN = ROOT / "tests/golden"
VRS = [b"SQ", b"UN", b"OB", b"OW", b"UI", b"PN", b"US", b"DS", b"IS", b"AT", b"UC", b"UT", b"zz", b"\0\0"]
NUMBERS = [0, 1, 2, 7, 255, 32767, 65535, 65536, 2**20, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]

Trial = Callable[[random.Random], None]


class TooLong(BaseException):
    """An input exceeded LONGEST."""


def trials(folder: Path) -> dict[str, Trial]:
    """For each kind of input, a function that makes a mutant and has it parsed."""
    reader = Reader(folder)
    containers = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.lpacs"))}
    by_section = {name: (whole[6:7], opened_container(whole)) for name, whole in containers.items()}

    def payload(chance: random.Random) -> None:
        kind, sections = by_section[chance.choice(sorted(by_section))]
        use(changed_container(chance, kind, sections, chance.choice(["meta", "section", "several"])))

    return {"payload": payload, "file": reader.file, "request": reader.request, "command": reader.command}


class Reader:
    """Parsers of files, association requests and command sets, with the inputs to mutate."""

    def __init__(self, folder: Path) -> None:
        pynetdicom_patches.install()
        accept_odd_values()
        self._path = folder / "mutant.dcm"
        self._bodies = data_sets()
        self._requests = requests()
        self._commands = commands()
        self._layer: Any = UpperLayer.__new__(UpperLayer)
        self._layer._assoc = self._assoc = _association(folder / "spool")

    def file(self, chance: random.Random) -> None:
        """Parse a mutated Part 10 file: layout, header, outline and pixels."""
        syntax, uid, body = chance.choice(self._bodies)
        mutant = changed_data_set(chance, body)
        if syntax == DeflatedExplicitVRLittleEndian:
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            mutant = packer.compress(mutant) + packer.flush()
            mutant = changed_bytes(chance, mutant) if chance.random() < 0.3 else mutant
        write_body(mutant, self._path, sop_class=MAMMOGRAPHY, sop_instance=uid, syntax=syntax)
        if chance.random() < 0.1:
            self._path.write_bytes(changed_bytes(chance, self._path.read_bytes()))
        with opened(self._path) as file:
            file.outline()
            file.header()
            bytes(file.native_value())
        if chance.random() < 0.1:
            fault_of_object(self._path, "", uid)

    def request(self, chance: random.Random) -> None:
        """Parse a mutated association request or answer, or any other PDU."""
        mutant = changed_pdu(chance, chance.choice(self._requests))
        if mutant and mutant[0] in (1, 2):
            try:
                repaired_request(mutant)
            except ValueError:
                return
        if mutant and mutant[0] in range(1, 8):  # other types are refused before decoding
            self._layer._decode_pdu(bytearray(mutant))

    def command(self, chance: random.Random) -> None:
        """Parse a mutated command set in P-DATA, followed by a data set if it announces one."""
        chosen = changed_command(chance, chance.choice(self._commands))
        provider: Any = DIMSEServiceProvider(self._assoc)
        try:
            for flags, value in ((3, chosen), (2, changed_bytes(chance, b"\x08\0\x52\0\x06\0\0\0STUDY "))):
                data = P_DATA_TF()
                data.decode(pdu(4, struct.pack(">I", len(value) + 2) + bytes((1, flags)) + value))
                provider.receive_primitive(data.to_primitive())
            while not provider.msg_queue.empty():
                _, message = provider.msg_queue.get()
                _ = message.is_valid_request if hasattr(message, "is_valid_request") else None
                if getattr(message, "_dataset_file", None) is not None:
                    message._dataset_file.close()
        finally:
            remove_association_spool(SimpleNamespace(ae=self._assoc.ae, dimse=provider, id=0))
            remove_association_spool(self._assoc)


def _association(spool: Path) -> Any:
    """A stand-in with the parts of an association that the decoders use."""
    entity = ArchiveEntity("LATENTPACS", spool, lambda _: Allowance(1 << 30, lambda: None))
    accepted = SimpleNamespace(transfer_syntax=[UID(ExplicitVRLittleEndian)], abstract_syntax=UID(MAMMOGRAPHY))
    peer = SimpleNamespace(address="127.0.0.1", ae_title="MODALITY")
    made = SimpleNamespace(ae=entity, requestor=peer, acceptor=peer, is_acceptor=True, is_requestor=False)
    made.remote = {"address": peer.address}
    made.dul, made.dimse = SimpleNamespace(event_queue=queue.Queue()), None
    made._accepted_cx = {1: accepted}
    made.get_handlers = lambda event: [] if event.is_notification else (None, None)
    made._serve_request = lambda *_: None
    return made


# --- inputs to mutate ---


def data_sets() -> list[tuple[UID, str, bytes]]:
    """(transfer syntax, SOP Instance UID, encoded data set), before deflation."""
    made = []
    for syntax in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ):
        for depth in (0, 12):
            ds = mammogram(breast(24, 32))
            inner = ds
            for number in range(depth):
                nested = Dataset()
                nested.CodeValue = str(number)
                inner.ConceptNameCodeSequence = [nested]
                inner = nested
            written_as = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
            made.append((syntax, str(ds.SOPInstanceUID), encode(ds, written_as)))
    return made


def requests() -> list[bytes]:
    """Association requests with several contexts and all kinds of user information, an answer, and short PDUs."""
    extra = b"".join(
        item(kind, value)
        for kind, value in (
            (0x53, b"\0\2\0\2"),
            (0x54, b"\0\x11" + VERIFICATION + b"\1\1"),
            (0x55, b"MODALITY_1"),
            (0x56, b"\0\x11" + VERIFICATION + b"\0\3\1\1\1"),
            (0x58, b"\2\0\0\4name\0\0"),
        )
    )
    contexts = [context(number, VERIFICATION, IMPLICIT, b"1.2.840.10008.1.2.1") for number in range(1, 40, 2)]
    answer = context(1, None, IMPLICIT, kind=0x21)
    plain = associate(*contexts, user=user_information(extra=extra))
    short = [pdu(kind, b"\0\1\1\1") for kind in (3, 5, 6, 7)]
    data = pdu(4, struct.pack(">I", 6) + b"\1\3abcd")
    return [plain, plain, associate(), associate(answer, kind=2), data, *short]


def element(tag: int, value: bytes) -> bytes:
    """An element of a command set (PS3.7 6.3.1)."""
    padded = value + b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, tag, len(padded)) + padded


def command_set(field: int, *elements: bytes, data: bool = True) -> bytes:
    """A command set with its group length. ``data``: whether it announces a data set."""
    rest = b"".join(elements) + element(0x100, struct.pack("<H", field)) + element(0x110, b"\1\0")
    rest += element(0x700, b"\0\0") + element(0x800, b"\0\0" if data else b"\1\1")
    return element(0, struct.pack("<I", len(rest))) + rest


def commands() -> list[bytes]:
    """Command sets of every service of the archive, of a cancel, and of responses."""
    named = element(2, MAMMOGRAPHY.encode())
    instance = element(0x1000, b"2.25.1234567890123456789")
    services = [command_set(0x30, element(2, VERIFICATION), data=False)]
    services += [command_set(0x01, named, instance), command_set(0x01, named, instance, element(0x1030, b"MODALITY"))]
    services += [command_set(field, named, element(0x600, b"VIEWER")) for field in (0x10, 0x20, 0x21)]
    services += [command_set(0xFFF, element(0x120, b"\1\0"), data=False), command_set(0x130, named, instance)]
    services += [command_set(0x100, named, instance, element(0x1002, b"\1\0"))]
    return services + [
        command_set(field | 0x8000, named, element(0x900, b"\0\0")) for field in (0x01, 0x10, 0x21, 0x30)
    ]


# --- mutations ---


def changed_data_set(chance: random.Random, body: bytes) -> bytes:
    """A data set with wrong VRs or lengths, repeated parts, or bytes changed anywhere."""
    changed = bytearray(body)
    for _ in range(chance.choice([1, 1, 2, 4])):
        at, how = chance.randrange(max(1, len(changed) - 4)), chance.randrange(5)
        if how == 0:
            changed[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS))
        elif how == 1:
            changed[at : at + 2] = struct.pack("<H", chance.choice(NUMBERS) & 0xFFFF)
        elif how == 2:
            changed[at : at + 2] = chance.choice(VRS)
        elif how == 3:
            changed[at:at] = changed[at : at + chance.randrange(8, 300)]
        else:
            changed = bytearray(changed_bytes(chance, bytes(changed)))
    return bytes(changed)


def changed_command(chance: random.Random, whole: bytes) -> bytes:
    """A command set with elements changed, repeated or removed, and sometimes any byte changed."""
    elements, at = [], 0
    while at < len(whole):
        tag, length = struct.unpack_from("<xxHI", whole, at)
        elements.append((tag, whole[at + 8 : at + 8 + length]))
        at += 8 + length
    for _ in range(chance.choice([1, 1, 2, 3])):
        at, how = chance.randrange(len(elements)), chance.randrange(5)
        tag, value = elements[at]
        if how == 0:
            elements[at] = tag, changed_bytes(chance, value)
        elif how == 1:
            elements[at] = tag, struct.pack("<I", chance.choice(NUMBERS))[: len(value)]
        elif how == 2:
            elements[at] = chance.choice([0, 2, 0x100, 0x110, 0x120, 0x600, 0x700, 0x800, 0x900, 0x1000, 0x1030]), value
        elif how == 3:
            elements.insert(at, (tag, value * chance.choice([1, 2, 100])))
        elif len(elements) > 1:
            del elements[at]
    changed = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in elements)
    return changed_bytes(chance, changed) if chance.random() < 0.2 else changed


def changed_pdu(chance: random.Random, whole: bytes) -> bytes:
    """A PDU with bytes changed. In 60% of cases its length is corrected, so that its content is parsed."""
    changed = bytearray(changed_bytes(chance, whole))
    if len(changed) > 80 and chance.random() < 0.4:
        at = chance.randrange(74, len(changed) - 4)
        changed[at : at + 2] = struct.pack(">H", chance.choice(NUMBERS) & 0xFFFF)
    if chance.random() < 0.8:
        changed[0] = whole[0]
    if len(changed) > 6 and chance.random() < 0.6:
        changed[2:6] = struct.pack(">I", len(changed) - 6)
    return bytes(changed)


# --- the process ---


def fuzz(seed: int, first: int, count: int, seconds: float, report: Path) -> None:
    """Try inputs in the order of their numbers until all are done or time is up; write the results to ``report``."""
    os.nice(10)  # nodes have priority
    limit_to(MEMORY)
    signal.signal(signal.SIGALRM, _too_long)
    done: dict[str, Any] = {"tried": 0, "kinds": Counter(), "refused": 0, "crashes": []}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        kinds = trials(Path(folder))
        names = sorted(kinds)
        for number in range(first, first + count):
            name = names[number % len(names)]
            if number % 50 == 0:
                report.write_text(json.dumps({**done, "at": number}))
            signal.alarm(LONGEST)
            try:
                kinds[name](random.Random(f"{seed} {number}"))
            except LatentPacsError:
                done["refused"] += 1
            except (Exception, TooLong) as error:  # noqa: BLE001 - finding these is the purpose
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                done["crashes"].append(f"{name} {number}: {type(error).__name__} at {place}")
            signal.alarm(0)
            done["tried"] += 1
            done["kinds"][name] += 1
            if time.monotonic() > deadline:
                break
    report.write_text(json.dumps(done))


def _too_long(*_: object) -> None:
    raise TooLong


def fuzz_in_process_of_its_own(seed: int, first: int, count: int, seconds: float, folder: Path) -> dict[str, Any]:
    """``fuzz`` in a new process, whose death counts as a crash."""
    report = folder / f"mutations-{first}.json"
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.mutations"]
    words += [str(each) for each in (seed, first, count, seconds, report)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)  # libraries log a line per mutant
    try:
        code = process.wait(seconds + 60)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    done: dict[str, Any] = {"tried": 0, "kinds": {}, "refused": 0, "crashes": []}
    if report.exists():
        done |= json.loads(report.read_text())
    if code:
        done["crashes"].append(f"the process ended with {code}, within 50 inputs of number {done.get('at', first)}")
    return done


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
