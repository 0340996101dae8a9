"""Candidates for a query: the entities of a page of keys with their attributes, from which C-FIND matches exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table, bindparam, exists, func, or_, select

from storage.dicom.query_keys import COMPUTED_KEYS, OFFSET_FROM_UTC, Key, Level, offset_name
from storage.index.original_locations import is_gone
from storage.index.query_pages import (
    LEVEL_TABLES,
    LEVELS,
    PAGE_ROWS,
    PARENT_KEYS,
    Search,
    instances_of_uids,
    joined,
    order_of,
    page_after,
)
from storage.index.reading import batches, rows_of, values_of
from storage.index.rendition_rows import is_served
from storage.index.rewritten_annotations import copies as copies_of
from storage.index.tables import damage, instance, original, patient, rendition, series, study
from storage.records import DicomJson, OriginalForm, ReferencingCopy, Tier

_KEYS_AT_ONCE = 100
"""Keys of entities below which lost originals are looked for at once. With 500 SQLite reads all originals instead."""


@dataclass(frozen=True, slots=True)
class QueryCandidate:
    """One entity with the attributes of its level and of the levels above, and their time zones (``offset_name``).

    ``derived_uid``: of the reconstruction that is served, if the search asks for it. ``drawn``: whether its noise is
    drawn. ``copy_uid``: of the annotation's copy. Instance Availability (0008,0056) is among the attributes if the
    search asks for it and an image cannot be served.
    """

    attributes: DicomJson
    derived_uid: str | None = None
    drawn: bool = False
    copy_uid: str | None = None


def candidates(
    engine: Engine,
    search: Search,
    may_match: Callable[[QueryCandidate], bool] = lambda _: True,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[QueryCandidate]:
    """Every entity that may match, in a fixed order and in bounded memory, until ``is_over()`` is true at a new page.

    ``may_match`` gets a candidate without its computed keys; they are computed only if it returns True. It must not
    return True for what the search excludes.
    """
    order = order_of(search)
    last: Sequence[Any] | None = None
    while not is_over():
        with engine.connect() as connection:
            rows = connection.execute(page_after(search, order, last)).all()
            found = _with_attributes(connection, search, [row._mapping for row in rows], may_match)
        yield from found
        if len(rows) < PAGE_ROWS:
            return
        last = rows[-1][: len(order)]


def instance_keys(engine: Engine, search: Search) -> Iterator[int]:
    """The keys of the instances below all that ``search`` finds, by series, instance number and key."""
    top = Search(Level.SERIES, frozenset(), search.narrows)
    wanted = instances_of_uids(search) if search.uids else None
    order = (instance.c.instance_number.nulls_last(), instance.c.key)
    found = joined(top, [series.c.key]).order_by(series.c.key)
    if wanted is not None:
        holders = select(instance.c.series_key).where(instance.c.key.in_(wanted))
        found = found.where(series.c.key.in_(holders))
    for key in [row.SERIES_key for row in rows_of(engine, found)]:
        query = select(instance.c.key).where(instance.c.series_key == key).order_by(*order)
        if wanted is not None:
            query = query.where(instance.c.key.in_(wanted))
        yield from values_of(engine, query)


# --- from keys to candidates ---

_EVERY_ROW = (
    select(patient.c.identity, patient.c.key, patient.c.attributes)
    .where(
        patient.c.identity.in_(select(patient.c.identity).where(patient.c.key.in_(bindparam("keys", expanding=True))))
    )
    .order_by(select(func.max(study.c.key)).where(study.c.patient_key == patient.c.key).scalar_subquery())
)
"""All rows of the patients of the rows with those ``keys``, in the order in which their newest studies came.

