"""One self-contained HTML page, made of sections: nothing is fetched, all text is escaped, and it prints well.

A page's own Content-Security-Policy forbids every request, so that a report says the same wherever it is opened.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from node.reports.style import CSS

Tone = Literal["good", "warning", "bad", "neutral"]


class Part(Protocol):
    """Something that stands in a section."""

    def html(self) -> str:
        """The part, escaped."""


@dataclass(frozen=True)
class Banner:
    """The verdict, in colour and in words: ``title`` in a few, ``text`` in a sentence."""

    tone: Tone
    title: str
    text: str = ""

    def html(self) -> str:
        return (
            f'<div class="banner {self.tone}" role="status"><strong>{_(self.title)}</strong><p>{_(self.text)}</p></div>'
        )


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text; ``strong`` in bold."""

    text: str
    strong: bool = False

    def html(self) -> str:
        return f"<p><strong>{_(self.text)}</strong></p>" if self.strong else f"<p>{_(self.text)}</p>"


@dataclass(frozen=True)
class KeyFigure:
    """A number that the reader should take away: ``value`` large, ``label`` above it, ``note`` below."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True)
class KeyFigures:
    """Key figures side by side."""

    figures: Sequence[KeyFigure]

    def html(self) -> str:
        cards = (
            f'<div class="card {one.tone}"><dt>{_(one.label)}</dt><dd>{_(one.value)}</dd>'
            f"<small>{_(one.note)}</small></div>"
            for one in self.figures
        )
        return f'<dl class="cards">{"".join(cards)}</dl>'


@dataclass(frozen=True)
class Mark:
    """A cell that stands out."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Table:
    """A table. ``align``: a letter per column, l or r (numbers); empty: all l. ``html`` raises ValueError where a row
    has another length."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Mark]]
    caption: str = ""
    align: str = ""

    def html(self) -> str:
        sides = self.align or "l" * len(self.head)
        head = "".join(
            f'<th scope="col" class="{side}">{_(text)}</th>' for side, text in zip(sides, self.head, strict=True)
        )
        rows = "".join(
            "<tr>" + "".join(_cell(cell, side) for side, cell in zip(sides, row, strict=True)) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{_(self.caption)}</caption>" if self.caption else ""
        return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


@dataclass(frozen=True)
class Chart:
    """A figure: ``svg`` from ``node.reports.charts.draw``. ``caption`` says what is to be seen in it."""

    svg: str
    caption: str

    def html(self) -> str:
        return f'<figure class="chart">{self.svg}<figcaption>{_(self.caption)}</figcaption></figure>'


@dataclass(frozen=True)
class PagePicture:
    """``pixels``: uint8, (rows, columns) grey or (rows, columns, 3) RGB."""

    pixels: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: Sequence[PagePicture]
    caption: str = ""

    def html(self) -> str:
        figures = (
            f'<figure><img src="{_data_uri(one.pixels)}" alt="{_(one.caption)}">'
            f"<figcaption>{_(one.caption)}</figcaption></figure>"
            for one in self.pictures
        )
        caption = f"<p class=note>{_(self.caption)}</p>" if self.caption else ""
        return f'<div class="beside">{"".join(figures)}</div>{caption}'


@dataclass(frozen=True)
class PageSection:
    """A heading and what stands under it."""

    heading: str
    parts: Sequence[Part]

    def html(self) -> str:
        return f"<section><h2>{_(self.heading)}</h2>{''.join(part.html() for part in self.parts)}</section>"


def page(title: str, subtitle: str, verdict: Banner, sections: Sequence[PageSection], footer: str = "") -> str:
    """The whole page, as text to be written in UTF-8. No patient data belongs in any of it."""
    body = "".join(section.html() for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_(title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><h1>{_(title)}</h1><p class="subtitle">{_(subtitle)}</p></header>{verdict.html()}{body}'
        f"<footer>{_(footer)}</footer></main></body></html>\n"
    )


def _cell(cell: str | Mark, side: str) -> str:
    if isinstance(cell, Mark):
        return f'<td class="{side}"><span class="mark {cell.tone}">{_(cell.text)}</span></td>'
    return f'<td class="{side}">{_(cell)}</td>'


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _(text: str) -> str:
    return escape(text, quote=True)
