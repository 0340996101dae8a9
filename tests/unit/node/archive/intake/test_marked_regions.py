"""Proves which images get marked regions, and what becomes of regions that come too late or cannot be read."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from node.archive.intake.annotation_regions import MARGIN, Box, sources_of
from node.archive.intake.marked_regions import MarkedRegions, read_regions
from storage.errors import ConfigError, IndexFault
from storage.index.integrity import Integrity
from storage.records import InstanceState, OperatingPoint, StoredInstance
from tests.support.annotations import graphic, item, presentation_state, references
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import hold_image, receive, small
from tests.support.samples import write

UID, DERIVED = "1.2.3.1", "2.25.7"
STUDY = "1.2.1"
HEADER = "sop_instance_uid,row,column,height,width\n"
AT_10 = Box(10 - MARGIN, 10 - MARGIN, 2 * MARGIN, 2 * MARGIN)


class Marked:
    """An archive with one encoded image of 64 x 48 pixels, and an empty file of regions."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.bench = ArchiveParts(folder / "archive", coder="none")
        self.file = folder / "regions.csv"
        self.file.write_text(HEADER)
        hold_image(self.bench, small(UID, StudyInstanceUID=STUDY, **changes), DERIVED)
        bench = self.bench
        self.regions = MarkedRegions(bench.index, bench.hot, bench.originals, self.file)
        self.regions.reload_file()

    def image(self) -> StoredInstance:
        found = self.bench.index.by_uid(UID)
        assert found is not None
        return found

    def annotate(self, uid: str, *, study: str = STUDY) -> StoredInstance:
        """Receive a presentation state that marks the place at column 10 and row 10 of an image."""
        return self.receive(presentation_state(study, [uid], mark(uid)))

    def receive(self, ds: Dataset) -> StoredInstance:
        receive(self.bench, write(ds, self.bench.root / "state.dcm").read_bytes(), ds)
        found = self.bench.index.by_uid(str(ds.SOPInstanceUID))
        assert found is not None
        return found

    def write(self, *lines: str) -> None:
        self.file.write_text(HEADER + "".join(f"{line}\n" for line in lines))
        self.regions.reload_file()


def mark(uid: str) -> Dataset:
    return item(ReferencedImageSequence=references(uid), GraphicObjectSequence=[graphic("POINT", [10.0, 10.0])])


@pytest.fixture
def marked(tmp_path: Path) -> Marked:
    return Marked(tmp_path)


# --- which image they are on ---


@pytest.mark.parametrize("uid", [UID, DERIVED], ids=["original", "reconstruction"])
def test_an_annotation_marks_an_image_by_either_uid(marked: Marked, uid: str) -> None:
    annotation = marked.annotate(uid)
    assert marked.regions.in_annotation(annotation) == {uid: [AT_10]}
    assert marked.regions.on_image(marked.image(), 64, 48, {}) == (Box(0, 0, 26, 26),)
    assert marked.regions.on_rendition(marked.image().key) == (Box(0, 0, 26, 26),)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Box(0, 0, 26, 26)),
        ({"SpatialLocationsPreserved": "YES", "PatientOrientation": ["P", "H"]}, Box(0, 0, 26, 26)),
        ({"SpatialLocationsPreserved": "REORIENTED_ONLY", "PatientOrientation": ["P", "FL"]}, Box(0, 22, 26, 26)),
        ({"SpatialLocationsPreserved": "REORIENTED_ONLY", "PatientOrientation": ["PL", "H"]}, Box(38, 22, 26, 26)),
        ({"SpatialLocationsPreserved": "REORIENTED_ONLY", "PatientOrientation": ["F", "A"]}, None),
        ({"SpatialLocationsPreserved": "NO"}, None),
        ({"ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, None),
    ],
    ids=[
        "nothing stated",
        "the same places",
        "mirrored",
        "turned by 180",
        "turned by 90",
        "elsewhere",
        "tomosynthesis",
    ],
)
def test_what_marks_the_image_for_processing_marks_the_one_made_of_it(
    tmp_path: Path, changes: dict[str, Any], expected: Box | None
) -> None:
    """CAD reads images for processing, and its reports name these. The image has orientation A, F."""
    raw = {"ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1", "ReferencedSOPInstanceUID": "1.2.3.77"}
    source = item(**(raw | changes))
    marked = Marked(tmp_path, SourceImageSequence=[source])
    marked.regions.send_back_if_annotation(marked.annotate("1.2.3.77"))
    assert marked.regions.on_rendition(marked.image().key) == ((expected,) if expected else ())
    assert marked.image().state is (InstanceState.RECEIVED if expected else InstanceState.VERIFIED)


