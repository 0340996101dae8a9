"""Proves where the regions of annotations and of a file lie, and that their pixels come back bit-exact."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from node.app import Node
from node.archive.intake.annotation_regions import MARGIN, Box, clipped, regions_of
from node.archive.intake.marked_regions import read_regions
from node.codec.encode.encode_request import EncodeRequest
from node.codec.rendering import Rendering, verified
from node.config import Profile, ReconstructSettings, Settings
from node.config.encoding_sections import CodecSettings
from node.dimse import client
from node.dimse.client import Receiver
from node.upscalers.catalogue import Catalogue
from storage.dicom.pixels import integer_pixels
from storage.errors import ConfigError
from storage.formats.payload import decode_base, decode_rendition
from storage.records import InstanceState, StoredInstance, StoredRendition
from tests.conftest import Archive, settings_for, wait_for
from tests.support.annotations import (
    area,
    cad_report,
    finding,
    graphic,
    item,
    presentation_state,
    references,
    scoord,
    selected_by,
    selected_from,
)
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write

HEADER = "sop_instance_uid,row,column,height,width\n"
STUDY = "1.2.3"


def short_settings(root: Path, port: int, file: Path | None = None) -> Settings:
    """A node that tries only one scale, which keeps these journeys short."""
    gate = {"patches": {"regions": str(file or ""), "share": 0.5}}
    return settings_for(root, port, codec={"scales": [1], "effort": 3}, gate=gate)


def around(left: int, top: int, right: int, bottom: int) -> Box:
    """The box with the margin around a shape that has these edges."""
    return Box(top - MARGIN, left - MARGIN, bottom - top + 2 * MARGIN, right - left + 2 * MARGIN)


# --- where they lie -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "data", "edges"),
    [
        ("POINT", [100, 200], (100, 200, 100, 200)),
        ("MULTIPOINT", [100, 200, 90, 260], (90, 200, 100, 260)),
        ("POLYLINE", [100.5, 200, 90, 260.2, 95, 230], (90, 200, 101, 261)),
        ("CIRCLE", [100, 200, 103, 204], (95, 195, 105, 205)),
        ("ELLIPSE", [100, 180, 100, 220, 90, 200, 110, 200], (90, 180, 110, 220)),
    ],
)
def test_shapes_of_both_kinds(shape: str, data: list[float], edges: tuple[int, int, int, int]) -> None:
    report = cad_report(STUDY, ["1.2"], finding("111099", scoord(shape, data, selected_from("1.2"))))
    assert regions_of(report) == {"1.2": [around(*edges)]}
    state = presentation_state(STUDY, ["1.2"], item(GraphicObjectSequence=[graphic(shape, data)]))
    assert regions_of(state) == {"1.2": [around(*edges)]}


def test_a_slanted_ellipse_fits_its_box() -> None:
    turn, middle, half = np.deg2rad(30), np.array([300.0, 400.0]), (80.0, 20.0)
    major, minor = half[0] * np.array([np.cos(turn), np.sin(turn)]), half[1] * np.array([-np.sin(turn), np.cos(turn)])
    data = np.concatenate([middle - major, middle + major, middle - minor, middle + minor]).tolist()
    angles = np.linspace(0, 2 * np.pi, 3600)[:, None]
    drawn = middle + np.cos(angles) * major + np.sin(angles) * minor
    (left, top), (right, bottom) = drawn.min(axis=0), drawn.max(axis=0)
    state = presentation_state(STUDY, ["1.2"], item(GraphicObjectSequence=[graphic("ELLIPSE", data)]))
    edges = (int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom)))
    assert regions_of(state) == {"1.2": [around(*edges)]}


def test_a_report_may_reference_its_image_library() -> None:
    """CAD devices reference entries of their image library (PS3.16 TID 4000): 1.1.2 is the second one."""
    report = cad_report(
        STUDY,
        ["1.2", "1.3"],
        finding("111099", scoord("POINT", [10, 20], selected_by(1, 1, 2))),
        finding("111099", scoord("POINT", [30, 40], selected_by(1, 1, 1))),
        finding("111099", scoord("POINT", [1, 1], selected_by(1, 1, 3))),  # there is no such entry
    )
    assert regions_of(report) == {"1.3": [around(10, 20, 10, 20)], "1.2": [around(30, 40, 30, 40)]}


def test_outlines_of_the_breast_are_ignored() -> None:
    outline = scoord("POLYLINE", [0, 0, 3000, 4000], selected_from("1.2"))
    lesion = finding("129769006", scoord("POINT", [5, 6], selected_from("1.2")))
    assert regions_of(cad_report(STUDY, ["1.2"], finding("111100", outline), lesion)) == {"1.2": [around(5, 6, 5, 6)]}


def test_an_annotation_without_images_applies_to_all() -> None:
    one = item(ReferencedImageSequence=references("1.3"), GraphicObjectSequence=[graphic("POINT", [1, 2])])
    all_of_them = item(TextObjectSequence=[item(AnchorPoint=[7, 8], AnchorPointAnnotationUnits="PIXEL")])
    assert regions_of(presentation_state(STUDY, ["1.2", "1.3"], one, all_of_them)) == {
        "1.2": [around(7, 8, 7, 8)],
        "1.3": [around(1, 2, 1, 2), around(7, 8, 7, 8)],
    }


def test_fractions_of_the_displayed_area() -> None:
    """DISPLAY units are fractions of the displayed area, which may be rotated or flipped (PS3.3 C.10.4)."""
    shown = item(GraphicObjectSequence=[graphic("POLYLINE", [0.25, 0.5, 0.5, 0.75], "DISPLAY")])

    def box(*corners: list[int], **more: int) -> list[Box]:
        areas = [area([1, 1], [9, 9], "1.9"), area(corners[0], corners[1], "1.2")]
        state = presentation_state(STUDY, ["1.2"], shown, DisplayedAreaSelectionSequence=areas, **more)
        return regions_of(state)["1.2"]

    assert box([1, 1], [400, 800]) == [around(100, 400, 200, 600)]
    assert box([101, 201], [500, 1000]) == [around(200, 600, 300, 800)]
    assert box([400, 1], [1, 800]) == [around(200, 400, 300, 600)]  # flipped: the shown left is the image's right
    assert box([400, 800], [1, 1], ImageRotation=180) == [around(200, 200, 300, 400)]
    # turned clockwise by 90: the shown top left is the image's bottom left, the shown top its left side
    assert box([1, 800], [400, 1], ImageRotation=90) == [around(200, 400, 300, 600)]


@pytest.mark.parametrize(
    "annotation",
    [
        graphic("POINT", [0.5, 0.5], "DISPLAY"),  # no displayed area
        graphic("POINT", [3, 4], "MATRIX"),
        graphic("POINT", [float("nan"), 4]),
        graphic("POINT", [float("inf"), 4]),
        graphic("POINT", []),
    ],
)
def test_shapes_that_cannot_be_placed_are_left_out(annotation: Dataset) -> None:
    assert regions_of(presentation_state(STUDY, ["1.2"], item(GraphicObjectSequence=[annotation]))) == {}


def test_graphic_data_that_is_text_is_left_out() -> None:
    odd = graphic("POINT", [3.0, 4.0])
    odd.add_new(0x00700022, "LO", "3 and 4")
    both = [odd, graphic("POINT", [5.0, 6.0])]
    assert regions_of(presentation_state(STUDY, ["1.2"], item(GraphicObjectSequence=both))) == {
        "1.2": [around(5, 6, 5, 6)]
    }


def test_a_text_marks_its_anchor_point_and_nothing_without_one() -> None:
    anchored = item(AnchorPoint=[30.0, 40.0], AnchorPointAnnotationUnits="PIXEL")
    boxed = item(BoundingBoxTopLeftHandCorner=[1.0, 2.0], BoundingBoxAnnotationUnits="PIXEL")
    state = presentation_state(STUDY, ["1.2"], item(TextObjectSequence=[boxed, anchored]))
    assert regions_of(state) == {"1.2": [around(30, 40, 30, 40)]}


def test_fractions_of_an_area_without_two_corners_are_left_out() -> None:
    state = presentation_state(STUDY, ["1.2"], item(GraphicObjectSequence=[graphic("POINT", [0.5, 0.5], "DISPLAY")]))
    state.DisplayedAreaSelectionSequence = Sequence([item(DisplayedAreaTopLeftHandCorner=[1, 1])])
    assert regions_of(state) == {}


def test_other_and_empty_objects_mark_no_region() -> None:
    assert regions_of(mammogram()) == {}
    assert regions_of(cad_report(STUDY, [])) == {}
    assert regions_of(presentation_state(STUDY, [])) == {}


def test_clipping() -> None:
    assert clipped(Box(-5, 10, 20, 500), 100, 200) == Box(0, 10, 15, 190)
    assert clipped(Box(0, 0, 100, 200), 100, 200) == Box(0, 0, 100, 200)
    assert clipped(Box(100, 0, 5, 5), 100, 200) is None
    assert clipped(Box(-6, 0, 6, 5), 100, 200) is None


# --- the file -------------------------------------------------------------------------------------------------


def test_a_file_of_regions(tmp_path: Path) -> None:
    file = tmp_path / "regions.csv"
    file.write_text("\ufeff" + HEADER + "1.2.3,10,20,30,40\n\n1.2.4, 1, 2, 3, 4\n1.2.3,0,0,1,1\n", encoding="utf-8")
    assert read_regions(file) == {"1.2.3": [Box(10, 20, 30, 40), Box(0, 0, 1, 1)], "1.2.4": [Box(1, 2, 3, 4)]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the columns must be sop_instance_uid,row"),
        ("uid,row,column,height,width\n", "line 1: the columns"),
        (HEADER + "1.2.3,1,2,3\n", "line 2: 4 values, 5 are needed"),
        (HEADER + "1.2.3,1,2,3,4\n1.2.x,1,2,3,4\n", "line 3: '1.2.x' is not a UID"),
        (HEADER + "1.2.3,-1,2,3,4\n", "line 2: row '-1' is not a whole number"),
        (HEADER + "1.2.3,1,2.5,3,4\n", "line 2: column '2.5' is not a whole number"),
        (HEADER + "1.2.3,1,2,0,4\n", "line 2: height and width must be 1 or more"),
        (HEADER + '1.2.3,"1,2,3,4\n', "is not CSV"),
    ],
)
def test_the_error_of_a_file_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "regions.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_regions(file)


def test_a_node_does_not_start_on_a_file_it_cannot_read(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "archive", gate={"patches": {"regions": str(tmp_path / "none.csv")}})
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        Node(settings)
    assert not (tmp_path / "archive").exists()


# --- the whole road -------------------------------------------------------------------------------------------


def send(archive: Archive, folder: Path, *datasets: Dataset) -> None:
    files = [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in datasets]
    statuses: list[int] = []
    client.store(files, archive.address, calling="MODALITY", each=lambda path, status, seconds: statuses.append(status))
    assert statuses == [0] * len(files)


def current(instance: StoredInstance) -> StoredRendition:
    assert instance.state is InstanceState.VERIFIED, instance.reason
    assert instance.rendition is not None
    return instance.rendition


def patched_later(archive: Archive, uid: str, former: str) -> StoredRendition:
    """Wait for the rendition with patches that follows the rendition ``former`` without patches."""

    def another() -> StoredInstance | None:
        held = archive.settled(uid)
        return held if current(held).derived_uid != former else None

    return current(wait_for(another, what="a rendition with patches"))


def same_inside(copy: Path, ds: Dataset, box: Box) -> bool:
    original = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
    inside = np.s_[box.row : box.row + box.height, box.column : box.column + box.width]
    assert not np.array_equal(integer_pixels(copy), original), "a reconstruction, not the original"
    return bool(np.array_equal(integer_pixels(copy)[inside], original[inside]))


def moved_and_got(archive: Archive, folder: Path, ds: Dataset, uid: str) -> list[Path]:
    identifier = client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, uid)
    archive.receiver.received.clear()
    client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
    folder.mkdir(exist_ok=True)
    got = Receiver(folder)
    client.get(identifier, archive.address, calling="VIEWER", sop_classes=[MAMMOGRAPHY], receiver=got)
    return [archive.receiver.received[uid], got.received[uid]]


@pytest.mark.slow
def test_marked_regions_are_returned_bit_exact(tmp_path: Path, receiver: Receiver) -> None:
    """One region is in the file, one in a CAD report and one in a presentation state. All exist before the image
    arrives."""
    ds, box = mammogram(breast(640, 512)), Box(123, 77, 61, 94)
    file = tmp_path / "regions.csv"
    file.write_text(f"{HEADER}{ds.SOPInstanceUID},{box.row},{box.column},{box.height},{box.width}\n")
    uid, study = str(ds.SOPInstanceUID), str(ds.StudyInstanceUID)
    report = cad_report(study, [uid], finding("111099", scoord("CIRCLE", [200, 400, 230, 400], selected_by(1, 1, 1))))
    drawing = item(GraphicObjectSequence=[graphic("POLYLINE", [300.0, 250.0, 340.0, 290.0])])
    settings = short_settings(tmp_path / "a", receiver.port, file)
    with Node(settings) as node:
        archive = Archive(node, receiver)
        send(archive, tmp_path, report, presentation_state(study, [uid], drawing), ds)
        rendition = current(archive.settled(uid))
        for copy in moved_and_got(archive, tmp_path / "got", ds, rendition.derived_uid):
            assert same_inside(copy, ds, box)
            assert same_inside(copy, ds, around(170, 370, 230, 430))
            assert same_inside(copy, ds, around(300, 250, 340, 290))
            assert not same_inside(copy, ds, Box(500, 50, 100, 100))
        assert decode_rendition(node.store.read(rendition.rendition_digest)).patches


@pytest.fixture
def short(tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    """A node that finds an operating point quickly."""
    with Node(short_settings(tmp_path / "a", receiver.port)) as node:
        yield Archive(node, receiver)


@pytest.mark.slow
def test_an_annotation_after_the_image_adds_a_rendition(short: Archive, tmp_path: Path) -> None:
    """The image is encoded again once. The former UID still leads to the image, and its objects are still expected."""
    archive, ds = short, mammogram(breast(640, 512))
    uid, study = str(ds.SOPInstanceUID), str(ds.StudyInstanceUID)
    send(archive, tmp_path, ds)
    former = current(archive.settled(uid))
    elsewhere = cad_report(generate_uid(), [uid], finding("111099", scoord("POINT", [90, 90], selected_from(uid))))
    send(archive, tmp_path, elsewhere)  # another study says nothing of this image
    archive.settled(elsewhere.SOPInstanceUID)
    assert current(archive.settled(uid)) == former

    pointed = scoord("POINT", [200, 300], selected_from(former.derived_uid))  # the viewer saw the reconstruction
    report = cad_report(study, [former.derived_uid], finding("111099", pointed))
    send(archive, tmp_path, report)
    later = patched_later(archive, uid, former.derived_uid)
    assert (later.base_digest, later.point) == (former.base_digest, former.point)
    for copy in moved_and_got(archive, tmp_path / "got", ds, later.derived_uid):
        assert same_inside(copy, ds, around(200, 300, 200, 300))
        assert dcmread(copy).SOPInstanceUID == later.derived_uid
    held = archive.node.index.by_uid(former.derived_uid)
    assert held is not None
    assert held.sop_instance_uid == uid
    assert archive.node.index.rendition(former.derived_uid) == former
    assert archive.node.store.held(former.rendition_digest)

    again = cad_report(study, [uid], finding("111099", scoord("POINT", [201, 301], selected_from(uid))))
    send(archive, tmp_path, again)  # within what is exact already
    archive.settled(again.SOPInstanceUID)
    assert current(archive.settled(uid)) == later


@pytest.mark.slow
def test_a_changed_file_is_read_again(tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    ds, file = mammogram(breast(640, 512)), tmp_path / "regions.csv"
    uid = str(ds.SOPInstanceUID)
    file.write_text(HEADER)
    settings = short_settings(tmp_path / "a", receiver.port, file)
    with Node(settings) as node, caplog.at_level(logging.ERROR):
        archive = Archive(node, receiver)
        send(archive, tmp_path, ds)
        former = current(archive.settled(uid))
        file.write_text(f"{HEADER}{uid},oops,0,1,1\n")
        wait_for(lambda: "line 2: row 'oops'" in caplog.text, what="the mistake is logged")
        assert "remain in force" in caplog.text
        file.write_text(f"{HEADER}{uid},600,400,100,200\n")
        later = patched_later(archive, uid, former.derived_uid)
        assert "reaches outside image" in caplog.text
        for copy in moved_and_got(archive, tmp_path / "got", ds, later.derived_uid):
            assert same_inside(copy, ds, Box(600, 400, 40, 112))
        assert caplog.text.count("reaches outside image") == 1


def test_regions_are_exact_without_a_gate(tmp_path: Path) -> None:
    """Profile ``paper`` only measures, and marked regions are exact there too."""
    ds = mammogram(breast(320, 300))
    file = write(ds, tmp_path / "one.dcm")
    original = np.frombuffer(ds.PixelData, "<u2").reshape(320, 300)
    point, region = CodecSettings(profile=Profile.PAPER).fixed_point, (100, 70, 40, 50)
    request = EncodeRequest(file, "0" * 64, ds.SOPInstanceUID, None, point, regions=(region,))
    catalogue = Catalogue(ReconstructSettings(upscaler="bicubic"))
    result = request.answer(catalogue)
    assert result.made is not None
    assert not result.made.rendition.verdict.gated
    assert result.made.rendition.patches
    made = result.made.rendition
    pixels = verified(Rendering.of(decode_base(result.made.base), made, catalogue), made, draw=True)
    assert np.array_equal(pixels[100:140, 70:120], original[100:140, 70:120])
    assert not np.array_equal(pixels, original)
