"""The instances that a C-MOVE or C-GET identifier selects (PS3.4 C.4.2.1.4, C.4.2.2.1)."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset

from node.archive.query.identifier import UNIQUE, IdentifierError, Root, key_values, keys_above, level_of
from node.archive.query.matching import has_wildcard
from node.archive.query.narrowing import COLUMNS
from storage.dicom.query_keys import Level
from storage.index import Index
from storage.index.query_candidates import instance_keys
from storage.index.query_pages import Narrow, Search


def select(index: Index, identifier: Dataset, root: Root, *, relational: bool = False) -> Iterator[int]:
    """Keys of the selected instances, ordered by series, instance number and key. Raises IdentifierError at the call.

    Only unique keys select; others are not part of a retrieve identifier. At IMAGE level a UID may be that of an
    original or of any of its renditions; the retrieve service decides which object the peer gets.
    """
    level = level_of(identifier, root)
    chosen = keys_above(identifier, root, level, relational=relational)
    values = key_values(identifier, UNIQUE[level])
    if not values or (level is Level.PATIENT and (len(values) > 1 or has_wildcard(values[0]))):
        raise IdentifierError(f"{UNIQUE[level].keyword}: needed for a retrieval at {level} level")
    if level is not Level.IMAGE:
        chosen[level] = values
    narrows = tuple(
        Narrow(COLUMNS[UNIQUE[upper].keyword], any_of=tuple(keys)) for upper, keys in chosen.items() if keys
    )
    uids = tuple(values) if level is Level.IMAGE else ()
    return instance_keys(index.engine, Search(level, frozenset(), narrows, uids, derived=True, copies=True))