It is built once, since building it takes longer than its execution."""


def _with_attributes(
    connection: Connection, search: Search, rows: Sequence[Any], may_match: Callable[[QueryCandidate], bool]
) -> list[QueryCandidate]:
    patients: list[Row[Any]] = []
    if search.level is Level.PATIENT and rows:
        patients = list(connection.execute(_EVERY_ROW, {"keys": [row["PATIENT_key"] for row in rows]}))
        stored = {Level.PATIENT: {one.key: one.attributes for one in patients}}
    else:
        stored = {
            level: _attributes(connection, LEVEL_TABLES[level], {row[f"{level}_key"] for row in rows})
            for level in (Level if rows else ())  # the lowest last: its attributes win
            if level in search.wants
        }
    objects = _derived_objects(connection, [row["IMAGE_key"] for row in rows], search) if search.derived else {}
    copies: dict[int, ReferencingCopy] = {}
    if search.copies:
        draw = search.draw if search.renditions else None
        copies = copies_of(connection.engine, [row["IMAGE_key"] for row in rows], search.uids, draw=draw)
    own = f"{search.level}_key"
    gone = _unavailable(connection, search, {row[own] for row in rows}) if search.availability else set()
    found = []
    for row in rows:
        attributes = _merged({level: of_key.get(row[f"{level}_key"], {}) for level, of_key in stored.items()})
        if row[own] in gone:
            attributes["00080056"] = {"vr": "CS", "Value": ["UNAVAILABLE"]}
        key = row.get("IMAGE_key", 0)
        copy_uid = copies[key].uid if key in copies else None
        derived_uid, drawn = objects.get(key, (None, False))
        candidate = QueryCandidate(attributes, derived_uid, drawn, copy_uid)
        if may_match(candidate):
            found.append((row, candidate))
    if patients:
        found = _one_of_each_patient(found, patients, may_match)
    for level in LEVELS if found else ():
        for key in COMPUTED_KEYS[level]:
            if key.keyword in search.computed:
                values = _computed(connection, level, key, {row[f"{level}_key"] for row, _ in found})
                for row, candidate in found:
                    candidate.attributes.update(values.get(row[f"{level}_key"], {}))
    return [candidate for _, candidate in found]


def _merged(levels: dict[Level, DicomJson]) -> DicomJson:
    """The attributes of several levels, the time zone of each among them; the last level wins."""
    merged: DicomJson = {}
    for level, attributes in levels.items():
        merged.update(attributes)
        if OFFSET_FROM_UTC.json_tag in attributes:
            merged[offset_name(level)] = attributes[OFFSET_FROM_UTC.json_tag]
    return merged


def _one_of_each_patient(
    found: Sequence[tuple[Any, QueryCandidate]], patients: Sequence[Any], may_match: Callable[[QueryCandidate], bool]
) -> list[tuple[Any, QueryCandidate]]:
    """The first matching row of each patient. Each attribute has the value that the newest study with it states."""
    rows_of: dict[str, list[Any]] = {}
    for one in patients:
        rows_of.setdefault(one.identity, []).append(one)
    shown: dict[int, DicomJson] = {}
    for rows in rows_of.values():
        matching = [one.key for one in rows if len(rows) == 1 or may_match(QueryCandidate(one.attributes))]
        shown[min(matching, default=0)] = {tag: value for one in rows for tag, value in one.attributes.items()}
    kept = [(row, candidate) for row, candidate in found if row["PATIENT_key"] in shown]
    for row, candidate in kept:
        candidate.attributes.update(shown[row["PATIENT_key"]])
    return kept


def _attributes(connection: Connection, table: Table, keys: Iterable[int]) -> dict[int, DicomJson]:
    rows = connection.execute(select(table.c.key, table.c.attributes).where(table.c.key.in_(keys)))
    return {row.key: row.attributes for row in rows}


_ANY_GONE = select(
    or_(
        exists().where(original.c.tier == Tier.HOT, original.c.form == OriginalForm.PURGED),
        exists().where(damage.c.kind == "original", damage.c.closed_at.is_(None)),
    )
)
"""Whether any original was purged or lost. It reads the index ix_original_tier_form and a short table. Usually there is
none, and nothing else is read. It is built once, as ``_EVERY_ROW`` is."""


def _unavailable(connection: Connection, search: Search, keys: Iterable[int]) -> set[int]:
    """The keys of those entities below which an original was purged or lost, and nothing is served instead."""
    level = search.level
    if not connection.execute(_ANY_GONE).scalar():
        return set()
    source: Any = original.join(instance, original.c.instance_key == instance.c.key)
    for upper, lower in reversed(list(pairwise(LEVELS[LEVELS.index(level) :]))):
        source = source.join(LEVEL_TABLES[upper], PARENT_KEYS[lower] == LEVEL_TABLES[upper].c.key)
    own = LEVEL_TABLES[level].c.key
    if level is Level.PATIENT:
        source, own = _with_every_row(source)
    nothing_else = [~is_served()] if search.renditions else []
    query = select(own).select_from(source).where(is_gone(), *nothing_else)
    return {
        key for some in batches(keys, _KEYS_AT_ONCE) for key in connection.execute(query.where(own.in_(some))).scalars()
    }


def _derived_objects(connection: Connection, keys: Sequence[int], search: Search) -> dict[int, tuple[str, bool]]:
    """The UID of the reconstruction that is served, and whether its noise is drawn, by instance; instances without one
    are absent.

    If the search names only an older rendition, or an object of the other texture, that object is used, since its UID
    still leads to its own pixels.
    """
    query = (
        select(instance.c.key, _object_uid(search.draw).label("uid"))
        .join(rendition, instance.c.rendition_key == rendition.c.key)
        .where(instance.c.key.in_(keys), is_served())
    )
    if search.only_gone:
        query = query.join(original, original.c.instance_key == instance.c.key).where(is_gone())
    current = {row.key: (row.uid, search.draw) for row in connection.execute(query)}
    return {**current, **_other_objects(connection, keys, search, current)} if search.uids else current


def _object_uid(draw: bool) -> Any:
    return rendition.c.derived_uid if draw else rendition.c.structure_uid


def _other_objects(
    connection: Connection, keys: Sequence[int], search: Search, current: dict[int, tuple[str, bool]]
) -> dict[int, tuple[str, bool]]:
    """By instance, the newest reconstruction that the search names, preferably of the peer's own texture.

    There is none if the search also names the current reconstruction or the original.
    """
    found: dict[int, tuple[str, bool]] = {}
    for drawn in (not search.draw, search.draw):
        uid = _object_uid(drawn)
        query = (
            select(rendition.c.instance_key, uid.label("uid"))
            .join(instance, rendition.c.instance_key == instance.c.key)
            .where(
                uid.in_(search.uids),
                rendition.c.instance_key.in_(keys),
                rendition.c.withdrawn == "",
                instance.c.sop_instance_uid.not_in(search.uids),
            )
            .order_by(rendition.c.key)
        )
        found |= {row.instance_key: (row.uid, drawn) for row in connection.execute(query)}
    return {key: one for key, one in found.items() if current.get(key, ("",))[0] not in search.uids}


# --- computed keys (PS3.4 C.3.4) ---

_COMPUTED_FROM: dict[str, tuple[Level, Any]] = {
    "NumberOfPatientRelatedStudies": (Level.STUDY, None),
    "NumberOfPatientRelatedSeries": (Level.SERIES, None),
    "NumberOfPatientRelatedInstances": (Level.IMAGE, None),
    "NumberOfStudyRelatedSeries": (Level.SERIES, None),
    "NumberOfStudyRelatedInstances": (Level.IMAGE, None),
    "NumberOfSeriesRelatedInstances": (Level.IMAGE, None),
    "ModalitiesInStudy": (Level.SERIES, series.c.modality),
    "SOPClassesInStudy": (Level.IMAGE, instance.c.sop_class_uid),
}
"""For each computed key, the level below whose rows are counted, or whose column is listed."""


def _computed(connection: Connection, level: Level, key: Key, keys: Iterable[int]) -> dict[int, DicomJson]:
    counted, column = _COMPUTED_FROM[key.keyword]
    down = LEVELS[LEVELS.index(level) + 1 : LEVELS.index(counted) + 1]
    source: Any = LEVEL_TABLES[down[0]]
    for upper, lower in pairwise(down):
        source = source.join(LEVEL_TABLES[lower], PARENT_KEYS[lower] == LEVEL_TABLES[upper].c.key)
    owner = PARENT_KEYS[down[0]]
    if level is Level.PATIENT:
        source, owner = _with_every_row(source.join(patient, owner == patient.c.key))
    named = owner.label("owner")
    if column is None:
        query = select(named, func.count().label("value")).group_by(named)
    else:
        query = select(named, column.label("value")).where(column != "").distinct().order_by(named, column)
    values: dict[int, list[Any]] = {}
    for row in connection.execute(query.select_from(source).where(owner.in_(keys))):
        values.setdefault(row.owner, []).append(row.value)
    return {one: {key.json_tag: {"vr": key.vr, "Value": found}} for one, found in values.items()}


def _with_every_row(source: Any) -> tuple[Any, Any]:
    """A join that has ``patient``, with every row of the same patient, and the key of that row."""
    every = patient.alias("every")
    return source.join(every, every.c.identity == patient.c.identity), every.c.key
