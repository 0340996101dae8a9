"""Publishes the report of a run: a JSON file and an HTML page in ``reports/`` under the storage root, and a row.

The files are written before the row, so a crash leaves files without a row. The JSON file also contains the row, so
that a new index can recover the reports from the folder.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import UnknownReport
from storage.index.report_rows import NewReport, ReportRows, StoredReport
from storage.objects.durability import replace_file

LOGGER = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True)
class RunOutcome:
    """Result of a run. ``verdict``: one sentence. ``alarm``: whether a person must look at it. ``summary``: figures for
    later runs and for ``--json``. ``details``: other data for the JSON file.

    Nothing in it may contain patient data; UIDs are allowed. Numbers that are not finite become null.
    """

    kind: str
    started: datetime
    finished: datetime
    verdict: str
    alarm: bool
    summary: Mapping[str, Any]
    details: Mapping[str, Any]


class Reports:
    """The reports of one archive: ``folder`` is ``reports/`` under its storage root."""

    def __init__(self, rows: ReportRows, folder: Path) -> None:
        self.rows, self.folder = rows, folder

    def publish(self, outcome: RunOutcome, page: str) -> StoredReport:
        """Write both files durably and commit the row; ``page`` is HTML. Raises StoreFull."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self._free_name(outcome)
        row = {
            "kind": outcome.kind,
            "name": name,
            "started_at": outcome.started.timestamp(),
            "finished_at": outcome.finished.timestamp(),
            "verdict": outcome.verdict,
            "alarm": outcome.alarm,
            "summary": plain(outcome.summary),
        }
        data = json.dumps({"format": _FORMAT, **row, "details": plain(outcome.details)}, indent=1, allow_nan=False)
        replace_file(self.folder / f"{name}.html", [page.encode()])
        replace_file(self.folder / f"{name}.json", [f"{data}\n".encode()])
        return self.rows.add(NewReport(**row))

    def find(self, key: int | None = None, *kinds: str) -> StoredReport:
        """The report with number ``key``, or without a key the latest of ``kinds`` or of all. Raises UnknownReport."""
        if key is not None:
            found = self.rows.get(key)
            if found is None:
                raise UnknownReport(f"report {key} does not exist; `latent-pacs audit list` lists the reports")
            return found
        latest = self.rows.newest(kinds)
        if not latest:
            command = "validate run" if kinds == ("validation",) else "audit run"
            raise UnknownReport(
                f"no report{' of kind ' if kinds else ''}{', '.join(kinds)} exists yet; run `latent-pacs {command}`"
            )
        return latest[0]

    def html(self, report: StoredReport) -> Path:
        return self.folder / f"{report.name}.html"

    def json(self, report: StoredReport) -> Path:
        return self.folder / f"{report.name}.json"

    def recover(self) -> int:
        """Add the reports in the folder to an index that has none; return their number. Other files are skipped."""
        if self.rows.newest():
            return 0
        found = [row for file in self.folder.glob("*.json") if (row := _row_in(file)) is not None]
        for row in sorted(found, key=lambda one: one.finished_at):
            self.rows.add(row)
        return len(found)

    def _free_name(self, outcome: RunOutcome) -> str:
        """``<kind>-<UTC>``, with a number if another run ended in the same second."""
        stem = f"{outcome.kind}-{outcome.finished.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
        return next(name for name in names if not (self.folder / f"{name}.json").exists())


def plain(value: Any) -> Any:
    """Convert to JSON types: mappings and sequences to dicts and lists, numbers that are not finite to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _row_in(file: Path) -> NewReport | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return NewReport(**{name: data[name] for name in NewReport.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOGGER.warning("%s is not a report and is skipped: %s", file.name, error)
        return None
