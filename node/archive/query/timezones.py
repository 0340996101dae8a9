"""Dates and times in the time zone of a query (PS3.4 C.5.1.1.4, timezone query adjustment).

docs/CONFORMANCE.md, 4.2.1.7, says which attributes are converted, from which zone and to which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo

from storage.dicom.elements import BadValueError
from storage.dicom.levels import fill_time
from storage.dicom.query_keys import KEYS, Level, offset_name
from storage.records import DicomJson

FARTHEST = timedelta(days=2)
"""Largest difference between the dates of a moment in two zones: UTC+14 is 26 hours ahead of UTC-12."""


def fixed_zone(text: str) -> timezone:
    """A zone of the form ``+0100``. Raises BadValueError (PS3.3 C.12.1.1)."""
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", text.strip())
    offset = timedelta(hours=int(match[2]), minutes=int(match[3])) if match else timedelta(days=1)
    if match is None or offset > timedelta(hours=14):
        raise BadValueError("SH")
    return timezone(-offset if match[1] == "-" else offset)


def stated_zone(attributes: DicomJson, level: Level) -> timezone | None:
    """The time zone that was stated with the attributes of a level; None if there is none, or it is invalid."""
    try:
        return fixed_zone(attributes[offset_name(level)]["Value"][0])
    except (BadValueError, KeyError, IndexError, AttributeError):
        return None


@dataclass(frozen=True)
class Adjustment:
    """Converts dates and times to ``zone``, the time zone of the request.

    ``home``: the zone of images that state none; if it is None, their dates and times are not converted.
    """

    zone: timezone
    home: tzinfo | None

    def adjusted(self, attributes: DicomJson) -> DicomJson:
        """The attributes with their dates and times in the zone of the request."""
        moved = {**attributes}
        for level in Level:
            zone = stated_zone(attributes, level) or self.home
            if zone is not None:
                self._move_level(moved, level, zone)
                moved[offset_name(level)] = {"vr": "SH", "Value": [f"{datetime.now(self.zone):%z}"]}
        return moved

    def _move_level(self, attributes: DicomJson, level: Level, zone: tzinfo) -> None:
        for date, time in _PAIRS[level]:
            if date in attributes and time in attributes:
                self._move_pair(attributes, date, time, zone)
        for key in KEYS[level]:
            if key.vr == "DT" and key.json_tag in attributes:
                values = [self._moved_moment(value, zone) for value in attributes[key.json_tag]["Value"]]
                attributes[key.json_tag] = {"vr": "DT", "Value": values}

    def _move_pair(self, attributes: DicomJson, date: str, time: str, zone: tzinfo) -> None:
        [day, *_], [hour, *_] = attributes[date]["Value"], attributes[time]["Value"]
        moment = _moment(f"{day}{fill_time(hour or '')}") if day and hour else None
        if moment is None:
            return
        local = self._in_zone(moment.replace(tzinfo=zone))
        fraction = hour.partition(".")[1:]
        attributes[date] = {"vr": "DA", "Value": [day_text(local)]}
        attributes[time] = {"vr": "TM", "Value": [f"{local:%H%M%S}{''.join(fraction)}"]}

    def _moved_moment(self, value: str | None, zone: tzinfo) -> str | None:
        match = _DATE_TIME.fullmatch(value or "")
        moment = _moment(match["time"].ljust(14, "0")) if match else None
        if match is None or moment is None:
            return value
        local = self._in_zone(moment.replace(tzinfo=fixed_zone(match["offset"]) if match["offset"] else zone))
        return f"{day_text(local)}{local:%H%M%S}{match['fraction']}{local:%z}"

    def _in_zone(self, moment: datetime) -> datetime:
        try:
            return moment.astimezone(self.zone)
        except OverflowError:  # in the year 1 or 9999
            return moment


def day_text(day: datetime) -> str:
    """The value of VR DA. A ``%Y`` of strftime has fewer than four digits before the year 1000."""
    return f"{day.year:04}{day:%m%d}"


def _moment(text: str) -> datetime | None:
    """The time ``YYYYMMDDHHMMSS`` at the start of a text; None if there is no such time."""
    try:
        return datetime.strptime(text[:12] + f"{min(int(text[12:14]), 59):02d}", "%Y%m%d%H%M%S")
    except ValueError:
        return None


_PAIRS = {
    level: tuple(
        (key.json_tag, other.json_tag)
        for key in keys
        for other in keys
        if key.vr == "DA" and other.keyword == key.keyword.removesuffix("Date") + "Time" and "Birth" not in key.keyword
    )
    for level, keys in KEYS.items()
}
_DATE_TIME = re.compile(r"(?P<time>\d{10,14})(?P<fraction>(?:\.\d{1,6})?)(?P<offset>(?:[+-]\d{4})?)", re.ASCII)
