"""``latent-pacs study``: lists studies, and shows the images of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydicom import Dataset
from pydicom.multival import MultiValue
from rich.table import Table

from node.cli.commands.instance import listed_json, listed_table
from node.cli.console import Console
from node.cli.exit_codes import UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, LimitOption, UtcOption, open_index, say
from storage.index import Index
from storage.printable import counted

studies = typer.Typer(help="List studies, and show one. The output contains patient data.", no_args_is_help=True)

_COLUMNS = {
    "StudyInstanceUID": "study",
    "PatientID": "patient ID",
    "PatientName": "patient",
    "StudyDate": "date",
    "AccessionNumber": "accession",
    "ModalitiesInStudy": "modalities",
    "StudyDescription": "description",
    "NumberOfStudyRelatedInstances": "instances",
}
"""Attributes that are printed, by DICOM keyword, with their headings."""


@studies.command("list")
def list_studies(
    patient: Annotated[
        str, typer.Option("--patient", help="Patient ID, with the wildcards * and ?.", metavar="ID")
    ] = "",
    name: Annotated[
        str, typer.Option("--name", help="Patient's Name, with the wildcards * and ?.", metavar="NAME")
    ] = "",
    date: Annotated[
        str, typer.Option("--date", help="Study Date, or a range: 20260131, 20260101-, -20260131.", metavar="RANGE")
    ] = "",
    accession: Annotated[str, typer.Option("--accession", help="Accession Number.", metavar="NUMBER")] = "",
    modality: Annotated[str, typer.Option("--modality", help="A modality in the study.", metavar="CODE")] = "",
    limit: LimitOption = 100,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List studies. The filters match as in a C-FIND (PS3.4 C.2.2.2), and values are printed as stored."""
    keys = {"PatientID": patient, "PatientName": name, "StudyDate": date, "AccessionNumber": accession}
    with open_index(config) as index:
        found = _find(index, keys | {"ModalitiesInStudy": modality}, limit + 1 if limit else 0)
    more = bool(limit) and len(found) > limit
    rows = [_as_json(one) for one in (found[:limit] if more else found)]
    table = Table(*_COLUMNS.values())
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    say(rows, table, as_json=as_json)
    if more and not as_json:
        Console(stderr=True).print(f"the list ends after {counted(limit, 'study')}; --limit 0 lists all")


@studies.command("show")
def show_study(
    uid: Annotated[str, typer.Argument(help="The Study Instance UID.", metavar="UID")],
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show one study, and the state of each of its images."""
    from storage.index.instance_queries import list_instances

    with open_index(config) as index:
        found = _find(index, {"StudyInstanceUID": uid.strip()}, 1)
        images = list_instances(index, study_uid=uid.strip())
    if not found:
        raise UsageError(f"study {uid} is not held here; `latent-pacs study list` lists the studies")
    study = _as_json(found[0])
    lines = (f"{heading}: {study[keyword]}" for keyword, heading in _COLUMNS.items())
    report = {**study, "images": [listed_json(one) for one in images]}
    say(report, *lines, listed_table(images, utc=utc), as_json=as_json)


def _find(index: Index, keys: dict[str, str], limit: int) -> list[Dataset]:
    """The matches of a query at STUDY level. Raises UsageError."""
    from itertools import islice

    from node.archive.query.find import find
    from node.archive.query.identifier import IdentifierError, Root
    from node.config import RenditionPolicy

    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    try:
        for keyword in _COLUMNS:
            setattr(identifier, keyword, keys.get(keyword, "") or None)
        answers = find(index, identifier, Root.STUDY, policy=RenditionPolicy.ORIGINAL, retrieve_ae_title="")
        return list(islice(answers, limit or None))
    except (IdentifierError, ValueError) as error:
        raise UsageError(f"a filter is not valid: {error}") from error


def _as_json(answer: Dataset) -> dict[str, Any]:
    return {keyword: _plain(answer.get(keyword)) for keyword in _COLUMNS}


def _plain(value: object) -> int | str:
    if isinstance(value, MultiValue):
        return " ".join(map(str, value))
    return value if isinstance(value, int) else str(value or "")