def test_sources_that_cannot_be_read_are_none() -> None:
    assert sources_of(item(SourceImageSequence=[item(), item(ReferencedSOPInstanceUID="1.2")])) == {}
    assert sources_of(item(PatientOrientation="A")) == {}


def test_regions_of_another_image_or_study_are_not_those_of_this_one(marked: Marked) -> None:
    marked.annotate("1.2.3.99")
    marked.annotate(UID, study="1.2.2")
    assert marked.regions.on_image(marked.image(), 64, 48, {}) == ()


def test_an_image_without_a_rendition_has_no_region_on_one(marked: Marked) -> None:
    annotation = marked.annotate(UID)
    assert marked.regions.on_rendition(annotation.key) == ()
    assert marked.regions.on_rendition(10_000) == ()
    assert not marked.regions.lacks_patches(annotation, [(0, 0, 8, 8)])


def test_a_region_outside_its_image_is_logged_once_and_left_out(
    marked: Marked, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        marked.write(f"{UID},100,100,5,5", f"{UID},60,40,100,100")
        for _ in range(2):
            assert marked.regions.on_image(marked.image(), 64, 48, {}) == (Box(60, 40, 4, 8),)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert f"reaches outside image {UID}, 64 x 48, and is left out; correct the file" in lines[0]
    assert f"reaches outside image {UID}, 64 x 48, and is clipped to it; correct the file" in lines[1]


# --- images that were encoded before ---


def test_an_image_that_lacks_patches_is_encoded_again_when_its_annotation_arrives(marked: Marked) -> None:
    marked.regions.send_back_if_annotation(marked.image())
    assert marked.image().state is InstanceState.VERIFIED
    marked.regions.send_back_if_annotation(marked.annotate(DERIVED))
    image = marked.image()
    assert image.state is InstanceState.RECEIVED
    assert image.reason == "regions were marked that its rendition does not hold exactly"
    assert image.rendition is not None


def test_an_annotation_sends_no_image_of_another_study_back(marked: Marked) -> None:
    marked.regions.send_back_if_annotation(marked.annotate(UID, study="1.2.2"))
    marked.regions.send_back_if_annotation(marked.annotate("1.2.3.99"))
    assert marked.image().state is InstanceState.VERIFIED


def test_a_region_outside_its_image_sends_it_not_back(marked: Marked) -> None:
    marked.write(f"{UID},100,100,5,5")
    assert marked.image().state is InstanceState.VERIFIED


def test_an_image_that_is_not_encoded_is_not_sent_back(marked: Marked) -> None:
    marked.bench.receive("1.2.3.2", state=InstanceState.EXACT)
    marked.bench.receive("1.2.3.3", state=InstanceState.RECEIVED)
    marked.write("1.2.3.2,0,0,5,5", "1.2.3.3,0,0,5,5")
    states = marked.bench.index.states(["1.2.3.2", "1.2.3.3"])
    assert states == {"1.2.3.2": InstanceState.EXACT, "1.2.3.3": InstanceState.RECEIVED}


def test_an_image_whose_original_was_purged_keeps_its_rendition(
    marked: Marked, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(marked.bench.retention.purge().purged) == 1
    with caplog.at_level(logging.ERROR):
        marked.write(f"{UID},0,0,5,5")
    assert f"{UID} cannot get patches on newly marked regions: its original is not here" in caplog.text
    assert marked.image().state is InstanceState.VERIFIED


def test_an_image_whose_base_is_damaged_is_logged_and_stays(marked: Marked, caplog: pytest.LogCaptureFixture) -> None:
    rendition = marked.image().rendition
    assert rendition is not None
    assert rendition.point == OperatingPoint(2, "jpegls")
    marked.bench.hot.path(rendition.base_digest).write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR):
        marked.write(f"{UID},0,0,5,5")
    assert f"the patches of {UID} cannot be checked: object {rendition.base_digest}" in caplog.text
    assert marked.image().state is InstanceState.VERIFIED


# --- what cannot be read ---


def test_a_damaged_annotation_marks_nothing_and_is_logged_without_its_text(
    marked: Marked, caplog: pytest.LogCaptureFixture
) -> None:
    annotation = marked.annotate(UID)
    marked.bench.hot.path(annotation.original_digest).write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR):
        assert marked.regions.on_image(marked.image(), 64, 48, {}) == ()
    uid = annotation.sop_instance_uid
    assert f"annotation {uid} cannot be read (ObjectDamaged); no region is taken from it" in caplog.text


