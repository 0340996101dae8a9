"""Copies of annotations for peers that know images as reconstructions: their references name those.

An annotation (presentation state, report, key object selection) is noted with the UIDs that it references. Where images
of these have reconstructions, a peer that wants so gets a copy, under a UID of its own, a function of what the copy
is. Every UID that was ever told is kept, with what it stands for.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from storage.formats.payload import NAMESPACE
from storage.index.connection import now, writing
from storage.index.tables import instance, reference, reference_copy, rendition
from storage.records import ReferencingCopy


def note_references(connection: Connection, instance_key: int, uids: Iterable[str]) -> None:
    """Note what an annotation that came in references."""
    rows = [{"instance_key": instance_key, "uid": uid} for uid in dict.fromkeys(uids)]
    if rows:
        connection.execute(insert(reference), rows)


def copies(
    engine: Engine, keys: Sequence[int], asked: Iterable[str] = (), *, draw: bool = True
) -> dict[int, ReferencingCopy]:
    """The copies to show and send of those instances, as far as there are any; told UIDs are durable.

    ``asked``: SOP Instance UIDs of a request: an older copy is meant where its UID is among them, unless the current
    copy or the annotation itself is too. ``draw``: whether the references name reconstructions with drawn noise.
    """
    wanted = set(asked)
    with engine.connect() as connection:
        own, due = _due(connection, keys, draw)
        told = _told(connection, list(due))
    if len(told) < len(due):
        with writing(engine) as connection:
            told = _told(connection, list(due))  # another reader may have told it meanwhile
            rows = [{**row, "made_at": now()} for uid, row in due.items() if uid not in told]
            if rows:
                connection.execute(insert(reference_copy), rows)
            told = _told(connection, list(due))
    current = {copy.instance_key: copy for copy in told.values()}
    if wanted:
        with engine.connect() as connection:
            older = _told(connection, list(wanted))
        for copy in older.values():
            key = copy.instance_key
            shown = current.get(key)
            if key in keys and own.get(key) not in wanted and (shown is None or shown.uid not in wanted):
                current[key] = copy
    return current


def copy_of_uid(engine: Engine, uid: str) -> ReferencingCopy | None:
    """What a copy's UID stands for."""
    with engine.connect() as connection:
        row = connection.execute(select(reference_copy).where(reference_copy.c.uid == uid)).first()
    return None if row is None else _copy(row)


def _due(connection: Connection, keys: Sequence[int], draw: bool) -> tuple[dict[int, str], dict[str, dict[str, Any]]]:
    """SOP Instance UIDs of the annotations by key, and by its UID the copy that today's reconstructions ask for."""
    image = instance.alias()
    query = (
        select(
            reference.c.instance_key,
            instance.c.sop_instance_uid,
            instance.c.original_digest,
            reference.c.uid,
            (rendition.c.derived_uid if draw else rendition.c.structure_uid).label("object_uid"),
        )
        .join(instance, reference.c.instance_key == instance.c.key)
        .join(image, image.c.sop_instance_uid == reference.c.uid, isouter=True)
        .join(rendition, image.c.rendition_key == rendition.c.key, isouter=True)
        .where(reference.c.instance_key.in_(keys))
        .order_by(reference.c.uid)
    )
    own: dict[int, str] = {}
    pairs: dict[int, list[list[str]]] = {}
    names: dict[int, str] = {}
    for row in connection.execute(query):
        own[row.instance_key] = row.sop_instance_uid
        names[row.instance_key] = f"{row.sop_instance_uid}|{row.original_digest}"
        if row.object_uid is not None:
            pairs.setdefault(row.instance_key, []).append([row.uid, row.object_uid])
    due = [{"uid": _uid(names[key], found), "instance_key": key, "pairs": found} for key, found in pairs.items()]
    return own, {str(row["uid"]): row for row in due}


def _uid(name: str, pairs: list[list[str]]) -> str:
    canonical = json.dumps(pairs, separators=(",", ":"))
    return f"2.25.{uuid.uuid5(NAMESPACE, f'references|{name}|{canonical}').int}"


def _told(connection: Connection, uids: list[str]) -> dict[str, ReferencingCopy]:
    rows = connection.execute(select(reference_copy).where(reference_copy.c.uid.in_(uids)))
    return {row.uid: _copy(row) for row in rows}


def _copy(row: Any) -> ReferencingCopy:
    return ReferencingCopy(row.uid, row.instance_key, tuple((one, other) for one, other in row.pairs), row.made_at)
