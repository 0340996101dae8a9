"""Copies of annotations whose references name the objects that a peer gets, reconstructions or originals.

An annotation (presentation state, report, key object selection) is stored with the UIDs that it references. If some of
these images have reconstructions, a peer that gets these, and is configured so, gets a copy under its own UID, which
is derived from the content of the copy. An annotation that references such an annotation also has a copy, which names
the other copy. The copy of an annotation that was made on a reconstruction names the object that the peer gets now.
Every UID that was announced is kept with its content.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, null, select

from storage.formats.payload import NAMESPACE
from storage.index.connection import now, writing
from storage.index.reading import first_of
from storage.index.tables import instance, reference, reference_copy, rendition
from storage.records import RENDITION_STATES, ReferencingCopy


def note_references(connection: Connection, instance_key: int, uids: Iterable[str]) -> None:
    """Store the references of a received annotation."""
    rows = [{"instance_key": instance_key, "uid": uid} for uid in dict.fromkeys(uids)]
    if rows:
        connection.execute(insert(reference), rows)


def copies(
    engine: Engine, keys: Sequence[int], requested: Iterable[str] = (), *, draw: bool | None = True
) -> dict[int, ReferencingCopy]:
    """The copies to show and send, by instance key; the UIDs of new copies are committed.

    ``requested``: SOP Instance UIDs that a request names. An older copy is used if its UID is among them, and neither
    that of the current copy nor that of the annotation is. ``draw``: whether references name reconstructions with drawn
    noise; None if they name originals.
    """
    wanted = set(requested)
    with engine.connect() as connection:
        own, due = _due(connection, keys, draw)
        known = _stored(connection, list(due))
    if len(known) < len(due):
        with writing(engine) as connection:
            known = _stored(connection, list(due))  # another reader may have added one meanwhile
            rows = [{**row, "made_at": now()} for uid, row in due.items() if uid not in known]
            if rows:
                connection.execute(insert(reference_copy), rows)
            known = _stored(connection, list(due))
    current = {copy.instance_key: copy for copy in known.values() if copy.instance_key in keys}
    if wanted:
        with engine.connect() as connection:
            older = _stored(connection, list(wanted))
        for copy in older.values():
            key = copy.instance_key
            shown = current.get(key)
            if key in keys and own.get(key) not in wanted and (shown is None or shown.uid not in wanted):
                current[key] = copy
    return current


def copy_of_uid(engine: Engine, uid: str) -> ReferencingCopy | None:
    row = first_of(engine, select(reference_copy).where(reference_copy.c.uid == uid))
    return None if row is None else _copy(row)


def _due(
    connection: Connection, keys: Sequence[int], draw: bool | None
) -> tuple[dict[int, str], dict[str, dict[str, Any]]]:
    """SOP Instance UIDs of the annotations by key, and the copies for the current reconstructions by UID; both also for
    the annotations that they reference."""
    references = _all_references(connection, keys, draw)
    due: dict[str, dict[str, Any]] = {}
    copied: dict[int, str] = {}
    ordered = dict.fromkeys(_ordered({key: {row.target_key for row in rows} for key, rows in references.items()}))
    for key in [*ordered, *(references.keys() - ordered.keys())]:
        rows = references[key]
        objects = [(row.uid, copied.get(row.target_key) or row.object_uid) for row in rows]
        pairs = [[uid, other] for uid, other in objects if other not in (None, uid)]
        if pairs:
            uid = _uid(f"{rows[0].sop_instance_uid}|{rows[0].original_digest}", pairs)
            due[uid] = {"uid": uid, "instance_key": key, "pairs": pairs}
            if key in ordered:
                copied[key] = uid
    return {key: rows[0].sop_instance_uid for key, rows in references.items()}, due


def _all_references(connection: Connection, keys: Iterable[int], draw: bool | None) -> dict[int, list[Any]]:
    """The references of those annotations, and of all that these reference, by key and in the order of UIDs."""
    target, of_target, named = instance.alias(), reference.alias(), instance.alias()
    keys_of_uid = [
        select(key).where(uid == reference.c.uid).scalar_subquery()
        for uid, key in (
            (named.c.sop_instance_uid, named.c.key),
            *((uid, rendition.c.instance_key) for uid in (rendition.c.derived_uid, rendition.c.structure_uid)),
            (reference_copy.c.uid, reference_copy.c.instance_key),
        )
    ]
    current = rendition.alias()
    served = {True: current.c.derived_uid, False: current.c.structure_uid, None: null()}[draw]
    query = (
        select(
            reference.c.instance_key,
            instance.c.sop_instance_uid,
            instance.c.original_digest,
            reference.c.uid,
            func.coalesce(served, target.c.sop_instance_uid).label("object_uid"),
            select(of_target.c.instance_key)  # of what is referenced, if it is an annotation
            .where(of_target.c.instance_key == target.c.key)
            .limit(1)
            .scalar_subquery()
            .label("target_key"),
        )
        .join(instance, reference.c.instance_key == instance.c.key)
        .join(target, target.c.key == func.coalesce(*keys_of_uid), isouter=True)
        .join(
            current, and_(target.c.rendition_key == current.c.key, target.c.state.in_(RENDITION_STATES)), isouter=True
        )
        .order_by(reference.c.uid)
    )
    found: dict[int, list[Any]] = {}
    wanted = set(keys)
    while wanted:
        rows = connection.execute(query.where(reference.c.instance_key.in_(wanted))).all()
        for row in rows:
            found.setdefault(row.instance_key, []).append(row)
        wanted = {row.target_key for row in rows} - {None} - found.keys()
    return found


def _ordered(references: Mapping[int, set[Any]]) -> Iterator[int]:
    """The annotations, each after those that it references. Those that lead to a cycle of references are left out.

    The UID of a copy depends on the UIDs in it, so copies in a cycle cannot name each other.
    """
    sorter = TopologicalSorter({key: targets & references.keys() for key, targets in references.items()})
    with suppress(CycleError):
        sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        yield from ready
        sorter.done(*ready)


def _uid(name: str, pairs: list[list[str]]) -> str:
    canonical = json.dumps(pairs, separators=(",", ":"))
    return f"2.25.{uuid.uuid5(NAMESPACE, f'references|{name}|{canonical}').int}"


def _stored(connection: Connection, uids: list[str]) -> dict[str, ReferencingCopy]:
    rows = connection.execute(select(reference_copy).where(reference_copy.c.uid.in_(uids)))
    return {row.uid: _copy(row) for row in rows}


def _copy(row: Any) -> ReferencingCopy:
    return ReferencingCopy(row.uid, row.instance_key, tuple((one, other) for one, other in row.pairs), row.made_at)
