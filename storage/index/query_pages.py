"""Pages of the keys that a query may match (PS3.4 C.4.1): SQL narrows by columns to a superset of the matches.

A page starts after the last row of the page before it (keyset pagination), so a query needs the same memory whatever
it finds. Pages follow the index of one column, the driver: the one that narrows best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, literal, select, tuple_, union

from storage.dicom.query_keys import Level
from storage.index.original_locations import is_gone
from storage.index.rendition_rows import is_known_by
from storage.index.tables import instance, original, patient, reference_copy, rendition, series, study

PAGE_ROWS = 500


@dataclass(frozen=True)
class Narrow:
    """Conditions on one column, written ``table.column``. All conditions that are set must hold.

    ``low`` and ``high`` are inclusive. ``wildcard`` is a DICOM pattern of ``*`` and ``?``. For a table below the level
    of the query, they mean that such a row exists.
    """

    column: str
    any_of: tuple[str, ...] = ()
    prefix: str = ""
    low: str = ""
    high: str = ""
    wildcard: str = ""


@dataclass(frozen=True)
class Search:
    """A query, as far as SQL evaluates it.

    ``wants``: the levels whose attributes the answers need. ``uids``: SOP Instance UIDs at IMAGE level. ``derived``:
    the UIDs may be those of reconstructions, and a candidate has the UID of the reconstruction that is served.
    ``only_gone``: this applies only to images whose original was purged or lost. ``availability``: mark entities with
    such an original. ``renditions``: do not mark those for which a reconstruction is served. ``copies``: annotations
    have the UIDs of their copies (storage.index.rewritten_annotations). ``draw``: reconstructions have the UIDs of the
    objects with drawn noise, or of those without. ``computed``: keywords of the computed keys that are asked for.
    """

    level: Level
    wants: frozenset[Level]
    narrows: tuple[Narrow, ...] = ()
    uids: tuple[str, ...] = ()
    derived: bool = False
    only_gone: bool = False
    availability: bool = False
    renditions: bool = False
    copies: bool = False
    draw: bool = True
    computed: frozenset[str] = frozenset()


LEVEL_TABLES: dict[Level, Table] = {
    Level.PATIENT: patient,
    Level.STUDY: study,
    Level.SERIES: series,
    Level.IMAGE: instance,
}
PARENT_KEYS = {
    Level.STUDY: study.c.patient_key,
    Level.SERIES: series.c.study_key,
    Level.IMAGE: instance.c.series_key,
}
LEVELS = list(Level)
_TABLE_LEVEL = {table.name: level for level, table in LEVEL_TABLES.items()}


# --- a page of keys ---


def page_after(search: Search, order: Sequence[Any], last: Sequence[Any] | None) -> Select[Any]:
    """The page of ``joined`` rows after the row with the order columns ``last``; the first page for None."""
    query = joined(search, order).order_by(*order).limit(PAGE_ROWS)
    if last is None:
        return query
    if len(order) == 1:
        return query.where(order[0] > last[0])
    # the first condition follows from the second: it makes the index start where the last page ended
    ended = [literal(value, column.type) for value, column in zip(last, order, strict=True)]
    return query.where(order[0] >= ended[0], tuple_(*order) > tuple_(*ended))


def joined(search: Search, order: Sequence[Any]) -> Select[Any]:
    """A query for the order columns, and the keys of an entity and of the levels above it (``PATIENT_key`` ...)."""
    own = LEVELS.index(search.level)
    needed = [own, *(_depth(_column(narrow)) for narrow in search.narrows), *map(_depth, order)]
    # the row below holds a key too: the topmost wanted level need not be joined for its key
    top = min(needed + [LEVELS.index(level) + 1 for level in search.wants])
    source: Any = LEVEL_TABLES[LEVELS[top]]
    for upper, lower in pairwise(LEVELS[top : own + 1]):
        source = source.join(LEVEL_TABLES[lower], PARENT_KEYS[lower] == LEVEL_TABLES[upper].c.key)
    keys = [LEVEL_TABLES[level].c.key.label(f"{level}_key") for level in LEVELS[top : own + 1]]
    if top:
        keys.append(PARENT_KEYS[LEVELS[top]].label(f"{LEVELS[top - 1]}_key"))
    driver = str(order[0])
    conditions = [_condition(search.level, narrow, driver) for narrow in search.narrows]
    if search.level is Level.IMAGE and search.uids:
        conditions.append(instance.c.key.in_(instances_of_uids(search)))
    leading = [column.label(f"order_{place}") for place, column in enumerate(order)]
    return select(*leading, *keys).select_from(source).where(*conditions)


def _depth(column: Any) -> int:
    return LEVELS.index(_TABLE_LEVEL[column.table.name])


def instances_of_uids(search: Search) -> Select[Any] | Any:
    """The keys of the instances that the UIDs of a search name. A rendition or copy need not be the current one."""
    own = select(instance.c.key).where(instance.c.sop_instance_uid.in_(search.uids))
    if not search.derived:
        return own
    of_rendition = select(rendition.c.instance_key).where(is_known_by(search.uids))
    if search.only_gone:
        of_rendition = of_rendition.join(original, original.c.instance_key == rendition.c.instance_key)
        of_rendition = of_rendition.join(instance, instance.c.key == rendition.c.instance_key).where(is_gone())
    of_copy = select(reference_copy.c.instance_key).where(reference_copy.c.uid.in_(search.uids))
    return union(own, of_rendition, of_copy) if search.copies else union(own, of_rendition)


# --- the driver ---


def order_of(search: Search) -> list[Any]:
    """The columns that order pages: the driver, then the keys from its table down to the level."""
    own = LEVEL_TABLES[search.level].c.key
    driver = min(filter(_leads, search.narrows), key=_rank, default=None)
    if driver is None or any(narrow.any_of for narrow in search.narrows if narrow.column in _SELECTIVE):
        return [own]
    column = _column(driver)
    time = [study.c.study_time] if column is study.c.study_date else []
    down = LEVELS[_depth(column) : LEVELS.index(search.level) + 1]
    return [column, *time, *(LEVEL_TABLES[level].c.key for level in down)] if down else [own]


_SELECTIVE = {
    "patient.patient_id",
    "study.study_instance_uid",
    "study.accession_number",
    "series.series_instance_uid",
}
"""Columns of which a value has so few rows that pages need no driver."""
_ORDERED = {
    "patient.name",
    "patient.patient_id",
    "patient.birth_date",
    "study.study_date",
    "study.accession_number",
}
"""Columns whose index may be the driver."""


def _leads(narrow: Narrow) -> bool:
    return narrow.column in _ORDERED and not narrow.any_of


def _rank(narrow: Narrow) -> int:
    """How well a range narrows, estimated without statistics; smaller is better."""
    if narrow.low and narrow.low == narrow.high:
        return 0
    if narrow.low.isdigit() and narrow.high.isdigit() and int(narrow.high) - int(narrow.low) <= 100:
        return 1  # a date range of about 30 days
    if len(narrow.prefix or narrow.low) >= 3 and not narrow.column.endswith("_date"):
        return 2
    return 3 if narrow.prefix or narrow.low or narrow.high else 4


# --- conditions ---


def _column(narrow: Narrow) -> Any:
    table, _, name = narrow.column.partition(".")
    return LEVEL_TABLES[_TABLE_LEVEL[table]].c[name]


def _condition(level: Level, narrow: Narrow, driver: str) -> ColumnElement[bool]:
    column = _column(narrow)
    below = LEVELS[LEVELS.index(level) + 1 : _depth(column) + 1]
    if below:
        rows = select(1).where(PARENT_KEYS[below[0]] == LEVEL_TABLES[level].c.key, _holds(column, narrow))
        joins = [PARENT_KEYS[lower] == LEVEL_TABLES[upper].c.key for upper, lower in pairwise(below)]
        return rows.where(*joins).correlate(LEVEL_TABLES[level]).exists()
    if _leads(narrow) and narrow.column != driver:
        column = column.concat("")  # hides another index: by that, every page would have to be sorted
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
