"""``latent-pacs purge``, ``restore``, ``hold`` and ``label``: what happens to originals, and what keeps them."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from storage.errors import ConfigError, LatentPacsError
from storage.records import Hold, HoldKind

holds = typer.Typer(help="Legal holds: no original under one is removed.", no_args_is_help=True)
labels = typer.Typer(help="Labels of studies, for holds by label.", no_args_is_help=True)

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.", metavar="TEXT")]
StudyOption = Annotated[str, typer.Option("--study", help="A Study Instance UID.", metavar="UID")]


class BadRequest(LatentPacsError):
    """The options do not say what to do."""


def current_user() -> str:
    """Who is at the command line, as the audit trail names them."""
    return f"user:{getpass.getuser()}"


def stated(reason: str) -> str:
    """A reason with words in it. Raises BadRequest."""
    if not reason.strip():
        raise BadRequest("say why: --reason TEXT")
    return reason


def run_purge(config: Path, *, dry_run: bool, as_json: bool) -> bool:
    """Purge, or say what a purge would do; False where some originals were kept for want of proof."""
    from node.app import services
    from node.config import load
    from node.reports.formatting import size_text

    with services(load(config)) as at_hand, _progress("checking", as_json) as report:
        done = at_hand.retention.purge(dry_run=dry_run, progress=report, who=current_user())
    if as_json:
        print_json({**asdict(done), "bytes_freed": done.bytes_freed})
        return not done.kept
    console = Console(soft_wrap=True)
    verb = "would be removed" if dry_run else "removed"
    for step in done.purged:
        console.print(f"{step.sop_instance_uid}: {verb} ({step.form}, {step.tier}, {size_text(step.bytes)})")
    for step in done.kept:
        console.print(f"{step.sop_instance_uid}: kept, {step.kept_because}")
    if done.keep == "forever":
        console.print("originals.keep is forever: nothing is removed")
    if done.reserved:
        size = size_text(done.reserved_bytes)
        console.print(f"{done.reserved} more stay as the audit reserve (audit.reserve), {size}")
    console.print(f"{len(done.purged)} originals {verb}, {size_text(done.bytes_freed)}; {len(done.kept)} kept")
    return not done.kept


def run_restore(uid: str, config: Path, *, level: str, as_json: bool) -> bool:
    """Bring originals back to the hot store; False where one could not be."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand, _progress("restoring", as_json) as report:
        steps = at_hand.retention.restore(level, uid, who=current_user(), progress=report)
    if not steps:
        raise BadRequest(f"no {level} {uid} is held here; name another level with --level")
    if as_json:
        print_json([asdict(step) for step in steps])
    else:
        for step in steps:
            why = f": {step.detail}" if step.detail else ""
            Console(soft_wrap=True).print(f"{step.sop_instance_uid}: {step.outcome}{why}")
    return all(step.outcome in ("restored", "hot") for step in steps)


@holds.command("add")
def add_hold(
    reason: ReasonOption,
    study: StudyOption = "",
    patient: Annotated[str, typer.Option("--patient", help="A Patient ID.", metavar="ID")] = "",
    label: Annotated[str, typer.Option("--label", help="Every study with this label.", metavar="NAME")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Place a hold on a study, a patient, or every study of a label, also of images still to come."""
    from node.app import services
    from node.config import load

    named = [(kind, value) for kind, value in zip(HoldKind, (study, patient, label), strict=True) if value]
    if len(named) != 1 or not reason.strip():
        raise BadRequest("name one of --study, --patient and --label, and a --reason")
    with services(load(config)) as at_hand:
        placed = at_hand.index.holds.add(*named[0], reason=reason, who=current_user())
        at_hand.trail.write_down()
        covered = at_hand.index.holds.covered(placed)
    if as_json:
        print_json({**_plain(placed), "originals": covered})
    else:
        Console().print(f"hold {placed.key}: {placed.kind} {placed.value}, {covered} originals today")


@holds.command("list")
def list_holds(
    released: Annotated[bool, typer.Option("--all", help="Those that were released, too.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """The holds in force, and how many originals each covers today."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        found = [(one, at_hand.index.holds.covered(one)) for one in at_hand.index.holds.all(released=released)]
    if as_json:
        print_json([{**_plain(one), "originals": covered} for one, covered in found])
        return
    table = Table("hold", "on", "value", "originals", "reason", "placed", "released")
    for one, covered in found:
        placed = f"{one.placed_at:%Y-%m-%d} {one.placed_by}"
        gone = f"{one.released_at:%Y-%m-%d} {one.released_by}: {one.release_reason}" if one.released_at else ""
        table.add_row(str(one.key), one.kind, one.value, str(covered), one.reason, placed, gone)
    Console().print(table)


@holds.command("release")
def release_hold(
    number: Annotated[int, typer.Argument(help="The hold's number, as `hold list` shows it.")],
    reason: ReasonOption,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Release a hold; what it alone kept may go with the next purge."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        hold = at_hand.index.holds.release(number, reason=reason, who=current_user())
        at_hand.trail.write_down()
    if hold is None:
        raise BadRequest(f"no hold {number} is in force; `latent-pacs hold list` shows those that are")
    if as_json:
        print_json(_plain(hold))
    else:
        Console().print(f"hold {hold.key} on {hold.kind} {hold.value} is released")


@labels.command("add")
def add_label(
    name: Annotated[str, typer.Argument(help="The label.")],
    study: StudyOption,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Label a study."""
    _label(config, name, study, as_json, put=True)


@labels.command("remove")
def remove_label(
    name: Annotated[str, typer.Argument(help="The label.")],
    study: StudyOption,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take a label off a study; holds on the label keep that study's originals no more."""
    _label(config, name, study, as_json, put=False)


@labels.command("list")
def list_labels(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Every label and the studies that carry it."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        found = at_hand.index.holds.labels()
    if as_json:
        print_json([{"label": name, "study": study} for name, study in found])
        return
    table = Table("label", "study")
    for name, study in found:
        table.add_row(name, study)
    Console().print(table)


def _label(config: Path, name: str, study: str, as_json: bool, *, put: bool) -> None:
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        if put and not at_hand.index.originals.below("study", study):
            raise ConfigError(f"study {study} is not held here; nothing was labelled")
        change = at_hand.index.holds.put_label if put else at_hand.index.holds.take_label
        changed = change(name, study, who=current_user())
        at_hand.trail.write_down()
    if as_json:
        print_json({"label": name, "study": study, "changed": changed})
    else:
        Console().print(("done" if changed else "nothing to change") + f": {study} {name}")


def _plain(hold: Hold) -> dict[str, Any]:
    plain = asdict(hold)
    for name in ("placed_at", "released_at"):
        plain[name] = plain[name].isoformat(timespec="seconds") if plain[name] else None
    return plain


@contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Any]:
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
