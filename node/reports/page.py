"""Renders a self-contained HTML page from sections, by the Jinja2 templates in ``templates/``.

All text is escaped. The page's Content-Security-Policy forbids every request, so a report looks the same everywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

Tone = Literal["good", "warning", "bad", "neutral"]


@dataclass(frozen=True)
class Banner:
    """The verdict at the top of a page: ``title`` in a few words, ``text`` in a sentence, ``tone`` as a colour."""

    tone: Tone
    title: str
    text: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text, in bold if ``strong``."""

    text: str
    strong: bool = False
    template: ClassVar = "paragraph.html"


@dataclass(frozen=True)
class KeyFigure:
    """A number in large type: ``label`` above it, ``note`` below."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True)
class KeyFigures:
    figures: Sequence[KeyFigure]
    template: ClassVar = "key_figures.html"


@dataclass(frozen=True)
class Mark:
    """A highlighted table cell."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Table:
    """A table. ``align``: one letter per column, l or r (numbers); empty means all l.

    Raises ValueError if a row or ``align`` has another length than ``head``.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Mark]]
    caption: str = ""
    align: str = ""
    template: ClassVar = "table.html"

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in [self.sides, *self.rows]):
            raise ValueError(f"a row or the alignment of the table {list(self.head)} has another length than its head")

    @property
    def sides(self) -> str:
        """The alignment of every column."""
        return self.align or "l" * len(self.head)


@dataclass(frozen=True)
class Chart:
    """A figure: ``svg`` from ``node.reports.charts.draw``. ``caption`` describes its content."""

    svg: str
    caption: str
    template: ClassVar = "chart.html"


@dataclass(frozen=True)
class PagePicture:
    """A picture with its caption. ``pixels``: uint8, (rows, columns) for grey or (rows, columns, 3) for RGB."""

    pixels: NDArray[np.uint8]
    caption: str

    @property
    def data_uri(self) -> str:
        """The picture as PNG in a data URI."""
        out = io.BytesIO()
        Image.fromarray(self.pixels).save(out, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[PagePicture]
    caption: str = ""
    template: ClassVar = "pictures.html"


Part = Paragraph | KeyFigures | Table | Chart | Pictures


@dataclass(frozen=True)
class PageSection:
    """A heading and the parts below it."""

    heading: str
    parts: Sequence[Part]


def page(title: str, subtitle: str, banner: Banner, sections: Sequence[PageSection], footer: str = "") -> str:
    """The HTML of the page, to be written as UTF-8. Its texts must not contain patient data."""
    template = _environment().get_template("page.html")
    return template.render(title=title, subtitle=subtitle, banner=banner, sections=sections, footer=footer)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("node.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
