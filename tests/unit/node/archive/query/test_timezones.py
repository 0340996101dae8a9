"""Proves that a date and a time that have no place in another zone remain as written."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from typing import Any

import pytest

from node.archive.query.timezones import Adjustment
from storage.dicom.query_keys import KEYS

TAGS = {key.keyword: key.json_tag for keys in KEYS.values() for key in keys}
WEST = Adjustment(timezone(timedelta(hours=-5)), UTC)


def moved(**values: str | None) -> dict[str, Any]:
    """The values converted to the time zone of the request, by keyword."""
    stored = {TAGS[keyword]: {"vr": "", "Value": [value]} for keyword, value in values.items()}
    found = WEST.adjusted(stored)
    return {keyword: found[TAGS[keyword]]["Value"][0] for keyword in values}


def test_a_date_moves_with_its_time() -> None:
    assert moved(StudyDate="20240301", StudyTime="0130") == {"StudyDate": "20240229", "StudyTime": "203000"}


@pytest.mark.parametrize(
    ("day", "hour"),
    [
        ("20240230", "013000"),
        ("20240301", "253000"),
        ("20240301", None),
        (None, "013000"),
        ("00010101", "013000"),
    ],
    ids=["no such day", "no such hour", "no time", "no date", "before the calendar"],
)
def test_a_date_and_a_time_that_are_no_moment_stay_as_written(day: str | None, hour: str | None) -> None:
    assert moved(StudyDate=day, StudyTime=hour) == {"StudyDate": day, "StudyTime": hour}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20240301013000", "20240229203000-0500"),
        ("2024030101.25+0200", "20240229180000.25-0500"),
        ("20240230013000", "20240230013000"),
        ("noon", "noon"),
        (None, None),
    ],
)
def test_moments_move_if_they_are_any(value: str | None, expected: str | None) -> None:
    assert moved(AcquisitionDateTime=value) == {"AcquisitionDateTime": expected}


def test_years_of_fewer_than_four_digits_keep_their_zeros() -> None:
    """Some systems write the year 1 where a date is unknown."""
    assert moved(StudyDate="00010102", StudyTime="0130") == {"StudyDate": "00010101", "StudyTime": "203000"}
    assert moved(AcquisitionDateTime="00010102013000") == {"AcquisitionDateTime": "00010101203000-0500"}


def test_without_any_zone_nothing_moves() -> None:
    stored = {TAGS["StudyDate"]: {"vr": "DA", "Value": ["20240301"]}}
    assert Adjustment(UTC, None).adjusted(stored) == stored
