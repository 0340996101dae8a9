"""Proves that DCMTK's tools can store, find, move and get, and that each side survives the faults of the other.

One node with its archivist serves most tests. Tests that need an empty store or unusual timeouts have a node of their
own. "Byte for byte" means all bytes of the data set after the file meta information.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom import AE, build_role
from pynetdicom.presentation import build_context

from node.app import Node
from node.dimse import pynetdicom_patches
from node.dimse.client import Address, Receiver, image_identifier, store
from storage.dicom.writing import encode
from storage.index import Index
from storage.records import InstanceState, StoredInstance, StoredRendition
from tests.conftest import SECONDARY_CAPTURE, Archive, settings_for, spooled, wait_for
from tests.support import samples
from tests.support.cut_wire import CutWire
from tests.support.encoded_elements import element
from tests.support.peers import (
    Ran,
    data_set_bytes,
    dead_port,
    echoscu,
    findscu,
    free_port,
    getscu,
    getscu_command,
    movescu,
    running,
    storescp,
    storescu,
)

MOVE, GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
MODEL = {"P": "-P", "S": "-S"}

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


# --- a node, and what it holds ---


@pytest.fixture(scope="module")
def port() -> int:
    """The port of the move destinations VIEWER, EXACTVIEW and AUTOVIEW, in the tests that start a storescp."""
    return free_port()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("dcmtk")
    (folder / "received").mkdir()
    with (
        dead_port() as dead,
        Receiver(folder / "received") as receiver,
        Node(settings_for(folder / "archive", peers=_peers(port, dead))) as running_node,
    ):
        yield Archive(running_node, receiver)
    gc.collect()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """A node without an archivist, for tests of spool, store and index. Each test uses images of its own."""
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "received").mkdir()
    settings = settings_for(folder / "archive", peers=_peers(1, 1), archivist={"enabled": False})
    with Receiver(folder / "received") as receiver, Node(settings) as running_node:
        yield Archive(running_node, receiver)


def _peers(port: int, dead: int) -> list[dict[str, Any]]:
    peers: list[dict[str, Any]] = [
        {"ae_title": "MODALITY", "allow": ["echo", "store"]},
        {"ae_title": "NOTHING", "allow": []},
        {"ae_title": "MOVER", "allow": ["move"], "rendition": "original"},
        {"ae_title": "DEAD", "host": "127.0.0.1", "port": dead},
        {"ae_title": "NOADDRESS", "allow": ["find"]},
    ]
    for title, rendition in (("VIEWER", "reconstructed"), ("EXACTVIEW", "original"), ("AUTOVIEW", "auto")):
        peers.append(
            {
                "ae_title": title,
                "host": "127.0.0.1",
                "port": port,
                "allow": ["echo", "find", "move", "get"],
                "rendition": rendition,
            }
        )
    return peers


@dataclass(frozen=True)
class Stored:
    """A mammogram that was sent and encoded, with a rendition."""

    file: Path
    dataset: Dataset
    instance: StoredInstance
    rendition: StoredRendition

    def uid(self, which: str) -> str:
        return self.rendition.derived_uid if which == "derived" else self.instance.sop_instance_uid

    def keys(self, level: str, which: str, root: str) -> list[str]:
        """The unique keys of a request for this image at a level."""
        keys = [f"PatientID={self.dataset.PatientID}"] if root == "P" or level == "PATIENT" else []
        if level != "PATIENT":
            keys.append(f"StudyInstanceUID={self.dataset.StudyInstanceUID}")
        if level in ("SERIES", "IMAGE"):
            keys.append(f"SeriesInstanceUID={self.dataset.SeriesInstanceUID}")
        if level == "IMAGE":
            keys.append(f"SOPInstanceUID={self.uid(which)}")
        return keys


@pytest.fixture(scope="module")
def image(node: Archive, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A mammogram of its own patient, sent by storescu, verified."""
    return _sent(node, tmp_path_factory.mktemp("image"), ExplicitVRLittleEndian, "DCMTK-1")


