"""Proves that report pages need no other file, are written whole, and that their rows survive a lost index."""

from __future__ import annotations

import errno
import json
import math
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from node.cli.main import app
from node.reports.charts import ALARM, draw
from node.reports.page import (
    Banner,
    Chart,
    KeyFigure,
    KeyFigures,
    Mark,
    PagePicture,
    PageSection,
    Paragraph,
    Pictures,
    Table,
    page,
)
from node.reports.runs import Reports, RunOutcome
from storage.errors import StoreFull, UnknownReport
from storage.index import Index
from storage.index.report_rows import NewReport, ReportRows
from tests.support.chromium import open_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOSTILE = "<script>alert('&')</script>\"onload=x"


def paint(figure: Figure) -> None:
    axes = figure.subplots()
    axes.plot([1, 2, 3], [0.93, 0.95, 0.94], label=HOSTILE)
    axes.axhline(0.93, color=ALARM)
    axes.legend()


def whole_page(text: str = "Unit 1") -> str:
    grey = np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)
    colour = np.dstack([grey, grey, grey])
    sections = [
        PageSection(
            "Figures of " + text, [KeyFigures([KeyFigure("Images " + text, "12", text, "good")]), Paragraph(text)]
        ),
        PageSection(
            text,
            [
                Table(["stratum", "FSIM"], [[text, "0.95"], [Mark(text, "bad"), "0.91"]], text, "lr"),
                Chart(draw(paint, text), text),
                Pictures([PagePicture(grey, text), PagePicture(colour, text)], text),
            ],
        ),
    ]
    return page("Fidelity audit " + text, text, Banner("good", "Passed " + text, text), sections, text)


class Tags(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_a_page_asks_for_nothing() -> None:
    for tag, attributes in Tags(whole_page()).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), (tag, value)


def test_all_text_is_escaped() -> None:
    found = Tags(whole_page(HOSTILE))
    assert not [tag for tag, _ in found.tags if tag == "script"]
    assert not [attributes for _, attributes in found.tags if "onload" in attributes]
    # title, h1, banner twice, subtitle, headings, card, cells, captions, the legend of the figure, the footer
    assert found.text.count(HOSTILE) >= 14


def test_figures_take_the_ink_of_the_page() -> None:
    svg = draw(paint, "trend")
    assert svg.startswith('<svg role="img" aria-label="trend"')
    assert "currentColor" in svg
    assert ALARM in svg
    assert "#0102" not in svg
    assert svg.rstrip().endswith("</svg>")


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="another length"):
        Table(["one", "two"], [["only one"]])
    with pytest.raises(ValueError, match="another length"):
        Table(["one", "two"], [["one", "two"]], align="l")


