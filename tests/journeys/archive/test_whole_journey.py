"""Proves that an image can be stored, verified, found, moved and retrieved in each rendition over real associations."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.formats.payload import decode_base, decode_rendition
from storage.records import InstanceState
from tests.conftest import Archive, settings_for
from tests.support.encoder_samples import phantom
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write
from tests.support.transfers import asked, data_set_bytes


def stored(archive: Archive, tmp_path: Path, *datasets: Dataset, syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    files = [write(ds, tmp_path / f"sent-{number}.dcm", syntax) for number, ds in enumerate(datasets)]
    statuses: list[int] = []
    client.store(files, archive.address, calling="MODALITY", each=lambda path, status, seconds: statuses.append(status))
    assert statuses == [0x0000] * len(files)
    return files


def got(archive: Archive, folder: Path, calling: str, identifier: Dataset) -> tuple[Dataset, dict[str, Path]]:
    folder.mkdir(exist_ok=True)
    receiver = Receiver(folder)
    status = client.get(identifier, archive.address, calling=calling, sop_classes=[MAMMOGRAPHY], receiver=receiver)
    return status, receiver.received


def test_reconstructed_by_find_move_and_get(archive: Archive, tmp_path: Path) -> None:
    ds = mammogram()
    stored(archive, tmp_path, ds)
    instance = archive.settled(ds.SOPInstanceUID)
    assert instance.state is InstanceState.VERIFIED
    rendition = instance.rendition
    assert rendition is not None
    assert rendition.verdict.fsim_mean >= 0.93
    assert rendition.verdict.fsim_p5 >= 0.90
    assert rendition.payload_bytes * 10 < instance.pixel_bytes

    query = asked(ds, "")
    query.SOPInstanceUID = ""
    found = client.find(query, archive.address, calling="VIEWER")
    assert [str(one.SOPInstanceUID) for one in found] == [rendition.derived_uid]

    for uid in (rendition.derived_uid, ds.SOPInstanceUID):  # by its own UID, and by the original's
        archive.receiver.received.clear()
        final = client.move(asked(ds, uid), archive.address, calling="VIEWER", destination="VIEWER")
        assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 1)
        assert list(archive.receiver.received) == [rendition.derived_uid]
    final, received = got(archive, tmp_path / "got", "VIEWER", asked(ds, rendition.derived_uid))
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 1)
    assert list(received) == [rendition.derived_uid]

    moved_file, got_file = archive.receiver.received[rendition.derived_uid], received[rendition.derived_uid]
    assert data_set_bytes(moved_file) == data_set_bytes(got_file)
    assert pixel_digest(integer_pixels(moved_file)) == rendition.output_digest
    copy = dcmread(moved_file)
    assert (copy.Rows, copy.Columns, copy.BitsStored) == (ds.Rows, ds.Columns, ds.BitsStored)
    assert copy.ImageType[0] == "DERIVED"
    assert copy.LossyImageCompression == "01"
    assert float(copy.LossyImageCompressionRatio) == pytest.approx(
        instance.pixel_bytes / rendition.payload_bytes, rel=0.01
    )
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "PixelSpacing", "PatientName", "StudyInstanceUID"):
        assert copy[keyword].value == ds[keyword].value, keyword


@pytest.mark.slow
def test_original_peers_get_the_bytes_that_were_sent(archive: Archive, tmp_path: Path) -> None:
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds = mammogram()
        (sent,) = stored(archive, tmp_path, ds, syntax=syntax)
        archive.settled(ds.SOPInstanceUID)
        for title in ("EXACTVIEW", "AUTOVIEW"):
            archive.receiver.received.clear()
            final = client.move(asked(ds), archive.address, calling="EXACTVIEW", destination=title)
            assert final.Status == 0x0000
            received = archive.receiver.received[ds.SOPInstanceUID]
            assert data_set_bytes(received) == data_set_bytes(sent)


@pytest.mark.slow
def test_get_converts_only_the_transfer_syntax(archive: Archive, tmp_path: Path) -> None:
    """The requester accepts only explicit little endian. An original in implicit VR is re-encoded, with the same
    elements and pixels."""
    ds = mammogram()
    stored(archive, tmp_path, ds, syntax=ImplicitVRLittleEndian)
    archive.settled(ds.SOPInstanceUID)
    final, received = got(archive, tmp_path / "got", "EXACTVIEW", asked(ds))
    assert final.Status == 0x0000
    copy = dcmread(received[ds.SOPInstanceUID])
    assert copy.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert copy == dcmread(write(ds, tmp_path / "explicit.dcm"))


def test_until_verified_the_original_is_served(quiet_archive: Archive, tmp_path: Path) -> None:
    ds = mammogram(breast(300, 280))
    (sent,) = stored(quiet_archive, tmp_path, ds)
    query = asked(ds)
    query.SOPInstanceUID = ""
    found = client.find(query, quiet_archive.address, calling="VIEWER")
    assert [one.SOPInstanceUID for one in found] == [ds.SOPInstanceUID]
    final = client.move(asked(ds), quiet_archive.address, calling="VIEWER", destination="VIEWER")
    assert final.Status == 0x0000
    assert data_set_bytes(quiet_archive.receiver.received[ds.SOPInstanceUID]) == data_set_bytes(sent)


@pytest.mark.slow
def test_a_study_of_several_kinds(receiver: Receiver, tmp_path: Path) -> None:
    with Node(settings_for(tmp_path / "archive", receiver.port, codec={"scales": [2]})) as node:
        several_kinds(Archive(node, receiver), tmp_path)


def several_kinds(archive: Archive, tmp_path: Path) -> None:
    """Images of one study that are reconstructed, not eligible or fail the gate. Each arrives once, in its encoding."""
    study = generate_uid()
    good = mammogram(phantom(), StudyInstanceUID=study)
    small = mammogram(breast(200, 200), StudyInstanceUID=study)
    threads = phantom().copy()  # too thin for scale 2, and too many to be repaired
    threads[:, 10::6] += 800
    hopeless = mammogram(threads.clip(0, 4095), StudyInstanceUID=study)
    processing = mammogram(StudyInstanceUID=study, PresentationIntentType="FOR PROCESSING")
    stored(archive, tmp_path, good, small, hopeless, processing)
    settled = {ds.SOPInstanceUID: archive.settled(ds.SOPInstanceUID) for ds in (good, small, hopeless, processing)}
    assert settled[good.SOPInstanceUID].state is InstanceState.VERIFIED
    for ds, reason in (
        (small, "smaller than 256"),
        (hopeless, "no operating point passed the gate"),
        (processing, "processing"),
    ):
        assert settled[ds.SOPInstanceUID].state is InstanceState.EXACT
        assert reason in settled[ds.SOPInstanceUID].reason

    whole = client.image_identifier(study)
    final = client.move(whole, archive.address, calling="VIEWER", destination="VIEWER")
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 4)
    rendition = settled[good.SOPInstanceUID].rendition
    assert rendition is not None
    expected = {rendition.derived_uid, small.SOPInstanceUID, hopeless.SOPInstanceUID, processing.SOPInstanceUID}
    assert set(archive.receiver.received) == expected


@pytest.mark.slow
def test_what_is_held_says_how_it_was_made(archive: Archive, tmp_path: Path) -> None:
    """A verified image has a base and a rendition, and the list of the operating points that were tried."""
    ds = mammogram()
    stored(archive, tmp_path, ds)
    rendition = archive.settled(ds.SOPInstanceUID).rendition
    assert rendition is not None
    store = archive.node.store
    base = decode_base(store.read(rendition.base_digest))
    made = decode_rendition(store.read(rendition.rendition_digest))
    assert made.base_digest == rendition.base_digest
    assert made.derived_uid == rendition.derived_uid
    assert made.structure_uid == rendition.structure_uid
    assert base.point == rendition.point
    assert made.verdict.passed
    verdict, tried = rendition.verdict, rendition.tried
    assert verdict == made.verdict
    assert (tried[-1].point, tried[-1].failures) == (str(rendition.point), ())
    assert base.header.dataset().PatientName == ds.PatientName


@pytest.mark.slow
def test_own_reconstruction_that_comes_back(archive: Archive, tmp_path: Path) -> None:
    """It is recognised: the answer is success, and nothing is stored or encoded again. With other pixels it is
    refused."""
    ds = mammogram()
    stored(archive, tmp_path, ds)
    rendition = archive.settled(ds.SOPInstanceUID).rendition
    assert rendition is not None
    client.move(asked(ds), archive.address, calling="VIEWER", destination="VIEWER")
    received = archive.receiver.received[rendition.derived_uid]
    before = list(archive.node.store.digests())
    statuses: list[int] = []

    def send(path: Path) -> int:
        client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
        return statuses[-1]

    assert send(received) == 0x0000
    assert list(archive.node.store.digests()) == before
    impostor = dcmread(received)
    impostor.PixelData = bytes(len(impostor.PixelData))
    impostor.save_as(tmp_path / "impostor.dcm")
    assert send(tmp_path / "impostor.dcm") == 0xC003
    assert [one.sop_instance_uid for one in archive.node.index.quarantine.all()] == [rendition.derived_uid]


@pytest.mark.slow
def test_pixels_that_are_not_the_verified_ones_never_leave(archive: Archive, tmp_path: Path) -> None:
    """The base is damaged. The original is sent instead, under its own UID."""
    ds = mammogram()
    (sent,) = stored(archive, tmp_path, ds)
    rendition = archive.settled(ds.SOPInstanceUID).rendition
    assert rendition is not None
    path = archive.node.store.path(rendition.base_digest)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    final = client.move(asked(ds), archive.address, calling="VIEWER", destination="VIEWER")
    assert final.Status == 0x0000
    assert list(archive.receiver.received) == [ds.SOPInstanceUID]
    assert data_set_bytes(archive.receiver.received[ds.SOPInstanceUID]) == data_set_bytes(sent)
    archive.node.store.path(archive.settled(ds.SOPInstanceUID).original_digest).unlink()
    final = client.move(asked(ds), archive.address, calling="VIEWER", destination="VIEWER")
    assert final.Status == 0xA702
    assert final.NumberOfFailedSuboperations == 1


def test_move_to_nowhere(archive: Archive, tmp_path: Path) -> None:
    ds = mammogram(breast(200, 200))
    stored(archive, tmp_path, ds)
    final = client.move(asked(ds), archive.address, calling="VIEWER", destination="NOBODY")
    assert final.Status == 0xA801
    final = client.move(asked(ds), archive.address, calling="VIEWER", destination="MODALITY")  # has no address
    assert final.Status == 0xA801
    nothing = client.image_identifier(generate_uid())
    final = client.move(nothing, archive.address, calling="VIEWER", destination="VIEWER")
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 0)
    broken = asked(ds)
    del broken.StudyInstanceUID
    final = client.move(broken, archive.address, calling="VIEWER", destination="VIEWER")
    assert final.Status == 0xA900
