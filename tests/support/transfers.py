"""Sends images to a test node and retrieves them."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset
from pydicom.uid import generate_uid

from node.dimse import client
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.records import StoredInstance
from tests.conftest import Archive
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write


def stored(archive: Archive, folder: Path) -> StoredInstance:
    ds = mammogram(breast(320, 288), SOPInstanceUID=generate_uid())
    path = write(ds, folder / "image.dcm")
    statuses: list[int] = []
    client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0]
    held = archive.node.index.by_uid(str(ds.SOPInstanceUID))
    assert held is not None
    return held


def got(archive: Archive, held: StoredInstance, calling: str) -> tuple[int, list[str]]:
    """The final status of a C-GET, and the UIDs that it reports as failed."""
    archive.receiver.received.clear()
    identifier = client.image_identifier(held.study_instance_uid, held.series_instance_uid, held.sop_instance_uid)
    response = client.get(
        identifier, archive.address, calling=calling, sop_classes=[MAMMOGRAPHY], receiver=archive.receiver
    )
    return int(response.Status), list(archive.receiver.received)


def data_set_bytes(path: Path) -> bytes:
    with opened(path) as file:
        return bytes(file.data)


def asked(ds: Dataset, uid: str = "") -> Dataset:
    return client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, uid or ds.SOPInstanceUID)


def send_and_settle(archive: Archive, folder: Path, *images: Dataset) -> list[StoredInstance]:
    files = [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in images]
    client.store(files, archive.address, calling="MODALITY", each=lambda *_: None)
    return [archive.settled(ds.SOPInstanceUID) for ds in images]


def moved(archive: Archive, ds: Dataset, *uids: str, to: str = "VIEWER") -> dict[str, str]:
    """Digests of the pixels that a move of those UIDs delivers, by the UIDs of the received objects."""
    archive.receiver.received.clear()
    identifier = client.image_identifier(ds.StudyInstanceUID)
    if uids:
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.SeriesInstanceUID = ds.SeriesInstanceUID
        identifier.SOPInstanceUID = list(uids)
    assert client.move(identifier, archive.address, calling=to, destination=to).Status == 0x0000
    return {uid: pixel_digest(integer_pixels(path)) for uid, path in archive.receiver.received.items()}


def send(archive: Archive, folder: Path, *datasets: Dataset, calling: str = "MODALITY") -> list[int]:
    files = [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in datasets]
    statuses: list[int] = []
    client.store(files, archive.address, calling=calling, each=lambda _, status, __: statuses.append(status))
    return statuses
