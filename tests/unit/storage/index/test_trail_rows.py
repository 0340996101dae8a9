"""Proves that the records about a study are found with those about its series, images and reconstructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.records import TrailEntry
from tests.support.holdings import filled, uid_of

STUDY, SERIES = "1.2", "1.2.3"


@pytest.mark.parametrize(
    ("uid", "found"), [(STUDY, [1, 2, 3, 4]), (SERIES, [2, 3, 4]), (uid_of(2), [3, 4]), ("9", [5])]
)
def test_records_about_all_that_a_study_contains(tmp_path: Path, uid: str, found: list[int]) -> None:
    index = filled(tmp_path, 2).index
    made = index.by_uid(uid_of(2))
    assert made is not None
    assert made.rendition is not None
    for each in (STUDY, SERIES, uid_of(2), made.rendition.derived_uid, "9"):
        index.trail.append(TrailEntry("retrieve", "VIEWER", "", (each,)))
    assert [one.number for one in index.trail.records(uid=uid)] == found
    assert [one.number for one in index.trail.records(uid=uid, newest=1)] == found[-1:]
    index.close()
