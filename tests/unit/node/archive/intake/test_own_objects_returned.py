"""Proves what becomes of objects that this archive made, when a peer sends them back to it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.archive.deletion import Deletion
from node.archive.intake.ingest import examine
from node.archive.intake.quarantine import QuarantineReview
from node.archive.serve.annotation_references import write_copy
from storage.dicom.header_amendments import AmendmentKind
from storage.errors import ChangedMeanwhile, ChangeRefused, Duplicate
from storage.index.integrity import Integrity
from storage.index.rewritten_annotations import copies
from storage.records import ReferencingCopy, StoredRendition
from tests.support.annotations import presentation_state
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.coded_images import FailingDecoders, derived_object, hold_image, just_before, receive, small
from tests.support.samples import write

UID, DERIVED = "1.2.3.1", "2.25.7"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reasons(bench: ArchiveParts) -> list[str]:
    """The reason of each object in quarantine. Checks that the store holds each object."""
    found = bench.index.quarantine.all()
    for one in found:
        assert bench.hot.read(one.digest)
    return [one.reason for one in found]


class Image:
    """An image with a reconstruction, and the reconstruction as a peer received it."""

    def __init__(self, bench: ArchiveParts) -> None:
        self.bench = bench
        self.received = hold_image(bench, small(UID), DERIVED)
        path = derived_object(bench, self.row, bench.root / "derived.dcm")
        self.returned, self.header = path.read_bytes(), dcmread(path)

    @property
    def row(self) -> StoredRendition:
        found = self.bench.index.rendition(DERIVED)
        assert found is not None
        return found

    def send(self, decoders: object = None) -> bool:
        """Send the returned file. Returns whether it counted as a new image."""
        return receive(self.bench, self.returned, self.header, decoders).new

    def purge(self) -> None:
        assert len(self.bench.retention.purge().purged) == 1


@pytest.fixture
def image(bench: ArchiveParts) -> Image:
    return Image(bench)


def test_a_reconstruction_that_returns_unchanged_is_acknowledged_and_not_stored(image: Image) -> None:
    assert not image.send()
    assert reasons(image.bench) == []
    assert not image.bench.hot.has(sha256(image.returned))


def test_a_reconstruction_of_an_amended_study_is_acknowledged_with_either_header(image: Image) -> None:
    """Formerly, it raised a TypeError, and the peer got a failure each time."""
    study, changes = str(image.header.StudyInstanceUID), {"00080050": {"vr": "SH", "Value": ["A17"]}}
    image.bench.index.amendments.make(AmendmentKind.STUDY, study, changes, reason="typing error", who="user:me")
    assert not image.send(), "as it was before the amendment"
    held = image.bench.index.by_uid(UID)
    assert held is not None
    path = derived_object(image.bench, image.row, image.bench.root / "amended.dcm", held.amended)
    image.returned = path.read_bytes()
    assert dcmread(path).AccessionNumber == "A17"
    assert not image.send()
    assert reasons(image.bench) == []
    image.header.AccessionNumber = "A18"
    image.returned = write(image.header, image.bench.root / "corrected.dcm").read_bytes()
    with pytest.raises(Duplicate, match="another Accession"):
        image.send()


def test_a_reconstruction_on_which_a_decoder_crashes_is_quarantined(image: Image) -> None:
    with pytest.raises(Duplicate, match="with other pixels; it is in quarantine"):
        image.send(FailingDecoders())
    assert reasons(image.bench) == ["carries the UID of a reconstruction of this archive, with other pixels"]


def test_a_reconstruction_with_truncated_pixels_is_quarantined(image: Image) -> None:
    del image.header.PixelData
    image.returned = write(image.header, image.bench.root / "cut.dcm").read_bytes()
    with pytest.raises(Duplicate, match="with other pixels; it is in quarantine"):
        image.send()
    assert image.bench.hot.read(sha256(image.returned)) == image.returned


def test_a_reconstruction_with_a_corrected_header_is_quarantined_with_the_attribute(image: Image) -> None:
    image.header.PatientID = "P9"
    image.returned = write(image.header, image.bench.root / "corrected.dcm").read_bytes()
    with pytest.raises(Duplicate, match="with another PatientID; it is in quarantine"):
        image.send()


def test_a_reconstruction_whose_payload_is_lost_is_kept(image: Image) -> None:
    """Somebody may have corrected its header, which cannot be compared without the payload."""
    bench = image.bench
    bench.hot.delete(image.row.base_digest)
    with pytest.raises(Duplicate, match="with a header that cannot be compared with ours now; it is in quarantine"):
        image.send()
    bench.hot.delete(sha256(image.received))
    with pytest.raises(Duplicate, match="with a payload that is lost here; it is in quarantine"):
        image.send()
    assert bench.hot.read(sha256(image.returned)) == image.returned


def test_a_reconstruction_is_kept_if_its_payload_is_lost_after_the_original_was_purged(image: Image) -> None:
    image.purge()
    image.bench.hot.delete(image.row.rendition_digest)
    with pytest.raises(Duplicate, match="with a payload that is lost here"):
        image.send()


@pytest.mark.parametrize("collected", [False, True], ids=["payload there", "payload gone"])
def test_a_withdrawn_reconstruction_with_another_header_is_kept(image: Image, collected: bool) -> None:
    """Formerly, it was dropped with success, and nobody saw the corrected header."""
    Integrity(image.bench.index.engine).withdraw(DERIVED, "an audit failed")
    if collected:
        image.bench.index.garbage.collect(image.bench.stores)
    image.header.PatientID = "P9"
    image.returned = write(image.header, image.bench.root / "corrected.dcm").read_bytes()
    with pytest.raises(Duplicate, match="header that cannot be compared" if collected else "another PatientID"):
        image.send()
    assert image.bench.hot.read(sha256(image.returned)) == image.returned


def test_a_reconstruction_of_an_image_that_is_deleted_at_this_moment_is_not_acknowledged(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image.bench.index, "by_uid", lambda uid: None)
    with pytest.raises(ChangedMeanwhile, match="send it once more"):
        image.send()


def test_a_reconstruction_is_kept_if_the_base_cannot_be_read_which_is_logged(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    image.bench.hot.path(image.row.base_digest).write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR), pytest.raises(Duplicate, match="a header that cannot be compared"):
        image.send()
    assert f"header of rendition {DERIVED} cannot be made: rendition {image.row.rendition_digest}" in caplog.text


# --- copies of annotations ---


class Annotation:
    """An annotation of an image with a reconstruction, and its copy as a peer received it."""

    def __init__(self, bench: ArchiveParts) -> None:
        self.bench = bench
        image = small(UID)
        hold_image(bench, image, DERIVED)
        self.ds = presentation_state(str(image.StudyInstanceUID), [UID])
        self.path = write(self.ds, bench.root / "state.dcm")
        self.received = self.path.read_bytes()
        receive(bench, self.received, self.ds)
        self.returned = self.as_sent()

    def copy(self) -> ReferencingCopy:
        held = self.bench.index.by_uid(str(self.ds.SOPInstanceUID))
        assert held is not None
        return copies(self.bench.index.engine, [held.key])[held.key]

    def as_sent(self) -> Dataset:
        target = self.bench.root / "copy.dcm"
        write_copy(self.path, target, self.copy())
        return dcmread(target)

    def send(self, decoders: object = None) -> bool:
        data = write(self.returned, self.bench.root / "returned.dcm").read_bytes()
        return receive(self.bench, data, self.returned, decoders).new

    def delete(self) -> None:
        stones = self.bench.index.tombstones
        stones.mark_deleted("image", str(self.ds.SOPInstanceUID), reason="wrong", who="user:test")
        stones.delete_rows()
        self.bench.index.garbage.collect(self.bench.stores)


@pytest.fixture
def annotation(bench: ArchiveParts) -> Annotation:
    return Annotation(bench)


OTHER = "carries the UID of a copy that this archive made of an annotation, with other content"


def test_a_copy_that_returns_unchanged_is_acknowledged_and_not_stored(annotation: Annotation) -> None:
    before = annotation.bench.files()
    assert not annotation.send()
    assert (annotation.bench.files(), reasons(annotation.bench)) == (before, [])


def test_a_copy_with_other_content_is_quarantined(annotation: Annotation) -> None:
    annotation.returned.PatientName = "Muster^Berta"
    with pytest.raises(Duplicate, match=f"{OTHER}; it is in quarantine"):
        annotation.send()
    assert reasons(annotation.bench) == [OTHER]


def test_a_copy_on_which_a_decoder_crashes_is_quarantined(annotation: Annotation) -> None:
    with pytest.raises(Duplicate, match="with other content; it is in quarantine"):
        annotation.send(FailingDecoders())


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_copy_of_an_annotation_that_is_lost_is_quarantined(annotation: Annotation, harm: str) -> None:
    """The copy may be all that is left of the annotation."""
    path = annotation.bench.hot.path(sha256(annotation.received))
    path.unlink() if harm == "missing" else path.write_bytes(b"damaged")
    with pytest.raises(Duplicate, match="made of an annotation, which is lost here; it is in quarantine"):
        annotation.send()
    assert len(reasons(annotation.bench)) == 1


def test_a_copy_of_an_annotation_that_is_deleted_at_this_moment_is_not_acknowledged(
    annotation: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = annotation.bench.files()
    just_before(monkeypatch, annotation.bench.index, "by_key", annotation.delete)
    with pytest.raises(ChangedMeanwhile, match="send it once more"):
        annotation.send()
    assert (annotation.bench.files(), reasons(annotation.bench)) == (before - 1, [])


def test_a_changed_copy_is_accepted_only_if_the_annotation_is_lost(annotation: Annotation) -> None:
    """Otherwise two data sets would have one UID: the accepted one, and the copy that peers get."""
    bench, workers = annotation.bench, InlineWorkers()
    deletion = Deletion(bench.index, bench.stores, bench.trail, bench.settings, bench.root / "rendered")
    parts = bench.index, bench.originals, deletion, bench.settings
    review = QuarantineReview(*parts, lambda path, aet: examine(path, aet, workers))  # type: ignore[arg-type]
    annotation.returned.PatientName = "Muster^Berta"
    with pytest.raises(Duplicate):
        annotation.send()
    [(digest, uid)] = [(one.digest, one.sop_instance_uid) for one in bench.index.quarantine.all()]
    with pytest.raises(ChangeRefused, match=f"{uid} is the UID of a copy of {annotation.ds.SOPInstanceUID}"):
        review.accept(digest, reason="better", who="user:test")
    bench.hot.delete(sha256(annotation.received))
    assert review.accept(digest, reason="it is lost", who="user:test").digest == digest
    assert bench.index.by_uid(uid) is not None