@pytest.mark.slow
def test_chromium_shows_the_page_and_has_nothing_to_say(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(whole_page(), encoding="utf-8")
    seen = open_page(file, tmp_path)
    assert seen.requests == []
    assert seen.console == []
    assert "Passed Unit 1" in seen.dom


@pytest.mark.slow
def test_chromium_would_have_told_of_a_request(tmp_path: Path) -> None:
    """The page has a picture from elsewhere. Its own policy forbids the request, and Chromium reports that."""
    file = tmp_path / "page.html"
    file.write_text(whole_page().replace("<main>", '<main><img src="http://example.invalid/x.png">'), encoding="utf-8")
    seen = open_page(file, tmp_path)
    assert any("Content Security Policy" in line for line in seen.console)
    file.write_text('<!doctype html><img src="http://example.invalid/x.png">', encoding="utf-8")
    assert open_page(file, tmp_path).requests == ["http://example.invalid/x.png"]


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(f"sqlite:///{tmp_path / 'index.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def reports(tmp_path: Path, index: Index) -> Reports:
    return Reports(ReportRows(index.engine), tmp_path / "reports")


BEGAN = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)


def outcome(kind: str = "audit", minutes: int = 1, **changes: Any) -> RunOutcome:
    values: dict[str, Any] = {
        "kind": kind,
        "started": BEGAN,
        "finished": BEGAN + timedelta(minutes=minutes),
        "verdict": "12 of 12 images as verified",
        "alarm": False,
        "summary": {"images": 12, "psnr_db": math.inf},
        "details": {"images": [{"sop_instance_uid": "1.2.3", "psnr_db": np.float64(41.5)}]},
    }
    return RunOutcome(**{**values, **changes})


def test_a_run_leaves_a_row_and_two_files(reports: Reports) -> None:
    kept = reports.publish(outcome(), whole_page())
    assert kept.name == "audit-20260301T023100Z"
    assert reports.html(kept).read_text(encoding="utf-8") == whole_page()
    data = json.loads(reports.json(kept).read_text(encoding="utf-8"))
    assert data["verdict"] == "12 of 12 images as verified"
    assert data["summary"] == {"images": 12, "psnr_db": None}
    assert data["details"]["images"][0]["psnr_db"] == 41.5
    assert reports.find() == kept
    assert reports.find(kept.key) == kept
    assert {file.suffix for file in reports.folder.iterdir()} == {".json", ".html"}


def test_the_latest_of_a_kind(reports: Reports) -> None:
    first = reports.publish(outcome("audit", 1), whole_page())
    second = reports.publish(outcome("validation", 2, alarm=True), whole_page())
    again = reports.publish(outcome("validation", 2), whole_page())
    assert again.name == second.name + "-2"
    assert reports.find() == again
    assert reports.find(None, "audit") == first
    assert reports.rows.newest(limit=9) == [again, second, first]
    assert reports.rows.alarms() == {"audit": 0, "validation": 1}
    reports.publish(outcome("audit", 5000), whole_page())  # by a clock that was ahead
    today = reports.publish(outcome("audit", 3), whole_page())
    assert reports.find(None, "audit") == today
    with pytest.raises(UnknownReport, match="report 99 does not exist"):
        reports.find(99)


def test_the_summaries_of_years_are_not_in_memory_at_once(reports: Reports) -> None:
    summary = {"strata": {f"device: {number}": {"mean": float(number)} for number in range(3000)}}
    for number in range(20):
        times = {"started_at": float(-number), "finished_at": float(-number)}
        for kind in ("audit", "validation"):
            row = NewReport(kind, f"{kind}-{number}", **times, verdict="", alarm=False, summary=summary)
            reports.rows.add(row)
    tracemalloc.start()
    read = [at for at, one in reports.rows.summaries("audit") if one == summary]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == [-number for number in range(20)]
    assert peak < 6_000_000, "all take 18 MB"


def test_no_file_is_left_half_written(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="JSON"):
        reports.publish(outcome(summary={"images": object()}), whole_page())
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StoreFull):
        reports.publish(outcome(), whole_page())
    assert not list(reports.folder.iterdir())
    with pytest.raises(UnknownReport, match="no report exists yet; run `latent-pacs audit run`"):
        reports.find()
    with pytest.raises(UnknownReport, match="no report of kind validation exists yet; run `latent-pacs validate run`"):
        reports.find(None, "validation")


def test_a_new_index_takes_the_reports_back(reports: Reports, tmp_path: Path) -> None:
    kept = [reports.publish(outcome("audit", minutes), whole_page()) for minutes in (1, 2)]
    (reports.folder / "notes.json").write_text("{}", encoding="utf-8")
    fresh = Index.open(f"sqlite:///{tmp_path / 'fresh.sqlite'}")
    again = Reports(ReportRows(fresh.engine), reports.folder)
    assert again.recover() == 2
    assert again.rows.newest(limit=9) == kept[::-1]
    assert again.recover() == 0
    fresh.close()


def test_the_command_shows_the_latest_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(f"storage: {{root: {root}}}\n", encoding="utf-8")
    index = Index.open(f"sqlite:///{root / 'index.sqlite'}")
    reports = Reports(ReportRows(index.engine), root / "reports")
    ask = lambda *more: CliRunner().invoke(app, ["audit", *more, "--config", str(config)])  # noqa: E731
    assert isinstance(ask("show").exception, UnknownReport)
    kept = reports.publish(outcome(), whole_page())
    shown = json.loads(ask("show", "--json").output)
    assert (shown["key"], shown["verdict"], shown["html"]) == (kept.key, kept.verdict, str(reports.html(kept)))
    assert "12 of 12 images as verified" in ask("show").output
    assert [one["kind"] for one in json.loads(ask("list", "--json").output)] == ["audit"]
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert ask("show", str(kept.key), "--open").exit_code == 0
    assert opened == [reports.html(kept).as_uri()]
    index.close()
