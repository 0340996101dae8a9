"""C-FIND: from an identifier to its answers (PS3.4 C.4.1).

SQL narrows (storage.index.query_candidates), ``matching`` decides, and the answer holds what was asked for: the keys of
the request, the unique keys of the levels above, where and how soon to retrieve. Choices of ours, for the
conformance statement:

- Keys of levels above the level of the query match and are returned, also without relational negotiation.
- Keys that are not supported do not restrict. They come back with zero length, since many SCUs expect every
  key that they asked for; C.2.2.1.3 would leave them out. ``has_unsupported_keys`` is for status FF01.
- Values are returned as stored, text in UTF-8 where it is not ASCII. Timezone Offset From UTC never matches; it is
  returned with dates and times, where it is known, and moves them where that was agreed to
  (node.archive.query.timezones).
- One encoding per image (C.4.1.3.1): a peer with rendition ``reconstructed`` sees the derived UID and lossy,
  derived nature of an image that has a rendition, and finds it by either UID; so does one with ``auto`` where the
  original was removed. Others see the original, UNAVAILABLE where it was removed, and what holds it likewise.
- Such a peer with ``references: rewrite`` sees an annotation of such images under the UID of a copy that references
  the reconstructions, and finds it by either UID.
- A peer with ``texture: none`` sees the UIDs of reconstructions without drawn noise in place of those with it.
- ParsedQuery by the derived UID of an older rendition alone, or by that of the other texture, such a peer sees
  the image under that UID: it is what a retrieval by it gives. Every other query shows the current one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import empty_value_for_VR
from pydicom.tag import BaseTag

from node.archive.query.identifier import MOST_UIDS, UNIQUE, IdentifierError, Root, key_values, keys_above, level_of
from node.archive.query.matching import (
    WILDCARD_VRS,
    Condition,
    Span,
    condition,
    has_wildcard,
    is_universal,
    name_groups,
    span,
)
from node.archive.query.response import Element, all_ascii, element, stored
from node.archive.query.response import identifier as identifier_of
from node.archive.query.timezones import FARTHEST, Adjustment, fixed_zone, stated_zone
from node.config import RenditionPolicy
from storage.dicom.elements import BadValueError, codecs_of, items_of, values_of
from storage.dicom.levels import fill_time
from storage.dicom.query_keys import COMPUTED_KEYS, KEYS, OFFSET_FROM_UTC, Key, Level
from storage.index.query_candidates import Indexed, QueryCandidate, candidates
from storage.index.query_pages import Narrow, Search
from storage.records import DicomJson

__all__ = ["IdentifierError", "Root", "find", "has_unsupported_keys"]


def find(
    index: Indexed,
    identifier: Dataset,
    root: Root,
    *,
    policy: RenditionPolicy,
    retrieve_ae_title: str,
    copies: bool = False,
    draw: bool = True,
    relational: bool = False,
    combined_datetime: bool = False,
    adjust_zones: bool = False,
    home: tzinfo | None = None,
    implicit: bool | None = None,
) -> Iterator[Dataset]:
    """The answers to a query, as a stream. Raises IdentifierError before the first one.

    ``copies``: annotations are shown as copies whose references name reconstructions. ``draw``: reconstructions are
    shown by the UIDs of those with drawn noise, else of those without. ``adjust_zones``: dates and
    times are meant in the zone of the request, and moved there; ``home`` is that of images which state none.
    ``implicit``: the little endian encoding that answers will be sent in, where it is known.
    """
    adjustment = _adjustment(identifier, home) if adjust_zones else None
    query = _parsed(
        identifier, root, relational=relational, combined_datetime=combined_datetime, adjusted=adjustment is not None
    )

    def seen(candidate: QueryCandidate) -> DicomJson:
        attributes = _as_seen(candidate)
        return adjustment.seen(attributes) if adjustment else attributes

    found = candidates(index.engine, query.search(policy, copies, draw), lambda one: query.matches(seen(one)))
    return (
        query.answer(attributes, retrieve_ae_title, implicit)
        for attributes in map(seen, found)
        if query.matches_computed(attributes)
    )


def has_unsupported_keys(identifier: Dataset, root: Root) -> bool:
    """Whether a key of the request is not supported: its answers go out with status FF01 (C.4.1.1.4)."""
    query = _parsed(identifier, root, relational=True, combined_datetime=False)
    return bool(query.unsupported) or any(one.partial for one in query.asked)


# --- the request ---


@dataclass(frozen=True)
class ParsedQuery:
    """A key of the request. ``matches`` is None for universal matching, ``items`` for a whole sequence.

    ``partial``: an item asks for something that is not supported.
    """

    key: Key
    level: Level
    values: tuple[Any, ...] = ()
    matches: Condition | None = None
    items: tuple[ParsedQuery, ...] | None = None
    partial: bool = False


@dataclass(frozen=True)
class Query:
    """A request understood."""

    level: Level
    levels: tuple[Level, ...]
    asked: tuple[ParsedQuery, ...]
    unsupported: tuple[DataElement, ...]
    uids: tuple[str, ...]
    combined: tuple[Callable[[DicomJson], bool], ...]
    adjusted: bool = False

    def search(self, policy: RenditionPolicy, copies: bool = False, draw: bool = True) -> Search:
        """What SQL can do for it."""
        return Search(
            level=self.level,
            wants=frozenset(self.levels) | {asked.level for asked in self.asked},
            narrows=tuple(narrow for asked in self.asked if asked.matches for narrow in _narrows(asked, self.adjusted)),
            uids=self.uids,
            derived=self.level is Level.IMAGE and policy is not RenditionPolicy.ORIGINAL,
            only_purged=policy is RenditionPolicy.AUTO,
            availability=policy is RenditionPolicy.ORIGINAL,
            copies=self.level is Level.IMAGE and copies,
            draw=draw,
            computed=frozenset(asked.key.keyword for asked in self.asked) & _COMPUTED,
        )

    def matches(self, attributes: DicomJson) -> bool:
        """Every key holds (C.2.2.2), as far as instances hold it."""
        stored = (one for one in self.asked if one.key.keyword not in _COMPUTED)
        return _all_match(stored, attributes) and all(holds(attributes) for holds in self.combined)

    def matches_computed(self, attributes: DicomJson) -> bool:
        """The other keys hold too, such as Modalities in Study."""
        return _all_match((one for one in self.asked if one.key.keyword in _COMPUTED), attributes)

    def answer(self, attributes: DicomJson, retrieve_ae_title: str, implicit: bool | None) -> Dataset:
        """The response identifier (C.4.1.1.3.2)."""
        elements = [*_elements(self.asked, attributes, implicit), *self.unsupported]
        told = [*(one.key for one in self.asked), *(UNIQUE[level] for level in self.levels)]
        ours: list[tuple[Key, list[Any]]] = [
            *((UNIQUE[level], stored(attributes, UNIQUE[level])) for level in self.levels[:-1]),
            (_LEVEL, [str(self.level)]),
            (_RETRIEVE_AE_TITLE, [retrieve_ae_title]),
            (_AVAILABILITY, stored(attributes, _AVAILABILITY) or ["ONLINE"]),
        ]
        if _MOVED_VRS & {one.key.vr for one in self.asked if stored(attributes, one.key)} and stated_zone(attributes):
            ours.append((OFFSET_FROM_UTC, stored(attributes, OFFSET_FROM_UTC)))
        elements += [element(key, values, implicit) for key, values in ours]
        return identifier_of(elements, implicit, utf8=not all_ascii(attributes, told))


def _adjustment(identifier: Dataset, home: tzinfo | None) -> Adjustment | None:
    """The zone of a request that names one."""
    try:
        values = values_of(identifier, OFFSET_FROM_UTC.tag, OFFSET_FROM_UTC.vr, ("ascii",), single=True)
        return Adjustment(fixed_zone(values[0]), home) if any(values) else None
    except Exception as error:
        raise IdentifierError("Timezone Offset From UTC (0008,0201): not of the form +0100") from error


def _parsed(
    identifier: Dataset, root: Root, *, relational: bool, combined_datetime: bool, adjusted: bool = False
) -> Query:
    level = level_of(identifier, root)
    keys_above(identifier, root, level, relational=relational)
    codecs = codecs_of(identifier)
    supported = _SUPPORTED[level]
    asked: list[ParsedQuery] = []
    unsupported: list[DataElement] = []
    uids: tuple[str, ...] = ()
    for tag in list(identifier.keys()):
        if tag in _NO_KEYS or tag.element == 0 or tag.is_private:
            continue
        if tag not in supported:
            unsupported.append(_empty_as_asked(identifier, tag))
            continue
        one = _asked(identifier, *supported[tag], codecs)
        if tag == UNIQUE[Level.IMAGE].tag:  # SQL matches it, since it may name a rendition
            uids, one = (
                tuple(key_values(identifier, one.key)) if one.values else (),
                ParsedQuery(one.key, one.level),
            )
        asked.append(one)
    combined, asked = _combined(asked) if combined_datetime else ([], asked)
    return Query(
        level=level,
        levels=root.levels[: root.levels.index(level) + 1],
        asked=tuple(asked),
        unsupported=tuple(unsupported),
        uids=uids,
        combined=tuple(combined),
        adjusted=adjusted,
    )


_SUPPORTED: dict[Level, dict[BaseTag, tuple[Key, Level]]] = {
    level: {
        key.tag: (key, upper)
        for upper in list(Level)[: list(Level).index(level) + 1]
        for key in (*KEYS[upper], *COMPUTED_KEYS[upper])
    }
    for level in Level
}
"""Per level of a query: the keys of that level and of those above."""

_MOVED_VRS = {"DA", "TM", "DT"}
_LEVEL, _RETRIEVE_AE_TITLE, _AVAILABILITY = (
    Key("QueryRetrieveLevel"),
    Key("RetrieveAETitle"),
    Key("InstanceAvailability"),
)

_COMPUTED = frozenset(key.keyword for keys in COMPUTED_KEYS.values() for key in keys)

_NO_KEYS = frozenset(
    {
        0x00080005,  # Specific Character Set
        0x00080052,  # Query/Retrieve Level
        0x00080053,  # Query/Retrieve View
        0x00080054,  # Retrieve AE Title
        0x00080056,  # Instance Availability
        OFFSET_FROM_UTC.tag,
    }
)


def _asked(identifier: Dataset, key: Key, level: Level, codecs: Sequence[str]) -> ParsedQuery:
    try:
        if key.vr == "SQ":
            return _asked_sequence(items_of(identifier, key.tag, codecs), key, level, codecs)
        # UIDs may be lists, and codes often are (MG\CT); in other text of VM 1 a backslash is no delimiter
        single = key.single and key.vr not in {"CS", "UI"}
        values = values_of(identifier, key.tag, key.vr, codecs, single=single)
        if is_universal(values):
            return ParsedQuery(key, level)
        if len(values) > MOST_UIDS or any(len(value) > _LONGEST for value in values if isinstance(value, str)):
            raise IdentifierError(f"{key.keyword}: too long")
        return ParsedQuery(key, level, tuple(value for value in values if value != ""), condition(key.vr, values))
    except IdentifierError:
        raise
    except BadValueError as error:
        raise IdentifierError(f"{key.keyword}: not a value or range of {key.vr}") from error
    except Exception as error:
        raise IdentifierError(f"{key.keyword} cannot be read") from error


def _asked_sequence(items: list[Dataset], key: Key, level: Level, codecs: Sequence[str]) -> ParsedQuery:
    """A sequence key: one item with keys, or none for the whole sequence (C.2.2.2.6)."""
    if len(items) > 1:
        raise IdentifierError(f"{key.keyword}: a sequence key has one item")
    if not items or len(items[0]) == 0:
        return ParsedQuery(key, level)
    codecs = codecs_of(items[0], codecs)
    inner = tuple(_asked(items[0], one, level, codecs) for one in key.items if one.tag in items[0])
    partial = len(inner) < len(items[0]) or any(one.partial for one in inner)
    if all(one.matches is None for one in inner):
        return ParsedQuery(key, level, items=inner, partial=partial)

    def matches(stored: Sequence[Any]) -> bool:
        return any(_all_match(inner, item) for item in stored)

    return ParsedQuery(key, level, matches=matches, items=inner, partial=partial)


_LONGEST = 10_240


def _empty_as_asked(identifier: Dataset, tag: BaseTag) -> DataElement:
    element: Any = identifier.get_item(tag)
    vr = element.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
    return DataElement(tag, vr[:2], empty_value_for_VR(vr[:2]), validation_mode=IGNORE)


def _combined(asked: list[ParsedQuery]) -> tuple[list[Callable[[DicomJson], bool]], list[ParsedQuery]]:
    """Date and time ranges of the same form as one range of moments (C.2.2.2.5.4), in place of their own."""
    by_keyword = {one.key.keyword: one for one in asked}
    conditions: list[Callable[[DicomJson], bool]] = []
    for date in [one for one in asked if one.key.vr == "DA" and one.values]:
        time = by_keyword.get(date.key.keyword.removesuffix("Date") + "Time")
        if time is None or not time.values:
            continue
        days, hours = span("DA", date.values[0]), span("TM", time.values[0])
        same_form = (bool(days.low), bool(days.high)) == (bool(hours.low), bool(hours.high))
        if days.is_range and hours.is_range and same_form:
            conditions.append(_moments(date.key, time.key, Span(days.low + hours.low, days.high + hours.high)))
            by_keyword[date.key.keyword] = replace(date, matches=None)  # its values still narrow
            by_keyword[time.key.keyword] = replace(time, matches=None, values=())
    return conditions, list(by_keyword.values())


def _moments(date: Key, time: Key, span: Span) -> Callable[[DicomJson], bool]:
    def holds(attributes: DicomJson) -> bool:
        days, hours = stored(attributes, date), stored(attributes, time)
        return bool(days) and span.holds(days[0] + (fill_time(hours[0]) if hours else ""))

    return holds


# --- what SQL can do ---

_COLUMNS = {
    "PatientID": "patient.patient_id",
    "PatientName": "patient.name",
    "PatientBirthDate": "patient.birth_date",
    "PatientSex": "patient.sex",
    "StudyInstanceUID": "study.study_instance_uid",
    "StudyDate": "study.study_date",
    "StudyTime": "study.study_time",
    "AccessionNumber": "study.accession_number",
    "StudyID": "study.study_id",
    "ModalitiesInStudy": "series.modality",
    "SOPClassesInStudy": "instance.sop_class_uid",
    "SeriesInstanceUID": "series.series_instance_uid",
    "Modality": "series.modality",
    "SOPClassUID": "instance.sop_class_uid",
}


def _narrows(asked: ParsedQuery, adjusted: bool) -> Iterator[Narrow]:
    """A condition that every match meets, where a column knows one; ``adjusted``: in whatever zone it was written."""
    column = _COLUMNS.get(asked.key.keyword)
    if column is None or not asked.values:
        return
    if asked.key.vr in {"DA", "TM"}:
        covered = span(asked.key.vr, asked.values[0])
        if adjusted and asked.key.keyword in {"StudyDate", "StudyTime"}:
            yield from _narrows_in_any_zone(column, asked.key.vr, covered)
        else:
            yield Narrow(column, low=covered.low, high=covered.high)
    elif asked.key.vr == "PN":
        yield from _narrows_name(column, asked.values[0])
    elif asked.key.vr not in WILDCARD_VRS or not any(map(has_wildcard, asked.values)):
        yield Narrow(column, any_of=asked.values)
    elif len(asked.values) == 1:
        yield _narrow_wildcard(column, asked.values[0])


def _narrows_in_any_zone(column: str, vr: str, covered: Span) -> Iterator[Narrow]:
    """A date can be days away in another zone, and a time anywhere."""
    if vr == "TM":
        return
    try:
        low, high = (datetime.strptime(end, "%Y%m%d") if end else None for end in (covered.low, covered.high))
        yield Narrow(
            column,
            low=f"{low - FARTHEST:%Y%m%d}" if low else "",
            high=f"{high + FARTHEST:%Y%m%d}" if high else "",
        )
    except (ValueError, OverflowError):  # the 30th of February, or the year 9999
        return


def _narrows_name(column: str, key: str) -> Iterator[Narrow]:
    """The column holds all groups, folded, the alphabetic one first."""
    groups = [(group, text) for group, text in name_groups(key) if text.strip("*")]
    if [group for group, _ in groups] != ["Alphabetic"]:
        yield Narrow(column, wildcard="*" + "*".join(text.replace("^", "*") for _, text in groups) + "*")
    elif has_wildcard(groups[0][1]):
        # a trailing delimiter may be left out, so none is asked for
        yield _narrow_wildcard(column, groups[0][1].replace("^", "*") + "*", start=groups[0][1])
    else:
        yield Narrow(column, low=groups[0][1], high=groups[0][1] + "=\U0010ffff")


def _narrow_wildcard(column: str, pattern: str, *, start: str | None = None) -> Narrow:
    prefix = re.split(r"[*?]", start or pattern, maxsplit=1)[0]
    prefix = prefix.rstrip("^") if start else prefix
    is_prefix = bool(prefix) and not pattern[len(prefix) :].strip("*")
    return Narrow(column, prefix=prefix, wildcard="" if is_prefix else pattern)


# --- matching and answering ---


def _as_seen(candidate: QueryCandidate) -> DicomJson:
    """The attributes as this peer sees them: those of the rendition, where one stands for the image.

    What derivation changes and the index does not hold is unknown here: zero length
    (node.archive.serve.derived_header).
    """
    if candidate.copy_uid is not None:
        return {**candidate.attributes, "00080018": {"vr": "UI", "Value": [candidate.copy_uid]}}
    if candidate.derived_uid is None:
        return candidate.attributes
    seen = {tag: element for tag, element in candidate.attributes.items() if tag not in _NOT_OF_THE_ORIGINAL}
    image_type = seen.get("00080008", {}).get("Value", ["", "PRIMARY"])
    seen["00080008"] = {"vr": "CS", "Value": ["DERIVED", *image_type[1:]]}
    seen["00080018"] = {"vr": "UI", "Value": [candidate.derived_uid]}
    seen["00282110"] = {"vr": "CS", "Value": ["01"]}
    return seen


_NOT_OF_THE_ORIGINAL = {
    "0008001C",  # Synthetic Data
    "00082111",  # Derivation Description
    "00089215",  # Derivation Code Sequence
    "00282112",  # Lossy Image Compression Ratio
    "00282114",  # Lossy Image Compression Method
}


def _all_match(asked: Iterable[ParsedQuery], attributes: DicomJson) -> bool:
    return all(one.matches is None or one.matches(stored(attributes, one.key)) for one in asked)


def _elements(asked: Sequence[ParsedQuery], attributes: DicomJson, implicit: bool | None) -> list[Element]:
    """The asked keys with their stored values; absent ones with zero length."""
    elements: list[Element] = []
    for one in asked:
        values = stored(attributes, one.key)
        if one.key.vr == "SQ" and one.items is not None:
            items = [
                identifier_of(_elements(one.items, item, None), None, utf8=False)
                for item in values
                if _all_match(one.items, item)
            ]
            elements.append(DataElement(one.key.tag, "SQ", items if one.items else []))
        else:
            elements.append(element(one.key, values, implicit))
    return elements
