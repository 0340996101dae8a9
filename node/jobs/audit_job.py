"""The job ``audit``: decodes a random sample of renditions again, judges them, and reports them with their trends.

The next start resumes an interrupted run with the sample that the run had drawn.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter

from node.archive.encode.fidelity_check import TRENDS, AuditPictures, FidelityCheck, FidelityFinding, FidelityOutcome
from node.config import Settings, parse_sample
from node.jobs.audit_page import AuditRun, Trend, audit_page
from node.jobs.audit_sampling import AXES, Cell, cell_of, draw
from node.jobs.drift import ChartPoint, control_chart
from node.jobs.job import JSON, Progress
from node.reports.runs import Reports, RunOutcome
from storage.errors import Cancelled
from storage.index import Index
from storage.index.audit_outcomes import AuditRows
from storage.index.connection import now
from storage.index.job_runs import JobRows
from storage.index.report_rows import StoredReport
from storage.printable import counted
from storage.thresholds import limits_of

AUDIT = "audit"
ALL = "all"
CHARTED = ("fsim_mean", "psnr_db")

_CHARTED_RUNS = 50
"""Most runs of a control chart that a report shows."""
_SAVE_EVERY = 10.0
"""Fewest seconds between two saves of the progress. A save writes 2 KB for each audited image."""
_REPEATED = 0.05
"""Time between two saves as a share of the duration of the run so far: after a kill, at most this share is repeated.
Chosen, not measured."""
_RESUME_WITHIN = 86400.0
"""Seconds after its start within which an interrupted run is resumed."""
_PICTURED = 3
"""Images that the report shows pictures of."""

MakeCheck = Callable[[Callable[[], bool]], FidelityCheck]
"""Makes the check of single images; its argument says whether the run is cancelled."""


@dataclass(frozen=True)
class AuditPlan:
    """The options of one run. ``sample``: as in config.yaml; ``resume``: whether to resume an interrupted run."""

    sample: str
    resume: bool = True


@dataclass
class _State:
    """The state of a run. ``left``: keys of the remaining images; ``cells``: the cell of each image by its key;
    ``images``: number of images from which the sample was drawn, by stratum."""

    seed: int
    sample: str
    began: float
    left: list[int]
    cells: dict[int, Cell]
    images: dict[str, int] = field(default_factory=dict)
    findings: list[FidelityFinding] = field(default_factory=list)


_STATE = TypeAdapter(_State)


class Audit:
    """The job ``audit``. An interrupted run is kept in the memory of the job, in the index."""

    def __init__(
        self, index: Index, settings: Settings, reports: Reports, make_check: MakeCheck, plan: AuditPlan
    ) -> None:
        self._index, self._settings, self._reports = index, settings, reports
        self._make_check, self._plan = make_check, plan
        self._jobs, self._rows = JobRows(index.engine), AuditRows(index.engine)

    def run(self, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, JSON]:
        """Audit and publish a report. A cancelled run publishes none, and is resumed later."""
        state = self._started()
        total, began = len(state.left) + len(state.findings), time.monotonic()
        saved = began
        check = self._make_check(cancelled)
        try:
            while state.left:
                found = check.audit(state.left[0])
                del state.left[0]
                state.findings += [found] if found is not None else []
                failed = sum(one.outcome.failed for one in state.findings)
                progress(total - len(state.left), total, f"{failed} failed")
                acted = found is not None and bool(found.action)  # a repeated audit would find it withdrawn: save now
                if acted or time.monotonic() > saved + max(_SAVE_EVERY, _REPEATED * (saved - began)):
                    self._jobs.remember(AUDIT, _STATE.dump_python(state, mode="json"))
                    saved = time.monotonic()
            pictures = self._worst(check, state.findings)
        except Cancelled:
            self._jobs.remember(AUDIT, _STATE.dump_python(state, mode="json"))
            return {"finished": False, "audited": len(state.findings), "left": len(state.left)}
        report = self._published(state, pictures)
        self._jobs.remember(AUDIT, {})
        counts = {name: report.summary[name] for name in ("audited", "failed", "withdrawn", "flagged", "cleared")}
        published = {"report": report.key, "verdict": report.verdict, "html": str(self._reports.html(report))}
        return {"finished": True, "clean": not report.alarm, **published, **counts}

    def _started(self) -> _State:
        """The interrupted run, if there is one to resume, else a new sample."""
        memory = self._jobs.memory(AUDIT)
        if self._plan.resume and memory:
            left = _STATE.validate_python(memory)
            if left.sample == self._plan.sample and time.time() - left.began < _RESUME_WITHIN:
                return left
        seed, moment = secrets.randbits(32), now()
        candidates = self._rows.candidates()
        drawn = draw(candidates, parse_sample(self._plan.sample), seed, moment)
        cells = {one.instance_key: cell_of(one, moment) for one in drawn}
        images = Counter(name for one in candidates for name in _names(cell_of(one, moment)))
        return _State(seed, self._plan.sample, time.time(), list(cells), cells, dict(images))

    def _worst(
        self, check: FidelityCheck, findings: Sequence[FidelityFinding]
    ) -> list[tuple[FidelityFinding, AuditPictures]]:
        measured = sorted(
            (one for one in findings if one.now), key=lambda one: (not one.outcome.failed, one.now["fsim_mean"])
        )
        pictured = ((one, check.pictures(one)) for one in measured[:_PICTURED])
        return [(one, pictures) for one, pictures in pictured if pictures is not None]

    def _published(self, state: _State, pictures: list[tuple[FidelityFinding, AuditPictures]]) -> StoredReport:
        ended, findings = time.time(), state.findings
        strata = _strata(state)
        trends = self._trends(strata, ended)
        summary = self._summary(state, strata, trends)
        alarm = any(one.outcome.alarming for one in findings) or any(one.chart.alarm for one in trends)
        verdict = _verdict(findings, trends)
        began, finished = (datetime.fromtimestamp(at, UTC) for at in (state.began, ended))
        drift = [{"stratum": one.stratum, "figure": one.figure, **asdict(one.chart)} for one in trends]
        details = {"findings": [asdict(one) for one in findings], "drift": drift}
        outcome = RunOutcome(AUDIT, began, finished, verdict, alarm, summary, details)
        limits = limits_of(self._settings.thresholds)
        run = AuditRun(outcome, findings, trends, pictures, self._settings.audit, limits)
        return self._reports.publish(outcome, audit_page(run, self._index.counts()))

    def _summary(self, state: _State, strata: dict[str, Any], trends: Sequence[Trend]) -> dict[str, Any]:
        outcomes = Counter(one.outcome for one in state.findings)
        actions = Counter(one.action for one in state.findings)
        everything = strata.get(ALL, {})
        return {
            "images": everything.get("images", 0),
            "audited": len(state.findings),
            "measured": everything.get("measured", 0),
            "failed": sum(count for outcome, count in outcomes.items() if outcome.failed),
            **{name: actions[name] for name in ("withdrawn", "flagged", "cleared")},
            **{name: everything[name]["mean"] for name in TRENDS if name in everything},
            "drifting": sum(bool(one.chart.alarm) for one in trends),
            "sample": state.sample,
            "seed": state.seed,
            "outcomes": {outcome.value: count for outcome, count in sorted(outcomes.items())},
            "strata": strata,
            "terms": self._terms(),
        }

    def _trends(self, strata: dict[str, Any], ended: float) -> list[Trend]:
        """The control charts of all measured strata, over the runs under today's terms."""
        drift, terms = self._settings.audit.drift, self._terms()
        drops = {"fsim_mean": drift.fsim, "psnr_db": drift.psnr_db}
        wanted = [(stratum, name) for stratum, held in strata.items() for name in CHARTED if name in held]
        points: dict[tuple[str, str], list[ChartPoint]] = {one: [] for one in wanted}
        for at, summary in self._reports.rows.summaries(AUDIT):  # including the first runs, which are the baseline
            if summary.get("terms") == terms:
                for stratum, name in wanted:
                    points[stratum, name].append(_point(at, summary["strata"].get(stratum, {}), name))
        found = []
        for stratum, name in wanted:
            run = _point(ended, strata[stratum], name)
            chart = control_chart([*points[stratum, name], run], drift, drops[name], len(wanted))
            found.append(Trend(stratum, name, chart.newest(_CHARTED_RUNS)))
        return found

    def _terms(self) -> str:
        """A digest of the settings that the figures depend on; when it changes, the charts start again."""
        settings = self._settings.model_dump_json(
            include={"codec": True, "gate": True, "reconstruct": {"upscaler", "mammo", "sd_x2"}}
        )
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _strata(state: _State) -> dict[str, Any]:
    """Counts and figures by stratum: all images, and those with each value of each axis of ``AXES``."""
    members: dict[str, list[FidelityFinding]] = defaultdict(list)
    for one in state.findings:
        for name in _names(state.cells[one.instance_key]):
            members[name].append(one)
    return {
        name: {"images": state.images.get(name, 0), **_figures_of(found)} for name, found in sorted(members.items())
    }


