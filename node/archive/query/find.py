"""C-FIND: from an identifier to its responses (PS3.4 C.4.1).

SQL selects candidates (storage.index.query_candidates), and ``matching`` decides. A response holds the keys of the
request, the unique keys of the levels above, the Retrieve AE Title and the Instance Availability. In
docs/CONFORMANCE.md, section 4.2.1.7 lists our choices where the standard leaves any, and 4.2.1.8 says which object of
an image a peer sees (C.4.1.3.1). Beyond these:

- Keys of levels above the query level match and are returned, also without relational negotiation.
- Unsupported keys are returned with zero length, since many SCUs expect every key of their request; C.2.2.1.3 would
  leave them out.
- Timezone Offset From UTC never matches. It converts dates and times if that was negotiated
  (node.archive.query.timezones).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import empty_value_for_VR
from pydicom.tag import BaseTag

from node.archive.query.identifier import MOST_UIDS, UNIQUE, IdentifierError, Root, keys_above, level_of
from node.archive.query.matching import Condition, Span, condition, is_universal, span
from node.archive.query.narrowing import narrows
from node.archive.query.response import Element, character_set_of, element, stored
from node.archive.query.response import identifier as identifier_of
from node.archive.query.timezones import Adjustment, fixed_zone, stated_zone
from node.config import RenditionPolicy
from storage.dicom.elements import BadValueError, codecs_of, items_of, values_of
from storage.dicom.levels import fill_time
from storage.dicom.query_keys import COMPUTED_KEYS, KEYS, OFFSET_FROM_UTC, Key, Level, offset_name
from storage.index import Index
from storage.index.query_candidates import QueryCandidate, candidates
from storage.index.query_pages import Search
from storage.records import DicomJson


def find(
    index: Index,
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
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[Dataset]:
    """The response identifiers of a query, as a stream. Raises IdentifierError at the call, before the first one.

    ``copies``: annotations are shown as copies whose references name what the peer gets. ``draw``: reconstructions are
    shown under the UIDs with drawn noise, else under those without. ``adjust_zones``: dates and times are compared
    and returned in the time zone of the request; ``home`` is the zone of images that state none. ``implicit``:
    whether the responses will be sent in implicit VR little endian; None if the encoding is not known. ``is_over``:
    whether nobody wants more responses; it is also called while nothing matches.
    """
    adjustment = _adjustment(identifier, home) if adjust_zones else None
    query = _parsed(identifier, root, relational=relational, combined_datetime=combined_datetime)
    search = query.search(policy, copies, draw, any_zone=adjustment is not None)

    def as_shown(candidate: QueryCandidate) -> DicomJson:
        attributes = _as_shown(candidate)
        return adjustment.adjusted(attributes) if adjustment else attributes

    found = candidates(index.engine, search, lambda one: query.matches(as_shown(one)), is_over)
    return (
        query.answer(attributes, retrieve_ae_title, implicit)
        for attributes in map(as_shown, found)
        if query.matches_computed(attributes)
    )


def has_unsupported_keys(identifier: Dataset, root: Root) -> bool:
    """Whether a key of the request is not supported: its responses are sent with status FF01 (C.4.1.1.4)."""
    query = _parsed(identifier, root, relational=True, combined_datetime=False)
    return bool(query.unsupported) or any(one.partial for one in query.keys)


# --- the request ---


@dataclass(frozen=True)
class QueryKey:
    """A key of the request. ``matches`` is None for universal matching, ``items`` for a whole sequence.

    ``partial``: whether the item of a sequence key has unsupported keys.
    """

    key: Key
    level: Level
    values: tuple[Any, ...] = ()
    matches: Condition | None = None
    items: tuple[QueryKey, ...] | None = None
    partial: bool = False


@dataclass(frozen=True)
class Query:
    """A parsed request. ``uids``: SOP Instance UIDs; ``combined``: conditions on combined dates and times; ``utf8``:
    whether its text is in UTF-8."""

    level: Level
    levels: tuple[Level, ...]
    keys: tuple[QueryKey, ...]
    unsupported: tuple[DataElement, ...]
    uids: tuple[str, ...]
    combined: tuple[Callable[[DicomJson], bool], ...]
    utf8: bool

    def search(
        self, policy: RenditionPolicy, copies: bool = False, draw: bool = True, *, any_zone: bool = False
    ) -> Search:
        """The part of the query that SQL evaluates. ``any_zone``: as in ``narrows``."""
        return Search(
            level=self.level,
            wants=frozenset(self.levels) | {one.level for one in self.keys},
            narrows=tuple(
                narrow
                for one in self.keys
                if one.level is self.level or one.key.keyword not in _COMPUTED
                for narrow in narrows(one.key, one.values, any_zone=any_zone)
            ),
            uids=self.uids,
            derived=self.level is Level.IMAGE and policy is not RenditionPolicy.ORIGINAL,
            only_gone=policy is RenditionPolicy.AUTO,
            availability=True,
            renditions=policy is not RenditionPolicy.ORIGINAL,
            copies=self.level is Level.IMAGE and copies,
            draw=draw,
            computed=frozenset(one.key.keyword for one in self.keys) & _COMPUTED,
        )

    def matches(self, attributes: DicomJson) -> bool:
        """Whether every key that instances store matches (C.2.2.2)."""
        stored = (one for one in self.keys if one.key.keyword not in _COMPUTED)
        return _all_match(stored, attributes) and all(holds(attributes) for holds in self.combined)

    def matches_computed(self, attributes: DicomJson) -> bool:
        """Whether the computed keys match, such as Modalities in Study."""
        return _all_match((one for one in self.keys if one.key.keyword in _COMPUTED), attributes)

    def answer(self, attributes: DicomJson, retrieve_ae_title: str, implicit: bool | None) -> Dataset:
        """The response identifier (C.4.1.1.3.2)."""
        returned = [*(one.key for one in self.keys), *(UNIQUE[level] for level in self.levels)]
        character_set = character_set_of(attributes, returned, utf8=self.utf8)
        elements = [*_elements(self.keys, attributes, implicit, character_set), *self.unsupported]
        ours: list[tuple[Key, list[Any]]] = [
            *((UNIQUE[level], stored(attributes, UNIQUE[level])) for level in self.levels[:-1]),
            (_LEVEL, [str(self.level)]),
            (_RETRIEVE_AE_TITLE, [retrieve_ae_title]),
            (_AVAILABILITY, stored(attributes, _AVAILABILITY) or ["ONLINE"]),
        ]
        timed = {one.level for one in self.keys if one.key.vr in _MOVED_VRS and stored(attributes, one.key)}
        timed.discard(Level.PATIENT)  # dates of birth have no zone
        zones = {stated_zone(attributes, level) for level in timed}
        if len(zones) == 1 and None not in zones:  # if levels state different zones, no single one is right
            ours.append((OFFSET_FROM_UTC, attributes[offset_name(timed.pop())]["Value"]))
        elements += [element(key, values, implicit, character_set) for key, values in ours]
        return identifier_of(elements, implicit, character_set)


def _adjustment(identifier: Dataset, home: tzinfo | None) -> Adjustment | None:
    """The adjustment to the time zone of the request; None if the request states none. Raises IdentifierError."""
    try:
        values = values_of(identifier, OFFSET_FROM_UTC.tag, OFFSET_FROM_UTC.vr, ("ascii",), single=True)
        return Adjustment(fixed_zone(values[0]), home) if any(values) else None
    except Exception as error:
        raise IdentifierError("Timezone Offset From UTC (0008,0201): not of the form +0100") from error


def _parsed(identifier: Dataset, root: Root, *, relational: bool, combined_datetime: bool) -> Query:
    level = level_of(identifier, root)
    keys_above(identifier, root, level, relational=relational)
    codecs = codecs_of(identifier)
    supported = _SUPPORTED[level]
    keys: list[QueryKey] = []
    unsupported: list[DataElement] = []
    uids: tuple[str, ...] = ()
    for tag in list(identifier.keys()):
        if tag in _NO_KEYS or tag.element == 0 or tag.is_private:
            continue
        if tag not in supported:
            unsupported.append(_empty_element(identifier, tag))
            continue
        one = _query_key(identifier, *supported[tag], codecs)
        if tag == UNIQUE[Level.IMAGE].tag:  # SQL matches it, since it may name a rendition
            uids, one = one.values, QueryKey(one.key, one.level)
        keys.append(one)
    combined, keys = _combined(keys) if combined_datetime else ([], keys)
    return Query(
        level=level,
        levels=root.levels[: root.levels.index(level) + 1],
        keys=tuple(keys),
        unsupported=tuple(unsupported),
        uids=uids,
        combined=tuple(combined),
        utf8="utf" in codecs[0].lower(),
    )


_SUPPORTED: dict[Level, dict[BaseTag, tuple[Key, Level]]] = {
    level: {
        key.tag: (key, upper)
        for upper in list(Level)[: list(Level).index(level) + 1]
        for key in (*KEYS[upper], *COMPUTED_KEYS[upper])
    }
    for level in Level
}
"""Per query level: the keys of that level and of the levels above."""

_MOVED_VRS = {"DA", "TM", "DT"}
_LEVEL = Key("QueryRetrieveLevel")
_RETRIEVE_AE_TITLE = Key("RetrieveAETitle")
_AVAILABILITY = Key("InstanceAvailability")

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


def _query_key(identifier: Dataset, key: Key, level: Level, codecs: Sequence[str]) -> QueryKey:
    try:
        if key.vr == "SQ":
            return _sequence_key(items_of(identifier, key.tag, codecs), key, level, codecs)
        # UIDs may be lists, and codes often are (MG\CT); in other text of VM 1 a backslash is not a delimiter
        single = key.single and key.vr not in {"CS", "UI"}
        values = values_of(identifier, key.tag, key.vr, codecs, single=single)
        if is_universal(values):
            return QueryKey(key, level)
        if len(values) > MOST_UIDS:
            raise IdentifierError(f"{key.keyword}: more than {MOST_UIDS} values")
        if any(len(value) > _LONGEST for value in values if isinstance(value, str)):
            raise IdentifierError(f"{key.keyword}: too long")
        return QueryKey(key, level, tuple(value for value in values if value != ""), condition(key.vr, values))
    except IdentifierError:
        raise
    except BadValueError as error:
        raise IdentifierError(f"{key.keyword}: not a value or range of {key.vr}") from error
    except Exception as error:
        raise IdentifierError(f"{key.keyword} cannot be read") from error


def _sequence_key(items: list[Dataset], key: Key, level: Level, codecs: Sequence[str]) -> QueryKey:
    """A sequence key: one item with keys, or none for the whole sequence (C.2.2.2.6)."""
    if len(items) > 1:
        raise IdentifierError(f"{key.keyword}: a sequence key has one item")
    if not items or len(items[0]) == 0:
        return QueryKey(key, level)
    codecs = codecs_of(items[0], codecs)
    inner = tuple(_query_key(items[0], one, level, codecs) for one in key.items if one.tag in items[0])
    partial = len(inner) < len(items[0]) or any(one.partial for one in inner)
    if all(one.matches is None for one in inner):
        return QueryKey(key, level, items=inner, partial=partial)

    def matches(stored: Sequence[Any]) -> bool:
        return any(_all_match(inner, item) for item in stored)

    return QueryKey(key, level, matches=matches, items=inner, partial=partial)


_LONGEST = 10_240
"""Most characters of a value in a request."""


def _empty_element(identifier: Dataset, tag: BaseTag) -> DataElement:
    element: Any = identifier.get_item(tag)
    vr = element.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
    return DataElement(tag, vr[:2], empty_value_for_VR(vr[:2]), validation_mode=IGNORE)


def _combined(keys: list[QueryKey]) -> tuple[list[Callable[[DicomJson], bool]], list[QueryKey]]:
    """Conditions on combined dates and times (C.2.2.2.5.4), and the keys without those that they replace.

    A date range and a time range are combined if both are open at the same ends.
    """
    by_keyword = {one.key.keyword: one for one in keys}
    conditions: list[Callable[[DicomJson], bool]] = []
    for date in [one for one in keys if one.key.vr == "DA" and one.values]:
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


# --- matching and answering ---


def _as_shown(candidate: QueryCandidate) -> DicomJson:
    """The attributes as the peer sees them: those of the copy or the rendition, if the peer gets one.

    Attributes that derivation changes and the index does not hold have zero length (node.archive.serve.derived_header).
    """
    if candidate.copy_uid is not None:  # node.archive.serve.annotation_references
        shown = {tag: element for tag, element in candidate.attributes.items() if tag not in _CREATION}
        shown["00080018"] = {"vr": "UI", "Value": [candidate.copy_uid]}
        if "VERIFIED" in shown.get("0040A493", {}).get("Value", ()):
            shown |= {"0040A493": {"vr": "CS", "Value": ["UNVERIFIED"]}, "0040A073": {"vr": "SQ", "Value": []}}
        return shown
    if candidate.derived_uid is None:
        return candidate.attributes
    shown = {tag: element for tag, element in candidate.attributes.items() if tag not in _NOT_OF_THE_ORIGINAL}
    image_type = shown.get("00080008", {}).get("Value", ["", "PRIMARY"])
    shown["00080008"] = {"vr": "CS", "Value": ["DERIVED", *image_type[1:]]}
    shown["00080018"] = {"vr": "UI", "Value": [candidate.derived_uid]}
    shown["00282110"] = {"vr": "CS", "Value": ["01"]}
    if candidate.drawn:
        shown["0008001C"] = {"vr": "CS", "Value": ["YES"]}
    return shown


_CREATION = {"00080012", "00080013"}
"""Instance Creation Date and Time."""
_NOT_OF_THE_ORIGINAL = {
    *_CREATION,
    "0008001C",  # Synthetic Data; it also depends on the upscaler if no noise is drawn
    "00082111",  # Derivation Description
    "00089215",  # Derivation Code Sequence
    "00204000",  # Image Comments
    "00282112",  # Lossy Image Compression Ratio
    "00282114",  # Lossy Image Compression Method
}


def _all_match(keys: Iterable[QueryKey], attributes: DicomJson) -> bool:
    return all(one.matches is None or one.matches(stored(attributes, one.key)) for one in keys)


def _elements(
    keys: Sequence[QueryKey], attributes: DicomJson, implicit: bool | None, character_set: str = ""
) -> list[Element]:
    """The requested keys with their stored values; absent ones with zero length."""
    elements: list[Element] = []
    for one in keys:
        values = stored(attributes, one.key)
        if one.key.vr == "SQ" and one.items is not None:
            items = [
                identifier_of(_elements(one.items, item, None), None) for item in values if _all_match(one.items, item)
            ]
            elements.append(DataElement(one.key.tag, "SQ", items if one.items else []))
        else:
            elements.append(element(one.key, values, implicit, character_set))
    return elements
