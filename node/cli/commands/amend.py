"""``latent-pacs amend``: corrects what patients and studies are called, in versions; no object is touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.commands.purge import BadRequest, ReasonOption, current_user, stated
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from storage.dicom.header_amendments import Amendment, AmendmentKind, changes_of, keyword_of, patient_identity, text_of
from storage.errors import UnknownUid
from storage.index.amendments import Amendments, MadeAmendment

amends = typer.Typer(help="Corrections of patients and studies: versions of the header.", no_args_is_help=True)

SetOption = Annotated[
    list[str],
    typer.Option("--set", help="An attribute and its right value; may be repeated.", metavar="KEYWORD=VALUE"),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
NumberArgument = Annotated[int, typer.Argument(help="The amendment's number, as `amend list` shows it.")]


@amends.command("patient")
def amend_patient(
    patient: Annotated[str, typer.Argument(help="The Patient ID as it is now.")],
    values: SetOption,
    reason: ReasonOption,
    issuer: Annotated[str, typer.Option("--issuer", help="Its Issuer of Patient ID.", metavar="TEXT")] = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Correct a patient in all studies, also those to come; a new PatientID renames, or merges into a known patient."""
    _make(config, AmendmentKind.PATIENT, patient_identity(patient, issuer), values, reason, dry_run, as_json)


@amends.command("study")
def amend_study(
    study: Annotated[str, typer.Argument(help="The Study Instance UID.")],
    values: SetOption,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Correct a study, accession number for instance; a new PatientID moves it to that patient."""
    _make(config, AmendmentKind.STUDY, study, values, reason, dry_run, as_json)


@amends.command("undo")
def undo_amendment(
    number: NumberArgument,
    reason: ReasonOption,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take an amendment back, which is another version; later ones stay."""
    with _amendments(config) as amendments:
        made = amendments.undo(number, reason=stated(reason), who=current_user(), dry_run=dry_run)
    _print(made, dry_run, as_json)


@amends.command("list")
def list_amendments(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Every version there ever was, oldest first."""
    with _amendments(config) as amendments:
        found = amendments.all()
    if as_json:
        print_json([_plain(one) for one in found])
        return
    table = Table("number", "of", "target", "new values", "reason", "made", "in force")
    for one in found:
        what = f"undoes {one.undoes}" if one.undoes is not None else _text(one)
        made = f"{one.made_at:%Y-%m-%d %H:%M} {one.made_by}"
        standing = "undone" if one.undone else "" if one.undoes is not None else "yes"
        table.add_row(str(one.number), one.kind, one.shown_target, what, one.reason, made, standing)
    Console().print(table)


@amends.command("show")
def show_amendment(number: NumberArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """One amendment, and the studies that it applies to today."""
    with _amendments(config) as amendments:
        found = next((one for one in amendments.all() if one.number == number), None)
        studies = amendments.studies(number)
    if found is None:
        raise UnknownUid(f"there is no amendment {number}; `latent-pacs amend list` shows those that are")
    report = {**_plain(found), "studies": studies}
    if as_json:
        print_json(report)
        return
    for name, value in report.items():
        Console(soft_wrap=True).print(f"{name}: {value}")


@contextmanager
def _amendments(config: Path) -> Iterator[Amendments]:
    """The amendments of an archive; at the end the journal has what was done."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        yield at_hand.index.amendments
        at_hand.trail.write_down()


def _make(
    config: Path, kind: AmendmentKind, target: str, values: list[str], reason: str, dry_run: bool, as_json: bool
) -> None:
    named: dict[str, str] = {}
    for each in values:
        keyword, equals, value = each.partition("=")
        if not equals:
            raise BadRequest(f"--set {each}: write KEYWORD=VALUE, such as PatientID=P0002")
        named[keyword.strip()] = value
    with _amendments(config) as amendments:
        changes = changes_of(named)
        made = amendments.make(kind, target, changes, reason=stated(reason), who=current_user(), dry_run=dry_run)
    _print(made, dry_run, as_json)


def _print(made: MadeAmendment, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**_plain(made.amendment), "dry_run": dry_run, "studies": [asdict(one) for one in made.studies]})
        return
    console = Console(soft_wrap=True)
    for study in made.studies:
        console.print(f"study {study.study_instance_uid}, {study.instances} instances:")
        for keyword, before in study.before.items():
            console.print(f"  {keyword}: {before!r} -> {study.after[keyword]!r}")
    done = "would be made; nothing was changed" if dry_run else f"{made.amendment.number} is in force"
    console.print(f"amendment {done}")


def _text(one: Amendment) -> str:
    return ", ".join(f"{keyword_of(tag)}={text_of(value)}" for tag, value in one.changes.items())


def _plain(one: Amendment) -> dict[str, Any]:
    plain = {**asdict(one), "target": one.shown_target, "made_at": one.made_at.isoformat(timespec="seconds")}
    return {**plain, "changes": {keyword_of(tag): text_of(value) for tag, value in one.changes.items()}}
