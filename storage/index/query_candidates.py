"""Candidates for a query (PS3.4 C.4.1): SQL narrows by columns, page by page, to a superset of the matches.

A page is one short read transaction and starts where the one before ended (keyset), so that a query costs the
same memory whatever it finds. Pages follow an index: that of the column that narrows best, the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, and_, func, literal, select, tuple_, union

from storage.dicom.levels import COMPUTED_KEYS, Key, Level
from storage.index.rendition_rows import is_known_by
from storage.index.rewritten_annotations import copies as copies_of
from storage.index.tables import instance, patient, reference_copy, rendition, series, study
from storage.index.tables import original as held
from storage.records import DicomJson, InstanceState, OriginalForm, ReferencingCopy, Tier

PAGE = 500


class Indexed(Protocol):
    """What holds the rows: storage.index.Index."""

    @property
    def engine(self) -> Engine: ...


@dataclass(frozen=True)
class Narrow:
    """What SQL asks of one column, written ``table.column``; everything that is set holds.

    ``low`` and ``high`` are inclusive. ``wildcard`` is a DICOM pattern of ``*`` and ``?``. On a table below
    the level searched it means: one such row exists.
    """

    column: str
    any_of: tuple[str, ...] = ()
    prefix: str = ""
    low: str = ""
    high: str = ""
    wildcard: str = ""


@dataclass(frozen=True)
class Search:
    """A query as far as SQL understands it.

    ``uids``: SOP Instance UIDs at IMAGE level; with ``derived`` they may be of reconstructions and candidates
    tell the one that stands for them; with ``only_purged`` only where the original is gone. ``availability``: tell
    what holds an original that is gone. ``wants``: the levels whose attributes the answers need.
    """

    level: Level
    wants: frozenset[Level]
    narrows: tuple[Narrow, ...] = ()
    uids: tuple[str, ...] = ()
    derived: bool = False
    only_purged: bool = False
    availability: bool = False
    copies: bool = False
    """Annotations go by the UIDs of their copies (storage.index.rewritten_annotations)."""
    draw: bool = True
    """Reconstructions go by the UIDs of those with drawn noise; False: of those without."""
    computed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class QueryCandidate:
    """One entity with the attributes of its own level and of those above; ``derived_uid``, that of the reconstruction
    that stands for it, with drawn noise or without, where asked for.

    Instance Availability (0008,0056) is among them where it was asked for and an original is gone.
    """

    attributes: DicomJson
    derived_uid: str | None = None
    copy_uid: str | None = None


def candidates(
    engine: Engine, search: Search, may_match: Callable[[QueryCandidate], bool] = lambda _: True
) -> Iterator[QueryCandidate]:
    """Every entity that may match, in a fixed order, in bounded memory.

    ``may_match`` sees a candidate without its computed keys, which are then computed only where it says yes.
    """
    order = _order(search)
    last: Sequence[Any] | None = None
    while True:
        with engine.connect() as connection:
            rows = connection.execute(_page(search, order, last)).all()
            found = _with_attributes(connection, search, [row._mapping for row in rows], may_match)
        yield from found
        if len(rows) < PAGE:
            return
        last = rows[-1][: len(order)]


def instance_keys(engine: Engine, search: Search) -> Iterator[int]:
    """The keys of the instances below everything that ``search`` finds: by series, instance number, key."""
    top = Search(Level.SERIES, frozenset(), search.narrows)
    wanted = _instances_of_uids(search.uids, derived=True, copies=True) if search.uids else None
    order = (instance.c.instance_number.nulls_last(), instance.c.key)
    with engine.connect() as connection:
        found = _joined(top, [series.c.key]).order_by(series.c.key)
        if wanted is not None:
            holders = select(instance.c.series_key).where(instance.c.key.in_(wanted))
            found = found.where(series.c.key.in_(holders))
        series_keys = [row.SERIES_key for row in connection.execute(found)]
    for key in series_keys:
        query = select(instance.c.key).where(instance.c.series_key == key).order_by(*order)
        if wanted is not None:
            query = query.where(instance.c.key.in_(wanted))
        with engine.connect() as connection:
            keys = connection.execute(query).scalars().all()
        yield from keys


# --- a page of keys ---

_CHAIN: dict[Level, Table] = {
    Level.PATIENT: patient,
    Level.STUDY: study,
    Level.SERIES: series,
    Level.IMAGE: instance,
}
_PARENT = {
    Level.STUDY: study.c.patient_key,
    Level.SERIES: series.c.study_key,
    Level.IMAGE: instance.c.series_key,
}
_LEVELS = list(Level)
_TABLE_LEVEL = {table.name: level for level, table in _CHAIN.items()}


def _page(search: Search, order: Sequence[Any], last: Sequence[Any] | None) -> Select[Any]:
    query = _joined(search, order).order_by(*order).limit(PAGE)
    if last is None:
        return query
    if len(order) == 1:
        return query.where(order[0] > last[0])
    # The first condition follows from the second: it makes the index start where the page before ended.
    ended = [literal(value, column.type) for value, column in zip(last, order, strict=True)]
    return query.where(order[0] >= ended[0], tuple_(*order) > tuple_(*ended))


def _joined(search: Search, order: Sequence[Any]) -> Select[Any]:
    """The order columns, and the keys of an entity and of what it belongs to (``PATIENT_key`` ...)."""
    own = _LEVELS.index(search.level)
    needed = [own, *(_depth(_column(narrow)) for narrow in search.narrows), *map(_depth, order)]
    # a key stands in the row below as well: the topmost wanted level need not be joined for its key
    top = min(needed + [_LEVELS.index(level) + 1 for level in search.wants])
    source: Any = _CHAIN[_LEVELS[top]]
    for upper, lower in pairwise(_LEVELS[top : own + 1]):
        source = source.join(_CHAIN[lower], _PARENT[lower] == _CHAIN[upper].c.key)
    keys = [_CHAIN[level].c.key.label(f"{level}_key") for level in _LEVELS[top : own + 1]]
    if top:
        keys.append(_PARENT[_LEVELS[top]].label(f"{_LEVELS[top - 1]}_key"))
    driver = str(order[0])
    conditions = [_condition(search.level, narrow, driver) for narrow in search.narrows]
    if search.level is Level.IMAGE and search.uids:
        named = _instances_of_uids(
            search.uids, derived=search.derived, only_purged=search.only_purged, copies=search.copies
        )
        conditions.append(instance.c.key.in_(named))
    leading = [column.label(f"order_{place}") for place, column in enumerate(order)]
    return select(*leading, *keys).select_from(source).where(*conditions)


def _depth(column: Any) -> int:
    return _LEVELS.index(_TABLE_LEVEL[column.table.name])


def _instances_of_uids(
    uids: Sequence[str], *, derived: bool, only_purged: bool = False, copies: bool = False
) -> Select[Any] | Any:
    """The keys of the instances with those UIDs, be they original or, with ``derived``, of any rendition.

    With ``only_purged``: of a rendition only where the original is gone. With ``copies``: of any copy, too.
    """
    original = select(instance.c.key).where(instance.c.sop_instance_uid.in_(uids))
    if not derived:
        return original
    of_rendition = select(rendition.c.instance_key).where(is_known_by(uids))
    if only_purged:
        of_rendition = of_rendition.join(held, held.c.instance_key == rendition.c.instance_key)
        of_rendition = of_rendition.where(held.c.form == OriginalForm.PURGED)
    of_copy = select(reference_copy.c.instance_key).where(reference_copy.c.uid.in_(uids))
    return union(original, of_rendition, of_copy) if copies else union(original, of_rendition)


# --- which index leads ---


def _order(search: Search) -> list[Any]:
    """The columns that pages follow: the driver's, then the keys from its table down to the level."""
    own = _CHAIN[search.level].c.key
    driver = min(filter(_leads, search.narrows), key=_rank, default=None)
    if driver is None or any(narrow.any_of for narrow in search.narrows if narrow.column in _SELECTIVE):
        return [own]
    column = _column(driver)
    time = [study.c.study_time] if column is study.c.study_date else []
    down = _LEVELS[_depth(column) : _LEVELS.index(search.level) + 1]
    return [column, *time, *(_CHAIN[level].c.key for level in down)] if down else [own]


