"""``latent-pacs audit``: what audits and validations found."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.config import load

if TYPE_CHECKING:
    from node.reports.runs import Reports
    from storage.index.reports import StoredReport

audits = typer.Typer(help="Audits and validations: their reports.", no_args_is_help=True)


@audits.command("report")
def show_report(
    key: Annotated[int | None, typer.Option("--id", help="The report of this number.", metavar="N")] = None,
    kind: Annotated[str, typer.Option("--kind", help="The latest one of this kind.", metavar="KIND")] = "",
    listed: Annotated[bool, typer.Option("--list", help="The newest 50 instead, one a line.")] = False,
    opened: Annotated[bool, typer.Option("--open", help="Open its page in the browser.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """The latest report, of an audit or a validation: its verdict, its figures, and where its page is."""
    from node.app import open_reports

    with open_reports(load(config)) as reports:
        if listed:
            _print_list(reports.rows.newest([kind] if kind else (), limit=50), as_json=as_json)
            return
        found = reports.find(key, *([kind] if kind else []))
        _print(found, reports, as_json=as_json)
        if opened and not webbrowser.open(reports.html(found).absolute().as_uri()):
            Console(stderr=True).print("no browser could be started; open the page yourself", highlight=False)


def _print(report: StoredReport, reports: Reports, *, as_json: bool) -> None:
    page, data = reports.html(report), reports.json(report)
    if as_json:
        print_json(_as_json(report) | {"html": str(page), "data": str(data)})
        return
    console = Console(highlight=False, soft_wrap=True)
    tone = "bold red" if report.alarm else "bold green"
    console.print(f"{report.kind} {report.key}, {_clock(report.finished_at)}")
    console.print(report.verdict, style=tone, markup=False)
    for name, value in report.summary.items():
        if not isinstance(value, (list, dict)):
            console.print(f"  {name}: {value}", markup=False)
    console.print(f"{page}", markup=False)


def _print_list(found: list[StoredReport], *, as_json: bool) -> None:
    if as_json:
        print_json([_as_json(one) for one in found])
        return
    table = Table("id", "kind", "when (UTC)", "alarm", "verdict")
    for one in found:
        table.add_row(str(one.key), one.kind, _clock(one.finished_at), "yes" if one.alarm else "", one.verdict)
    Console().print(table)


def _as_json(report: StoredReport) -> dict[str, Any]:
    times = {name: _iso(getattr(report, name)) for name in ("started_at", "finished_at")}
    return {**asdict(report), **times}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
