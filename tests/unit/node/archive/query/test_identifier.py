"""Proves which identifiers of a request are refused, and with which Error Comment."""

from __future__ import annotations

import pytest
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE

from node.archive.query.identifier import MOST_UIDS, UNIQUE, IdentifierError, Root, key_values, keys_above
from storage.dicom.query_keys import Level

STUDY = UNIQUE[Level.STUDY]


def test_the_levels_of_each_model() -> None:
    allowed = {
        root: [level for level in Level if level in root.levels]
        for root in (Root.PATIENT, Root.STUDY, Root.PATIENT_STUDY)
    }
    assert allowed == {
        Root.PATIENT: [Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE],
        Root.STUDY: [Level.STUDY, Level.SERIES, Level.IMAGE],
        Root.PATIENT_STUDY: [Level.PATIENT, Level.STUDY],
    }


def test_a_list_of_uids_has_a_longest_length() -> None:
    def listed(count: int) -> Dataset:
        made = Dataset()
        made.add(DataElement(STUDY.tag, "UI", ["1.2"] * count, validation_mode=IGNORE))
        return made

    assert key_values(listed(MOST_UIDS), STUDY) == ["1.2"] * MOST_UIDS
    with pytest.raises(IdentifierError, match=f"StudyInstanceUID: more than {MOST_UIDS} values"):
        key_values(listed(MOST_UIDS + 1), STUDY)


def test_a_retrieval_of_a_series_needs_its_study() -> None:
    made = Dataset()
    made.SeriesInstanceUID = "1.2"
    with pytest.raises(IdentifierError, match="StudyInstanceUID: one value needed at SERIES level"):
        keys_above(made, Root.STUDY, Level.SERIES)
    assert keys_above(made, Root.STUDY, Level.SERIES, relational=True) == {Level.STUDY: []}
