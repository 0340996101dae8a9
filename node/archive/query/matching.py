"""Attribute matching: whether a stored value matches a key of a query (PS3.4 C.2.2.2).

These are our choices where the standard leaves any; the conformance statement lists them too:

- Person names match without case, accents, width variants and empty trailing components. A key in ASCII is
  compared with the alphabetic group, any other key with each group; a key with ``=`` group by group.
- Dates and times match by meaning. A less precise value in a key means the whole period that it covers, a stored one
  its earliest moment: ``10`` matches 101530, ``1000-1100`` matches 110059.
- A date range and a time range are two conditions unless combined matching was negotiated (C.2.2.2.5.4).
- Values are compared as stored: no time zone is applied, except between two DT values that both state theirs.
- Several values in a key match as a list of UIDs does: any of them may match.
- ``*`` alone is universal matching for every VR.
- An unknown (absent or empty) value matches universal matching only. By C.2.2.1.2 it would match every key, so that
  a search for one accession number would return every study without one.
"""

from __future__ import annotations

import fnmatch
import re
from calendar import monthrange
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from storage.dicom.elements import BadValueError, checked
from storage.dicom.levels import fill_time, fold_name

Condition = Callable[[Sequence[Any]], bool]
"""Whether one of the values of an attribute, in the DICOM JSON model, matches."""

WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})


def is_universal(values: Sequence[Any]) -> bool:
    """Whether a key requests an attribute without restricting it (C.2.2.2.3, and note 1 of C.2.2.2.4)."""
    return all(isinstance(value, str) and not value.strip("*") for value in values)


def condition(vr: str, values: Sequence[Any]) -> Condition:
    """The condition that a key sets for a stored attribute. Raises BadValueError if the VR has no such value."""
    kind: Callable[[Any], Callable[[Any], bool]]
    if vr == "PN":
        kind = _name
    elif vr in WILDCARD_VRS:
        kind = _text
    elif vr in _RANGES:
        kind = _RANGES[vr]
    else:
        kind = partial(_exact, vr)
    tests = [kind(value) for value in values if value != ""]
    return lambda stored: any(test(value) for value in stored if value is not None for test in tests)


# --- text ---


def has_wildcard(text: str) -> bool:
    return "*" in text or "?" in text


def _text(key: str) -> Callable[[str], bool]:
    """Case-sensitive single value or wildcard matching (C.2.2.2.1 and C.2.2.2.4)."""
    if not has_wildcard(key):
        return lambda stored: stored == key
    # brackets are no wildcards in DICOM; the atomic groups of fnmatch prevent exponential time, whatever the key
    matches = re.compile(fnmatch.translate(key.replace("[", "[[]"))).match
    return lambda stored: matches(stored) is not None


def _name(key: str) -> Callable[[dict[str, str]], bool]:
    tests = [(group, _component_group(text)) for group, text in name_groups(key) if text.strip("*")]

    def matches(stored: dict[str, str]) -> bool:
        folded = {group: fold_name(name) for group, name in stored.items()}
        for group, test in tests:
            among = folded.values() if group == "any" else [folded.get(group, "")]
            if not any(test(name) for name in among):
                return False
        return True

    return matches


def name_groups(key: str) -> list[tuple[str, str]]:
    """The component groups of a name key, each with its folded text; ``any`` for one that is not ASCII."""
    groups = fold_name(key).rstrip("=").split("=")
    if len(groups) == 1:
        return [("Alphabetic" if groups[0].isascii() else "any", groups[0])]
    return list(zip(("Alphabetic", "Ideographic", "Phonetic"), groups, strict=False))


def _component_group(key: str) -> Callable[[str], bool]:
    matches, carets = _text(key), key.count("^")
    if not has_wildcard(key):
        return matches

    def test(stored: str) -> bool:
        # SMITH^* means every Smith, also one without a given name, whose delimiter may be absent
        padded = stored + "^" * (carets - stored.count("^"))
        return bool(stored) and (matches(stored) or matches(padded))

    return test


# --- dates and times ---