_SELECTIVE = {
    "patient.patient_id",
    "study.study_instance_uid",
    "study.accession_number",
    "series.series_instance_uid",
}
_ORDERED = {
    "patient.name",
    "patient.patient_id",
    "patient.birth_date",
    "study.study_date",
    "study.accession_number",
}


def _leads(narrow: Narrow) -> bool:
    return narrow.column in _ORDERED and not narrow.any_of


def _rank(narrow: Narrow) -> int:
    """How well a range narrows, as far as one can tell without statistics: the smaller the better."""
    if narrow.low and narrow.low == narrow.high:
        return 0
    if narrow.low.isdigit() and narrow.high.isdigit() and int(narrow.high) - int(narrow.low) <= 100:
        return 1  # some 30 days, as dates go
    if len(narrow.prefix or narrow.low) >= 3 and not narrow.column.endswith("_date"):
        return 2
    return 3 if narrow.prefix or narrow.low or narrow.high else 4


# --- conditions ---


def _column(narrow: Narrow) -> Any:
    table, _, name = narrow.column.partition(".")
    return _CHAIN[_TABLE_LEVEL[table]].c[name]


def _condition(level: Level, narrow: Narrow, driver: str) -> ColumnElement[bool]:
    column = _column(narrow)
    below = _LEVELS[_LEVELS.index(level) + 1 : _depth(column) + 1]
    if below:
        rows = select(1).where(_PARENT[below[0]] == _CHAIN[level].c.key, _holds(column, narrow))
        joins = [_PARENT[lower] == _CHAIN[upper].c.key for upper, lower in pairwise(below)]
        return rows.where(*joins).correlate(_CHAIN[level]).exists()
    if _leads(narrow) and narrow.column != driver:
        column = column.concat("")  # keeps a second index from leading: then every page would be sorted anew
    return _holds(column, narrow)


