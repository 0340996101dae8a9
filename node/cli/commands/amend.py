"""``latent-pacs amend``: corrects attributes of patients and studies; no stored object is changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.exit_codes import UsageError
from node.cli.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    DryRunOption,
    JsonOption,
    ReasonOption,
    UtcOption,
    archive,
    current_user,
    say,
)
from node.cli.times import time_text
from storage.dicom.header_amendments import Amendment, AmendmentKind, changes_of, keyword_of, patient_identity
from storage.dicom.levels import text_of
from storage.errors import UnknownUid
from storage.index.amendments import MadeAmendment
from storage.printable import counted

amends = typer.Typer(
    help="Correct attributes of patients and studies. Every correction can be undone.",
    no_args_is_help=True,
)

SetOption = Annotated[
    list[str],
    typer.Option("--set", help="An attribute and its new value; repeatable.", metavar="KEYWORD=VALUE"),
]
NumberArgument = Annotated[
    int, typer.Argument(help="The number of the amendment, from `amend list`.", metavar="NUMBER")
]


@amends.command("patient")
def amend_patient(
    patient: Annotated[str, typer.Argument(help="The current Patient ID.", metavar="PATIENT")],
    values: SetOption,
    reason: ReasonOption,
    issuer: Annotated[str, typer.Option("--issuer", help="The Issuer of Patient ID.", metavar="TEXT")] = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Correct a patient in all studies, future ones included. A new PatientID renames the patient, or merges two."""
    _make(config, AmendmentKind.PATIENT, patient_identity(patient, issuer), values, reason, dry_run, as_json)


@amends.command("study")
def amend_study(
    study: Annotated[str, typer.Argument(help="The Study Instance UID.", metavar="STUDY")],
    values: SetOption,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Correct a study, for instance its AccessionNumber. A new PatientID moves the study to that patient."""
    _make(config, AmendmentKind.STUDY, study, values, reason, dry_run, as_json)


@amends.command("undo")
def undo_amendment(
    number: NumberArgument,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Undo an amendment. Later amendments stay in force. `amend list` shows the undoing as an amendment too."""
    with archive(config) as services:
        made = services.index.amendments.undo(number, reason=reason, who=current_user(), dry_run=dry_run)
    _print(made, dry_run, as_json)


@amends.command("list")
def list_amendments(utc: UtcOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List all amendments, oldest first, with those that undo another one."""
    with archive(config) as services:
        found = services.index.amendments.all()
    table = Table("number", "of", "target", "new values", "reason", "made", "by", "in force")
    for one in found:
        what = f"undoes {one.undoes}" if one.undoes is not None else _text(one)
        in_force = "undone" if one.undone else "" if one.undoes is not None else "yes"
        made = time_text(one.made_at, utc=utc), one.made_by
        table.add_row(str(one.number), one.kind, one.shown_target, what, one.reason, *made, in_force)
    say([_as_json(one) for one in found], table, as_json=as_json)


@amends.command("show")
def show_amendment(
    number: NumberArgument,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show one amendment, and the studies that it applies to today."""
    with archive(config) as services:
        found = next((one for one in services.index.amendments.all() if one.number == number), None)
        studies = services.index.amendments.studies(number)
    if found is None:
        raise UnknownUid(f"there is no amendment {number}; `latent-pacs amend list` lists all")
    what = f"undoes amendment {found.undoes}" if found.undoes is not None else _text(found)
    lines = [
        f"amendment {found.number} of {found.kind} {found.shown_target}: {what}",
        f"made {time_text(found.made_at, utc=utc)} by {found.made_by}: {found.reason}",
        *(["undone since"] if found.undone else ["in force"] if found.undoes is None else []),
        *(f"applies to study {uid}" for uid in studies),
    ]
    say({**_as_json(found), "studies": studies}, *lines, as_json=as_json)


def _make(
    config: Path, kind: AmendmentKind, target: str, values: list[str], reason: str, dry_run: bool, as_json: bool
) -> None:
    named: dict[str, str] = {}
    for each in values:
        keyword, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"--set {each} has no =; write KEYWORD=VALUE, such as PatientID=P0002")
        named[keyword.strip()] = value
    with archive(config) as services:
        made = services.index.amendments.make(
            kind, target, changes_of(named), reason=reason, who=current_user(), dry_run=dry_run
        )
    _print(made, dry_run, as_json)


def _print(made: MadeAmendment, dry_run: bool, as_json: bool) -> None:
    lines = []
    for study in made.studies:
        lines.append(f"study {study.study_instance_uid}, {counted(study.instances, 'instance')}:")
        lines += [f"  {keyword}: '{before}' -> '{study.after[keyword]}'" for keyword, before in study.before.items()]
    lines.append("dry run: nothing was changed" if dry_run else f"amendment {made.amendment.number} is in force")
    report = {**_as_json(made.amendment), "dry_run": dry_run, "studies": made.studies}
    say(report, *lines, as_json=as_json)


def _text(one: Amendment) -> str:
    return ", ".join(f"{keyword_of(tag)}={text_of(value)}" for tag, value in one.changes.items())


def _as_json(one: Amendment) -> dict[str, Any]:
    changes = {keyword_of(tag): text_of(value) for tag, value in one.changes.items()}
    return {**asdict(one), "target": one.shown_target, "changes": changes}
