"""Proves that SOP class extended negotiation accepts only the options that the node then applies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import build_context

from node.app import Node
from node.dimse.client import Receiver, store
from tests.conftest import Archive, settings_for
from tests.support import samples

FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Three images of a patient, at 10 o'clock of three successive days."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "received").mkdir()
    with Receiver(folder / "received") as receiver:
        settings = settings_for(
            folder / "archive", receiver.port, archivist={"enabled": False}, node={"timezone": "Pacific/Kiritimati"}
        )
        with Node(settings) as node:
            made = Archive(node, receiver)
            days = [
                samples.mammogram(samples.breast(64, 48), PatientID="P1", StudyDate=f"2024010{day}")
                for day in (1, 2, 3)
            ]
            for ds in days:
                ds.StudyTime = "100000"
            files = [samples.write(ds, folder / f"{number}.dcm") for number, ds in enumerate(days)]
            statuses: list[int] = []
            store(files, made.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
            assert statuses == [0x0000] * 3
            yield made


def associated(archive: Archive, information: bytes | None) -> Any:
    """An association of EXACTVIEW for queries and moves, with that application information for both SOP classes."""
    items: list[Any] = []
    for uid in (FIND, MOVE) if information is not None else ():
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = uid, information
        items.append(item)
    contexts = [build_context(FIND), build_context(MOVE)]
    assoc = AE("EXACTVIEW").associate("127.0.0.1", archive.address.port, contexts=contexts, ext_neg=items)
    assert assoc.is_established
    return assoc


def identifier(level: str, **keys: str) -> Dataset:
    made = Dataset()
    made.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(made, keyword, value)
    return made


def test_what_is_answered(archive: Archive) -> None:
    """Relational queries, combined date-time matching and time zones are accepted, and fuzzy names are not. For moves,
    only relational retrieval is."""
    assoc = associated(archive, b"\x01\x01\x01\x01")
    answered = {str(uid): information for uid, information in assoc.acceptor.sop_class_extended.items()}
    assert answered == {FIND: b"\x01\x01\x00\x01", MOVE: b"\x01\x00\x00\x00"}
    assoc.release()
    assoc = associated(archive, b"\x00")
    assert set(assoc.acceptor.sop_class_extended.values()) == {b"\x00"}
    assoc.release()


@pytest.mark.parametrize(("information", "status", "found"), [(None, 0xA900, 0), (b"\x00", 0xA900, 0), (b"\x01", 0, 3)])
def test_relational_queries(archive: Archive, information: bytes | None, status: int, found: int) -> None:
    assoc = associated(archive, information)
    *answers, (final, _) = assoc.send_c_find(identifier("IMAGE", PatientID="P1", SOPInstanceUID=""), FIND)
    assoc.release()
    assert (final.Status, len(answers)) == (status, found)


def test_relational_retrievals(archive: Archive) -> None:
    """An image is retrieved by its SOP Instance UID alone."""
    held = archive.node.index.by_keys([1])[0].sop_instance_uid
    for information, status in ((None, 0xA900), (b"\x01", 0x0000)):
        assoc = associated(archive, information)
        *_, (final, _) = assoc.send_c_move(identifier("IMAGE", SOPInstanceUID=held), "EXACTVIEW", MOVE)
        assoc.release()
        assert final.Status == status
    assert list(archive.receiver.received) == [held]


@pytest.mark.parametrize(("information", "found"), [(b"\x00\x00", 0), (b"\x00\x01", 2)])
def test_dates_and_times_together(archive: Archive, information: bytes, found: int) -> None:
    """The range is from noon of the last day of the year to 11 o'clock of the second day. Matched separately, no time
    would fit."""
    assoc = associated(archive, information)
    asked = identifier("STUDY", StudyDate="20231231-20240102", StudyTime="120000-110000", StudyInstanceUID="")
    *answers, _ = assoc.send_c_find(asked, FIND)
    assoc.release()
    assert len(answers) == found


@pytest.mark.parametrize(("information", "dates"), [(b"\x00\x00\x00\x00", []), (b"\x00\x00\x00\x01", ["20231231"])])
def test_dates_in_the_zone_of_the_request(archive: Archive, information: bytes, dates: list[str]) -> None:
    """10 o'clock in Kiritimati (``node.timezone``) is the day before in Honolulu."""
    assoc = associated(archive, information)
    keys = {"StudyDate": "20231231", "StudyTime": "", "StudyInstanceUID": "", "TimezoneOffsetFromUTC": "-1000"}
    *answers, _ = assoc.send_c_find(identifier("STUDY", **keys), FIND)
    assoc.release()
    assert [(one.StudyDate, one.StudyTime, one.TimezoneOffsetFromUTC) for _, one in answers] == [
        (date, "100000", "-1000") for date in dates
    ]