@dataclass(frozen=True)
class Span:
    """The period that a key of VR DA or TM covers, both ends included; an empty end is open."""

    low: str
    high: str
    is_range: bool = True

    def holds(self, stored: str) -> bool:
        return self.low <= stored and (not self.high or stored <= self.high)


def span(vr: str, key: str) -> Span:
    """A date, a time or a range of them (C.2.2.2.5.1 and C.2.2.2.5.2)."""
    low, hyphen, high = (part.strip() for part in key.partition("-"))
    if not low and not high:
        raise BadValueError(vr)
    low, high = (end and checked(end, vr) for end in (low, high))
    if not hyphen:
        high = low
    if vr == "TM":
        latest = high + "235959.999999"[len(high) :] if high else ""  # the latest time that the value can mean
        return Span(fill_time(low), latest, bool(hyphen))
    return Span(low, high, bool(hyphen))


def _date(key: str) -> Callable[[str], bool]:
    return span("DA", key).holds


def _time(key: str) -> Callable[[str], bool]:
    covered = span("TM", key)
    return lambda stored: covered.holds(fill_time(stored))


def _date_time(key: str) -> Callable[[str], bool]:
    """A date-time or a range (C.2.2.2.5.3). A hyphen and four digits up to 1259 at the end of a value are an offset
    from UTC, not a range."""
    match = _DATE_TIMES.fullmatch(key)
    if match is None or not (match["one"] or match["low"] or match["high"]):
        raise BadValueError("DT")
    low, high = match["one"] or match["low"], match["one"] or match["high"]
    for end in filter(None, (low, high)):
        _moment(checked(end, "DT"), "")

    def test(stored: str) -> bool:
        try:
            late_enough = not low or _moment(low, stored) <= _moment(stored, low)
            return late_enough and (not high or _moment(stored, high) <= _moment(high, stored, latest=True))
        except BadValueError:  # the 30th of February passes as a DT
            return False

    return test


def _moment(value: str, other: str, *, latest: bool = False) -> datetime:
    """The earliest (or latest) moment that a DT value can mean: in UTC if ``other`` states an offset too, else as
    written. Raises BadValueError."""
    offset = _OFFSET.search(value)
    whole, _, fraction = (value[: offset.start()] if offset else value).partition(".")
    year, month = int(whole[:4]), int(whole[4:6] or (12 if latest else 1))
    try:
        last = monthrange(year, month)[1] if latest else 1
        day, hour, minute, second = (
            int(whole[start : start + 2] or default)
            for start, default in zip((6, 8, 10, 12), (last, 23, 59, 59) if latest else (1, 0, 0, 0), strict=True)
        )
        micro = int(fraction.ljust(6, "9" if latest else "0"))
        moment = datetime(year, month, day, hour, minute, min(second, 59), micro)  # datetime has no leap seconds
    except ValueError as error:
        raise BadValueError("DT") from error
    if not (offset and _OFFSET.search(other)):
        return moment
    shift = timedelta(hours=int(offset[0][1:3]), minutes=int(offset[0][3:5]))
    try:
        return moment - shift if offset[0][0] == "+" else moment + shift
    except OverflowError:  # in the year 1 or 9999
        return moment


_ONE_DATE_TIME = r"\d{4,14}(?:\.\d{1,6})?(?:\+\d{4}|-(?:0\d|1[0-2])[0-5]\d(?=$|-))?"
_DATE_TIMES = re.compile(
    rf"(?P<one>{_ONE_DATE_TIME})|(?P<low>{_ONE_DATE_TIME})?\s*-\s*(?P<high>{_ONE_DATE_TIME})?", re.ASCII
)
_OFFSET = re.compile(r"[+-]\d{4}$", re.ASCII)

# --- the rest ---

_RANGES: dict[str, Callable[[str], Callable[[str], bool]]] = {"DA": _date, "TM": _time, "DT": _date_time}


def _exact(vr: str, key: Any) -> Callable[[Any], bool]:
    """Single value matching; numbers are compared by value, so that 1.0 matches 1. An invalid UID matches nothing."""
    wanted = key if vr == "UI" else checked(key, vr)
    return lambda stored: bool(stored == wanted)
