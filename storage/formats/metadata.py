"""Reads the JSON metadata of objects: its members must have the names, types and ranges of a dataclass's fields."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from storage.errors import PayloadError

Side = Annotated[int, Field(ge=1, le=65535)]
"""Rows or columns, which have VR US."""
Level = Annotated[int, Field(ge=0, le=65535)]
"""A stored value of a pixel."""


class Metadata:
    """The metadata of one kind of object.

    ``what``: its name in error messages. ``kind``: the dataclass. ``sections``: its fields that are not members of the
    metadata. ``optional``: members that may be missing. ``more``: names of further members, which are texts.
    """

    def __init__(
        self,
        what: str,
        kind: type[Any],
        *,
        sections: Collection[str] = (),
        optional: Collection[str] = (),
        more: Collection[str] = (),
    ) -> None:
        hints = get_type_hints(kind, include_extras=True)
        members: dict[str, Any] = {
            one.name: (hints[one.name], one.default if one.name in optional else ...)
            for one in fields(kind)
            if one.name not in sections
        } | dict.fromkeys(more, (str, ...))
        strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
        self._what, self._model = what, create_model(kind.__name__, __config__=strict, **members)

    def read(self, data: bytes) -> dict[str, Any]:
        """The members by name. Raises PayloadError."""
        try:
            return dict(self._model.model_validate_json(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "its metadata"
            raise PayloadError(f"{self._what} is malformed: {where} is invalid: {first['msg'][:200]}") from error
