"""Proves by which conditions SQL narrows a query for a key, and that there are none where one could lose a match."""

from __future__ import annotations

from typing import Any

import pytest

from node.archive.query.narrowing import narrows
from storage.dicom.query_keys import KEYS, Key
from storage.index.query_pages import Narrow


def key_of(keyword: str) -> Key:
    return next(key for keys in KEYS.values() for key in keys if key.keyword == keyword)


def asked(keyword: str, *values: Any, any_zone: bool = False) -> list[Narrow]:
    return list(narrows(key_of(keyword), values, any_zone=any_zone))


def test_values_without_wildcards_are_a_list() -> None:
    assert asked("Modality", "MG", "CT") == [Narrow("series.modality", any_of=("MG", "CT"))]
    assert asked("StudyInstanceUID", "1.2.*") == [Narrow("study.study_instance_uid", any_of=("1.2.*",))]


def test_one_wildcard_is_a_pattern_or_a_prefix() -> None:
    assert asked("StudyID", "A*") == [Narrow("study.study_id", prefix="A", wildcard="")]
    assert asked("StudyID", "A?C") == [Narrow("study.study_id", prefix="A", wildcard="A?C")]


def test_a_list_with_a_wildcard_is_left_to_matching() -> None:
    assert asked("Modality", "MG", "C*") == []


def test_a_key_without_a_column_or_values_is_left_to_matching() -> None:
    assert asked("StudyDescription", "x") == []
    assert asked("StudyID") == []


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("20240301", "20240228", "20240303"),
        ("20240301-", "20240228", ""),
        ("-20240301", "", "20240303"),
        ("00010110-", "00010108", ""),
    ],
)
def test_a_date_in_another_zone_may_be_two_days_away(value: str, low: str, high: str) -> None:
    assert asked("StudyDate", value, any_zone=True) == [Narrow("study.study_date", low=low, high=high)]


@pytest.mark.parametrize("value", ["99991231", "00010101", "00010101-99991231"])
def test_a_date_at_the_end_of_the_calendar_is_left_to_matching(value: str) -> None:
    assert asked("StudyDate", value, any_zone=True) == []
    assert len(asked("StudyDate", value)) == 1


def test_a_time_in_another_zone_may_be_any() -> None:
    assert asked("StudyTime", "1000-1100", any_zone=True) == []
    assert len(asked("StudyTime", "1000-1100")) == 1
