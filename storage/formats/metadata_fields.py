"""Values of a payload's metadata, each checked for its kind and range: whatever JSON holds, only PayloadError comes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from storage.errors import PayloadError

SIDE = 65535
"""Rows and columns are of VR US."""


class Fields:
    """The members of one JSON object. ``what`` names it in errors."""

    def __init__(self, what: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise PayloadError(f"{what} is malformed: its metadata is no object")
        self._what, self._values = what, values

    def only(self, *names: str) -> None:
        """Raises where there are other members."""
        others = sorted(set(map(str, self._values)) - set(names))
        if others:
            raise PayloadError(f"{self._what} is malformed: it has a member {others[0][:40]!r} that is not known here")

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int:
        value: Any = self._of(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(name, value, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._of(name, default)
        try:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
        raise self._wrong(name, value, "a finite number")

    def truth(self, name: str, *, default: bool | None = None) -> bool:
        value = self._of(name, default)
        if value is not True and value is not False:
            raise self._wrong(name, value, "true or false")
        return bool(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._of(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._of(name, None)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(name, value, "a list of texts")
        return tuple(value)

    def integers(self, name: str, least: int, most: int) -> tuple[int, ...]:
        value = self._of(name, None)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list of integers")
        return tuple(Fields(self._what, {name: one}).integer(name, least, most) for one in value)

    def members(self, name: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self._of(name, None)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def of(self, name: str) -> Fields:
        """The members of an object inside."""
        return Fields(f"{name} of {self._what}", self.members(name))

    def optional(self, name: str) -> bool:
        """Whether it is there, and not null."""
        return self._values.get(name) is not None

    def _of(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None:
            raise PayloadError(f"{self._what} is malformed: it has no {name}")
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> PayloadError:
        return PayloadError(f"{self._what} is malformed: {name} is {str(repr(value))[:40]}, not {wanted}")