@pytest.fixture(scope="module")
def implicit_image(node: Archive, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return _sent(node, tmp_path_factory.mktemp("implicit"), ImplicitVRLittleEndian, "DCMTK-2")


def _sent(node: Archive, folder: Path, syntax: UID, patient: str) -> Stored:
    ds = samples.mammogram(samples.breast(320, 288), PatientID=patient)
    file = samples.write(ds, folder / "image.dcm", syntax)
    ran = storescu([file], node.address)
    assert (ran.code, ran.statuses) == (0, [0]), ran.said
    instance = node.settled(ds.SOPInstanceUID)
    assert instance.state is InstanceState.VERIFIED, instance.reason
    assert instance.rendition is not None
    return Stored(file, ds, instance, instance.rendition)


def small(**changes: Any) -> Dataset:
    """An image that is too small to be reconstructed. It becomes EXACT within milliseconds."""
    return samples.mammogram(samples.breast(64, 48), **changes)


def assert_reconstruction(path: Path, image: Stored) -> None:
    """Check that the file is the derived object with exactly the verified pixels."""
    ds = dcmread(path)
    assert ds.SOPInstanceUID == image.rendition.derived_uid
    assert (ds.StudyInstanceUID, ds.SeriesInstanceUID) == (
        image.dataset.StudyInstanceUID,
        image.dataset.SeriesInstanceUID,
    )
    assert (ds.Rows, ds.Columns) == (image.dataset.Rows, image.dataset.Columns)
    assert ds.ImageType[0] == "DERIVED"
    assert ds.LossyImageCompression == "01"
    received = hashlib.sha256(ds.PixelData).hexdigest()
    assert received == image.rendition.output_digest
    assert received != hashlib.sha256(image.dataset.PixelData).hexdigest()


# --- echo ---


def test_echo(node: Archive) -> None:
    assert echoscu(node.address, calling="STRANGER") == 0x0000


def test_echo_by_a_peer_without_rights(node: Archive) -> None:
    assert echoscu(node.address, calling="NOTHING") == 0x0124


# --- store ---


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_stored_image_is_durable_before_the_answer(quiet: Archive, tmp_path: Path, syntax: UID) -> None:
    ds = small()
    file = samples.write(ds, tmp_path / "image.dcm", syntax)
    ran = storescu([file], quiet.address)
    assert (ran.code, ran.statuses) == (0, [0x0000]), ran.said
    # an index of its own, as after a restart
    index = Index.open(quiet.node.settings.storage.database_url)
    try:
        held = index.by_uid(ds.SOPInstanceUID)
    finally:
        index.close()
    assert held is not None
    assert held.transfer_syntax_uid == syntax
    kept = quiet.node.store.held(held.original_digest)
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == held.original_digest
    assert data_set_bytes(kept) == data_set_bytes(file)
    wait_for(lambda: _spooled(quiet) == [], what="spool empty")


PROFILE = """
[[TransferSyntaxes]]
[Explicit]
TransferSyntax1 = LittleEndianExplicit
[Implicit]
TransferSyntax1 = LittleEndianImplicit
[Big]
TransferSyntax1 = BigEndianExplicit
[Jpeg]
TransferSyntax1 = JPEGLossless:Non-hierarchical-1stOrderPrediction
[Rle]
TransferSyntax1 = RLELossless
[Uncompressed]
TransferSyntax1 = LittleEndianExplicit
TransferSyntax2 = LittleEndianImplicit
[[PresentationContexts]]
[Several]
PresentationContext1 = DigitalMammographyXRayImageStorageForPresentation\\Explicit
PresentationContext2 = DigitalMammographyXRayImageStorageForPresentation\\Implicit
PresentationContext3 = DigitalMammographyXRayImageStorageForPresentation\\Big
PresentationContext4 = SecondaryCaptureImageStorage\\Jpeg
PresentationContext5 = MRImageStorage\\Rle
[MammographyOnly]
PresentationContext1 = DigitalMammographyXRayImageStorageForPresentation\\Uncompressed
[[Profiles]]
[Several]
PresentationContexts = Several
[MammographyOnly]
PresentationContexts = MammographyOnly
"""
"""DCMTK's asconfig.txt: what storescu proposes, and what storescp takes."""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.cfg"
    path.write_text(PROFILE)
    return path


@pytest.mark.slow
def test_several_syntaxes_in_one_association(node: Archive, tmp_path: Path, profile: Path) -> None:
    native = {ExplicitVRLittleEndian: "e", ImplicitVRLittleEndian: "i", ExplicitVRBigEndian: "b"}
    files = [
        *(samples.write(_swapped(small(), syntax), tmp_path / name, syntax) for syntax, name in native.items()),
        *(pydicom_file(name) for name in ("SC_rgb_jpeg_gdcm.dcm", "MR_small_RLE.dcm")),
    ]
    ran = storescu(files, node.address, "-xf", profile, "Several")
    assert (ran.code, ran.statuses) == (0, [0x0000] * len(files)), ran.said
    assert ran.output.count("Requesting Association") == 1
    for file in files:
        sent = dcmread(file)
        held = node.node.index.by_uid(sent.SOPInstanceUID)
        assert held is not None
        assert held.transfer_syntax_uid == sent.file_meta.TransferSyntaxUID
        kept = dcmread(node.node.store.held(held.original_digest))
        assert kept.PixelData == sent.PixelData, file.name


def _swapped(ds: Dataset, syntax: UID) -> Dataset:
    if not syntax.is_little_endian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    return ds


# --- find ---


@pytest.fixture(scope="module")
def library(node: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two patients, three studies, five images, and their UIDs by name: S1, S1a, S1a1 and so on."""
    folder = tmp_path_factory.mktemp("library")
    uids: dict[str, str] = {}
    files = []
    for study, series, number, patient, name, date, modality in (
        ("S1", "S1a", 1, "FIND-A", "Findlay^Anna", "20200105", "MG"),
        ("S1", "S1a", 2, "FIND-A", "Findlay^Anna", "20200105", "MG"),
        ("S1", "S1b", 1, "FIND-A", "Findlay^Anna", "20200105", "OT"),
        ("S2", "S2a", 1, "FIND-A", "Findlay^Anna", "20210620", "MG"),
        ("S3", "S3a", 1, "FIND-B", "Müller^Änne", "20220315", "MG"),
    ):
        ds = small(
            PatientID=patient,
            PatientName=name,
            StudyDate=date,
            Modality=modality,
            InstanceNumber=number,
            StudyInstanceUID=uids.setdefault(study, generate_uid()),
            SeriesInstanceUID=uids.setdefault(series, generate_uid()),
            AccessionNumber=f"ACC-{study}",
        )
        uids[f"{series}{number}"] = ds.SOPInstanceUID
        files.append(samples.write(ds, folder / f"{series}{number}.dcm"))
    ran = storescu(files, node.address)
    assert ran.statuses == [0] * len(files), ran.said
    return uids


@pytest.mark.parametrize(
    ("root", "level", "keys", "expected"),
    [
        ("P", "PATIENT", ["PatientID=FIND-*"], ["FIND-A", "FIND-B"]),
        ("P", "PATIENT", ["PatientID=FIND-?", "PatientName=findl*"], ["FIND-A"]),
        ("P", "PATIENT", ["PatientID=NOBODY"], []),
        ("P", "STUDY", ["PatientID=FIND-A"], ["S1", "S2"]),
        ("P", "STUDY", ["PatientID=FIND-A", "StudyDate=20200101-20201231"], ["S1"]),
        ("P", "STUDY", ["PatientID=FIND-A", "StudyDate=20210101-"], ["S2"]),
        ("P", "STUDY", ["PatientID=FIND-A", "StudyDate=-20201231"], ["S1"]),
        ("P", "SERIES", ["PatientID=FIND-A", "StudyInstanceUID={S1}"], ["S1a", "S1b"]),
        (
            "P",
            "IMAGE",
            ["PatientID=FIND-A", "StudyInstanceUID={S1}", "SeriesInstanceUID={S1a}"],
            ["S1a1", "S1a2"],
        ),
        ("S", "STUDY", ["PatientID=FIND-*"], ["S1", "S2", "S3"]),
        ("S", "STUDY", ["PatientID=FIND-*", "StudyDate=20210620-20220315"], ["S2", "S3"]),
        ("S", "STUDY", ["PatientID=FIND-*", "StudyDate=20210620"], ["S2"]),
        ("S", "STUDY", ["StudyInstanceUID={S1}\\{S3}"], ["S1", "S3"]),
        ("S", "STUDY", ["PatientID=FIND-*", "ModalitiesInStudy=OT"], ["S1"]),
        ("S", "STUDY", ["SpecificCharacterSet=ISO_IR 192", "PatientName=Müller^?nne"], ["S3"]),
        ("S", "SERIES", ["StudyInstanceUID={S1}", "Modality=OT"], ["S1b"]),
        (
            "S",
            "IMAGE",
            ["StudyInstanceUID={S1}", "SeriesInstanceUID={S1a}", "SOPInstanceUID={S1a2}\\{S2a1}"],
            ["S1a2"],
        ),
    ],
)
def test_find(
    node: Archive,
    library: dict[str, str],
    tmp_path: Path,
    root: str,
    level: str,
    keys: list[str],
    expected: list[str],
) -> None:
    unique = {
        "PATIENT": "PatientID",
        "STUDY": "StudyInstanceUID",
        "SERIES": "SeriesInstanceUID",
        "IMAGE": "SOPInstanceUID",
    }[level]
    asked = [key.format(**library) for key in keys]
    if not any(key.startswith(f"{unique}=") for key in asked):
        asked.append(unique)
    _, answers = findscu(node.address, tmp_path / "answers", MODEL[root], level, *asked, calling="EXACTVIEW")
    assert sorted(answer[unique].value for answer in answers) == sorted(library.get(one, one) for one in expected)
    for answer in answers:
        assert answer.QueryRetrieveLevel == level
        assert answer.RetrieveAETitle == node.address.ae_title


def test_find_returns_what_was_asked_for(node: Archive, library: dict[str, str], tmp_path: Path) -> None:
    _, (answer,) = findscu(
        *(node.address, tmp_path / "answers", "-S", "STUDY"),
        *(f"StudyInstanceUID={library['S3']}", "PatientName", "StudyDate", "AccessionNumber"),
        *("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "PatientSex"),
        calling="EXACTVIEW",
    )
    assert answer.PatientName == "Müller^Änne"
    assert (answer.StudyDate, answer.AccessionNumber, answer.PatientSex) == ("20220315", "ACC-S3", "F")
    assert (answer.NumberOfStudyRelatedSeries, answer.NumberOfStudyRelatedInstances) == (1, 1)
    _, (answer,) = findscu(
        *(node.address, tmp_path / "answers", "-S", "STUDY"),
        *(f"StudyInstanceUID={library['S1']}", "ModalitiesInStudy", "NumberOfStudyRelatedInstances"),
        calling="EXACTVIEW",
    )
    assert sorted(answer.ModalitiesInStudy) == ["MG", "OT"]
    assert answer.NumberOfStudyRelatedInstances == 3


@pytest.mark.parametrize(
    ("caller", "seen"), [("VIEWER", "derived"), ("EXACTVIEW", "original"), ("AUTOVIEW", "original")]
)
def test_find_shows_one_encoding_per_image(
    node: Archive, image: Stored, tmp_path: Path, caller: str, seen: str
) -> None:
    keys = image.keys("SERIES", "", "S")
    _, answers = findscu(
        *(node.address, tmp_path / "answers", "-S", "IMAGE", *keys, "SOPInstanceUID", "ImageType"), calling=caller
    )
    assert [answer.SOPInstanceUID for answer in answers] == [image.uid(seen)]
    assert answers[0].ImageType[0] == ("DERIVED" if seen == "derived" else "ORIGINAL")


@pytest.mark.parametrize(
    ("root", "level", "keys"),
    [
        ("-P", "STUDY", ["StudyInstanceUID"]),
        ("-S", "PATIENT", ["PatientID"]),
        ("-S", "SERIES", ["SeriesInstanceUID"]),
        ("-S", "IMAGE", ["StudyInstanceUID=1.2.3", "SOPInstanceUID"]),
    ],
)
def test_find_without_the_keys_above_is_refused(
    node: Archive, library: dict[str, str], tmp_path: Path, root: str, level: str, keys: list[str]
) -> None:
    ran, answers = findscu(node.address, tmp_path / "answers", root, level, *keys, calling="EXACTVIEW", check=False)
    assert ran.statuses == [0xA900]
    assert answers == []


@pytest.mark.parametrize("caller", ["STRANGER", "MODALITY", "NOTHING"])
def test_find_without_the_right_gets_no_answer(
    node: Archive, library: dict[str, str], tmp_path: Path, caller: str
) -> None:
    ran, answers = findscu(
        node.address, tmp_path / "answers", "-S", "STUDY", "StudyInstanceUID", calling=caller, check=False
    )
    assert ran.statuses == [0x0124]
    assert answers == []


def test_a_series_uid_in_two_studies_hides_no_image(quiet: Archive, tmp_path: Path) -> None:
    """This happens if a study was split without new Series Instance UIDs. Each image is found under the study that it
    names."""
    series = generate_uid()
    images = [small(SeriesInstanceUID=series) for _ in range(2)]
    files = [samples.write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(images)]
    assert storescu(files, quiet.address).statuses == [0x0000, 0x0000]
    for ds in images:
        _, answers = findscu(
            *(quiet.address, tmp_path / "answers", "-S", "IMAGE", f"StudyInstanceUID={ds.StudyInstanceUID}"),
            *(f"SeriesInstanceUID={series}", "SOPInstanceUID"),
            calling="EXACTVIEW",
        )
        assert [answer.SOPInstanceUID for answer in answers] == [ds.SOPInstanceUID]


# --- move and get ---

REQUESTS = [
    ("P", "PATIENT", ""),
    ("P", "IMAGE", "derived"),
    ("S", "STUDY", ""),
    ("S", "SERIES", ""),
    ("S", "IMAGE", "original"),
    ("S", "IMAGE", "derived"),
]
"""Information model, level, and by which of its UIDs the image is asked for."""

all_requests = pytest.mark.parametrize(("root", "level", "which"), REQUESTS, ids=lambda value: value or "-")


@all_requests
def test_move_to_a_reconstructed_peer(
    node: Archive, image: Stored, port: int, tmp_path: Path, root: str, level: str, which: str
) -> None:
    with storescp(tmp_path / "scp", port) as scp:
        ran = movescu(node.address, MODEL[root], level, *image.keys(level, which, root), calling="VIEWER")
        assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (1, 0, 0)), ran.said
        assert_reconstruction(scp.only(), image)


@pytest.mark.slow
@all_requests
def test_move_to_an_original_peer(
    node: Archive, image: Stored, port: int, tmp_path: Path, root: str, level: str, which: str
) -> None:
    with storescp(tmp_path / "scp", port) as scp:
        ran = movescu(node.address, MODEL[root], level, *image.keys(level, which, root), calling="EXACTVIEW")
        assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (1, 0, 0)), ran.said
        assert data_set_bytes(scp.only()) == data_set_bytes(image.file)


@pytest.mark.parametrize(
    ("level", "which", "gets"),
    [("STUDY", "", "original"), ("IMAGE", "original", "original"), ("IMAGE", "derived", "derived")],
)
def test_move_to_an_auto_peer(
    node: Archive, image: Stored, port: int, tmp_path: Path, level: str, which: str, gets: str
) -> None:
    with storescp(tmp_path / "scp", port) as scp:
        ran = movescu(node.address, "-S", level, *image.keys(level, which, "S"), calling="AUTOVIEW")
        assert (ran.status, ran.counts) == (0x0000, (1, 0, 0)), ran.said
        assert dcmread(scp.only()).SOPInstanceUID == image.uid(gets)


def test_the_destination_decides_the_rendition(node: Archive, image: Stored, port: int, tmp_path: Path) -> None:
    """MOVER may get originals, but when it moves an image to VIEWER, the reconstruction is sent."""
    with storescp(tmp_path / "scp", port) as scp:
        keys = image.keys("STUDY", "", "S")
        ran = movescu(node.address, "-S", "STUDY", *keys, calling="MOVER", destination="VIEWER")
        assert ran.status == 0x0000, ran.said
        assert_reconstruction(scp.only(), image)
        assert "Move Originator AE Title      : MOVER" in scp.log.read_text()


@pytest.mark.slow
@all_requests
def test_get_by_a_reconstructed_peer(
    node: Archive, image: Stored, tmp_path: Path, root: str, level: str, which: str
) -> None:
    keys = image.keys(level, which, root)
    ran = getscu(node.address, tmp_path / "got", MODEL[root], level, *keys, calling="VIEWER")
    assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (1, 0, 0)), ran.said
    (got,) = (tmp_path / "got").iterdir()
    assert_reconstruction(got, image)


@all_requests
def test_get_by_an_original_peer(
    node: Archive, image: Stored, tmp_path: Path, root: str, level: str, which: str
) -> None:
    """getscu proposes explicit VR, big endian and implicit VR in one presentation context, and explicit VR is
    accepted."""
    keys = image.keys(level, which, root)
    ran = getscu(node.address, tmp_path / "got", MODEL[root], level, *keys, calling="EXACTVIEW")
    assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (1, 0, 0)), ran.said
    (got,) = (tmp_path / "got").iterdir()
    assert data_set_bytes(got) == data_set_bytes(image.file)


def test_get_of_an_implicit_original(node: Archive, implicit_image: Stored, tmp_path: Path) -> None:
    """The image arrives in explicit VR, with the same elements and pixels."""
    keys = implicit_image.keys("STUDY", "", "S")
    ran = getscu(node.address, tmp_path / "got", "-S", "STUDY", *keys, calling="EXACTVIEW")
    assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (1, 0, 0)), ran.said
    (file,) = (tmp_path / "got").iterdir()
    got, sent = dcmread(file), dcmread(implicit_image.file)
    assert got.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert _texts(got) == _texts(sent)
    assert got.PixelData == sent.PixelData


def test_an_image_of_an_odd_length_arrives(node: Archive, port: int, tmp_path: Path) -> None:
    """DCMTK aborts on a fragment of an odd number of bytes (PS3.8 E.1)."""
    ds = small()
    odd = element(0x00081030, "LO", b"odd", ExplicitVRLittleEndian)
    parts = [
        encode(ds, ExplicitVRLittleEndian, within=part) for part in (range(0x00081030), range(0x00081030, 1 << 32))
    ]
    file = samples.write_body(
        odd.join(parts),
        tmp_path / "odd.dcm",
        sop_class=ds.SOPClassUID,
        sop_instance=ds.SOPInstanceUID,
        syntax=ExplicitVRLittleEndian,
    )
    store([file], node.address, calling="MODALITY", each=_expect(0x0000))
    with storescp(tmp_path / "scp", port) as scp:
        ran = movescu(node.address, "-S", "STUDY", f"StudyInstanceUID={ds.StudyInstanceUID}", calling="EXACTVIEW")
        assert (ran.status, ran.counts) == (0x0000, (1, 0, 0)), ran.said
        got = dcmread(scp.only())
    assert (got.StudyDescription, got.PixelData) == ("odd", ds.PixelData)


# --- compressed originals ---

COMPRESSED = {
    "JPEG Lossless": "SC_rgb_jpeg_gdcm.dcm",
    "JPEG 2000 lossless": "GDCMJ2K_TextGBR.dcm",
    "RLE, multi-frame": "rtdose_rle.dcm",
    "deflated": "image_dfl.dcm",
    "big endian": "ExplVR_BigEnd.dcm",
}


@pytest.fixture(scope="module")
def compressed(node: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of pydicom in other transfer syntaxes, sent with their bytes unchanged."""
    files = {name: pydicom_file(file) for name, file in COMPRESSED.items()}
    # with that byte it is sent verbatim; without it DCMTK aborts
    padded = tmp_path_factory.mktemp("deflated") / ODD_LENGTH
    padded.write_bytes(files["deflated"].read_bytes() + b"\0")
    files["deflated"] = padded
    store(list(files.values()), node.address, calling="MODALITY", each=_expect(0x0000))
    return files


def _expect(status: int) -> Any:
    def each(file: Path, answered: int, _: float) -> None:
        assert answered == status, f"{file.name}: 0x{answered:04X}"

    return each


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSED)
def test_move_of_other_syntaxes_is_verbatim(
    node: Archive, compressed: dict[str, Path], port: int, tmp_path: Path, name: str
) -> None:
    sent = dcmread(compressed[name])
    with storescp(tmp_path / "scp", port, "+xa") as scp:
        ran = movescu(node.address, "-S", "STUDY", f"StudyInstanceUID={sent.StudyInstanceUID}", calling="EXACTVIEW")
        assert (ran.status, ran.counts) == (0x0000, (1, 0, 0)), ran.said
        assert data_set_bytes(scp.only()) == data_set_bytes(compressed[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSED)
def test_move_to_a_peer_that_takes_only_implicit(
    node: Archive, compressed: dict[str, Path], port: int, tmp_path: Path, name: str
) -> None:
    """The images are decompressed, with the same elements and pixels. Reversible colour becomes RGB again (PS3.5
    section 8.2.4)."""
    sent = dcmread(compressed[name])
    with storescp(tmp_path / "scp", port, "+xi") as scp:
        ran = movescu(node.address, "-S", "STUDY", f"StudyInstanceUID={sent.StudyInstanceUID}", calling="EXACTVIEW")
        assert (ran.status, ran.counts) == (0x0000, (1, 0, 0)), ran.said
        got = dcmread(scp.only())
    assert got.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert np.array_equal(got.pixel_array, sent.pixel_array)
    if sent.PhotometricInterpretation == "YBR_RCT":
        sent.PhotometricInterpretation = "RGB"
    assert _texts(got) == _texts(sent)


def _texts(ds: Dataset) -> dict[Any, str]:
    """Elements as text, without pixel data, padding and group lengths, which belong to one encoding only."""
    left_out = {0x7FE00010, 0xFFFCFFFC}
    return {element.tag: str(element.value) for element in ds if element.tag.element and element.tag not in left_out}


# --- what is refused ---


def test_move_to_an_unknown_destination(node: Archive, image: Stored) -> None:
    keys = image.keys("STUDY", "", "S")
    ran = movescu(node.address, "-S", "STUDY", *keys, calling="EXACTVIEW", destination="NOBODY")
    assert ran.statuses == [0xA801]


def test_move_to_a_peer_without_an_address(node: Archive, image: Stored) -> None:
    keys = image.keys("STUDY", "", "S")
    ran = movescu(node.address, "-S", "STUDY", *keys, calling="EXACTVIEW", destination="NOADDRESS")
    assert ran.statuses == [0xA801]


@pytest.mark.parametrize("caller", ["STRANGER", "MODALITY", "NOTHING"])
def test_move_without_the_right(node: Archive, image: Stored, port: int, tmp_path: Path, caller: str) -> None:
    with storescp(tmp_path / "scp", port) as scp:
        keys = image.keys("STUDY", "", "S")
        ran = movescu(node.address, "-S", "STUDY", *keys, calling=caller, destination="EXACTVIEW")
        assert ran.statuses == [0x0124]
        assert ran.counts == (0, 0, 0)
        assert scp.files() == []


@pytest.mark.parametrize("caller", ["STRANGER", "MODALITY", "MOVER"])
def test_get_without_the_right(node: Archive, image: Stored, tmp_path: Path, caller: str) -> None:
    keys = image.keys("STUDY", "", "S")
    ran = getscu(node.address, tmp_path / "got", "-S", "STUDY", *keys, calling=caller)
    assert ran.statuses == [0x0124]
    assert ran.comment == f"{caller} may not get from here"
    assert list((tmp_path / "got").iterdir()) == []


def test_store_without_the_right(node: Archive, tmp_path: Path) -> None:
    ds = small()
    ran = storescu([samples.write(ds, tmp_path / "image.dcm")], node.address, calling="VIEWER")
    assert ran.code != 0
    assert ran.statuses == [0x0124]
    assert node.node.index.by_uid(ds.SOPInstanceUID) is None


# --- destinations that fail ---


@pytest.fixture(scope="module")
def study(node: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a study of three small mammograms and a secondary capture, by SOP Instance UID."""
    folder = tmp_path_factory.mktemp("study")
    uid = generate_uid()
    images = [small(StudyInstanceUID=uid, InstanceNumber=number) for number in (1, 2, 3)]
    images.append(small(StudyInstanceUID=uid, SOPClassUID=UID(SECONDARY_CAPTURE), InstanceNumber=4))
    files = {ds.SOPInstanceUID: samples.write(ds, folder / f"{ds.InstanceNumber}.dcm") for ds in images}
    ran = storescu(list(files.values()), node.address)
    assert ran.statuses == [0] * 4, ran.said
    return {"study": uid, **files}


def _move_study(node: Archive, study: dict[str, Path], destination: str = "EXACTVIEW") -> Ran:
    return movescu(
        node.address, "-S", "STUDY", f"StudyInstanceUID={study['study']}", calling="MOVER", destination=destination
    )


def _assert_all_failed(ran: Ran, study: dict[str, Path]) -> None:
    assert (ran.status, ran.counts) == (0xA702, (0, 4, 0)), ran.said
    assert ran.failed_uids == set(study) - {"study"}


def test_move_to_a_dead_destination(node: Archive, study: dict[str, Path]) -> None:
    _assert_all_failed(_move_study(node, study, "DEAD"), study)
    assert echoscu(node.address, calling="VIEWER") == 0x0000


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["--refuse", "--abort-after", "--abort-during"])
def test_move_to_a_destination_that_fails(
    node: Archive, study: dict[str, Path], port: int, tmp_path: Path, fault: str
) -> None:
    """Every image is counted as failed at once, and the next move to a working destination succeeds."""
    with storescp(tmp_path / "broken", port, fault) as scp:
        ran = _move_study(node, study)
        _assert_all_failed(ran, study)
        assert "Peer aborted" not in ran.said
        assert scp.files() == []
    with storescp(tmp_path / "sound", port, "--reject") as scp:  # rejects callers without an implementation class UID
        ran = _move_study(node, study)
        assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (4, 0, 0)), ran.said
        assert len(scp.files()) == 4
    assert echoscu(node.address, calling="VIEWER") == 0x0000


def test_move_to_a_destination_that_takes_one_class(
    node: Archive, study: dict[str, Path], port: int, tmp_path: Path, profile: Path
) -> None:
    with storescp(tmp_path / "scp", port, "-xf", profile, "MammographyOnly") as scp:
        ran = _move_study(node, study)
        assert (ran.status, ran.counts) == (0xB000, (3, 1, 0)), ran.said
        received = {str(dcmread(file).SOPInstanceUID) for file in scp.files()}
    assert len(received) == 3
    assert ran.failed_uids == set(study) - {"study"} - received


def test_get_that_dies_in_the_middle(node: Archive, study: dict[str, Path], tmp_path: Path) -> None:
    """The requester is killed while an image is on its way; the node gives up at once and serves the next."""
    with CutWire(node.address.port, 10_000, upstream=False) as cut:
        through = Address("127.0.0.1", cut.listening, node.address.ae_title)
        command = getscu_command(
            *(through, tmp_path, "-S", "STUDY", f"StudyInstanceUID={study['study']}"), calling="EXACTVIEW"
        )
        with running(*command) as process:
            assert cut.stalled.wait(300)
            assert node.node.server.entity.active_associations
            process.kill()
        cut.cut()
        wait_for(lambda: not node.node.server.entity.active_associations, what="no association left")
    ran = getscu(
        *(node.address, tmp_path / "got", "-S", "STUDY", f"StudyInstanceUID={study['study']}"), calling="EXACTVIEW"
    )
    assert (ran.status, ran.counts) == (0x0000, (4, 0, 0)), ran.said


# --- senders that fail ---


def _spooled(archive: Archive) -> list[Path]:
    return spooled(archive.node.store.spool)


def test_sender_that_dies_in_the_middle_leaves_nothing(quiet: Archive, tmp_path: Path) -> None:
    whole, half = small(), samples.mammogram(samples.breast(400, 300))
    files = [samples.write(whole, tmp_path / "1.dcm"), samples.write(half, tmp_path / "2.dcm")]
    before = set(quiet.node.store.digests())
    limit = files[0].stat().st_size + 100_000
    with CutWire(quiet.address.port, limit) as cut:
        with running("storescu", "-R", "-aet", "MODALITY", "127.0.0.1", cut.listening, *files) as process:
            assert cut.stalled.wait(300)
            wait_for(lambda: _spooled(quiet), what="half an image in the spool")
            process.kill()
        cut.cut()
        wait_for(lambda: not _spooled(quiet), what="spool empty")
    held = quiet.node.index.by_uid(whole.SOPInstanceUID)
    assert held is not None
    assert quiet.node.index.by_uid(half.SOPInstanceUID) is None
    assert set(quiet.node.store.digests()) == before | {held.original_digest}
    assert storescu(files, quiet.address).statuses == [0x0000, 0x0000]


def test_sender_that_aborts_after_its_image_has_it_stored(quiet: Archive, tmp_path: Path) -> None:
    """An image that was answered with success stays, whatever happens to the association."""
    ds = small()
    ran = storescu([samples.write(ds, tmp_path / "image.dcm")], quiet.address, "--abort")
    assert ran.statuses == [0x0000]
    assert "Aborting Association" in ran.said
    held = quiet.node.index.by_uid(ds.SOPInstanceUID)
    assert held is not None
    wait_for(lambda: not _spooled(quiet), what="spool empty")
    assert quiet.node.store.held(held.original_digest)


@pytest.mark.slow
def test_move_longer_than_the_network_timeout_ends_in_peace(tmp_path: Path, receiver: Receiver) -> None:
    """While we work for an association, it is not idle, and it is still open after the final response."""
    settings = settings_for(
        tmp_path / "archive",
        peers=_peers(receiver.port, 1),
        archivist={"enabled": False},
        node={"network_timeout": 3},
    )
    ds = small()
    with Node(settings) as slow:
        make = slow.retrieve.make
        slow.retrieve.make = lambda *of: threading.Event().wait(3.5) or make(*of)  # type: ignore[method-assign]
        address = Address("127.0.0.1", slow.server.port, settings.node.ae_title)
        assert storescu([samples.write(ds, tmp_path / "image.dcm")], address).statuses == [0]
        assoc = _associated("EXACTVIEW", address, [build_context(MOVE)])
        answers = [*assoc.send_c_move(image_identifier(ds.StudyInstanceUID), "EXACTVIEW", MOVE)]
        assert [int(status.Status) for status, _ in answers] == [0x0000]
        assert assoc.is_established
        assoc.release()


# --- pydicom's own test files, there and back ---

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
"""The files that come with pydicom; its get_testdata_files() would also ask the network for more."""

REFUSED = {
    "rtplan_truncated.dcm": 0xC002,
    "JPEGLSNearLossless_08.dcm": 0xC001,
    "JPEGLSNearLossless_16.dcm": 0xC001,
    "SC_rgb_jls_lossy_line.dcm": 0xC001,
    "SC_rgb_jls_lossy_sample.dcm": 0xC001,
    "UN_sequence.dcm": 0xC001,
    "empty_charset_LEI.dcm": 0xC001,
    "nested_priv_SQ.dcm": 0xC001,
    "priv_SQ.dcm": 0xC001,
}
"""One cut off inside an element, and those that lack a UID to file them under."""

ODD_PIXELS = {
    "JPEG2000-embedded-sequence-delimiter.dcm",  # the codestream cannot be decoded
    "MR_small_padded.dcm",  # too long
    "MR_truncated.dcm",  # cut off
    "badVR.dcm",  # too long
}
"""Kept verbatim, with a warning (B007)."""


ODD_LENGTH = "image_dfl.dcm"
"""It lacks the byte that PS3.5 A.5 wants after a deflated stream of odd length, and is encoded again."""


def pydicom_file(name: str) -> Path:
    return PYDICOM_FILES / name


@dataclass(frozen=True)
class TestFile:
    """A file of pydicom that names its instance, series and study."""

    path: Path
    sop_class: str
    study: str
    series: str
    uid: str
    syntax: UID

    __test__ = False

    def as_sent(self, folder: Path) -> Path:
        """The unchanged bytes of the data set, under file meta information that agrees with them.

        In some files of pydicom it does not agree, and C-STORE announces the UIDs of the file meta information.
        """
        path = folder / f"{self.uid}.dcm"
        body = data_set_bytes(self.path)
        return samples.write_body(body, path, sop_class=self.sop_class, sop_instance=self.uid, syntax=self.syntax)


def _waves() -> list[list[TestFile]]:
    """All files that the node stores, in waves in which no SOP Instance UID occurs twice."""
    waves: list[list[TestFile]] = []
    seen: Counter[str] = Counter()
    for path in sorted(PYDICOM_FILES.rglob("*")):
        if path.name in REFUSED or not path.is_file():
            continue
        try:
            ds = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        uids = [str(ds.get(keyword, "")) for keyword in IDENTITY]
        if not all(uids) or "TransferSyntaxUID" not in ds.file_meta:
            continue
        if seen[ds.SOPInstanceUID] == len(waves):
            waves.append([])
        waves[seen[ds.SOPInstanceUID]].append(TestFile(path, *uids, syntax=ds.file_meta.TransferSyntaxUID))
        seen[ds.SOPInstanceUID] += 1
    return waves


IDENTITY = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def _round_trip(archive: Archive, files: list[TestFile], folder: Path) -> None:
    """Store the unchanged files, and retrieve them as EXACTVIEW, each in its own transfer syntax."""
    folder.mkdir()
    sent = {file.as_sent(folder): file for file in files}
    answered: dict[str, int] = {}
    store(
        list(sent),
        archive.address,
        calling="MODALITY",
        each=lambda path, status, _: answered.update({sent[path].path.name: status}),
    )
    assert answered == {file.path.name: 0xB007 if file.path.name in ODD_PIXELS else 0x0000 for file in files}
    receiver = Receiver(folder)
    pairs = {(file.sop_class, file.syntax) for file in files}
    contexts = [build_context(GET), *(build_context(UID(sop_class), syntax) for sop_class, syntax in pairs)]
    roles: list[Any] = [build_role(sop_class, scp_role=True) for sop_class in {file.sop_class for file in files}]
    assoc = _associated("EXACTVIEW", archive.address, contexts, ext_neg=roles, evt_handlers=receiver.handlers())
    everything = Dataset()
    everything.QueryRetrieveLevel = "STUDY"
    everything.StudyInstanceUID = sorted({file.study for file in files})
    final = [*assoc.send_c_get(everything, GET)][-1][0]
    assoc.release()
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, len(files))
    for file in files:
        back = receiver.received[file.uid]
        if file.path.name == ODD_LENGTH:
            assert dcmread(back) == dcmread(file.path)
            assert back.stat().st_size % 2 == 0
        else:
            assert data_set_bytes(back) == data_set_bytes(file.path), file
        assert read_file_meta_info(back).TransferSyntaxUID == file.syntax, file


def _associated(calling: str, address: Address, contexts: list[Any], **options: Any) -> Any:
    """An association of pynetdicom. If a failed test leaves it open, it ends with the node."""
    assoc = AE(calling).associate(address.host, address.port, contexts=contexts, ae_title=address.ae_title, **options)
    assert assoc.is_established
    return assoc


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Expected .*plicit VR:UserWarning")
def test_pydicom_files_come_back_byte_for_byte(quiet: Archive, tmp_path: Path) -> None:
    files = _waves()[0]
    assert len(files) > 100
    _round_trip(quiet, files, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Expected .*plicit VR:UserWarning")
def test_pydicom_files_of_the_same_uid_come_back_byte_for_byte(tmp_path: Path) -> None:
    """Each wave has a node of its own, since most of these files are one image in several encodings."""
    waves = _waves()[1:]
    assert sum(map(len, waves)) > 20
    for number, files in enumerate(waves):
        folder = tmp_path / f"wave{number}"
        folder.mkdir()
        settings = settings_for(folder / "archive", archivist={"enabled": False})
        with Node(settings) as single, Receiver(folder) as receiver:
            _round_trip(Archive(single, receiver), files, folder / "back")


@pytest.mark.slow
def test_pydicom_files_that_are_refused(quiet: Archive, tmp_path: Path) -> None:
    """A file that cannot be parsed to its end, or that lacks a UID, is refused and leaves nothing behind."""
    pynetdicom_patches.install()  # send_c_store sends the file's bytes as they are
    files, pairs = {}, set()
    for name in REFUSED:
        ds = dcmread(pydicom_file(name), stop_before_pixels=True)
        sop_class, uid = ds.get("SOPClassUID", SECONDARY_CAPTURE), ds.get("SOPInstanceUID", generate_uid())
        file = TestFile(pydicom_file(name), sop_class, "", "", uid, ds.file_meta.TransferSyntaxUID)
        files[name] = file.as_sent(tmp_path)
        pairs.add((sop_class, file.syntax))
    before = set(quiet.node.store.digests())
    assoc = _associated("MODALITY", quiet.address, [build_context(*pair) for pair in pairs])
    answered = {name: int(assoc.send_c_store(file).Status) for name, file in files.items()}
    assoc.release()
    assert answered == REFUSED
    assert set(quiet.node.store.digests()) == before
    wait_for(lambda: not _spooled(quiet), what="spool empty")
