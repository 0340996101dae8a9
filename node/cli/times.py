"""How commands write times: ISO 8601 with the offset from UTC, in the local time zone for people, in UTC in JSON."""

from __future__ import annotations

from datetime import UTC, datetime

Moment = datetime | float | str
"""A time: a datetime, which is in UTC if it has no time zone, seconds since 1970, or ISO 8601 text."""


def time_text(moment: Moment, *, utc: bool = False) -> str:
    """A time for people, to the second: ``2026-01-31T14:05:09+01:00``."""
    return _aware(moment).astimezone(UTC if utc else None).isoformat(timespec="seconds")


def time_json(moment: Moment) -> str:
    """A time for programs, in UTC: ``2026-01-31T13:05:09+00:00``."""
    return time_text(moment, utc=True)


def _aware(moment: Moment) -> datetime:
    if isinstance(moment, (int, float)):
        return datetime.fromtimestamp(moment, UTC)
    value = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return value if value.tzinfo else value.replace(tzinfo=UTC)