def test_an_image_waits_for_an_annotation_that_may_be_read_later(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be encoded without exact patches on the regions."""
    marked.annotate(UID)

    def fail(_: str) -> Path:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(marked.bench.originals, "lend", fail)
    with pytest.raises(OSError, match="Too many open files"):
        marked.regions.on_image(marked.image(), 64, 48, {})


def test_the_regions_remain_in_force_while_the_file_is_missing_or_wrong(
    marked: Marked, caplog: pytest.LogCaptureFixture
) -> None:
    marked.write(f"{UID},1,2,3,4")
    with caplog.at_level(logging.ERROR):
        marked.file.unlink()
        for _ in range(2):
            marked.regions.reload_file()
        assert marked.regions.on_image(marked.image(), 64, 48, {}) == (Box(1, 2, 3, 4),)
        marked.write("no UID,1,2,3,4")
        assert marked.regions.on_image(marked.image(), 64, 48, {}) == (Box(1, 2, 3, 4),)
    missing, wrong = [record.getMessage() for record in caplog.records]
    assert missing.startswith(f"gate.patches.regions: {marked.file} cannot be read: No such file or directory")
    assert wrong.startswith(f"{marked.file} line 2: 'no UID' is not a UID")
    assert all(line.endswith("; the regions read before remain in force") for line in (missing, wrong))
    marked.write(f"{UID},5,6,7,8")
    assert marked.regions.on_image(marked.image(), 64, 48, {}) == (Box(5, 6, 7, 8),)


@pytest.mark.parametrize("data", [HEADER.encode("utf-16"), (HEADER + '1.2,"3').encode()], ids=["UTF-16", "open quote"])
def test_a_file_that_is_no_csv_is_an_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "regions.csv"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{file} is not CSV in UTF-8"):
        read_regions(file)


def test_without_a_file_nothing_is_read_again(marked: Marked) -> None:
    bench = marked.bench
    regions = MarkedRegions(bench.index, bench.hot, bench.originals, None)
    regions.reload_file()
    assert regions.on_image(marked.image(), 64, 48, {}) == ()


@pytest.mark.parametrize(("where", "name"), [(Integrity, "requeue"), (MarkedRegions, "on_rendition")])
def test_regions_count_although_the_index_was_locked_when_the_file_changed(
    marked: Marked, monkeypatch: pytest.MonkeyPatch, where: type, name: str
) -> None:
    marked.file.write_text(f"{HEADER}{UID},10,10,20,20\n", encoding="utf-8")

    def locked(*_: object) -> None:
        raise IndexFault("the index cannot be used (database is locked)")

    with monkeypatch.context() as patched:
        patched.setattr(where, name, locked)
        with pytest.raises(IndexFault):
            marked.regions.reload_file()
    assert marked.image().state is InstanceState.VERIFIED
    marked.regions.reload_file()
    assert marked.image().state is InstanceState.RECEIVED
