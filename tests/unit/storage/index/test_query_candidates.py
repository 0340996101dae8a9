"""Proves which entities a search finds, and that those below which an original is gone are marked at every level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select

from storage.dicom.query_keys import Level
from storage.index import Index, tables
from storage.index.connection import now, writing
from storage.index.integrity import Integrity, NewDamage
from storage.index.query_candidates import candidates
from storage.index.query_pages import PAGE_ROWS, Narrow, Search
from storage.records import InstanceState, ReasonCode, TrailEntry
from tests.support.index_rows import claimed, new_instance, new_rendition, url_of


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Two patients with one study each. The original of one image of the first patient was purged."""
    opened = Index.open(url_of(tmp_path))
    for number, (study, series) in enumerate([("1.2.1", "1.2.1.7"), ("1.2.1", "1.2.1.8"), ("1.2.2", "1.2.2.7")], 1):
        opened.add(new_instance(f"1.2.3.{number}", patient_id=f"P{study[-1]}", study_uid=study, series_uid=series))
        rendition = new_rendition(f"2.25.{number}")
        assert opened.finish_with(claimed(opened), InstanceState.VERIFIED, rendition)
    first = opened.originals.purgeable(now())[0]
    assert first.sop_instance_uid == "1.2.3.1"
    assert opened.originals.commit_purge(first, now(), TrailEntry("purge", "job:purge"))
    yield opened
    opened.close()


@pytest.mark.parametrize("level", Level)
def test_what_has_a_lost_original_is_marked_as_one_with_a_purged(tmp_path: Path, level: Level) -> None:
    index = Index.open(url_of(tmp_path))
    index.add(new := new_instance())
    assert index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition())
    search, integrity = Search(level, frozenset([level]), availability=True), Integrity(index.engine)
    assert ["00080056" in one.attributes for one in candidates(index.engine, search)] == [False]
    integrity.note(NewDamage(new.original_digest, "original", "hot", 1, "missing", "", "", "flagged"))
    (damage,) = integrity.open_damage()
    assert integrity.flag(damage, InstanceState.VERIFIED, ReasonCode.ORIGINAL_LOST, "scrub: original missing")
    assert [one.attributes["00080056"]["Value"] for one in candidates(index.engine, search)] == [["UNAVAILABLE"]]
    integrity.close(damage.key, "whole again")
    assert ["00080056" in one.attributes for one in candidates(index.engine, search)] == [False]
    index.close()


@pytest.mark.parametrize(
    ("level", "tag", "expected"),
    [
        (Level.PATIENT, "00100020", {"P1": True, "P2": False}),
        (Level.STUDY, "0020000D", {"1.2.1": True, "1.2.2": False}),
        (Level.SERIES, "0020000E", {"1.2.1.7": True, "1.2.1.8": False, "1.2.2.7": False}),
        (Level.IMAGE, "00080018", {"1.2.3.1": True, "1.2.3.2": False, "1.2.3.3": False}),
    ],
)
def test_what_has_a_purged_original_is_marked_at_every_level(
    index: Index, level: Level, tag: str, expected: dict[str, bool]
) -> None:
    search = Search(level, frozenset([level]), availability=True)
    found = [one.attributes for one in candidates(index.engine, search)]
    assert {one[tag]["Value"][0]: "00080056" in one for one in found} == expected
    assert {one["00080056"]["Value"][0] for one in found if "00080056" in one} == {"UNAVAILABLE"}
    unmarked = candidates(index.engine, Search(level, frozenset([level])))
    assert not any("00080056" in one.attributes for one in unmarked)


@pytest.mark.parametrize("level", Level)
def test_no_page_reads_all_originals(index: Index, level: Level) -> None:
    """This includes a full page of patients, for which SQLite would read all originals if it got all keys in one
    query."""
    with writing(index.engine) as connection:
        row = dict(connection.execute(select(tables.patient).limit(1)).one()._mapping)
        connection.execute(
            insert(tables.patient), [{**row, "key": 100 + one, "identity": f"X{one}"} for one in range(PAGE_ROWS)]
        )
        row = dict(connection.execute(select(tables.study).limit(1)).one()._mapping)
        more = [
            {**row, "key": 100 + one, "patient_key": 100 + one, "study_instance_uid": f"1.9.{one}"}
            for one in range(PAGE_ROWS)
        ]
        connection.execute(insert(tables.study), more)
    plans = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    event.listen(index.engine, "before_cursor_execute", explain)
    search = Search(level, frozenset([level]), availability=True)
    found = [one for one in candidates(index.engine, search) if "00080056" in one.attributes]
    event.remove(index.engine, "before_cursor_execute", explain)
    assert len(found) == 1
    assert not [plan for plan in plans if plan.startswith("SCAN original")]


def test_a_patient_is_marked_under_each_of_its_names(index: Index) -> None:
    new = new_instance("1.2.3.4", study_uid="1.2.4")
    married = {**new.levels.patient, "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Zed"}]}}
    index.add(replace(new, levels=replace(new.levels, patient=married)))
    search = Search(
        Level.PATIENT, frozenset([Level.PATIENT]), (Narrow("patient.name", prefix="zed"),), availability=True
    )
    found = candidates(index.engine, search, lambda one: "Zed" in str(one.attributes))
    assert [one.attributes["00080056"]["Value"] for one in found] == [["UNAVAILABLE"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("A", {"A", "AB", "A\U0010ffff", "A\U0010ffffB"}),
        ("A\U0010ffff", {"A\U0010ffff", "A\U0010ffffB"}),
        ("\U0010ffff", {"\U0010ffff", "\U0010ffffC"}),
        ("\ud7ff", {"\ud7ff", "\ud7ffD"}),
    ],
    ids=["a letter", "the last character", "nothing but the last character", "before the surrogates"],
)
def test_a_prefix_finds_whatever_starts_with_it(tmp_path: Path, prefix: str, found: set[str]) -> None:
    """In SQL, the search is a range that must end after the last value with this prefix."""
    index = Index.open(url_of(tmp_path))
    names = ["A", "AB", "A\U0010ffff", "A\U0010ffffB", "B", "\ud7ff", "\ud7ffD", "\ue000", "\U0010ffff", "\U0010ffffC"]
    for number, name in enumerate(names, 1):
        new = new_instance(f"1.2.3.{number}", study_uid=f"1.2.{number}")
        of_patient = {"00100020": {"vr": "LO", "Value": [name]}}
        index.add(replace(new, levels=replace(new.levels, patient=of_patient)))
    search = Search(Level.PATIENT, frozenset([Level.PATIENT]), (Narrow("patient.patient_id", prefix=prefix),))
    assert {one.attributes["00100020"]["Value"][0] for one in candidates(index.engine, search)} == found
    index.close()
