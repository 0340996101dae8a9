"""Proves that Orthanc can send to the node, receive from it, and query and retrieve from it.

All tests share one Orthanc and one node. Orthanc calls the node under three AE titles: SENDER may store, ORTHEXACT gets
originals and ORTHRECON gets reconstructions. Moved images go to the last two, which are both this Orthanc.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.presentation import build_context

from benchmarks.ingest import free_port
from node.app import Node
from node.dimse.client import Address, image_identifier, move, store
from storage.records import InstanceState, StoredInstance, StoredRendition
from tests.conftest import settings_for, wait_for
from tests.support import samples
from tests.support.peers import Orthanc, OrthancError, findscu

FULL_PORT = free_port()
"""Where an Orthanc listens that takes no further patient, in the test that starts one."""

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(orthanc: Orthanc) -> None:
    """Empty Orthanc before each test."""
    orthanc.clear()


@pytest.fixture(scope="module")
def node(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    orthanc_at = {"host": "127.0.0.1", "port": orthanc.dicom_port}
    ask = ["echo", "find", "move", "get"]
    peers = [
        {"ae_title": "SENDER", "allow": ["echo", "store"]},
        {"ae_title": "MOVER", "allow": ["move"]},
        {"ae_title": "FULL", "host": "127.0.0.1", "port": FULL_PORT},
        {"ae_title": "ORTHEXACT", "allow": ask, "rendition": "original", **orthanc_at},
        {"ae_title": "ORTHRECON", "allow": ask, "rendition": "reconstructed", **orthanc_at},
    ]
    root = tmp_path_factory.mktemp("node") / "archive"
    settings = settings_for(root, peers=peers, unknown_peers={"allow": []}, reconstruct={"upscaler": "bicubic"})
    with Node(settings) as running:
        for title in ("SENDER", "ORTHEXACT", "ORTHRECON", "STRANGER"):
            orthanc.know(title, address(running), calling=title)
        yield running
    gc.collect()


def address(node: Node) -> Address:
    return Address("127.0.0.1", node.server.port, node.settings.node.ae_title)


@dataclass(frozen=True)
class Stored:
    """A mammogram that Orthanc sent and that was encoded, with a rendition."""

    dataset: Dataset
    instance: StoredInstance
    rendition: StoredRendition


@pytest.fixture(scope="module")
def image(orthanc: Orthanc, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    ds = samples.mammogram(samples.breast(320, 288), PatientID="ORTHANC-1", AccessionNumber="ACC-ORTHANC")
    send(orthanc, [samples.write(ds, tmp_path_factory.mktemp("image") / "image.dcm")])

    def at_rest() -> StoredInstance | None:
        held = node.index.by_uid(ds.SOPInstanceUID)
        return held if held is not None and held.state is not InstanceState.RECEIVED else None

    instance: StoredInstance = wait_for(at_rest, what="image at rest")
    assert instance.state is InstanceState.VERIFIED, instance.reason
    assert instance.rendition is not None
    return Stored(ds, instance, instance.rendition)


def send(orthanc: Orthanc, files: list[Path], modality: str = "SENDER") -> Any:
    """Put files into Orthanc and have it send them to us, in one association."""
    identifiers = [orthanc.call("POST", "/instances", file.read_bytes())["ID"] for file in files]
    return orthanc.post(f"/modalities/{modality}/store", identifiers)


def received(orthanc: Orthanc, uid: str) -> Dataset:
    """An instance as Orthanc holds it."""
    return dcmread(BytesIO(orthanc.file(uid)))


def elements(ds: Dataset) -> dict[Any, Any]:
    """VR and value by tag, without group lengths, which DCMTK drops."""
    return {element.tag: (element.VR, element.value) for element in ds if element.tag.element}


def assert_reconstruction(ds: Dataset, image: Stored) -> None:
    assert ds.SOPInstanceUID == image.rendition.derived_uid
    assert (ds.Rows, ds.Columns) == (image.dataset.Rows, image.dataset.Columns)
    pixels = hashlib.sha256(ds.PixelData).hexdigest()
    assert pixels == image.rendition.output_digest
    assert pixels != hashlib.sha256(image.dataset.PixelData).hexdigest()


# --- Orthanc sends ---


def test_echo(orthanc: Orthanc, node: Node) -> None:
    orthanc.post("/modalities/SENDER/echo", {})
    with pytest.raises(OrthancError):
        orthanc.post("/modalities/STRANGER/echo", {})


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_orthanc_sends_a_mammogram(orthanc: Orthanc, node: Node, tmp_path: Path, syntax: Any) -> None:
    ds = samples.mammogram(samples.breast(64, 48))
    summary = send(orthanc, [samples.write(ds, tmp_path / "image.dcm", syntax)])
    assert (summary["InstancesCount"], summary["FailedInstancesCount"]) == (1, 0)
    held = node.index.by_uid(ds.SOPInstanceUID)
    assert held is not None
    kept = dcmread(node.store.held(held.original_digest))
    assert elements(kept) == elements(ds)


OTHER_KINDS = [
    "SC_rgb_jpeg_gdcm.dcm",  # JPEG Lossless
    "MR_small_RLE.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",  # deflated
    "ExplVR_BigEnd.dcm",
    "reportsi.dcm",  # SR
    "rtplan.dcm",
    "liver_1frame.dcm",  # SEG
    "waveform_ecg.dcm",
]


@pytest.mark.slow
def test_orthanc_sends_other_kinds_in_one_association(orthanc: Orthanc, node: Node) -> None:
    files = [PYDICOM_FILES / name for name in OTHER_KINDS]
    summary = send(orthanc, files)
    assert (summary["InstancesCount"], summary["FailedInstancesCount"]) == (len(files), 0)
    for file in files:
        sent = dcmread(file)
        held = node.index.by_uid(sent.SOPInstanceUID)
        assert held is not None, file.name
        kept = dcmread(node.store.held(held.original_digest))
        if "PixelData" in sent:
            assert (kept.pixel_array == sent.pixel_array).all(), file.name
        if sent.file_meta.TransferSyntaxUID.is_compressed:
            assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID, file.name


def test_orthanc_hears_that_a_store_was_refused(orthanc: Orthanc, node: Node, tmp_path: Path) -> None:
    ds = samples.mammogram(samples.breast(64, 48))
    with pytest.raises(OrthancError):
        send(orthanc, [samples.write(ds, tmp_path / "image.dcm")], modality="ORTHEXACT")
    assert node.index.by_uid(ds.SOPInstanceUID) is None


def test_orthanc_hears_that_a_uid_is_taken(orthanc: Orthanc, node: Node, tmp_path: Path) -> None:
    """The same UID with other content fails, and the same instance sent again succeeds."""
    ds = samples.mammogram(samples.breast(64, 48))
    first = samples.write(ds, tmp_path / "1.dcm")
    send(orthanc, [first])
    send(orthanc, [first])
    ds.PatientID = "SOMEONE-ELSE"
    orthanc.clear()
    with pytest.raises(OrthancError):
        send(orthanc, [samples.write(ds, tmp_path / "2.dcm")])
    assert [one.sop_instance_uid for one in node.index.quarantine.all()] == [ds.SOPInstanceUID]


# --- we send ---


def test_move_of_an_original_to_orthanc(orthanc: Orthanc, node: Node, image: Stored) -> None:
    wanted = image_identifier(image.dataset.StudyInstanceUID)
    final = move(wanted, address(node), calling="MOVER", destination="ORTHEXACT")
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 1)
    assert list(orthanc.instances()) == [image.dataset.SOPInstanceUID]
    got = received(orthanc, image.dataset.SOPInstanceUID)
    assert got.PixelData == image.dataset.PixelData
    assert elements(got) == elements(image.dataset)


def test_move_of_a_reconstruction_to_orthanc(orthanc: Orthanc, node: Node, image: Stored) -> None:
    wanted = image_identifier(image.dataset.StudyInstanceUID)
    final = move(wanted, address(node), calling="MOVER", destination="ORTHRECON")
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 1)
    assert list(orthanc.instances()) == [image.rendition.derived_uid]
    assert_reconstruction(received(orthanc, image.rendition.derived_uid), image)
    (identifier,) = orthanc.instances().values()
    tags = orthanc.get(f"/instances/{identifier}/simplified-tags")
    assert tags["ImageType"].startswith("DERIVED\\")
    assert tags["LossyImageCompression"] == "01"
    assert tags["LossyImageCompressionMethod"] == "LPACS_BICUBIC"
    assert tags["StudyInstanceUID"] == image.dataset.StudyInstanceUID
    assert tags["SourceImageSequence"][-1]["ReferencedSOPInstanceUID"] == image.dataset.SOPInstanceUID
    assert "not for primary interpretation" in tags["DerivationDescription"]
    assert tags["PatientID"] == "ORTHANC-1"
    private = orthanc.get(f"/instances/{identifier}/tags")
    assert private["0099,0010"]["Value"] == "LATENT_PACS 1"
    assert private["0099,1006"]["Value"] == image.dataset.SOPInstanceUID


@pytest.mark.slow
def test_a_study_of_several_kinds_goes_to_orthanc(orthanc: Orthanc, node: Node, tmp_path: Path) -> None:
    """Several classes and syntaxes in one study: all arrive, each as it was sent."""
    study = generate_uid()
    files = []
    for number, name in enumerate(["MR_small_jp2klossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "test-SR.dcm"]):
        ds = dcmread(PYDICOM_FILES / name)
        ds.PatientID, ds.StudyInstanceUID = "ORTHANC-2", study
        ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        files.append(tmp_path / f"{number}.dcm")
        ds.save_as(files[-1])
    send(orthanc, files)
    orthanc.clear()
    final = move(image_identifier(study), address(node), calling="MOVER", destination="ORTHEXACT")
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 3)
    for file in files:
        sent = dcmread(file)
        got = received(orthanc, sent.SOPInstanceUID)
        assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert got.get("PixelData") == sent.get("PixelData")


@pytest.mark.slow
def test_own_reconstruction_that_comes_back_is_known(orthanc: Orthanc, node: Node, image: Stored) -> None:
    """Orthanc re-encodes objects that we send, and may send them back to us. They are not new images, and nothing is
    stored twice."""
    move(image_identifier(image.dataset.StudyInstanceUID), address(node), calling="MOVER", destination="ORTHRECON")
    before = set(node.store.digests())
    quarantined = node.index.quarantine.all()
    (identifier,) = orthanc.instances().values()
    summary = orthanc.post("/modalities/SENDER/store", [identifier])
    assert summary["FailedInstancesCount"] == 0
    assert set(node.store.digests()) == before
    assert node.index.quarantine.all() == quarantined
    held = node.index.by_uid(image.rendition.derived_uid)
    assert held is not None
    assert held.sop_instance_uid == image.dataset.SOPInstanceUID


# --- Orthanc's own scenarios: a store that is full, a study that goes while it comes ---


def study_of(node: Node, folder: Path, sizes: list[tuple[int, int]]) -> list[Dataset]:
    """A study of images of those rows and columns in our archive."""
    study = generate_uid()
    made = [samples.mammogram(np.zeros(size, np.uint16), StudyInstanceUID=study) for size in sizes]
    files = [samples.write(ds, folder / f"{number}.dcm") for number, ds in enumerate(made)]
    statuses: list[int] = []
    store(files, address(node), calling="SENDER", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0x0000] * len(sizes)
    return made


def test_an_orthanc_that_is_full_refuses_and_is_counted(node: Node, tmp_path: Path) -> None:
    """MaximumStorageSize is 1 MB. An image of 2 MB is refused, and the images before and after it are accepted."""
    (tmp_path / "files").mkdir()
    made = study_of(node, tmp_path / "files", [(64, 48), (1024, 1024), (64, 48)])
    wanted = image_identifier(made[0].StudyInstanceUID)
    with Orthanc(tmp_path, dicom_port=FULL_PORT, MaximumStorageSize=1) as full:
        responses = moved(wanted, node, "FULL")
        assert set(full.instances()) == {made[0].SOPInstanceUID, made[2].SOPInstanceUID}
    final, failed = responses[-1]
    assert (final.Status, final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (0xB000, 2, 1)
    assert failed.FailedSOPInstanceUIDList == made[1].SOPInstanceUID


def moved(wanted: Dataset, node: Node, destination: str) -> list[tuple[Dataset, Dataset]]:
    """Every response to a C-MOVE, with its identifier."""
    model = "1.2.840.10008.5.1.4.1.2.2.2"
    assoc = AE("MOVER").associate("127.0.0.1", node.server.port, contexts=[build_context(model)])
    responses = [*assoc.send_c_move(wanted, destination, model)]
    assoc.release()
    return responses


@pytest.mark.slow
def test_a_study_that_orthanc_deletes_while_we_send_it(orthanc: Orthanc, node: Node, tmp_path: Path) -> None:
    """Every image is counted once. When the study is moved again, Orthanc has all of it."""
    made = study_of(node, tmp_path, [(64, 48)] * 40)
    wanted = image_identifier(made[0].StudyInstanceUID)
    ended = threading.Event()

    def delete() -> int:
        deleted = 0
        while not ended.is_set():
            for found in orthanc.get("/studies"):
                with suppress(OrthancError):
                    orthanc.call("DELETE", f"/studies/{found}")
                    deleted += 1
        return deleted

    with ThreadPoolExecutor(1) as aside:
        deleting = aside.submit(delete)
        final = move(wanted, address(node), calling="MOVER", destination="ORTHEXACT")
        ended.set()
        assert deleting.result() >= 2, "it went while it came"
    counts = (final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations)
    assert (final.Status, sum(counts)) in ((0x0000, 40), (0xB000, 40))
    final = move(wanted, address(node), calling="MOVER", destination="ORTHEXACT")
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 40)
    assert set(orthanc.instances()) == {ds.SOPInstanceUID for ds in made}


# --- Orthanc asks ---


def ask(orthanc: Orthanc, caller: str, level: str, **query: str) -> tuple[str, list[dict[str, Any]]]:
    """A C-FIND that Orthanc sends. Returns the path of the query in its REST interface, and the answers."""
    path = orthanc.post(f"/modalities/{caller}/query", {"Level": level, "Query": query})["Path"]
    numbers = orthanc.get(f"{path}/answers")
    return path, [orthanc.get(f"{path}/answers/{number}/content?simplify") for number in numbers]


def test_orthanc_finds_at_every_level(orthanc: Orthanc, node: Node, image: Stored) -> None:
    ds = image.dataset
    _, answers = ask(orthanc, "ORTHEXACT", "Patient", PatientID="ORTHANC-1", PatientName="")
    assert [answer["PatientID"] for answer in answers] == ["ORTHANC-1"]
    _, answers = ask(orthanc, "ORTHEXACT", "Study", PatientID="ORTHANC-1", StudyDate="20260101-20260131")
    assert [answer["StudyInstanceUID"] for answer in answers] == [ds.StudyInstanceUID]
    _, answers = ask(orthanc, "ORTHEXACT", "Study", PatientID="ORTHANC-1", StudyDate="20250101-20251231")
    assert answers == []
    _, answers = ask(orthanc, "ORTHEXACT", "Study", AccessionNumber="ACC-ORTH*")
    assert [answer["AccessionNumber"] for answer in answers] == ["ACC-ORTHANC"]
    series = {"PatientID": "ORTHANC-1", "StudyInstanceUID": ds.StudyInstanceUID}
    _, answers = ask(orthanc, "ORTHEXACT", "Series", **series, Modality="MG")
    assert [answer["SeriesInstanceUID"] for answer in answers] == [ds.SeriesInstanceUID]
    series["SeriesInstanceUID"] = ds.SeriesInstanceUID
    _, answers = ask(orthanc, "ORTHEXACT", "Instance", **series)
    assert [answer["SOPInstanceUID"] for answer in answers] == [ds.SOPInstanceUID]
    _, answers = ask(orthanc, "ORTHRECON", "Instance", **series)
    assert [answer["SOPInstanceUID"] for answer in answers] == [image.rendition.derived_uid]


@pytest.mark.slow
def test_orthanc_and_we_find_a_patient_of_two_names_alike(orthanc: Orthanc, node: Node, tmp_path: Path) -> None:
    """A patient has married. At every level below PATIENT, each study is found by the attributes that it came with."""
    first, second = (
        samples.mammogram(samples.breast(64, 48), PatientID="ORTHANC-2", PatientName=name, PatientBirthDate=born)
        for name, born in (("Doe^Jane", "19600101"), ("Smith^Jane", "19600102"))
    )
    send(orthanc, [samples.write(ds, tmp_path / f"{ds.PatientName}.dcm") for ds in (first, second)])
    theirs = Address("127.0.0.1", orthanc.dicom_port, orthanc.ae_title)
    for ds, name in ((first, "doe*"), (second, "SMITH^JANE"), (second, "?mith^*"), (first, "Smith*")):
        above = [f"StudyInstanceUID={ds.StudyInstanceUID}", f"SeriesInstanceUID={ds.SeriesInstanceUID}"]
        for root, level, keys in (("-S", "STUDY", []), ("-P", "SERIES", above[:1]), ("-S", "IMAGE", above)):
            asked = ["PatientID=ORTHANC-2", f"PatientName={name}", *keys, "PatientBirthDate"]
            asked += ["StudyInstanceUID"] if level == "STUDY" else []
            seen = [
                [(one.StudyInstanceUID, one.PatientName, one.PatientBirthDate) for one in answers]
                for to, caller in ((address(node), "ORTHEXACT"), (theirs, node.settings.node.ae_title))
                for _, answers in [findscu(to, tmp_path / "found", root, level, *asked, calling=caller)]
            ]
            assert seen[0] == seen[1]
            assert bool(seen[0]) == (name != "Smith*" or level == "STUDY")
    for name in ("Doe*", "Smith*"):
        keys = [f"PatientName={name}", "PatientID", "PatientBirthDate"]
        _, [one] = findscu(address(node), tmp_path / "found", "-P", "PATIENT", *keys, calling="ORTHEXACT")
        assert (one.PatientID, one.PatientName, one.PatientBirthDate) == ("ORTHANC-2", "Smith^Jane", "19600102")


def test_orthanc_hears_that_it_may_not_ask(orthanc: Orthanc, node: Node, image: Stored) -> None:
    with pytest.raises(OrthancError):
        ask(orthanc, "SENDER", "Study", PatientID="ORTHANC-1")


@pytest.mark.parametrize("level", ["Patient", "Study", "Series", "Instance"])
@pytest.mark.parametrize("caller", ["ORTHEXACT", "ORTHRECON"])
def test_orthanc_retrieves_what_it_found(orthanc: Orthanc, node: Node, image: Stored, caller: str, level: str) -> None:
    ds = image.dataset
    query = {"PatientID": "ORTHANC-1"}
    if level in ("Series", "Instance"):
        query["StudyInstanceUID"] = ds.StudyInstanceUID
    if level == "Instance":
        query["SeriesInstanceUID"] = ds.SeriesInstanceUID
    path, answers = ask(orthanc, caller, level, **query)
    assert len(answers) == 1
    orthanc.post(f"{path}/answers/0/retrieve", {"TargetAet": caller, "Synchronous": True})
    expected = image.rendition.derived_uid if caller == "ORTHRECON" else ds.SOPInstanceUID
    assert list(orthanc.instances()) == [expected]
    got = received(orthanc, expected)
    if caller == "ORTHRECON":
        assert_reconstruction(got, image)
    else:
        assert elements(got) == elements(ds)


@pytest.mark.slow
def test_orthanc_hears_that_a_retrieval_failed(orthanc: Orthanc, node: Node, image: Stored) -> None:
    path, _ = ask(orthanc, "ORTHEXACT", "Study", PatientID="ORTHANC-1")
    with pytest.raises(OrthancError):
        orthanc.post(f"{path}/answers/0/retrieve", {"TargetAet": "NOBODY", "Synchronous": True})
    assert orthanc.instances() == {}
