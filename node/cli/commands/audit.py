"""``latent-pacs audit``: runs a fidelity audit, and shows the reports of audits and validations."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from node.cli.commands.jobs import exit_code, run_in_this_process
from node.cli.console import Console
from node.cli.exit_codes import DONE, FAILED, UNFINISHED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, LimitOption, UtcOption, archive, print_json, say
from node.cli.times import time_json, time_text
from node.config import load, parse_sample

if TYPE_CHECKING:
    from node.reports.runs import Reports
    from storage.index.report_rows import StoredReport

audits = typer.Typer(
    help="Run the fidelity audit, and show the reports of audits and validations.", no_args_is_help=True
)


KindOption = Annotated[Literal["audit", "validation"] | None, typer.Option("--kind", help="Only reports of this kind.")]


@audits.command()
def run(
    sample: Annotated[
        str,
        typer.Option(
            "--sample", help="A number of images, or a share such as 5%, instead of audit.sample.", metavar="N"
        ),
    ] = "",
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Reconstruct a random sample of images, compare them with what was verified, and withdraw those that differ.

    It writes a report. The node may be running. Exit code 1: an alarm was raised, or the audit failed; 4: it was
    cancelled or interrupted.
    """
    from node.app import make_audit
    from node.jobs.audit_job import AuditPlan

    if sample:
        try:
            parse_sample(sample)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--sample") from error
    with archive(config) as services:
        settings = services.settings
        plan = AuditPlan(sample or settings.audit.sample, resume=not sample)
        done = run_in_this_process(make_audit(services, plan=plan), services)
        if not done.report.get("finished"):
            unfinished = {**done.report, "state": done.state.value, "error": done.error}
            print_json(unfinished) if as_json else Console().print(f"not finished: {done.error or done.state}")
            raise typer.Exit(exit_code(done) or UNFINISHED)
        _print(services.reports.find(done.report["report"]), services.reports, utc=utc, as_json=as_json)
    raise typer.Exit(DONE if done.report["clean"] else FAILED)


@audits.command("list")
def list_reports(
    kind: KindOption = None,
    limit: LimitOption = 50,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List the reports of audits and validations, newest first."""
    from node.app import open_reports

    with open_reports(load(config)) as reports:
        found = reports.rows.newest([kind] if kind else (), limit=limit)
    table = Table("number", "kind", "finished", "alarm", "verdict")
    for one in found:
        finished = time_text(one.finished_at, utc=utc)
        table.add_row(str(one.key), one.kind, finished, "yes" if one.alarm else "", one.verdict)
    say([_as_json(one) for one in found], table, as_json=as_json)


@audits.command("show")
def show_report(
    number: Annotated[int | None, typer.Argument(help="The number of the report; without it, the latest.")] = None,
    kind: KindOption = None,
    opened: Annotated[bool, typer.Option("--open", help="Open the page of the report in the browser.")] = False,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show a report of an audit or a validation: its verdict, its figures, and the path of its page."""
    from node.app import open_reports

    with open_reports(load(config)) as reports:
        found = reports.find(number, *([kind] if kind else []))
        _print(found, reports, utc=utc, as_json=as_json)
        if opened and not webbrowser.open(reports.html(found).absolute().as_uri()):
            Console(stderr=True).print("no browser could be started; open the page yourself")


def _print(report: StoredReport, reports: Reports, *, utc: bool, as_json: bool) -> None:
    page, data = reports.html(report), reports.json(report)
    if as_json:
        print_json(_as_json(report) | {"html": str(page), "data": str(data)})
        return
    console = Console(soft_wrap=True)
    console.print(f"{report.kind} {report.key}, {time_text(report.finished_at, utc=utc)}")
    console.print(report.verdict, style="bold red" if report.alarm else "bold green")
    for name, value in report.summary.items():
        if not isinstance(value, (list, dict)):
            console.print(f"  {name}: {value}")
    console.print(f"{page}")


def _as_json(report: StoredReport) -> dict[str, Any]:
    return {**asdict(report), **{name: time_json(getattr(report, name)) for name in ("started_at", "finished_at")}}
