"""Proves that references of annotations are kept, or rewritten in copies for peers that know only reconstructions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag
from sqlalchemy import update

from node.app import Node
from node.archive.serve.annotation_references import references_of, write_copy
from node.config import parse
from node.dimse.client import Receiver
from storage.errors import ConfigError
from storage.index.connection import writing
from storage.index.tables import instance
from storage.records import InstanceState, ReferencingCopy
from tests.conftest import Archive, settings_for
from tests.support.annotations import (
    cad_report,
    finding,
    item,
    presentation_state,
    references,
    scoord,
    selected_from,
)
from tests.support.index_rows import claimed, new_rendition
from tests.support.peers import data_set_bytes, findscu, getscu, storescu
from tests.support.samples import breast, mammogram, write

WHY = {"reason": "a test", "who": "user:test"}


@dataclass
class Study:
    """An image, another image without a reconstruction, and an annotation of both."""

    archive: Archive
    folder: Path
    images: list[Dataset]
    annotation: Dataset
    file: Path

    def encoded(self, derived_uid: str) -> None:
        """Give the first image a reconstruction of that UID; only its row is read here."""
        index = self.archive.node.index
        held = index.by_uid(self.images[0].SOPInstanceUID)
        assert held is not None
        with writing(index.engine) as connection:
            for_us = {"state": InstanceState.RECEIVED, "attempts": 0}
            others = update(instance).where(instance.c.key != held.key).values(state=InstanceState.EXACT)
            connection.execute(others)
            connection.execute(update(instance).where(instance.c.key == held.key).values(for_us))
        index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition(derived_uid))

    def keys(self, uid: str) -> list[str]:
        ds = self.annotation
        levels = [f"StudyInstanceUID={ds.StudyInstanceUID}", f"SeriesInstanceUID={ds.SeriesInstanceUID}"]
        return [*levels, f"SOPInstanceUID={uid}"]

    def found(self, title: str, uid: str = "") -> list[str]:
        """The UIDs under which a peer finds the annotation."""
        _, answers = findscu(self.archive.address, self.folder / "found", "-S", "IMAGE", *self.keys(uid), calling=title)
        return [str(one.SOPInstanceUID) for one in answers]

    def flag(self, title: str) -> str:
        """The Verification Flag that a query returns."""
        keys = (*self.keys(""), "VerificationFlag")
        _, (answer,) = findscu(self.archive.address, self.folder / "flag", "-S", "IMAGE", *keys, calling=title)
        return str(answer.VerificationFlag or "")

    def got(self, title: str, uid: str) -> Path:
        folder = self.folder / f"{title} {uid}"
        ran = getscu(self.archive.address, folder, "-S", "IMAGE", *self.keys(uid), calling=title)
        assert ran.counts == (1, 0, 0), ran.said
        (path,) = folder.iterdir()
        return path


@pytest.fixture(params=["report", "presentation state"])
def study(request: pytest.FixtureRequest, tmp_path: Path, receiver: Receiver) -> Iterator[Study]:
    settings = settings_for(tmp_path / "archive", receiver.port, archivist={"enabled": False})
    peers = [peer.model_dump(by_alias=True) for peer in settings.peers]
    peers += [{**peers[1], "ae_title": "REWRITTEN", "references": "rewrite"}]
    with Node(settings_for(tmp_path / "archive", peers=peers, archivist={"enabled": False})) as node:
        archive = Archive(node, receiver)
        images = [mammogram(breast(64, 48), StudyInstanceUID="1.2.826.0.1.3680043.8.498.1") for _ in range(2)]
        uids = [str(ds.SOPInstanceUID) for ds in images]
        if request.param == "report":
            marks = [finding("1", scoord("POINT", [1.0, 2.0], selected_from(uid))) for uid in uids]
            annotation = cad_report(images[0].StudyInstanceUID, uids, *marks)
            annotation.VerificationFlag = "VERIFIED"
        else:
            annotation = presentation_state(images[0].StudyInstanceUID, uids)
        files = [write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate([*images, annotation])]
        assert storescu(files, archive.address).statuses == [0, 0, 0]
        yield Study(archive, tmp_path, images, annotation, files[-1])


def referenced(ds: Dataset) -> set[str]:
    return {str(element.value) for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"}


@pytest.mark.slow
def test_copies_for_a_peer_with_rewritten_references(study: Study) -> None:
    own = str(study.annotation.SOPInstanceUID)
    assert study.found("REWRITTEN") == [own]  # nothing is reconstructed yet
    study.encoded("2.25.1")
    (copy,) = study.found("REWRITTEN")
    assert copy.startswith("2.25.")
    assert study.found("REWRITTEN", own) == study.found("REWRITTEN", copy) == [copy]
    for title in ("VIEWER", "EXACTVIEW"):
        assert study.found(title) == [own]
        assert data_set_bytes(study.got(title, own)) == data_set_bytes(study.file)

    received = study.got("REWRITTEN", copy)
    assert study.flag("REWRITTEN") == dcmread(received).get("VerificationFlag", "")
    assert study.flag("VIEWER") == study.annotation.get("VerificationFlag", "")
    ds, sent = dcmread(received), dcmread(study.file)
    first, second = (str(image.SOPInstanceUID) for image in study.images)
    assert referenced(sent) == {first, second}
    assert referenced(ds) - {own} == {"2.25.1", second}  # a report names itself as predecessor
    assert (ds.SOPInstanceUID, ds.file_meta.MediaStorageSOPInstanceUID) == (copy, copy)
    assert ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].SOPInstanceUID == own
    assert data_set_bytes(study.got("REWRITTEN", own)) == data_set_bytes(received)  # by its own UID: the copy

    # a new reconstruction: another copy; the UID of the first leads to what it led to
    study.encoded("2.25.2")
    (newer,) = study.found("REWRITTEN")
    assert newer != copy
    assert study.found("REWRITTEN", copy) == [copy]
    assert referenced(dcmread(study.got("REWRITTEN", newer))) - {own} == {"2.25.2", second}

    # a copy that comes back is known; one with other content is not taken for it
    assert storescu([received], study.archive.address).statuses == [0]
    ds.PatientComments = "changed"
    changed = write(ds, study.folder / "changed.dcm")
    assert storescu([changed], study.archive.address).statuses == [0xC003]
    assert len(study.archive.node.index.quarantine.all()) == 1


@pytest.mark.slow
def test_deletion_of_an_annotation_deletes_its_copies(study: Study) -> None:
    study.encoded("2.25.1")
    (copy,) = study.found("REWRITTEN")
    received = study.got("REWRITTEN", copy)
    study.archive.node.archive.deletion.delete("image", str(study.annotation.SOPInstanceUID), **WHY)
    assert study.found("REWRITTEN") == study.found("REWRITTEN", copy) == []
    assert storescu([received], study.archive.address).statuses == [0xC004]


def test_references_are_not_rewritten_for_peers_that_may_get_either_object() -> None:
    peer = {"ae_title": "A", "rendition": "auto", "references": "rewrite"}
    with pytest.raises(ConfigError, match="not for peers with rendition: auto"):
        parse({"peers": [peer]}, "config.yaml")


def copied(folder: Path, annotation: Dataset) -> Dataset:
    """The copy ``copy.dcm`` of an annotation that references the image 1.2.3.99."""
    source, target = write(annotation, folder / "received.dcm"), folder / "copy.dcm"
    write_copy(source, target, ReferencingCopy("2.25.1", 1, (("1.2.3.99", "2.25.99"),), datetime(2026, 1, 2)))
    return dcmread(target)


@pytest.mark.parametrize(
    ("character_set", "text"),
    [
        ("ISO_IR 192", b"M\xfcller"),
        ("ISO_IR 13", b"\x1b$B;3ED\x1b(J "),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], b"\xd4\xcf\xc0\xde \x1b$B;3ED\x1b(J "),
    ],
    ids=["of another character set", "kanji that are not declared", "kanji and katakana"],
)
def test_text_of_a_copy_is_what_was_received(tmp_path: Path, character_set: str | list[str], text: bytes) -> None:
    report = cad_report("1.2.3", ["1.2.3.99"], finding("1", selected_from("1.2.3.99")))
    report.SpecificCharacterSet = character_set
    for data_set in (report, report.ContentSequence[0]):
        data_set.add_new("TextValue", "UN", text)
    copied(tmp_path, report)
    written = (tmp_path / "copy.dcm").read_bytes()
    assert (written.count(text), written.count(b"2.25.99")) == (2, 2)


@pytest.mark.parametrize("implicit", [True, False])
def test_references_in_sequences_of_unknown_vr_are_rewritten(tmp_path: Path, implicit: bool) -> None:
    """A gateway with an old dictionary sends a sequence as UN, with items in implicit VR (PS3.5 6.2.2). Some gateways
    leave the items in explicit VR."""
    report = cad_report("1.2.3", ["1.2.3.99"], finding("1", selected_from("1.2.3.99")))
    only = Dataset()
    only.ContentSequence = report.ContentSequence
    written = DicomBytesIO()
    written.is_little_endian, written.is_implicit_VR = True, implicit
    write_dataset(written, only)
    tag, value = BaseTag(0x0040A730), written.getvalue()[8 if implicit else 12 :]
    report[tag] = RawDataElement(tag, "UN", len(value), value, 0, False, True)
    assert references_of(dcmread(write(report, tmp_path / "sent.dcm"))) == ("1.2.3.99",)
    copied(tmp_path, report)
    copy = (tmp_path / "copy.dcm").read_bytes()
    assert (copy.count(b"1.2.3.99"), copy.count(b"2.25.99")) == (0, 2)


def predecessors(ds: Dataset) -> list[Any]:
    """Study, series, class and instance of the predecessor documents."""
    return [
        (study.StudyInstanceUID, series.SeriesInstanceUID, one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
        for study in ds.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]


def test_the_copy_of_a_verified_report_is_unverified_and_names_the_report(tmp_path: Path) -> None:
    report = cad_report("1.2.3", ["1.2.3.99"])
    report.VerificationFlag = "VERIFIED"
    report.InstanceCreationDate = "20260102"
    report.VerifyingObserverSequence = [item(VerifyingObserverName="Muster^Anna")]
    copy = copied(tmp_path, report)
    assert (copy.VerificationFlag, "VerifyingObserverSequence" in copy) == ("UNVERIFIED", False)
    own = (report.StudyInstanceUID, report.SeriesInstanceUID, report.SOPClassUID, report.SOPInstanceUID)
    assert predecessors(copy) == [own]
    former = copy.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert (former.SOPInstanceUID, former.VerificationFlag) == (report.SOPInstanceUID, "VERIFIED")
    assert ("InstanceCreationDate" in copy, former.InstanceCreationDate) == (False, "20260102")
    assert former.VerifyingObserverSequence[0].VerifyingObserverName == "Muster^Anna"


def test_the_copy_of_a_document_is_not_identical_with_others(tmp_path: Path) -> None:
    """Identical documents have the references that the copy replaces (PS3.3 C.17.2, C.17.6.2)."""
    report = cad_report("1.2.3", ["1.2.3.99"])
    report.IdenticalDocumentsSequence = references("1.2.3.100")
    selection = presentation_state("1.2.3", ["1.2.3.99"])
    selection.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.59"
    selection.IdenticalDocumentsSequence = references("1.2.3.100")
    for document in (report, selection):
        copy = copied(tmp_path, document)
        assert "IdenticalDocumentsSequence" not in copy
        former = copy.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        assert former.IdenticalDocumentsSequence == document.IdenticalDocumentsSequence


def test_the_copy_of_a_presentation_state_or_key_object_has_no_attributes_of_reports(tmp_path: Path) -> None:
    selection = presentation_state("1.2.3", ["1.2.3.99"])
    selection.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.59"
    selection.CurrentRequestedProcedureEvidenceSequence = references("1.2.3.99")
    for annotation in (presentation_state("1.2.3", ["1.2.3.99"]), selection):
        copy = copied(tmp_path, annotation)
        assert predecessors(copy) == []
        assert "VerificationFlag" not in copy
