"""Reads the metadata of a payload, and checks the type and range of each value. Raises only PayloadError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from storage.errors import PayloadError

MAX_SIDE = 65535
"""Maximum rows and columns, which have VR US."""


class Fields:
    """The members of a JSON object. ``what``: its name in error messages."""

    def __init__(self, what: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise PayloadError(f"{what} is malformed: its metadata is not an object")
        self._what, self._values = what, values

    def only(self, *names: str) -> None:
        """Raises PayloadError if the object has other members."""
        others = sorted(set(map(str, self._values)) - set(names))
        if others:
            raise PayloadError(f"{self._what} is malformed: its member {others[0][:40]!r} is unknown")

    def integer(self, name: str, minimum: int, maximum: int, default: int | None = None) -> int:
        value: Any = self._of(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self._wrong(name, value, f"an integer from {minimum} to {maximum}")
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

    def text(self, name: str) -> str:
        value = self._of(name, None)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._of(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(value)

    def integers(self, name: str, minimum: int, maximum: int) -> tuple[int, ...]:
        value = self._of(name, None)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list of integers")
        return tuple(Fields(self._what, {name: item}).integer(name, minimum, maximum) for item in value)

    def members(self, name: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self._of(name, None)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def of(self, name: str) -> Fields:
        """The members of a nested object."""
        return Fields(f"{name} of {self._what}", self.members(name))

    def optional(self, name: str) -> bool:
        """Whether the member exists and is not null."""
        return self._values.get(name) is not None

    def _of(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None:
            raise PayloadError(f"{self._what} is malformed: it has no {name}")
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> PayloadError:
        return PayloadError(f"{self._what} is malformed: {name} is {str(repr(value))[:40]}, not {expected}")
