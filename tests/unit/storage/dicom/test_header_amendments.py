"""Proves that an amendment takes only values that the standard allows. Received values are stored unchanged."""

from __future__ import annotations

import pytest

from storage.dicom.header_amendments import changes_of
from storage.errors import InputInvalid


@pytest.mark.parametrize(
    ("keyword", "value", "says"),
    [
        ("StudyDescription", 65 * "x", "length of 64"),
        ("AccessionNumber", 17 * "A", "length of 16"),
        ("PatientName", 65 * "x", "length of 64"),
        ("PatientName", "A=B=C=D", "maximum allowed number of 3"),
        ("Allergies", "a\\" + 65 * "b", "length of 64"),
        ("PatientID", "P1\\P2", "it takes one value"),
        ("PatientSex", "F\\M", "it takes one value"),
        ("PatientSex", "f", "capital letters"),
        ("PatientSex", "X", "write one of F, M, O"),
        ("PatientSex", "0M", "write one of F, M, O"),
        ("SmokingStatus", "MAYBE", "write one of YES, NO, UNKNOWN"),
        ("PregnancyStatus", "5", "write one of 1, 2, 3, 4"),
        ("PatientBirthDate", "31.12.1950", "write a date such as 19650131"),
        ("PatientBirthDate", "19500101-19511231", "write a date such as 19650131"),
        ("StudyDate", "20260230", "write a date such as 19650131"),
        ("StudyTime", "25", "write a time such as 142500"),
        ("PatientAge", "45", "write an age such as 045Y"),
        ("PatientSize", "tall", "write a number"),
        ("PregnancyStatus", "65536", "write a whole number"),
        ("PatientID", "P\x1b1", "control character"),
        ("StudyDescription", "two\nlines", "control character"),
        ("PatientName", "A\u202eB", "control character"),
        ("PatientComments", "a\x07b", "control character"),
        ("PregnancyStatus", "1_0", "write a whole number"),
        ("PatientName", "a^b^c^d^e^f", "five components"),
    ],
)
def test_a_value_that_the_standard_forbids_is_refused(keyword: str, value: str, says: str) -> None:
    with pytest.raises(InputInvalid, match=rf"^{keyword}: .* is not a valid value .*{says}"):
        changes_of({keyword: value})


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("PatientID", 64 * "x", [64 * "x"]),
        ("PatientComments", "two\nlines\\one value", ["two\nlines\\one value"]),
        ("Allergies", "a\\b", ["a", "b"]),
        ("PregnancyStatus", "0004", [4]),
        ("PatientName", "Müller^Łucja", [{"Alphabetic": "Müller^Łucja"}]),
        ("StudyTime", "142500.5", ["142500.5"]),
        ("PatientName", "Yamada=山田　太郎", [{"Alphabetic": "Yamada", "Ideographic": "山田　太郎"}]),
        ("PatientName", "محمد\u200cعلی", [{"Alphabetic": "محمد\u200cعلی"}]),
        ("PatientID", "患者　1", ["患者　1"]),
    ],
)
def test_a_value_that_its_vr_allows_is_taken(keyword: str, value: str, expected: list[object]) -> None:
    ((_, change),) = changes_of({keyword: value}).items()
    assert change["Value"] == expected