def _holds(column: Any, narrow: Narrow) -> ColumnElement[bool]:
    holds: list[Any] = []
    if narrow.any_of:
        one = len(narrow.any_of) == 1
        holds.append(column == narrow.any_of[0] if one else column.in_(narrow.any_of))
    if narrow.prefix:
        holds += [column >= narrow.prefix, column < _successor(narrow.prefix)]
    if narrow.low:
        holds.append(column >= narrow.low)
    if narrow.high:
        holds.append(column <= narrow.high)
    if narrow.wildcard:
        holds.append(column.like(_like(narrow.wildcard), escape="!"))
    return and_(True, *holds)


def _successor(prefix: str) -> str:
    """The first text after everything that starts with ``prefix``, by code point."""
    head, last = prefix[:-1], ord(prefix[-1])
    if last == 0x10FFFF:
        return _successor(head) if head else "\U0010ffff" * 4
    return head + chr(0xE000 if last == 0xD7FF else last + 1)


def _like(wildcard: str) -> str:
    for special in "!%_":
        wildcard = wildcard.replace(special, f"!{special}")
    return wildcard.replace("*", "%").replace("?", "_")


# --- from keys to candidates ---


def _with_attributes(
    connection: Connection, search: Search, rows: Sequence[Any], may_match: Callable[[QueryCandidate], bool]
) -> list[QueryCandidate]:
    stored = {
        level: _attributes(connection, _CHAIN[level], {row[f"{level}_key"] for row in rows})
        for level in (search.wants if rows else ())
    }
    uids: dict[int, str] = {}
    if search.derived:
        uids = _derived_uids(
            connection, [row["IMAGE_key"] for row in rows], search.uids, search.only_purged, search.draw
        )
    told: dict[int, ReferencingCopy] = {}
    if search.copies:
        told = copies_of(connection.engine, [row["IMAGE_key"] for row in rows], search.uids, draw=search.draw)
    own = f"{search.level}_key"
    gone = _with_purged(connection, search.level, {row[own] for row in rows}) if search.availability else set()
    found = []
    for row in rows:
        attributes: DicomJson = {}
        for level, of_key in stored.items():
            attributes.update(of_key.get(row[f"{level}_key"], {}))
        if row[own] in gone:
            attributes["00080056"] = {"vr": "CS", "Value": ["UNAVAILABLE"]}
        key = row.get("IMAGE_key", 0)
        candidate = QueryCandidate(attributes, uids.get(key), told[key].uid if key in told else None)
        if may_match(candidate):
            found.append((row, candidate))
    for level in _LEVELS if found else ():
        for key in COMPUTED_KEYS[level]:
            if key.keyword in search.computed:
                values = _computed(connection, level, key, {row[f"{level}_key"] for row, _ in found})
                for row, candidate in found:
                    candidate.attributes.update(values.get(row[f"{level}_key"], {}))
    return [candidate for _, candidate in found]


