"""Types of single config.yaml values: sizes, durations, schedules, names and paths, and the enumerations."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlparse
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo

from storage.errors import ConfigError

DAY = 86400.0
"""Seconds in a day."""
_BYTES_OF = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HOURS_OF = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}
_LONGEST_RETENTION = 1000 * 365 * 24
"""Longest retention, in hours: the date so long ago must be after the year 1. Chosen, not measured."""
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FOLDER = "folder"
"""Key of the validation context for the folder of config.yaml, from which relative paths in the file start."""


def secret(key: str, value: str) -> str:
    """Resolve a value written as ``env:NAME`` or ``file:PATH``. Raises ConfigError, which does not show the value."""
    where, _, name = value.partition(":")
    if where == "env":
        if name not in os.environ:
            raise ConfigError(f"{key}: environment variable {name} is not set")
        return os.environ[name].strip()
    if where == "file":
        try:
            return Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{key}: file {name} cannot be read: {error.strerror}") from error
    return value


def _size(value: object) -> object:
    """Parse a size such as ``2GB`` into bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([KMGT]?B?)\s*", value.upper())
    if match is None or match[2] not in _BYTES_OF:
        raise ValueError(f"{value!r} is not a size; write a number with B, KB, MB, GB or TB")
    return int(float(match[1]) * _BYTES_OF[match[2]])


def _seconds(value: object) -> object:
    """Parse a duration such as ``30d`` into seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([smhd])\s*", value)
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write a number with s, m, h or d")
    return float(match[1]) * _SECONDS_OF[match[2]]


@dataclass(frozen=True)
class When:
    """The schedule of a job: a local time of day on some or all days of the week, or an interval in seconds."""

    days: tuple[str, ...] = ()
    hour: int = 0
    minute: int = 0
    every: float = 0.0

    def on(self, weekday: int) -> bool:
        """Whether the job runs on that day of the week; 0 is Monday."""
        return not self.days or _DAYS[weekday] in self.days

    @property
    def gap(self) -> float:
        """The longest time between two runs, in seconds."""
        if self.every:
            return self.every
        places = sorted(_DAYS.index(day) for day in self.days or _DAYS)
        return DAY * max(
            (after - before) % 7 or 7 for before, after in zip(places, [*places[1:], places[0]], strict=True)
        )


def parse_when(text: str) -> When:
    """Parse ``daily 02:30``, ``mon,thu 02:30`` or ``every 6h``. Raises ValueError."""
    word, _, rest = text.strip().lower().partition(" ")
    if word == "every":
        seconds = _seconds(rest)
        if not isinstance(seconds, float) or not 60 <= seconds <= 1000 * DAY:
            raise ValueError(f"{text!r}: an interval is from 1m to 1000d")
        return When(every=seconds)
    days = () if word == "daily" else tuple(word.split(","))
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", rest.strip())
    if match is None or not set(days) <= set(_DAYS):
        raise ValueError(f"{text!r} is not a schedule; write daily 02:30, or mon,thu 02:30, or every 6h")
    return When(days, int(match[1]), int(match[2]))


def _schedule(value: str) -> str:
    parse_when(value)
    return value


def _ae_title(value: str) -> str:
    value = value.strip(" ")
    if not 1 <= len(value) <= 16 or "\\" in value or not value.isascii() or not value.isprintable():
        raise ValueError(
            f"{value!r} is not an AE title, which has 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2)"
        )
    return value


def _network(value: object) -> object:
    """Parse an IPv4 or IPv6 address or network. Host bits that are set beyond the mask are an error."""
    try:
        return ipaddress.ip_network(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{value!r} is not a network; write 10.1.2.0/24 or 10.1.2.3: {error}") from error


def _uid(value: str) -> str:
    if len(value) > 64 or not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", value):
        raise ValueError(f"{value!r} is not a UID (PS3.5 9.1)")
    return value


def _zone_name(value: str) -> str:
    try:
        return value and ZoneInfo(value).key
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{value!r} is not a time zone; write Europe/Berlin for instance") from error


def parse_share(value: object) -> float:
    """Parse ``5%`` into a fraction; a float from 0 to 1 is one already. Raises ValueError."""
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(value))
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{value!r} is not a share; write 1% for instance")
    return float(match[1]) / 100


def parse_sample(text: object) -> float | int:
    """Parse a sample: ``5%`` of all images as a float, ``100`` images as an int. Raises ValueError."""
    value = str(text).strip()
    if value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    share = parse_share(value) if value.endswith("%") else 0.0
    if not share:
        raise ValueError(f"{text!r} is not a sample; write a number of images, such as 100, or a share, such as 5%")
    return share


def _sample(value: object) -> str:
    parse_sample(value)
    return str(value)


def _retention(value: object) -> object:
    """Parse ``forever`` into None, and ``30d`` into a timedelta."""
    if value is None or isinstance(value, timedelta):
        return value
    if str(value).strip().lower() == "forever":
        return None
    match = re.fullmatch(r"\s*(\d+)\s*([hdwy])\s*", str(value).lower())
    if match is None:
        raise ValueError(
            f"{value!r} is not a retention time; write forever, or a number with h, d, w or y, such as 30d"
        )
    hours = int(match[1]) * _HOURS_OF[match[2]]
    if hours > _LONGEST_RETENTION:
        raise ValueError(f"{value!r} is more than 1000 years; write forever")
    return timedelta(hours=hours)


def retention_text(retention: timedelta | None) -> str:
    """``originals.retain_for`` as config.yaml writes it."""
    if retention is None:
        return "forever"
    hours = int(retention.total_seconds() // 3600)
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"


# --- paths ----------------------------------------------------------------------------------------------------


def _named(value: object) -> object:
    if value == "":
        raise ValueError("it is empty; name a folder")
    return value


def _local_folder(value: object) -> object:
    """Parse a folder, given as a path or a file:// URL, into a Path; an empty value is None."""
    if value is None or value == "":
        return None
    if not isinstance(value, (str, Path)):
        return value
    text = str(value)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    parsed = urlparse(text)
    if scheme != "file" or parsed.netloc not in ("", "localhost") or not rest:
        raise ValueError(f"{text!r} is not supported; give a folder, or its file:///absolute/path URL")
    return Path(unquote(parsed.path))


