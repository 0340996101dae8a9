"""Proves that no identifier takes much more memory than its bytes."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom.dsutils import decode

from benchmarks.upper_layer import ABORTED, ask, associate, context, kinds
from node.archive.serve.retrieve import Choice, Retrieve
from tests.conftest import Archive
from tests.support.encoded_elements import element, item, sequence
from tests.support.raw_commands import DATA_SET, LAST_OF_COMMAND, LAST_OF_DATA_SET, command_set, in_one_pdu, pdv
from tests.support.samples import breast, mammogram
from tests.support.transfers import send

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{model}" for model in (1, 2, 3))
PREFIX = "node.dimse.pynetdicom_patches.message_limits"


def deflated(zeros: int) -> bytes:
    """A deflated identifier for all studies, with an element of ``zeros`` zero bytes."""
    content = element(0x00080052, "CS", b"STUDY ", ExplicitVRLittleEndian)
    content += element(0x00091001, "OB", bytes(zeros), ExplicitVRLittleEndian)
    content += element(0x0020000D, "UI", b"", ExplicitVRLittleEndian)
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(content) + engine.flush()


def answer(
    archive: Archive,
    identifier: bytes,
    sop_class: str = FIND,
    field: int = 0x0020,
    syntax: str = DeflatedExplicitVRLittleEndian,
) -> bytes:
    """The PDU that answers a request with that identifier."""
    command = command_set(
        AffectedSOPClassUID=sop_class,
        CommandField=field,
        MessageID=1,
        CommandDataSetType=DATA_SET,
        MoveDestination="EXACTVIEW" if sop_class == MOVE else None,
    )
    messages = in_one_pdu(pdv(LAST_OF_COMMAND, command), pdv(LAST_OF_DATA_SET, identifier))
    offered = context(1, sop_class.encode(), syntax.encode())
    return ask(archive.address.port, associate(offered, calling=b"EXACTVIEW"), messages)[-1]


@pytest.mark.parametrize(("sop_class", "field"), [(FIND, 0x0020), (MOVE, 0x0021)])
def test_one_that_inflates_too_far_ends_the_association(
    quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch, sop_class: str, field: int
) -> None:
    """A megabyte would inflate to a gigabyte in the node's main process."""
    monkeypatch.setattr(f"{PREFIX}._MOST_QUERY", 100_000)
    large = deflated(1_000_000)
    assert len(large) < 2_000
    assert kinds([answer(quiet_archive, large, sop_class, field)]) == [ABORTED]
    assert status_of(answer(quiet_archive, deflated(1_000))) == 0x0000


@pytest.mark.parametrize(("sop_class", "field"), [(FIND, 0x0020), (MOVE, 0x0021)])
def test_one_that_cannot_be_inflated_is_answered(quiet_archive: Archive, sop_class: str, field: int) -> None:
    assert status_of(answer(quiet_archive, b"\xff" * 20, sop_class, field)) == 0xA900


@pytest.mark.parametrize("vr", ["SQ", "UN"])
def test_one_of_many_items_ends_the_association(
    quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch, vr: str
) -> None:
    """An empty item of 8 bytes takes a kilobyte in pydicom."""
    monkeypatch.setattr(f"{PREFIX}._MOST_ITEMS", 100)
    answers = []
    for count in (100, 101):
        items = sequence(0x00091001, item(b"", ExplicitVRLittleEndian) * count, ExplicitVRLittleEndian, vr=vr)
        content = element(0x00080052, "CS", b"STUDY ", ExplicitVRLittleEndian) + items
        content += element(0x0020000D, "UI", b"", ExplicitVRLittleEndian)
        answers.append(answer(quiet_archive, content, syntax=ExplicitVRLittleEndian))
    assert status_of(answers[0]) == 0x0000
    assert kinds(answers[1:]) == [ABORTED]


def test_one_that_selects_too_many_images_reads_no_more_of_them_than_it_must(
    quiet_archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.dimse.handlers.c_move_c_get.MOST_SUBOPERATIONS", 2)
    made = [mammogram(breast(64, 48), StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{at}") for at in range(5)]
    assert send(quiet_archive, tmp_path, *made) == [0x0000] * 5
    read, choices = list[int](), Retrieve.choices

    def counted(self: Retrieve, keys: list[int], *arguments: Any, **options: Any) -> list[Choice]:
        read.append(len(keys))
        return choices(self, keys, *arguments, **options)

    monkeypatch.setattr(Retrieve, "choices", counted)
    content = element(0x00080052, "CS", b"STUDY ", ExplicitVRLittleEndian)
    content += element(0x0020000D, "UI", b"1.2.3\0", ExplicitVRLittleEndian)
    final = answer(quiet_archive, content, GET, 0x0010, syntax=ExplicitVRLittleEndian)
    assert status_of(final) == 0xA701
    assert read == [3]


def status_of(pdu: bytes) -> int:
    return int(decode(BytesIO(pdu[12:]), True, True).Status)
