"""The identifier of a request: its level and its unique keys (PS3.4 C.4.1.1.3, for retrievals C.4.2.1.4)."""

from __future__ import annotations

from enum import StrEnum

from pydicom import Dataset
from pydicom.tag import BaseTag

from node.archive.query.matching import has_wildcard
from storage.dicom.elements import codecs_of, values_of
from storage.dicom.query_keys import KEYS, Key, Level
from storage.errors import LatentPacsError


class IdentifierError(LatentPacsError):
    """The identifier does not match the information model; the message is the Error Comment (status A900)."""


class Root(StrEnum):
    """The information model of a request (PS3.4 C.3)."""

    PATIENT = "patient"
    STUDY = "study"
    PATIENT_STUDY = "patient-study"
    """Patient/Study Only, retired."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the model, from the top down."""
        return _LEVELS[self]


_LEVELS = {
    Root.PATIENT: tuple(Level),
    Root.STUDY: tuple(Level)[1:],
    Root.PATIENT_STUDY: tuple(Level)[:2],
}

UNIQUE = {level: keys[0] for level, keys in KEYS.items()}

MOST_UIDS = 10_000
"""Most UIDs in a list: some databases allow no more values in one statement."""

_QUERY_RETRIEVE_LEVEL = BaseTag(0x00080052)


def level_of(identifier: Dataset, root: Root) -> Level:
    """Query/Retrieve Level (0008,0052). Raises IdentifierError if the information model has no such level."""
    try:
        level = "".join(values_of(identifier, _QUERY_RETRIEVE_LEVEL, "CS", ("ascii",), single=True))
    except Exception as error:
        raise IdentifierError("Query/Retrieve Level (0008,0052) cannot be read") from error
    if level not in root.levels:
        raise IdentifierError(f"Query/Retrieve Level (0008,0052) {level or 'missing'!s:.16}: not in this model")
    return Level(level)


def key_values(identifier: Dataset, key: Key) -> list[str]:
    """The values of a unique key that are not empty. Raises IdentifierError if they cannot be read or are too many."""
    try:
        values = values_of(identifier, key.tag, key.vr, codecs_of(identifier), single=key.vr != "UI")
    except Exception as error:
        raise IdentifierError(f"{key.keyword} cannot be read") from error
    if len(values) > MOST_UIDS:
        raise IdentifierError(f"{key.keyword}: more than {MOST_UIDS} values")
    return [value for value in values if value]


def keys_above(identifier: Dataset, root: Root, level: Level, *, relational: bool = False) -> dict[Level, list[str]]:
    """The values of the unique keys of the levels above ``level``.

    Raises IdentifierError unless each has one value, or ``relational`` is set (C.4.1.2.1, C.4.2.2.1).
    """
    found = {}
    for upper in root.levels[: root.levels.index(level)]:
        key = UNIQUE[upper]
        values = key_values(identifier, key)
        if not relational and (len(values) != 1 or has_wildcard(values[0])):
            raise IdentifierError(f"{key.keyword}: one value needed at {level} level")
        found[upper] = values
    return found
