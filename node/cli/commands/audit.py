"""``latent-pacs audit``: run a fidelity audit; what audits and validations found."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from node.cli.commands.jobs import run_in_this_process
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.config import load, parse_sample

if TYPE_CHECKING:
    from node.reports.runs import Reports
    from storage.index.report_rows import StoredReport

audits = typer.Typer(help="The fidelity audit, and the reports of all audits and validations.", no_args_is_help=True)

CLEAN, ALARM, UNFINISHED = 0, 1, 3
"""Exit codes of ``run``."""


@audits.command()
def run(
    sample: Annotated[
        str,
        typer.Option("--sample", help="So many images, or a share such as 5%, instead of audit.sample.", metavar="N"),
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a random sample of reconstructions anew, compare them with what was verified, withdraw what fails.

    Works while the node runs. Leaves a report. Exit code 0: all as verified; 1: alarm; 3: ended before it was through.
    """
    from node.app import make_audit, services
    from node.jobs.audit_job import AuditPlan

    settings = load(config)
    if sample:
        try:
            parse_sample(sample)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--sample") from error
    plan = AuditPlan(sample or settings.audit.sample, resume=not sample)
    with services(settings) as archive:
        done = run_in_this_process(make_audit(settings, archive, plan=plan), archive.index, settings)
        if not done.report.get("finished"):
            told = {**done.report, "state": done.state.value, "error": done.error}
            print_json(told) if as_json else Console().print(f"not finished: {done.error or done.state}")
            raise typer.Exit(UNFINISHED)
        _print(archive.reports.find(done.report["report"]), archive.reports, as_json=as_json)
    raise typer.Exit(CLEAN if done.report["clean"] else ALARM)


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
            Console(stderr=True).print("no browser could be started; open the page yourself")


def _print(report: StoredReport, reports: Reports, *, as_json: bool) -> None:
    page, data = reports.html(report), reports.json(report)
    if as_json:
        print_json(_as_json(report) | {"html": str(page), "data": str(data)})
        return
    console = Console(soft_wrap=True)
    tone = "bold red" if report.alarm else "bold green"
    console.print(f"{report.kind} {report.key}, {_clock(report.finished_at)}")
    console.print(report.verdict, style=tone)
    for name, value in report.summary.items():
        if not isinstance(value, (list, dict)):
            console.print(f"  {name}: {value}")
    console.print(f"{page}")


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