def _attributes(connection: Connection, table: Table, keys: Iterable[int]) -> dict[int, DicomJson]:
    rows = connection.execute(select(table.c.key, table.c.attributes).where(table.c.key.in_(keys)))
    return {row.key: row.attributes for row in rows}


def _with_purged(connection: Connection, level: Level, keys: Iterable[int]) -> set[int]:
    """Those of the entities below which an original was removed by retention."""
    purged = held.c.form == OriginalForm.PURGED
    with_tier = select(held.c.instance_key).where(held.c.tier == Tier.HOT, purged).limit(1)  # as the index has it
    if connection.execute(with_tier).first() is None:
        return set()
    source: Any = held.join(instance, held.c.instance_key == instance.c.key)
    for upper, lower in reversed(list(pairwise(_LEVELS[_LEVELS.index(level) :]))):
        source = source.join(_CHAIN[upper], _PARENT[lower] == _CHAIN[upper].c.key)
    own = _CHAIN[level].c.key
    return set(connection.execute(select(own).select_from(source).where(own.in_(keys), purged)).scalars())


def _derived_uids(
    connection: Connection, keys: Sequence[int], asked: Sequence[str], only_purged: bool, draw: bool
) -> dict[int, str]:
    """Per instance the UID of the reconstruction that stands for it; instances without one are absent.

    Asked for by the UID of an older rendition alone, or of the other texture, that one stands for it: its UID still
    leads to its own pixels.
    """
    query = (
        select(instance.c.key, _object_uid(draw).label("uid"))
        .join(rendition, instance.c.rendition_key == rendition.c.key)
        .where(
            instance.c.key.in_(keys),
            instance.c.state.in_([InstanceState.VERIFIED, InstanceState.MEASURED]),
        )
    )
    if only_purged:
        query = query.join(held, held.c.instance_key == instance.c.key).where(held.c.form == OriginalForm.PURGED)
    current = {row.key: row.uid for row in connection.execute(query)}
    return {**current, **_other_uids(connection, keys, asked, current, draw)} if asked else current


def _object_uid(draw: bool) -> Any:
    return rendition.c.derived_uid if draw else rendition.c.structure_uid


def _other_uids(
    connection: Connection, keys: Sequence[int], asked: Sequence[str], current: dict[int, str], draw: bool
) -> dict[int, str]:
    """Per instance the newest of the reconstructions asked for, of either texture, the peer's own first; none where
    its current one or the original was asked for."""
    found: dict[int, str] = {}
    for uid in (_object_uid(not draw), _object_uid(draw)):
        named = (
            select(rendition.c.instance_key, uid.label("uid"))
            .join(instance, rendition.c.instance_key == instance.c.key)
            .where(
                uid.in_(asked),
                rendition.c.instance_key.in_(keys),
                rendition.c.withdrawn == "",
                instance.c.sop_instance_uid.not_in(asked),
            )
            .order_by(rendition.c.key)
        )
        found |= {row.instance_key: row.uid for row in connection.execute(named)}
    return {key: uid for key, uid in found.items() if current.get(key) not in asked}


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
"""Which rows below are counted, or which of their columns is listed."""


def _computed(connection: Connection, level: Level, key: Key, keys: Iterable[int]) -> dict[int, DicomJson]:
    counted, column = _COMPUTED_FROM[key.keyword]
    down = _LEVELS[_LEVELS.index(level) + 1 : _LEVELS.index(counted) + 1]
    source: Any = _CHAIN[down[0]]
    for upper, lower in pairwise(down):
        source = source.join(_CHAIN[lower], _PARENT[lower] == _CHAIN[upper].c.key)
    owner = _PARENT[down[0]].label("owner")
    if column is None:
        query = select(owner, func.count().label("value")).group_by(owner)
    else:
        query = select(owner, column.label("value")).where(column != "").distinct().order_by(owner, column)
    values: dict[int, list[Any]] = {}
    for row in connection.execute(query.select_from(source).where(_PARENT[down[0]].in_(keys))):
        values.setdefault(row.owner, []).append(row.value)
    return {owner: {key.json_tag: {"vr": key.vr, "Value": found}} for owner, found in values.items()}
