"""Proves C-FIND: matching (PS3.4 C.2.2.2), the query on the index (C.4.1), the selection for retrieval, and the
handler.
"""

from __future__ import annotations

import gc
import re
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pynetdicom import AE, evt
from pynetdicom.dsutils import decode, encode
from sqlalchemy import Engine, create_engine, event, insert, select, text
from sqlalchemy.dialects import postgresql

from node.archive.query.find import _parsed, find, has_unsupported_keys
from node.archive.query.identifier import MOST_UIDS, IdentifierError, Root
from node.archive.query.matching import condition
from node.archive.query.selection import select as selection
from node.config import RenditionPolicy, parse
from node.dimse.associations.refusals import Refusals
from node.dimse.handlers.c_find import handle_find
from storage.dicom.elements import BadValueError, checked
from storage.dicom.levels import columns_of, levels_of
from storage.index import query_candidates, query_pages
from storage.index.tables import instance, metadata, patient, rendition, series, study
from storage.records import InstanceState

MG = "1.2.840.10008.5.1.4.1.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.33"


# --- matching ---


def stored(vr: str, *values: Any) -> list[Any]:
    return [None if value == "" else checked(value, vr) for value in values]


@pytest.mark.parametrize(
    ("vr", "key", "value", "expected"),
    [
        # single value: literal, case-sensitive
        ("LO", "ABC", "ABC", True),
        ("LO", "ABC", "abc", False),
        ("LO", "ABC", "ABCD", False),
        ("LO", "A.C", "ABC", False),
        ("CS", "MG", "MG", True),
        ("UI", "1.2.3", "1.2.3", True),
        ("UI", "1.2.*", "1.2.3", False),
        ("IS", "7", "007", True),
        ("IS", "7", "8", False),
        ("DS", "1.50", "1.5", True),
        ("US", 512, 512, True),
        ("AS", "042Y", "042Y", True),
        ("UT", "a\\b", "a\\b", True),
        # wildcards
        ("LO", "A*", "ABC", True),
        ("LO", "a*", "ABC", False),
        ("LO", "*C", "ABC", True),
        ("LO", "*B*", "ABC", True),
        ("LO", "A?C", "ABC", True),
        ("LO", "A?", "ABC", False),
        ("LO", "A?*", "A", False),
        ("LO", "A*B*C", "AxBxxC", True),
        ("LO", "A*B*C", "AxCxxB", False),
        ("LO", "A*A", "A", False),
        ("LO", "(A|B)*", "A", False),
        ("LO", "[x]*", "[x]y", True),
        ("LT", "*line*", "first\r\nline two", True),
        ("CS", "M?", "MG", True),
        ("LO", "*", "", False),  # absent: universal is decided before
        # person names
        ("PN", "smith^john", "SMITH^JOHN", True),
        ("PN", "Smith", "Smith^John", False),
        ("PN", "Smith*", "SMITH^John", True),
        ("PN", "Smith^John^^", "Smith^John", True),
        ("PN", "Smith^John", "Smith^John^^^", True),
        ("PN", "Smith^*", "Smith", True),
        ("PN", "Smith^*", "Smithers^A", False),
        ("PN", "*^John", "Smith^John", True),
        ("PN", "Muller*", "Müller^Änne", True),
        ("PN", "MÜLLER^?nne", "Müller^Änne", True),
        ("PN", "Strasse", "Straße", True),
        ("PN", "Yamada*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PN", "Yamada^Tarou", "Yamada^Tarou=山田^太郎", True),
        ("PN", "山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PN", "やまだ^たろう", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PN", "田*", "Yamada^Tarou=山田^太郎", False),
        ("PN", "Yamada*=山田*", "Yamada^Tarou=山田^太郎", True),
        ("PN", "Yamada*=川*", "Yamada^Tarou=山田^太郎", False),
        ("PN", "=山田*", "Yamada^Tarou=山田^太郎", True),
        ("PN", "Yamada^Tarou=", "Yamada^Tarou=山田^太郎", True),
        # dates
        ("DA", "20160104", "20160104", True),
        ("DA", "20160104", "20160105", False),
        ("DA", "20160101-20161231", "20160101", True),
        ("DA", "20160101-20161231", "20161231", True),
        ("DA", "20160101 - 20161231", "20160615", True),
        ("DA", "20160101-20161231", "20170101", False),
        ("DA", "-20161231", "19000101", True),
        ("DA", "-20161231", "20170101", False),
        ("DA", "20160101-", "20991231", True),
        ("DA", "20160101-", "20151231", False),
        ("DA", "20161231-20160101", "20160615", False),
        ("DA", "2016.10.04", "20161004", True),
        ("DA", "2016.10.01-2016.10.05", "20161004", True),
        ("DA", "2016.10.01-2016.10.05", "20161006", False),
        ("TM", "10:00", "100030", True),
        ("TM", "10:00:00-11:00:00", "110001", False),
        # times, by meaning
        ("TM", "2230", "223000", True),
        ("TM", "22", "223000", True),
        ("TM", "223000", "2230", True),
        ("TM", "223000", "223001", False),
        ("TM", "223000", "223000.5", True),
        ("TM", "1000-1100", "110059", True),
        ("TM", "1000-1100", "110100", False),
        ("TM", "1000-1100", "0959", False),
        ("TM", "-10", "105959.999999", True),
        ("TM", "-10", "11", False),
        ("TM", "10-", "10", True),
        ("TM", "2300-0100", "2330", False),  # across midnight: not supported by the standard
        # date-times
        ("DT", "19980128103000.0000", "19980128103000", True),
        ("DT", "19980128103000", "19980128103000.0000", True),
        ("DT", "19980128073000-0300", "19980128103000+0000", True),
        ("DT", "19980128073000-0300", "19980128073000", True),  # one of them states no offset: as written
        ("DT", "19980128073000-0300", "19980128103000", False),
        ("DT", "1998", "19980128103000", True),
        ("DT", "199802", "19980228235959", True),
        ("DT", "1997-1998", "19981231235959.9", True),
        ("DT", "1997-1998", "19990101", False),
        ("DT", "-1998", "1997", True),
        ("DT", "1998-", "1997", False),
        ("DT", "19980101000000-0500-19980101120000-0500", "19980101060000+0000", True),
        ("DT", "19980101000000-0500-19980101120000-0500", "19980101040000+0000", False),
        ("DT", "20200101-", "20200230", False),  # no such day, but no error
        ("DT", "00010101000000+0100-99991231235959-0500", "20200101101112+0000", True),  # ends that UTC does not have
        ("DT", "99991231235959-0500-", "20200101101112+0000", False),
        ("DT", "2020-", "99991231235959-0100", True),
    ],
)
def test_one_key_against_one_value(vr: str, key: Any, value: Any, expected: bool) -> None:
    assert condition(vr, [key])(stored(vr, value)) is expected


@pytest.mark.parametrize(
    ("vr", "key"),
    [
        ("DA", "2016.10"),
        ("DA", "2016*"),
        ("DA", "-"),
        ("DA", "20160101-20160202-20160303"),
        ("TM", "10:0"),
        ("DT", "soon"),
        ("DT", "-"),
        ("DT", "20200230"),
        ("IS", "x"),
        ("DS", "1-2"),
    ],
)
def test_an_invalid_key_is_an_error(vr: str, key: str) -> None:
    with pytest.raises(BadValueError):
        condition(vr, [key])


def test_any_value_of_several_matches() -> None:
    assert condition("CS", ["PRIMARY"])(["ORIGINAL", "PRIMARY"])
    assert condition("CS", ["CT", "MG"])(["MG"])
    assert condition("UI", ["1.2", "1.3"])(["1.3"])
    assert not condition("UI", ["1.2", "1.3"])(["1.4"])
    assert not condition("LO", ["A"])([None])
    assert not condition("LO", ["A"])([])


@given(st.text("ab*?[-!]", min_size=1, max_size=12), st.text("ab[-!]", max_size=14))
def test_wildcards_agree_with_a_plain_definition(pattern: str, subject: str) -> None:
    def agrees(pattern: str, subject: str) -> bool:
        if not pattern:
            return not subject
        if pattern[0] == "*":
            return agrees(pattern[1:], subject) or (bool(subject) and agrees(pattern, subject[1:]))
        return bool(subject) and pattern[0] in {"?", subject[0]} and agrees(pattern[1:], subject[1:])

    assert condition("LO", [pattern])([subject]) is agrees(pattern, subject)


def test_no_wildcard_takes_exponential_time() -> None:
    started = time.process_time()
    assert not condition("LO", ["*a" * 200 + "b"])(["a" * 1000])
    assert time.process_time() - started < 5


# --- a small archive ---


@dataclass(frozen=True)
class Archive:
    """The part of an Index that ``find`` uses."""

    engine: Engine


def header(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        tag = Tag(keyword)
        dataset.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    return dataset


def add(engine: Engine, dataset: Dataset, *, derived: str = "", earlier: str = "") -> int:
    """Insert one instance as Index.add does. ``derived``: UID of its rendition. ``earlier``: UID of an older
    rendition."""
    columns = columns_of(levels_of(dataset))
    with engine.begin() as connection:

        def key_of(table: Any, unique: str, row: dict[str, Any]) -> int:
            found = connection.execute(select(table.c.key).where(table.c[unique] == row[unique])).scalar()
            return found or connection.execute(insert(table).values(row)).inserted_primary_key[0]

        patient_key = key_of(patient, "identity", columns["patient"])
        study_key = key_of(study, "study_instance_uid", {**columns["study"], "patient_key": patient_key})
        series_key = key_of(series, "series_instance_uid", {**columns["series"], "study_key": study_key})
        key = connection.execute(
            insert(instance).values(
                **columns["instance"],
                series_key=series_key,
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                original_digest="",
                original_bytes=0,
                pixel_bytes=0,
                pixel_warning="",
                calling_aet="",
                received_at=datetime(2024, 1, 1),
                state=InstanceState.VERIFIED if derived else InstanceState.EXACT,
                reason="",
                reason_code="",
                attempts=0,
            )
        ).inserted_primary_key[0]
        for uid in filter(None, (earlier, derived)):
            made = connection.execute(
                insert(rendition).values(
                    instance_key=key,
                    derived_uid=uid,
                    structure_uid=f"{uid}.9",
                    base_digest="",
                    base_bytes=0,
                    rendition_digest="",
                    rendition_bytes=0,
                    point={"scale": 2, "coder": "jpegxl"},
                    upscaler="bicubic",
                    weights_digest="",
                    output_digest="",
                    structure_digest="",
                    psnr_db=0,
                    fsim_mean=0,
                    fsim_p5=0,
                    tiles=1,
                    figures={},
                    gated=1,
                    recipe="",
                    tried=[],
                    seconds=0,
                    verified_at=datetime(2024, 1, 1),
                )
            ).inserted_primary_key[0]
            connection.execute(instance.update().where(instance.c.key == key).values(rendition_key=made))
        return int(key)


def created(folder: Path) -> Engine:
    """An empty index in that folder."""
    engine = create_engine(f"sqlite:///{folder / 'index.sqlite'}")
    metadata.create_all(engine)
    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = created(tmp_path)
    yield made
    made.dispose()


def view(code: str, meaning: str, modifier: str = "") -> Sequence:
    item = header(CodeValue=code, CodingSchemeDesignator="SCT", CodeMeaning=meaning)
    if modifier:
        item.ViewModifierCodeSequence = Sequence([header(CodeValue=modifier, CodingSchemeDesignator="SCT")])
    return Sequence([item])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Two patients with the same ID, one with another and one without. The first study has four views and a report.
    Tests only read it."""
    engine = created(tmp_path_factory.mktemp("archive"))
    anna = {
        "PatientID": "P1",
        "PatientName": "Müller^Anna=山田^花",
        "PatientBirthDate": "19600229",
        "PatientSex": "F",
        "StudyInstanceUID": "1.1",
        "StudyDate": "20240105",
        "StudyTime": "1015",
        "AccessionNumber": "A100",
        "StudyID": "S1",
        "StudyDescription": "Mammography screening",
    }
    utf8 = {"SpecificCharacterSet": "ISO_IR 192"}
    number = 0
    for laterality in "LR":
        for code, position, modifier in (("399162004", "CC", ""), ("399368009", "MLO", "399161006")):
            number += 1
            add(
                engine,
                header(
                    **utf8,
                    **anna,
                    SeriesInstanceUID="1.1.1",
                    Modality="MG",
                    SeriesNumber="1",
                    SeriesDescription="Für die Befundung",
                    SOPClassUID=MG,
                    SOPInstanceUID=f"1.1.1.{number}",
                    InstanceNumber=str(5 - number),
                    ImageType=["ORIGINAL", "PRIMARY", ""],
                    ImageLaterality=laterality,
                    ViewPosition=position,
                    ViewCodeSequence=view(code, position, modifier),
                    ContentDate="20240105",
                    ContentTime=f"10{number}5",
                    Rows=4096,
                    KVP="29.5",
                    LossyImageCompression="00",
                    SyntheticData="NO",
                    InstanceCreationDate="20240105",
                    ImageComments="repeated",
                ),
                derived=f"2.25.{number}" if number <= 2 else "",
                earlier="2.25.99" if number == 1 else "",
            )
    request = header(RequestedProcedureID="RP1", ScheduledProcedureStepID="SPS1")
    other = header(RequestedProcedureID="RP2", ScheduledProcedureStepID="SPS2")
    report = {
        "SeriesInstanceUID": "1.1.2",
        "Modality": "SR",
        "SeriesNumber": "2",
        "RequestAttributesSequence": Sequence([request, other]),
        "SOPClassUID": SR,
        "SOPInstanceUID": "1.1.2.1",
        "InstanceNumber": "1",
        "VerificationFlag": "VERIFIED",
    }
    add(engine, header(**utf8, **anna, **report))
    small = {"SOPClassUID": MG, "Modality": "MG", "SeriesNumber": "1"}
    rest = [
        ("P1", "B", "Miller^Ann", "2.1", "20240106", "235959.5", "A200"),
        ("P2", "", "SMITH^JOHN", "3.1", "20231231", "08", "A300"),
        ("", "", "", "4.1", "", "", ""),
        ("", "", "Anonymous", "5.1", "20200101", "0000", "A_00"),
    ]
    for patient_id, issuer, name, uid, date, at, accession in rest:
        add(
            engine,
            header(
                PatientID=patient_id,
                IssuerOfPatientID=issuer,
                PatientName=name,
                StudyInstanceUID=uid,
                StudyDate=date,
                StudyTime=at,
                AccessionNumber=accession,
                SeriesInstanceUID=f"{uid}.1",
                SOPInstanceUID=f"{uid}.1.1",
                **small,
            ),
        )
    yield Archive(engine)
    engine.dispose()


def ask(
    archive: Archive,
    level: str,
    root: Root = Root.STUDY,
    policy: RenditionPolicy = RenditionPolicy.ORIGINAL,
    **keys: Any,
) -> list[Dataset]:
    options = {
        name: keys.pop(name) for name in ("relational", "combined_datetime", "adjust_zones", "home") if name in keys
    }
    identifier = header(**{"SpecificCharacterSet": "ISO_IR 192", "QueryRetrieveLevel": level, **keys})
    received = decode(BytesIO(encode(identifier, True, True) or b""), True, True)
    answers = list(find(archive, received, root, policy=policy, retrieve_ae_title="PACS", **options))
    for implicit in (False, True):  # made for the encoding of the association, the bytes are the same
        ready = find(archive, received, root, policy=policy, retrieve_ae_title="PACS", implicit=implicit, **options)
        assert [encode(answer, implicit, True) for answer in ready] == [encode(one, implicit, True) for one in answers]
    return answers


def uids(answers: list[Dataset], keyword: str = "StudyInstanceUID") -> list[str]:
    return [str(answer[keyword].value) for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, {"1.1", "2.1", "3.1", "4.1", "5.1"}),
        ({"PatientID": "P1"}, {"1.1", "2.1"}),
        ({"PatientID": "P1", "IssuerOfPatientID": "B"}, {"2.1"}),
        ({"PatientID": "p1"}, set()),
        ({"PatientID": "P*"}, {"1.1", "2.1", "3.1"}),
        ({"PatientID": "*1"}, {"1.1", "2.1"}),
        ({"PatientID": "?2"}, {"3.1"}),
        ({"PatientID": "*"}, {"1.1", "2.1", "3.1", "4.1", "5.1"}),
        ({"PatientName": "muller^anna"}, {"1.1"}),
        ({"PatientName": "MÜLLER*"}, {"1.1"}),
        ({"PatientName": "m*"}, {"1.1", "2.1"}),
        ({"PatientName": "M?ller^Ann*"}, {"1.1", "2.1"}),
        ({"PatientName": "*ann*"}, {"1.1", "2.1"}),
        ({"PatientName": "*john"}, {"3.1"}),
        ({"PatientName": "smith^john^^^"}, {"3.1"}),
        ({"PatientName": "Anonymous^*"}, {"5.1"}),
        ({"PatientName": "山田*"}, {"1.1"}),
        ({"PatientName": "Muller*=山?^花"}, {"1.1"}),
        ({"PatientName": "%"}, set()),
        ({"PatientBirthDate": "19600101-19601231"}, {"1.1"}),
        ({"PatientBirthDate": "19600229"}, {"1.1"}),
        ({"PatientSex": "F"}, {"1.1"}),
        ({"StudyDate": "20240105"}, {"1.1"}),
        ({"StudyDate": "20231231-20240105"}, {"1.1", "3.1"}),
        ({"StudyDate": "20240105-"}, {"1.1", "2.1"}),
        ({"StudyDate": "-20231231"}, {"3.1", "5.1"}),
        ({"StudyTime": "0800-1100"}, {"1.1", "3.1"}),
        ({"StudyTime": "2359"}, {"2.1"}),
        ({"StudyTime": "-0000"}, {"5.1"}),
        ({"StudyDate": "20231231-20240106", "StudyTime": "0800-1100"}, {"1.1", "3.1"}),
        ({"StudyDate": "20231231-20240106", "StudyTime": "1000-1100", "combined_datetime": True}, {"1.1"}),
        ({"StudyDate": "20231231-20240106", "StudyTime": "0800-0900", "combined_datetime": True}, {"1.1", "3.1"}),
        ({"StudyDate": "20231231-", "StudyTime": "0900-", "combined_datetime": True}, {"1.1", "2.1"}),
        ({"StudyDate": "20231231-", "StudyTime": "0900-1000", "combined_datetime": True}, set()),
        ({"StudyDate": "20231231-20240105", "combined_datetime": True}, {"1.1", "3.1"}),
        ({"AccessionNumber": "A100"}, {"1.1"}),
        ({"AccessionNumber": "A?00"}, {"1.1", "2.1", "3.1", "5.1"}),
        ({"AccessionNumber": "A_0*"}, {"5.1"}),
        ({"AccessionNumber": "*200"}, {"2.1"}),
        ({"StudyID": "S1"}, {"1.1"}),
        ({"StudyDescription": "*screening"}, {"1.1"}),
        ({"StudyInstanceUID": ["1.1", "3.1", "9.9"]}, {"1.1", "3.1"}),
        ({"StudyInstanceUID": "1.*"}, set()),
        ({"ModalitiesInStudy": "SR"}, {"1.1"}),
        ({"ModalitiesInStudy": ["SR", "MG"]}, {"1.1", "2.1", "3.1", "4.1", "5.1"}),
        ({"ModalitiesInStudy": "S*"}, {"1.1"}),
        ({"SOPClassesInStudy": SR}, {"1.1"}),
        ({"ModalitiesInStudy": "SR", "PatientName": "M*", "StudyDate": "20240101-20240131"}, {"1.1"}),
        ({"StudyDate": "20240101-20240131", "AccessionNumber": "A*", "PatientID": "P*"}, {"1.1", "2.1"}),
        ({"Modality": "SR"}, {"1.1", "2.1", "3.1", "4.1", "5.1"}),  # a key of a lower level does not restrict
        ({"RetrieveURI": "x", "PatientID": "P2"}, {"3.1"}),
    ],
)
def test_studies_found(archive: Archive, keys: dict[str, Any], found: set[str]) -> None:
    asked = {"StudyInstanceUID": "", **keys}
    answers = uids(ask(archive, "STUDY", **asked))
    assert set(answers) == found
    assert len(answers) == len(found)


@pytest.mark.parametrize(("level", "uid"), [("SERIES", "SeriesInstanceUID"), ("IMAGE", "SOPInstanceUID")])
@pytest.mark.parametrize("key", [{"ModalitiesInStudy": "SR"}, {"SOPClassesInStudy": SR}])
def test_what_a_study_holds_restricts_studies_and_not_their_series(
    archive: Archive, level: str, uid: str, key: dict[str, str]
) -> None:
    """PS3.4 C.2.2.2: series of other modalities match too, if their study holds the requested modality."""
    series = {"SeriesInstanceUID": series_of_1_1(archive)} if level == "IMAGE" else {}
    everything = ask(archive, level, StudyInstanceUID="1.1", **series, **({uid: ""} if level == "SERIES" else {}))
    found = ask(archive, level, StudyInstanceUID="1.1", **series, **key)
    assert len(found) == len(everything) > 0


def series_of_1_1(archive: Archive) -> str:
    """A series of study 1.1 whose modality is not SR."""
    found = ask(archive, "SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="", Modality="")
    return next(str(one.SeriesInstanceUID) for one in found if one.Modality != "SR")


ZONED = [  # UID, zone, date, time
    ("6.1", "+1400", "20240105", "1015"),
    ("6.2", "-0500", "20240105", "201530.25"),
    ("6.3", "", "20240105", "101500"),
    ("6.4", "+0100", "20240105", ""),
    ("6.5", "somewhere", "20240230", "101500"),
]


@pytest.fixture(scope="module")
def zoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """One study in each time zone of ``ZONED``. Tests only read it."""
    engine = created(tmp_path_factory.mktemp("zoned"))
    for uid, zone, day, hour in ZONED:
        ids = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "SOPInstanceUID": f"{uid}.1.1"}
        born = {"PatientBirthDate": "19600229", "PatientBirthTime": "0001"}
        taken = {
            "StudyDate": day,
            "StudyTime": hour,
            "AcquisitionDateTime": f"{day}101500" if zone != "-0500" else "",
        }
        add(engine, header(**ids, **born, **taken, SOPClassUID=MG, Modality="MG", TimezoneOffsetFromUTC=zone))
    yield Archive(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"StudyDate": "20240105", "TimezoneOffsetFromUTC": "+0100"}, {"6.3", "6.4"}),
        ({"StudyDate": "20240104", "TimezoneOffsetFromUTC": "+0100"}, {"6.1"}),
        ({"StudyDate": "20240103-20240104", "TimezoneOffsetFromUTC": "-1200"}, {"6.1"}),
        ({"StudyDate": "20240106-", "TimezoneOffsetFromUTC": "+0100"}, {"6.2", "6.5"}),
        ({"StudyDate": "20240105", "StudyTime": "1100-1200", "TimezoneOffsetFromUTC": "+0100"}, set()),
        ({"StudyTime": "1000-1100", "TimezoneOffsetFromUTC": "+0000"}, {"6.3", "6.5"}),
        ({"StudyDate": "-20240104", "StudyTime": "-2200", "TimezoneOffsetFromUTC": "+0100"}, {"6.1"}),
        ({"PatientBirthDate": "19600229", "TimezoneOffsetFromUTC": "-1200"}, {one[0] for one in ZONED}),
        ({"StudyDate": "20240105", "TimezoneOffsetFromUTC": ""}, {"6.1", "6.2", "6.3", "6.4"}),
    ],
)
def test_studies_found_in_another_zone(zoned: Archive, keys: dict[str, str], found: set[str]) -> None:
    asked = {"StudyInstanceUID": "", **keys}
    assert set(uids(ask(zoned, "STUDY", **asked, adjust_zones=True))) == found


def test_dates_and_times_are_returned_in_the_zone_of_the_request(zoned: Archive) -> None:
    keys = dict.fromkeys(("StudyDate", "StudyTime", "PatientBirthDate", "PatientBirthTime", "StudyInstanceUID"), "")
    home = ZoneInfo("Europe/Berlin")
    answers = ask(zoned, "STUDY", **keys, TimezoneOffsetFromUTC="+0530", adjust_zones=True, home=home)
    read = {one.StudyInstanceUID: (one.StudyDate, one.StudyTime, one.get("TimezoneOffsetFromUTC")) for one in answers}
    assert read == {
        "6.1": ("20240105", "014500", "+0530"),
        "6.2": ("20240106", "064530.25", "+0530"),
        "6.3": ("20240105", "144500", "+0530"),
        "6.4": ("20240105", "", "+0530"),
        "6.5": ("20240230", "101500", "+0530"),  # no such day
    }
    assert {(one.PatientBirthDate, one.PatientBirthTime) for one in answers} == {("19600229", "0001")}
    unmoved = ask(zoned, "STUDY", **keys, TimezoneOffsetFromUTC="+0530", home=home)
    stated = {one.StudyInstanceUID: one.get("TimezoneOffsetFromUTC", "") for one in unmoved}
    assert stated == {"6.1": "+1400", "6.2": "-0500", "6.3": "", "6.4": "+0100", "6.5": ""}
    dateless = ask(zoned, "STUDY", StudyInstanceUID="6.1")
    assert "TimezoneOffsetFromUTC" not in dateless[0]


def test_moments_in_another_zone(zoned: Archive) -> None:
    """A DT value gets an offset from UTC, and is then compared as a moment."""
    keys = {"SeriesInstanceUID": "", "SOPInstanceUID": "", "StudyInstanceUID": "", "PatientID": ""}
    keys |= {"AcquisitionDateTime": "2024010421-2024010422", "TimezoneOffsetFromUTC": "+0100"}
    answers = ask(zoned, "IMAGE", **keys, adjust_zones=True, relational=True)
    assert [(str(one.AcquisitionDateTime), one.SOPInstanceUID) for one in answers] == [
        ("20240104211500+0100", "6.1.1.1")
    ]


@pytest.mark.parametrize(
    ("zone", "keys", "returned"),
    [
        (None, ("StudyTime", "ContentTime"), ("101500", "080000", None)),
        (None, ("StudyTime",), ("101500", None, "+0100")),
        (None, ("ContentTime",), (None, "080000", "-0500")),
        ("+0000", ("StudyDate", "StudyTime", "ContentDate", "ContentTime"), ("091500", "130000", "+0000")),
    ],
    ids=["as stored", "of the study", "of the image", "in the zone of the request"],
)
def test_each_level_has_a_time_zone_of_its_own(
    tmp_path: Path, zone: str | None, keys: tuple[str, ...], returned: tuple[str | None, ...]
) -> None:
    """A study has the times and the time zone of the image that came first. Another image may state another time
    zone."""
    engine = created(tmp_path)
    ids = {"StudyInstanceUID": "7.1", "SOPClassUID": MG, "StudyDate": "20240105", "ContentDate": "20240105"}
    for number, (offset, study_time, content_time) in enumerate(
        [("+0100", "101500", "101600"), ("-0500", "041500", "080000")]
    ):
        own = {"SeriesInstanceUID": f"7.1.{number}", "SOPInstanceUID": f"7.1.{number}.1"}
        times = {"StudyTime": study_time, "ContentTime": content_time, "TimezoneOffsetFromUTC": offset}
        add(engine, header(**ids, **own, **times))
    unique = {"StudyInstanceUID": "7.1", "SeriesInstanceUID": "7.1.1", "SOPInstanceUID": ""}
    asked = {**unique, **dict.fromkeys(keys, "")} | ({"TimezoneOffsetFromUTC": zone} if zone else {})
    [answer] = ask(Archive(engine), "IMAGE", **asked, adjust_zones=zone is not None)
    assert tuple(answer.get(key) for key in ("StudyTime", "ContentTime", "TimezoneOffsetFromUTC")) == returned
    engine.dispose()


@pytest.mark.parametrize("zone", ["+1", "+0160", "+1500", "Z", "\u0660"])
def test_an_invalid_zone_is_an_error(zoned: Archive, zone: str) -> None:
    with pytest.raises(IdentifierError, match="0008,0201"):
        ask(zoned, "STUDY", StudyInstanceUID="", TimezoneOffsetFromUTC=zone, adjust_zones=True)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sql_never_loses_a_match(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A query has the same result with and without SQL conditions."""
    texts = st.text("aäB^=*?山_%1", max_size=6).filter(lambda text: text.count("=") < 3)
    rows = data.draw(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=8))
    keys = data.draw(st.tuples(texts, texts, texts))
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    for number, (name, patient_id, accession) in enumerate(rows):
        dataset = header(SpecificCharacterSet="ISO_IR 192", StudyInstanceUID=f"1.{number}")
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.SOPClassUID = f"1.{number}.1", f"1.{number}.1.1", MG
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = name, patient_id, accession
        dataset.Modality = "MG"
        add(engine, dataset)
    identifier = header(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
    identifier.PatientName, identifier.PatientID, identifier.AccessionNumber = keys
    query = _parsed(identifier, Root.STUDY, relational=False, combined_datetime=False)
    narrowed = query.search(RenditionPolicy.ORIGINAL)
    everything = query_pages.Search(narrowed.level, narrowed.wants)

    def found(what: query_pages.Search) -> set[str]:
        return {
            candidate.attributes["0020000D"]["Value"][0]
            for candidate in query_candidates.candidates(engine, what)
            if query.matches(candidate.attributes)
        }

    assert found(narrowed) == found(everything)
    engine.dispose()


def test_a_response_has_exactly_the_requested_keys(archive: Archive) -> None:
    [answer] = ask(
        archive,
        "STUDY",
        StudyInstanceUID="1.1",
        PatientName="",
        StudyTime="",
        ReferringPhysicianName="",
        NumberOfStudyRelatedInstances="",
        NumberOfStudyRelatedSeries="",
        NumberOfPatientRelatedStudies="",
        ModalitiesInStudy="",
        SOPClassesInStudy="",
        ProcedureCodeSequence=None,
        Modality="",
        TimezoneOffsetFromUTC="+0100",
    )
    assert {element.keyword: element.value for element in answer} == {
        "SpecificCharacterSet": "ISO_IR 192",
        "QueryRetrieveLevel": "STUDY",
        "RetrieveAETitle": "PACS",
        "InstanceAvailability": "ONLINE",
        "StudyInstanceUID": "1.1",
        "PatientName": "Müller^Anna=山田^花",
        "StudyTime": "1015",
        "ReferringPhysicianName": "",
        "NumberOfStudyRelatedInstances": 5,
        "NumberOfStudyRelatedSeries": 2,
        "NumberOfPatientRelatedStudies": 1,
        "ModalitiesInStudy": ["MG", "SR"],
        "SOPClassesInStudy": [MG, SR],
        "ProcedureCodeSequence": [],
        "Modality": "",
    }
    returned = decode(BytesIO(encode(answer, False, True) or b""), False, True)
    assert returned.PatientName == "Müller^Anna=山田^花"


@pytest.mark.parametrize(
    ("asked_in", "keys", "expected"),
    [
        ("ISO_IR 100", {"SeriesDescription": ""}, "ISO_IR 100"),
        (None, {"SeriesDescription": ""}, "ISO_IR 100"),
        ("ISO_IR 144", {"SeriesDescription": ""}, "ISO_IR 100"),
        ("ISO_IR 192", {"SeriesDescription": ""}, "ISO_IR 192"),
        ("ISO_IR 100", {"SeriesDescription": "", "PatientName": ""}, "ISO_IR 192"),
        ("ISO_IR 100", {"SeriesNumber": ""}, None),
    ],
)
def test_answers_are_in_latin_1_if_it_has_their_characters(
    archive: Archive, asked_in: str | None, keys: dict[str, str], expected: str | None
) -> None:
    """Older workstations know no UTF-8."""
    found = ask(archive, "SERIES", SpecificCharacterSet=asked_in, StudyInstanceUID="1.1", SeriesInstanceUID="", **keys)
    answer = found[0]
    assert answer.get("SpecificCharacterSet") == expected
    codec = "utf-8" if expected == "ISO_IR 192" else "latin-1"
    assert ("Für die Befundung".encode(codec) in (encode(answer, True, True) or b"")) == bool(expected)


def test_latin_1_in_sequences(engine: Engine) -> None:
    item = header(RequestedProcedureID="RP1", RequestedProcedureDescription="Größe")
    add(engine, header(SpecificCharacterSet="ISO_IR 192", RequestAttributesSequence=Sequence([item])))
    wanted = Sequence([header(RequestedProcedureDescription="")])
    (answer,) = ask(
        Archive(engine), "SERIES", SpecificCharacterSet=None, relational=True, RequestAttributesSequence=wanted
    )
    returned = decode(BytesIO(encode(answer, False, True) or b""), False, True)
    assert returned.SpecificCharacterSet == "ISO_IR 100"
    assert returned.RequestAttributesSequence[0].RequestedProcedureDescription == "Größe"


def test_hostile_values_are_returned_without_a_warning(engine: Engine) -> None:
    """pydicom warns about values that do not fit their VR. A response must not cause a warning, which is an error
    here."""
    add(
        engine,
        header(
            PatientID="P\\1",
            PatientName="A=B=C",
            StudyInstanceUID="1.02.3",
            SeriesInstanceUID="1",
            SOPInstanceUID="1",
            SOPClassUID=MG,
            AccessionNumber="longer than sixteen characters",
            StudyDescription="x" * 500,
            PatientSex="female, as far as we know"[:16],
            PatientWeight="0.12345678901234",
            PatientSize="-1.234567890E-10",
            Modality="mammo?",
        ),
    )
    keys = ("AccessionNumber", "StudyDescription", "PatientSex", "PatientWeight", "PatientSize", "PatientName")
    [answer] = ask(Archive(engine), "STUDY", StudyInstanceUID="", PatientID="P\\1", **dict.fromkeys(keys, ""))
    assert len(answer.StudyDescription) == 500
    assert float(answer.PatientSize) == -1.234567890e-10
    assert str(answer.PatientName) == "A=B=C"


def test_ascii_responses_have_no_character_set(archive: Archive) -> None:
    [answer] = ask(archive, "STUDY", StudyInstanceUID="3.1", PatientName="", PatientID="")
    assert "SpecificCharacterSet" not in answer


def test_patients(archive: Archive) -> None:
    keys = dict.fromkeys(
        ("PatientName", "IssuerOfPatientID", "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries"), ""
    )
    answers = ask(archive, "PATIENT", Root.PATIENT, PatientID="P1", NumberOfPatientRelatedInstances="", **keys)
    assert [(a.IssuerOfPatientID, a.NumberOfPatientRelatedInstances) for a in answers] == [("", 5), ("B", 1)]
    assert [a.NumberOfPatientRelatedSeries for a in answers] == [2, 1]
    assert len(ask(archive, "PATIENT", Root.PATIENT, PatientID="")) == 5  # the anonymous ones are two
    assert uids(ask(archive, "PATIENT", Root.PATIENT, PatientID="P*", PatientName="smith*"), "PatientID") == ["P2"]


def test_series_and_images_below_their_unique_keys(archive: Archive) -> None:
    found = ask(archive, "SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="", NumberOfSeriesRelatedInstances="")
    assert [(a.SeriesInstanceUID, a.NumberOfSeriesRelatedInstances) for a in found] == [("1.1.1", 4), ("1.1.2", 1)]
    found = ask(archive, "SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="", Modality="SR")
    assert uids(found, "SeriesInstanceUID") == ["1.1.2"]
    found = ask(archive, "SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="", SeriesDescription="Für*")
    assert found[0].SpecificCharacterSet == "ISO_IR 192"
    image = {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1", "SOPInstanceUID": ""}
    assert len(ask(archive, "IMAGE", **image)) == 4
    assert uids(ask(archive, "IMAGE", **image, InstanceNumber="4"), "SOPInstanceUID") == ["1.1.1.1"]
    assert uids(ask(archive, "IMAGE", **image, ImageLaterality="R", ViewPosition="CC"), "SOPInstanceUID") == ["1.1.1.3"]
    assert len(ask(archive, "IMAGE", **image, ImageType="PRIMARY", Rows=4096, KVP="29.50")) == 4
    assert not ask(archive, "IMAGE", **image, Rows=512)
    assert not ask(archive, "IMAGE", **{**image, "StudyInstanceUID": "2.1"})
    [answer] = ask(archive, "IMAGE", Root.PATIENT, PatientID="P1", **{**image, "SOPInstanceUID": "1.1.1.2"})
    assert (answer.PatientID, answer.StudyInstanceUID, answer.SeriesInstanceUID) == ("P1", "1.1", "1.1.1")
    [answer] = ask(archive, "IMAGE", **{**image, "SOPInstanceUID": "1.1.1.2"}, KVP="", ImageType="")
    assert answer.KVP == 29.5
    assert list(answer.ImageType) == ["ORIGINAL", "PRIMARY", ""]


def test_sequence_matching(archive: Archive) -> None:
    image = {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1", "SOPInstanceUID": ""}
    mlo = Sequence([header(CodeValue="399368009", CodeMeaning="")])
    found = ask(archive, "IMAGE", **image, ViewCodeSequence=mlo)
    assert uids(found, "SOPInstanceUID") == ["1.1.1.2", "1.1.1.4"]
    assert {element.keyword for element in found[0].ViewCodeSequence[0]} == {"CodeValue", "CodeMeaning"}
    nested = Sequence([header(ViewModifierCodeSequence=Sequence([header(CodeValue="399161006")]))])
    found = ask(archive, "IMAGE", **image, ViewCodeSequence=nested)
    assert uids(found, "SOPInstanceUID") == ["1.1.1.2", "1.1.1.4"]
    assert found[0].ViewCodeSequence[0].ViewModifierCodeSequence[0].CodeValue == "399161006"
    wrong = Sequence([header(CodeValue="399162004", CodingSchemeDesignator="SRT")])
    assert not ask(archive, "IMAGE", **image, ViewCodeSequence=wrong)
    for whole in (None, Sequence([Dataset()])):
        found = ask(archive, "IMAGE", **image, ViewCodeSequence=whole)
        assert len(found) == 4
        assert found[1].ViewCodeSequence[0].CodeMeaning == "MLO"
        assert found[1].ViewCodeSequence[0].ViewModifierCodeSequence[0].CodeValue == "399161006"
    with pytest.raises(IdentifierError, match="one item"):
        ask(archive, "IMAGE", **image, ViewCodeSequence=Sequence([Dataset(), Dataset()]))


def test_only_matching_items_are_returned(archive: Archive) -> None:
    asked = Sequence([header(RequestedProcedureID="RP2", ScheduledProcedureStepID="")])
    [answer] = ask(archive, "SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="", RequestAttributesSequence=asked)
    assert [item.ScheduledProcedureStepID for item in answer.RequestAttributesSequence] == ["SPS2"]


@pytest.mark.parametrize(
    ("level", "root", "keys", "says"),
    [
        ("", Root.STUDY, {}, "0008,0052"),
        ("WORLD", Root.STUDY, {}, "0008,0052"),
        ("study", Root.STUDY, {}, "0008,0052"),
        ("PATIENT", Root.STUDY, {}, "0008,0052"),
        ("SERIES", Root.PATIENT_STUDY, {"PatientID": "1", "StudyInstanceUID": "1"}, "0008,0052"),
        ("STUDY", Root.PATIENT, {"StudyInstanceUID": ""}, "PatientID"),
        ("STUDY", Root.PATIENT, {"PatientID": ""}, "PatientID"),
        ("STUDY", Root.PATIENT, {"PatientID": "P*"}, "PatientID"),
        ("SERIES", Root.STUDY, {"SeriesInstanceUID": ""}, "StudyInstanceUID"),
        ("SERIES", Root.STUDY, {"StudyInstanceUID": ["1.1", "2.1"]}, "StudyInstanceUID"),
        ("IMAGE", Root.STUDY, {"StudyInstanceUID": "1.1"}, "SeriesInstanceUID"),
        ("IMAGE", Root.PATIENT, {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1"}, "PatientID"),
        ("STUDY", Root.STUDY, {"StudyDate": "2024*"}, "StudyDate"),
        ("STUDY", Root.STUDY, {"StudyTime": "10:0"}, "StudyTime"),
        ("STUDY", Root.STUDY, {"StudyDescription": "x" * 20000}, "StudyDescription"),
        ("STUDY", Root.STUDY, {"StudyInstanceUID": ["1.1"] * (MOST_UIDS + 1)}, f"more than {MOST_UIDS} values"),
    ],
)
def test_an_identifier_outside_the_model(
    archive: Archive, level: str, root: Root, keys: dict[str, Any], says: str
) -> None:
    identifier = header(QueryRetrieveLevel=level, **keys)
    with pytest.raises(IdentifierError, match=says) as error:
        find(archive, identifier, root, policy=RenditionPolicy.AUTO, retrieve_ae_title="PACS")
    assert len(str(error.value)) <= 64


def test_relational_queries(archive: Archive) -> None:
    found = ask(archive, "IMAGE", SOPInstanceUID="", PatientName="M*", relational=True)
    assert len(found) == 6
    found = ask(archive, "IMAGE", SOPInstanceUID="", Modality="SR", StudyDate="", relational=True)
    assert uids(found, "SOPInstanceUID") == ["1.1.2.1"]
    assert (found[0].StudyInstanceUID, found[0].SeriesInstanceUID) == ("1.1", "1.1.2")
    found = ask(archive, "SERIES", SeriesInstanceUID="", StudyDate="20240101-20240131", relational=True)
    assert uids(found, "SeriesInstanceUID") == ["1.1.1", "1.1.2", "2.1.1"]


def test_unsupported_keys(archive: Archive) -> None:
    assert not has_unsupported_keys(header(QueryRetrieveLevel="STUDY", PatientName="", StudyDate=""), Root.STUDY)
    assert has_unsupported_keys(header(QueryRetrieveLevel="STUDY", Modality=""), Root.STUDY)
    assert has_unsupported_keys(header(QueryRetrieveLevel="STUDY", WaveformData=None), Root.STUDY)
    inside = header(
        QueryRetrieveLevel="STUDY", ProcedureCodeSequence=Sequence([header(MappingResource="DCMR", CodeValue="")])
    )
    assert has_unsupported_keys(inside, Root.STUDY)
    private = header(QueryRetrieveLevel="STUDY", StudyInstanceUID="3.1")
    private.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "x")
    [answer] = find(archive, private, Root.STUDY, policy=RenditionPolicy.AUTO, retrieve_ae_title="PACS")
    assert not any(element.tag.is_private for element in answer)


# --- renditions ---

IMAGE = {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1"}


@pytest.mark.parametrize("policy", [RenditionPolicy.ORIGINAL, RenditionPolicy.AUTO])
def test_other_peers_see_originals(archive: Archive, policy: RenditionPolicy) -> None:
    found = ask(archive, "IMAGE", policy=policy, **IMAGE, SOPInstanceUID="", ImageType="", LossyImageCompression="")
    assert uids(found, "SOPInstanceUID") == ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]
    assert {answer.LossyImageCompression for answer in found} == {"00"}
    assert not ask(archive, "IMAGE", policy=policy, **IMAGE, SOPInstanceUID="2.25.1")


def test_reconstructed_peers_see_one_encoding_per_image(archive: Archive) -> None:
    def seen(**keys: Any) -> list[Dataset]:
        return ask(archive, "IMAGE", policy=RenditionPolicy.RECONSTRUCTED, **IMAGE, **keys)

    keys = ("SOPInstanceUID", "ImageType", "LossyImageCompression", "SyntheticData", "ImageComments", "KVP")
    found = seen(**dict.fromkeys((*keys, "InstanceCreationDate"), ""))
    assert uids(found, "SOPInstanceUID") == ["2.25.1", "2.25.2", "1.1.1.3", "1.1.1.4"]
    assert [answer.ImageType[0] for answer in found] == ["DERIVED", "DERIVED", "ORIGINAL", "ORIGINAL"]
    assert [answer.LossyImageCompression for answer in found] == ["01", "01", "00", "00"]
    assert [answer.SyntheticData for answer in found] == ["YES", "YES", "NO", "NO"]
    assert uids(seen(SOPInstanceUID="", SyntheticData="YES"), "SOPInstanceUID") == ["2.25.1", "2.25.2"]
    assert [answer.SyntheticData for answer in seen(SOPInstanceUID="2.25.1.9", SyntheticData="")] == [""], "not drawn"
    assert [answer.ImageComments for answer in found] == ["", "", "repeated", "repeated"], "they have a note of ours"
    assert [answer.InstanceCreationDate for answer in found] == ["", "", "20240105", "20240105"]
    assert [answer.KVP for answer in found] == [29.5] * 4
    for uid in ("2.25.1", "1.1.1.1"):
        assert uids(seen(SOPInstanceUID=uid), "SOPInstanceUID") == ["2.25.1"]
    assert uids(seen(SOPInstanceUID="2.25.99"), "SOPInstanceUID") == ["2.25.99"], "an older rendition, named"
    assert uids(seen(SOPInstanceUID=["2.25.99", "2.25.1"]), "SOPInstanceUID") == ["2.25.1"]
    assert uids(seen(SOPInstanceUID=["2.25.1", "1.1.1.1", "1.1.1.3"]), "SOPInstanceUID") == ["2.25.1", "1.1.1.3"]
    assert uids(seen(SOPInstanceUID="", ImageType="DERIVED"), "SOPInstanceUID") == ["2.25.1", "2.25.2"]
    assert uids(seen(SOPInstanceUID="", LossyImageCompression="00"), "SOPInstanceUID") == ["1.1.1.3", "1.1.1.4"]


def test_counts_never_double(archive: Archive) -> None:
    for policy in RenditionPolicy:
        [answer] = ask(archive, "STUDY", policy=policy, StudyInstanceUID="1.1", NumberOfStudyRelatedInstances="")
        assert answer.NumberOfStudyRelatedInstances == 5


# --- selection for retrieval ---


def selected(archive: Archive, level: str, root: Root = Root.STUDY, **keys: Any) -> list[str]:
    chosen = list(selection(archive, header(QueryRetrieveLevel=level, **keys), root))
    with archive.engine.connect() as connection:
        rows = connection.execute(select(instance.c.key, instance.c.sop_instance_uid)).all()
    known = {row.key: row.sop_instance_uid for row in rows}
    return [known[key] for key in chosen]


def test_selection(archive: Archive) -> None:
    # series, then instance number: the fixture numbers the images backwards
    whole = ["1.1.1.4", "1.1.1.3", "1.1.1.2", "1.1.1.1", "1.1.2.1"]
    assert selected(archive, "PATIENT", Root.PATIENT, PatientID="P1") == [*whole, "2.1.1.1"]
    assert selected(archive, "STUDY", Root.PATIENT, PatientID="P1", StudyInstanceUID="1.1") == whole
    assert selected(archive, "STUDY", StudyInstanceUID="1.1") == whole
    assert selected(archive, "STUDY", StudyInstanceUID=["3.1", "2.1", "9.9"]) == ["2.1.1.1", "3.1.1.1"]
    assert selected(archive, "SERIES", StudyInstanceUID="1.1", SeriesInstanceUID=["1.1.2", "1.1.1"]) == whole
    assert selected(archive, "IMAGE", **IMAGE, SOPInstanceUID=["1.1.1.1", "2.25.2", "2.25.1"]) == whole[2:4]
    assert selected(archive, "IMAGE", **IMAGE, SOPInstanceUID="2.25.99") == ["1.1.1.1"]
    assert selected(archive, "IMAGE", **IMAGE, SOPInstanceUID="1.1.2.1") == []  # in another series
    assert selected(archive, "STUDY", StudyInstanceUID="9.9") == []
    assert selected(archive, "STUDY", StudyInstanceUID="1.1", PatientID="no unique key here") == whole


@pytest.mark.parametrize(
    ("level", "root", "keys"),
    [
        ("STUDY", Root.STUDY, {}),
        ("STUDY", Root.STUDY, {"StudyInstanceUID": ""}),
        ("STUDY", Root.PATIENT, {"StudyInstanceUID": "1.1"}),
        ("PATIENT", Root.PATIENT, {"PatientID": "*"}),
        ("SERIES", Root.STUDY, {"SeriesInstanceUID": "1.1.1"}),
        ("IMAGE", Root.STUDY, {"StudyInstanceUID": "1.1", "SOPInstanceUID": "1.1.1.1"}),
        ("IMAGE", Root.STUDY, {**IMAGE, "SOPInstanceUID": ""}),
    ],
)
def test_selection_needs_unique_keys(archive: Archive, level: str, root: Root, keys: dict[str, Any]) -> None:
    with pytest.raises(IdentifierError):
        selection(archive, header(QueryRetrieveLevel=level, **keys), root)


# --- many rows ---


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """2,000 studies of 1,000 patients."""
    engine = created(tmp_path_factory.mktemp("crowd"))
    fill(engine, 1_000)
    yield Archive(engine)
    engine.dispose()


def fill(engine: Engine, number_of_patients: int) -> None:
    """Write patients with two studies each directly into the tables."""
    patients, studies = [], []
    for number in range(number_of_patients):
        dataset = header(PatientID=f"P{number:05}", PatientName=f"NAME{number % 100:02}^{number:05}")
        columns = columns_of(levels_of(dataset))
        patients.append({"key": number + 1, **columns["patient"]})
        for which in range(2):
            dataset.StudyInstanceUID = f"1.{number}.{which}"
            dataset.StudyDate, dataset.StudyTime = f"2024{1 + number % 12:02}{1 + number % 25:02}", "10"
            studies.append({"patient_key": number + 1, **columns_of(levels_of(dataset))["study"]})
    with engine.begin() as connection:
        connection.execute(insert(patient), patients)
        connection.execute(insert(study), studies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "count", "limit_pages"),
    [
        ({}, 2_000, 5),
        ({"PatientName": "NAME*"}, 2_000, 5),
        ({"PatientName": "*5"}, 200, 5),
        ({"StudyDate": "20240101-20241231"}, 2_000, 5),
        ({"StudyDate": "20240403"}, 8, 1),
        ({"PatientID": "P0*", "StudyDate": ""}, 2_000, 5),
        ({"PatientName": "NAME42*"}, 20, 1),
    ],
)
def test_paging_finds_each_once(crowd: Archive, keys: dict[str, str], count: int, limit_pages: int) -> None:
    identifier = header(QueryRetrieveLevel="STUDY", StudyInstanceUID="", **keys)
    pages = 0

    def count_pages(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal pages
        pages += "ORDER BY" in statement and "LIMIT" in statement

    event.listen(crowd.engine, "before_cursor_execute", count_pages)
    try:
        found = uids(list(find(crowd, identifier, Root.STUDY, policy=RenditionPolicy.AUTO, retrieve_ae_title="PACS")))
    finally:
        event.remove(crowd.engine, "before_cursor_execute", count_pages)
    assert len(found) == len(set(found)) == count
    assert pages <= limit_pages


@pytest.mark.parametrize(("any_zone", "low", "high"), [(False, "20240401", "20240403"), (True, "20240330", "20240405")])
def test_a_range_of_dates_and_times_is_narrowed_to_its_dates(any_zone: bool, low: str, high: str) -> None:
    identifier = header(QueryRetrieveLevel="STUDY", StudyDate="20240401-20240403", StudyTime="2200-0600")
    query = _parsed(identifier, Root.STUDY, relational=False, combined_datetime=True)
    search = query.search(RenditionPolicy.ORIGINAL, any_zone=any_zone)
    assert search.narrows == (query_pages.Narrow("study.study_date", low=low, high=high),)


@pytest.mark.parametrize("keys", [{"PatientName": "NAME*"}, {"StudyDate": "20240101-20241231"}, {}])
def test_a_page_needs_no_sorting(crowd: Archive, keys: dict[str, str]) -> None:
    """SQLite reads the index in order; sorting every page would take quadratic time."""
    identifier = header(QueryRetrieveLevel="STUDY", StudyInstanceUID="", **keys)
    what = _parsed(identifier, Root.STUDY, relational=False, combined_datetime=False).search(RenditionPolicy.ORIGINAL)
    order = query_pages.order_of(what)
    with crowd.engine.connect() as connection:
        row = connection.execute(query_pages.page_after(what, order, None)).first()
        assert row is not None
        statement = query_pages.page_after(what, order, row[: len(order)])
        compiled = statement.compile(crowd.engine, compile_kwargs={"literal_binds": True})
        plan = " | ".join(r[3] for r in connection.execute(text(f"EXPLAIN QUERY PLAN {compiled}".replace(":", "\\:"))))
    assert "TEMP B-TREE" not in plan, plan
    assert "SCAN" not in plan, plan


@pytest.mark.parametrize(
    "keys",
    [
        {"PatientName": "MÜ*", "StudyDate": "20240101-", "ModalitiesInStudy": "M*"},
        {"PatientID": "1", "StudyTime": "10", "SOPClassesInStudy": MG},
        {"StudyInstanceUID": ["1", "2"]},
    ],
)
def test_postgresql_takes_the_same_statements(keys: dict[str, Any]) -> None:
    identifier = header(QueryRetrieveLevel="STUDY", **keys)
    what = _parsed(identifier, Root.STUDY, relational=False, combined_datetime=False).search(RenditionPolicy.ORIGINAL)
    order = query_pages.order_of(what)
    statement = query_pages.page_after(what, order, ["x" if column.type.python_type is str else 1 for column in order])
    assert "ORDER BY" in str(statement.compile(dialect=postgresql.dialect()))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_responses(tmp_path: Path) -> None:
    engine = created(tmp_path)
    fill(engine, 4_000)
    crowd = Archive(engine)
    identifier = header(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientName="", StudyDate="20240101-20241231")

    def answers() -> Iterator[Dataset]:
        return find(crowd, identifier, Root.STUDY, policy=RenditionPolicy.AUTO, retrieve_ae_title="PACS")

    for answer, _ in zip(answers(), range(600), strict=False):  # caches filled
        assert answer
    gc.collect()
    tracemalloc.start()
    try:
        peaks = []
        for number, _ in enumerate(answers(), start=1):
            if number == 6_000:
                break
            if number % 1_500 == 0:
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
    assert len(peaks) == 3
    assert max(peaks[1:]) < peaks[0] * 1.2 + 500_000
    engine.dispose()


# --- the handler ---


class FakeEvent:
    """The part of a pynetdicom event that the handler reads."""

    def __init__(self, identifier: Dataset | Exception, cancel_after: int = -1) -> None:
        self._identifier, self._left = identifier, cancel_after
        self.context = SimpleNamespace(
            abstract_syntax="1.2.840.10008.5.1.4.1.2.2.1", transfer_syntax="1.2.840.10008.1.2"
        )
        requestor = SimpleNamespace(ae_title="VIEWER", address="127.0.0.1", sop_class_extended={})
        self.assoc = SimpleNamespace(
            requestor=requestor,
            is_established=True,
            acse=SimpleNamespace(is_aborted=lambda: False),
            dul=SimpleNamespace(is_alive=lambda: True, peek_next_pdu=lambda: None),
        )

    @property
    def identifier(self) -> Dataset:
        if isinstance(self._identifier, Exception):
            raise self._identifier
        return self._identifier

    @property
    def is_cancelled(self) -> bool:
        self._left -= 1
        return self._left == -1  # once, as pynetdicom's


ONLY_VIEWER = parse({"peers": [{"ae_title": "VIEWER", "allow": ["find"], "rendition": "auto"}]}, "test")


def handled(event: FakeEvent, archive: Archive) -> list[tuple[Any, Dataset | None]]:
    def search(*asked: Any, **options: Any) -> Iterator[Dataset]:
        assert options["policy"] is RenditionPolicy.AUTO
        return find(archive, *asked, **options, retrieve_ae_title="PACS")

    return list(handle_find(event, search=search, settings=ONLY_VIEWER, refusals=Refusals(lambda *_a, **_k: None)))  # type: ignore[arg-type]


def test_the_handler_refuses_an_unknown_peer(archive: Archive) -> None:
    event = FakeEvent(header(QueryRetrieveLevel="STUDY", StudyInstanceUID=""))
    event.assoc.requestor.ae_title = "STRANGER"
    [(status, dataset)] = handled(event, archive)
    assert (status.Status, dataset) == (0x0124, None)


def test_the_handler_answers_pending(archive: Archive) -> None:
    found = handled(FakeEvent(header(QueryRetrieveLevel="STUDY", StudyInstanceUID="")), archive)
    assert [status for status, _ in found] == [0xFF00] * 5
    found = handled(FakeEvent(header(QueryRetrieveLevel="STUDY", StudyInstanceUID="", Modality="")), archive)
    assert [status for status, _ in found] == [0xFF01] * 5


def test_the_handler_stops_when_cancelled(archive: Archive) -> None:
    found = handled(FakeEvent(header(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), cancel_after=3), archive)
    assert [status for status, _ in found] == [0xFF00, 0xFF00, 0xFE00]
    assert found[-1][1] is None


def test_the_handler_stops_when_cancelled_before_anything_matches(crowd: Archive) -> None:
    """Study Description has no column, so every study is examined, 500 at a time."""
    event = FakeEvent(header(QueryRetrieveLevel="STUDY", StudyDescription="none has it"), cancel_after=2)
    assert handled(event, crowd) == [(0xFE00, None)]


def test_the_handler_stops_when_the_peer_has_left(archive: Archive) -> None:
    event = FakeEvent(header(QueryRetrieveLevel="STUDY", StudyInstanceUID=""))
    event.assoc.dul.is_alive = lambda: False
    assert handled(event, archive) == []


def test_the_handler_reports_an_invalid_identifier(archive: Archive) -> None:
    [(status, dataset)] = handled(FakeEvent(header(QueryRetrieveLevel="SERIES")), archive)
    assert (status.Status, dataset) == (0xA900, None)
    assert re.search("StudyInstanceUID", status.ErrorComment)


def test_the_handler_reports_an_identifier_that_cannot_be_parsed(archive: Archive) -> None:
    [(status, dataset)] = handled(FakeEvent(RuntimeError("a value of it")), archive)
    assert (status.Status, dataset) == (0xA900, None)
    assert status.ErrorComment == "identifier cannot be parsed: RuntimeError"


def test_the_handler_hides_internal_errors(
    archive: Archive, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kinds: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(f"{__name__}.find", fail)
    [(status, dataset)] = handled(FakeEvent(header(QueryRetrieveLevel="STUDY", StudyInstanceUID="")), archive)
    assert (status.Status & 0xF000, dataset) == (0xC000, None)
    assert "secret" not in status.ErrorComment
    assert "secret path" in caplog.text


def test_over_an_association(archive: Archive, crowd: Archive) -> None:
    """The events are pynetdicom's own: pending answers, an error with its comment, and a cancellation."""
    model = "1.2.840.10008.5.1.4.1.2.2.1"
    held = archive

    def search(*asked: Any, **options: Any) -> Iterator[Dataset]:
        return find(held, *asked, **options, retrieve_ae_title="PACS")

    def handle(event: evt.Event) -> Iterator[Any]:
        yield from handle_find(event, search=search, settings=ONLY_VIEWER, refusals=Refusals(lambda *_a, **_k: None))

    node = AE("PACS")
    node.add_supported_context(model)
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handle)])
    assert server is not None
    scu = AE("VIEWER")
    scu.add_requested_context(model)
    try:
        assoc = scu.associate(*server.socket.getsockname()[:2])  # type: ignore[union-attr]
        asked = header(
            SpecificCharacterSet="ISO_IR 100", QueryRetrieveLevel="STUDY", PatientName="MÜLLER*", StudyInstanceUID=""
        )
        responses = list(assoc.send_c_find(asked, model))
        assert [status.Status for status, _ in responses] == [0xFF00, 0x0000]
        assert responses[0][1].PatientName == "Müller^Anna=山田^花"
        [(status, _)] = assoc.send_c_find(header(QueryRetrieveLevel="IMAGE", SOPInstanceUID=""), model)
        assert (status.Status, status.ErrorComment) == (0xA900, "StudyInstanceUID: one value needed at IMAGE level")
        held = crowd
        statuses = []
        for status, _ in assoc.send_c_find(header(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), model, msg_id=7):
            if not statuses:
                assoc.send_c_cancel(7, assoc.accepted_contexts[0].context_id)
            statuses.append(status.Status)
        assert statuses[-1] == 0xFE00
        assert len(statuses) < 8_000
        assoc.release()
    finally:
        server.shutdown()