def _names(cell: Cell) -> list[str]:
    return [ALL, *(f"{axis}: {value}" for axis, value in zip(AXES, cell, strict=True))]


def _figures_of(findings: Sequence[FidelityFinding]) -> dict[str, Any]:
    measured = [one.now for one in findings if one.now]
    counts = {
        "audited": len(findings),
        "measured": len(measured),
        "failed": sum(one.outcome.failed for one in findings),
    }
    values = {name: [one[name] for one in measured] for name in TRENDS} if measured else {}
    spread = {name: {"mean": fmean(of), "sd": stdev(of) if len(of) > 1 else 0.0} for name, of in values.items()}
    return {**counts, **spread}


def _point(at: float, stratum: dict[str, Any], name: str) -> ChartPoint:
    figure = stratum.get(name)
    if figure is None:
        return ChartPoint(at, 0, 0.0, 0.0)
    return ChartPoint(at, stratum["measured"], figure["mean"], figure["sd"])


def _verdict(findings: Sequence[FidelityFinding], trends: Sequence[Trend]) -> str:
    """The summary sentence of the report."""
    outcomes = Counter(one.outcome for one in findings)
    failed = sum(count for outcome, count in outcomes.items() if outcome.failed)
    sentences = []
    if failed:
        actions = Counter(one.action for one in findings if one.outcome.failed)
        done = ", ".join(f"{count} {action}" for action, count in sorted(actions.items()))
        sentences.append(f"{failed} of {counted(len(findings), 'reconstruction')} failed: {done}.")
    for outcome in (
        *(FidelityOutcome.NOT_HERE, FidelityOutcome.DAMAGED),
        *(FidelityOutcome.REMEASURED, FidelityOutcome.UNTRIED),
    ):
        if outcomes[outcome]:
            sentences.append(f"{outcomes[outcome]} {outcome}.")
    drifting = sorted({one.stratum for one in trends if one.chart.alarm})
    if drifting:
        sentences.append(f"Figures drift: {', '.join(drifting)}.")
    if sentences:
        return " ".join(sentences)
    if not findings:
        return "There is no reconstruction to audit yet."
    others = outcomes[FidelityOutcome.OTHER_NUMERICS]
    note = f", {others} of them within tolerance under other numerics, so that originals are sent" if others else ""
    return f"Audited {counted(len(findings), 'reconstruction')}: all as verified{note}."
