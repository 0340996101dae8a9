"""Proves that no service logs patient data: our loggers at DEBUG, pynetdicom's at INFO."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest
from pydicom import Dataset

from node.dimse.client import PeerRefused, find, image_identifier, move, store
from tests.conftest import Archive
from tests.support import samples

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")

TELLING = {
    "PatientName": "Zyxwvut^Quentilla",
    "PatientID": "MRN-98765431",
    "PatientBirthDate": "19311213",
    "AccessionNumber": "ACCZYX7731",
    "ReferringPhysicianName": "Tellingdoctor^X",
    "PatientComments": "Telling comment",
}


@pytest.mark.slow
def test_nothing_is_logged_of_the_patient(archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, level in (("", logging.DEBUG), ("pynetdicom", logging.INFO)):
        caplog.set_level(level, logger=name)
    ds = samples.mammogram(samples.breast(320, 288), **TELLING)
    good = samples.write(ds, tmp_path / "good.dcm")
    other = samples.mammogram(samples.breast(320, 288, seed=1), **TELLING, SOPInstanceUID=ds.SOPInstanceUID)
    odd = samples.mammogram(samples.breast(320, 288), **{**TELLING, "PatientBirthDate": "Zyxwvut 13.12.1931"})
    short = samples.mammogram(samples.breast(320, 288), **TELLING)
    short.PixelData = short.PixelData[:1000]
    nameless = samples.mammogram(samples.breast(320, 288), **TELLING, StudyInstanceUID="1.2.Zyxwvut")
    files = [good] + [
        samples.write(one, tmp_path / f"{number}.dcm") for number, one in enumerate((other, odd, short, nameless))
    ]
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(good.read_bytes()[:1500])
    statuses: list[int] = []
    store(files, archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0x0000, 0xC003, 0x0000, 0xB007, 0x0117]
    archive.settled(str(ds.SOPInstanceUID))

    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"):
        setattr(query, keyword, TELLING[keyword])
    query.StudyInstanceUID = ""
    assert find(query, archive.address, calling="VIEWER")
    query.PatientBirthDate = "Zyxwvut-19311213-1"
    with pytest.raises(PeerRefused, match="status"):
        find(query, archive.address, calling="VIEWER")
    for destination in ("VIEWER", "NOBODY"):
        move(image_identifier(str(ds.StudyInstanceUID)), archive.address, calling="VIEWER", destination=destination)
    wrong = Dataset()
    wrong.QueryRetrieveLevel = "Zyxwvut"
    wrong.PatientID = TELLING["PatientID"]
    move(wrong, archive.address, calling="VIEWER", destination="VIEWER")
    gc.collect()
    assert len(caplog.records) > 20, "the loggers were listened to"
    assert {"pynetdicom", "node"} <= {record.name.partition(".")[0] for record in caplog.records}
    for record in caplog.records:
        said = record.getMessage() + (caplog.handler.formatter or logging.Formatter()).format(record)
        for word in ("Zyxwvut", "Quentilla", "98765431", "19311213", "7731", "Tellingdoctor", "Telling comment"):
            assert word not in said, f"{record.name} {record.levelname}: {said}"