def _beside(info: ValidationInfo, path: str | Path) -> Path:
    """A path of config.yaml, relative to the folder of that file."""
    return Path((info.context or {}).get(FOLDER, "")) / path


def _path_beside(value: Path | None, info: ValidationInfo) -> Path | None:
    return None if value is None else _beside(info, value)


def _text_beside(value: str, info: ValidationInfo) -> str:
    return str(_beside(info, value)) if value else ""


def _text_beside_if_present(value: str, info: ValidationInfo) -> str:
    """A value that may be a path or another name: it is a path only if a file or folder of that name exists."""
    path = _beside(info, value)
    return str(path) if value and path.exists() else value


def _database_beside(value: str, info: ValidationInfo) -> str:
    """The value, with a relative file in ``sqlite:///FILE`` or ``file:FILE`` below the folder of config.yaml."""
    for scheme in ("sqlite:///", "file:"):
        rest = value.removeprefix(scheme)
        if rest != value and rest and not rest.startswith(":"):
            return f"{scheme}{_beside(info, rest)}"
    return value


Uid = Annotated[str, AfterValidator(_uid)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
ScheduleText = Annotated[str, AfterValidator(_schedule)]
Share = Annotated[float, BeforeValidator(parse_share)]
SampleText = Annotated[str, BeforeValidator(_sample)]
Retention = Annotated[timedelta | None, BeforeValidator(_retention), PlainSerializer(retention_text, when_used="json")]
Folder = Annotated[Path, BeforeValidator(_named), AfterValidator(_path_beside)]
LocalFolder = Annotated[Path | None, BeforeValidator(_local_folder), AfterValidator(_path_beside)]
FileText = Annotated[str, AfterValidator(_text_beside)]
FileOrName = Annotated[str, AfterValidator(_text_beside_if_present)]
DatabaseText = Annotated[str, AfterValidator(_database_beside)]
Port = Annotated[int, Field(ge=0, le=65535)]
ZoneName = Annotated[str, AfterValidator(_zone_name)]


class RenditionPolicy(StrEnum):
    """Which form of a reconstructable image a peer gets."""

    ORIGINAL = "original"
    """The original, bit-exact; the sub-operation fails if the original was purged."""
    RECONSTRUCTED = "reconstructed"
    """The reconstruction; images without one are sent bit-exact."""
    AUTO = "auto"
    """The original while it is held, otherwise the reconstruction."""


class Texture(StrEnum):
    """Whether reconstructions are served with drawn noise in place of the noise that the base lacks."""

    DRAWN = "drawn"
    """With drawn noise: the image looks like the original, and its noise is synthetic."""
    NONE = "none"
    """The structure alone, for peers that measure or compute on pixels."""


class Profile(StrEnum):
    """Which limits the gate applies, and whether originals may be purged."""

    BALANCED = "balanced"
    """The limits of gate.balanced; an image that does not pass stays exact."""
    STRICT = "strict"
    """The limits of gate.strict: fewer images pass, and payloads are larger."""
    US_MQSA = "us-mqsa"
    """The limits of gate.strict; originals are never purged (US rules for mammography)."""
    PAPER = "paper"
    """arXiv 2310.05299 as published: measured, not gated; originals of such images are never purged."""


Verb = Literal["echo", "store", "find", "move", "get", "commit"]


WireSyntax = Literal["original", "htj2k", "jpegls", "jpeg2000", "jpegxl", "rle", "explicit", "implicit"]
