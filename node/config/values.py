"""How single values of config.yaml are written: sizes, times, schedules, names; and the words that some keys take."""

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

from pydantic import AfterValidator, BeforeValidator, Field

from storage.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def secret(key: str, value: str) -> str:
    """A value that may be kept elsewhere: ``env:NAME`` or ``file:PATH``. Raises ConfigError, which does not show it."""
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


def _bytes(value: object) -> object:
    """``2GB`` and the like as a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", value.upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size; write a number with B, KB, MB, GB or TB")
    return int(float(match[1]) * _UNITS[match[2]])


_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 86400.0
"""In seconds."""


def _seconds(value: object) -> object:
    """``30d`` and the like as a number of seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", value)
    if match is None:
        raise ValueError(f"{value!r} is no time span; write a number with s, m, h or d")
    return float(match[1]) * _DURATIONS[match[2]]


@dataclass(frozen=True)
class When:
    """When a job runs: at a time of day, on some or all days of the week, or every so many seconds."""

    days: tuple[str, ...] = ()
    hour: int = 0
    minute: int = 0
    every: float = 0.0

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
    """``daily 02:30``, ``mon,thu 02:30``, ``every 6h``. Raises ValueError."""
    word, _, rest = text.strip().lower().partition(" ")
    if word == "every":
        seconds = _seconds(rest)
        if not isinstance(seconds, float) or seconds < 60:
            raise ValueError(f"{text!r}: the shortest interval is 1m")
        return When(every=seconds)
    days = () if word == "daily" else tuple(word.split(","))
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", rest.strip())
    if match is None or not set(days) <= set(_DAYS):
        raise ValueError(f"{text!r} is no schedule; write daily 02:30, or mon,thu 02:30, or every 6h")
    return When(days, int(match[1]), int(match[2]))


def _schedule(value: str) -> str:
    parse_when(value)
    return value


def _ae_title(value: str) -> str:
    value = value.strip(" ")
    if not 1 <= len(value) <= 16 or "\\" in value or not value.isascii() or not value.isprintable():
        raise ValueError(f"{value!r} is no AE title: 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2)")
    return value


def _network(value: object) -> object:
    """An address or network of IPv4 or IPv6; bits beyond the mask are an error, since they hide a slip."""
    try:
        return ipaddress.ip_network(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{value!r} is no network, write 10.1.2.0/24 or 10.1.2.3: {error}") from error


def _uid(value: str) -> str:
    if len(value) > 64 or not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", value):
        raise ValueError(f"{value!r} is no UID (PS3.5 9.1)")
    return value


def _zone_name(value: str) -> str:
    try:
        return value and ZoneInfo(value).key
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{value!r} is no time zone; write Europe/Berlin for instance") from error


Uid = Annotated[str, AfterValidator(_uid)]


def _share(value: object) -> float:
    """``1%`` and the like as a share of one; a number from 0 to 1 is one already."""
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(value))
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{value!r} is no share; write 1% for instance")
    return float(match[1]) / 100


def parse_sample(text: object) -> float | int:
    """``5%`` of all images as a float, ``100`` images as an int. Raises ValueError."""
    value = str(text).strip()
    if value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    share = _share(value) if value.endswith("%") else 0.0
    if not share:
        raise ValueError(f"{text!r} is no sample; write a number of images, such as 100, or a share, such as 5%")
    return share


def _sample(value: object) -> str:
    parse_sample(value)
    return str(value)


def _age(value: object) -> object:
    """``forever`` as None, ``30d`` and the like as a span of time."""
    if value is None or isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([hdwy])\s*", str(value).lower())
    if str(value).strip().lower() == "forever":
        return None
    if match is None:
        raise ValueError(f"{value!r} is no time to keep; write forever, or a number with h, d, w or y, such as 30d")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]])


def _local_folder(value: object) -> object:
    """A folder, as a path or a file:// URL; empty is none."""
    if value is None or value == "":
        return None
    text = str(value)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    parsed = urlparse(text)
    if scheme != "file" or parsed.netloc not in ("", "localhost") or not rest:
        raise ValueError(f"{text!r} is not supported; give a folder, or its file:///absolute/path URL")
    return Path(unquote(parsed.path))


_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}

Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Span = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
ScheduleText = Annotated[str, AfterValidator(_schedule)]
Share = Annotated[float, BeforeValidator(_share)]
SampleText = Annotated[str, BeforeValidator(_sample)]
Keep = Annotated[timedelta | None, BeforeValidator(_age)]
LocalFolder = Annotated[Path | None, BeforeValidator(_local_folder)]
Port = Annotated[int, Field(ge=0, le=65535)]
ZoneName = Annotated[str, AfterValidator(_zone_name)]


class RenditionPolicy(StrEnum):
    """Which encoding of a reconstructable image a peer gets (DICOM_RULES, Renditions)."""

    ORIGINAL = "original"
    """Bit-exact while held, else that sub-operation fails."""
    RECONSTRUCTED = "reconstructed"
    """The reconstruction; images without one are sent bit-exact."""
    AUTO = "auto"
    """Bit-exact while held, else the reconstruction."""


class Texture(StrEnum):
    """Whether reconstructions are served with the noise that the base lacks."""

    DRAWN = "drawn"
    """With noise drawn: what it looks like is the original's, what it is is synthetic."""
    NONE = "none"
    """The structure alone, for those who measure or compute on pixels."""


class Profile(StrEnum):
    """How the archivist treats the gate."""

    BALANCED = "balanced"
    """Gate with the floor of the design; what does not pass stays exact."""
    STRICT = "strict"
    """A gate that lets less through, for more bytes."""
    US_MQSA = "us-mqsa"
    """The gate of ``strict``; originals are never purged (US rules for mammography)."""
    PAPER = "paper"
    """arXiv 2310.05299 as published: measured, not gated; originals of such images are never purged."""


Verb = Literal["echo", "store", "find", "move", "get", "commit"]


WireSyntax = Literal["original", "htj2k", "jpegls", "jpeg2000", "jpegxl", "rle", "explicit", "implicit"]


def retention_text(keep: timedelta | None) -> str:
    """``originals.retain_for`` as config.yaml writes it."""
    if keep is None:
        return "forever"
    hours = int(keep.total_seconds() // 3600)
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"
