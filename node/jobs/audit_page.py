"""The report page of a fidelity audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from node.archive.encode.fidelity_check import TRENDS, AuditPictures, FidelityFinding, FidelityOutcome
from node.config import AuditSettings
from node.jobs.drift import ControlChart
from node.reports.charts import ALARM, COLOURS, draw
from node.reports.formatting import size_text
from node.reports.page import (
    Banner,
    Chart,
    KeyFigure,
    KeyFigures,
    Mark,
    PagePicture,
    PageSection,
    Paragraph,
    Part,
    Pictures,
    Table,
    Tone,
    page,
)
from node.reports.runs import RunOutcome
from storage.records import HoldingCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LISTED = 100
"""Most images that the page lists one by one."""
_NAMES = {
    "fsim_mean": "mean tile FSIM",
    "fsim_p5": "tile FSIM, 5th percentile",
    "psnr_db": "PSNR, dB",
    "burden": "nearest limit of the gate, used",
}
_MEANING = {
    FidelityOutcome.SAME: "exactly the pixels that were verified; if the original is held, the same figures",
    FidelityOutcome.OTHER_NUMERICS: "decoded with other hardware or libraries than at verification: the digests cannot "
    "be compared, and the figures are within tolerance. Such pixels are never sent under the verified UID: peers of "
    "this node get the originals until the job reverify has run",
    FidelityOutcome.NOT_HERE: "decoded to other pixels, with other hardware or libraries than at verification, and no "
    "original is held: peers of this node get nothing. Run the job reverify. If it keeps the rendition, restore the "
    "libraries that the reason names",
    FidelityOutcome.REMEASURED: "exactly the pixels that were verified, but other figures: the measure changed, or "
    "the record is wrong",
    FidelityOutcome.WORSE: "figures against the original worse than those recorded, or beyond a limit of the gate",
    FidelityOutcome.MISMATCH: "other pixels than those verified, on the same hardware and libraries",
    FidelityOutcome.UNMADE: "the model or the payload cannot be used",
    FidelityOutcome.DAMAGED: "an object is missing or not whole; `latent-pacs scrub` repairs what it can",
    FidelityOutcome.UNTRIED: "another error ended its audit, and nothing was judged; the node's log has it",
}


@dataclass(frozen=True)
class Trend:
    """The chart of one figure of one stratum over runs."""

    stratum: str
    figure: str
    chart: ControlChart


@dataclass(frozen=True)
class AuditRun:
    """The contents of the page."""

    outcome: RunOutcome
    findings: Sequence[FidelityFinding]
    trends: Sequence[Trend]
    pictures: Sequence[tuple[FidelityFinding, AuditPictures]]
    settings: AuditSettings
    limits: dict[str, float]


def audit_page(run: AuditRun, held: HoldingCounts) -> str:
    """The page, self-contained."""
    ran, summary = run.outcome, run.outcome.summary
    when = f"{ran.finished:%d %B %Y, %H:%M} UTC, took {_span((ran.finished - ran.started).total_seconds())}"
    tone: Tone = "good" if not ran.alarm else "bad" if summary["failed"] else "warning"
    title = {"good": "Passed", "warning": "Needs attention", "bad": "Failed", "neutral": ""}[tone]
    sections = [
        PageSection("At a glance", [_key_figures(run, held)]),
        PageSection("Findings", _outcomes(run)),
        *([PageSection("By device, institution, operating point and age", [_strata(run)])] if run.findings else []),
        *([PageSection("Over time", _over_time(run))] if run.trends else []),
        *(
            [PageSection("Fidelity of the images audited", [_histograms(run), _of_the_gate(run)])]
            if summary["measured"]
            else []
        ),
        *([PageSection("The least faithful images", _worst(run))] if run.pictures else []),
        PageSection("Method", [Paragraph(text) for text in _method(run)]),
    ]
    footer = "Latent PACS fidelity audit. Images are named by UID. Not for primary interpretation."
    return page("Fidelity audit", when, Banner(tone, title, ran.verdict), sections, footer)


def _key_figures(run: AuditRun, held: HoldingCounts) -> KeyFigures:
    summary = run.outcome.summary
    failed, audited = summary["failed"], summary["audited"]
    figures = [
        KeyFigure("images audited", f"{audited:,}", f"of {summary['images']:,} reconstructable"),
        KeyFigure(
            "failed",
            f"{failed:,}",
            f"{summary['withdrawn']} withdrawn, {summary['flagged']} flagged",
            "bad" if failed else "good",
        ),
    ]
    if "fsim_mean" in summary:
        figures += [
            KeyFigure("mean tile FSIM", f"{summary['fsim_mean']:.3f}", f"against {summary['measured']:,} originals"),
            KeyFigure("PSNR", f"{summary['psnr_db']:.1f} dB", "mean, through the display window"),
        ]
    pixels, payload = held.reconstructable_pixel_bytes, held.reconstructable_payload_bytes
    if payload:
        figures += [
            KeyFigure("payloads", size_text(payload), f"for {size_text(pixels)} of pixels, without originals"),
            KeyFigure("ratio", f"{pixels / payload:.0f} : 1", "of reconstructable images"),
        ]
    return KeyFigures(figures)


def _outcomes(run: AuditRun) -> list[Part]:
    counts = run.outcome.summary["outcomes"]
    rows: list[list[str | Mark]] = [
        [Mark(outcome.value, _tone(outcome)), str(counts[outcome.value]), _MEANING[outcome]]
        for outcome in FidelityOutcome
        if outcome.value in counts
    ]
    parts: list[Part] = (
        [Table(["outcome", "images", "meaning"], rows, align="lrl")] if rows else [Paragraph(run.outcome.verdict)]
    )
    remarkable = [one for one in run.findings if one.outcome is not FidelityOutcome.SAME or one.action]
    if remarkable:
        remarkable.sort(key=lambda one: not one.outcome.alarming)
        listed: list[list[str | Mark]] = [
            [one.sop_instance_uid, Mark(one.outcome.value, _tone(one.outcome)), one.action or "none", one.reason]
            for one in remarkable[:_LISTED]
        ]
        more = f" The first {_LISTED} of {len(remarkable)}; the JSON file has all." if len(remarkable) > _LISTED else ""
        caption = "Images that are not simply as verified." + more
        parts.append(Table(["SOP Instance UID", "outcome", "done", "why"], listed, caption))
    return parts


def _strata(run: AuditRun) -> Table:
    alarms = {(trend.stratum, trend.figure): trend.chart for trend in run.trends}
    rows: list[list[str | Mark]] = []
    for name, of in run.outcome.summary["strata"].items():
        charts = [alarms[name, figure] for figure in ("fsim_mean", "psnr_db") if (name, figure) in alarms]
        alarm = "; ".join(chart.alarm for chart in charts if chart.alarm)
        calm = "in control" if any(chart.average for chart in charts) else "calibrating" if charts else ""
        rows.append(
            [
                name,
                f"{of['images']:,}",
                f"{of['audited']:,}",
                Mark(str(of["failed"]), "bad") if of["failed"] else "0",
                f"{of['measured']:,}",
                *(f"{of[figure]['mean']:.{places}f}" if figure in of else "" for figure, places in _PLACES.items()),
                Mark(alarm, "bad") if alarm else calm,
            ]
        )
    head = [
        "stratum",
        "images",
        "audited",
        "failed",
        "measured",
        "FSIM",
        "FSIM p5",
        "PSNR dB",
        "nearest limit",
        "over time",
    ]
    caption = (
        "Figures are means over the images whose originals are held; FSIM over tiles with breast. Nearest limit: "
        "the figure of the gate that is nearest to its limit, as a share of it."
    )
    return Table(head, rows, caption, "lrrrrrrrrl")


_PLACES = {"fsim_mean": 4, "fsim_p5": 4, "psnr_db": 2, "burden": 2}


def _over_time(run: AuditRun) -> list[Part]:
    """The control charts of all images, then one figure with the mean of each device, and one of each institution."""
    parts: list[Part] = []
    for figure in ("fsim_mean", "psnr_db"):
        charted = next((one.chart for one in run.trends if (one.stratum, one.figure) == ("all", figure)), None)
        if charted is not None:
            caption = f"{_NAMES[figure]} of all images audited, run by run."
            if charted.average:
                caption += " Right: the moving average in standard deviations; below the red line is an alarm."
            else:
                caption += f" The control chart begins after {run.settings.drift.baseline} runs."
            parts.append(Chart(draw(_control(charted, figure), caption, 2.8), caption))
    for axis in ("device", "site"):
        several = [one for one in run.trends if one.stratum.startswith(f"{axis}: ") and one.figure == "fsim_mean"]
        if len(several) > 1:
            caption = f"Mean tile FSIM by {'institution' if axis == 'site' else axis}."
            parts.append(Chart(draw(_lines(several[: len(COLOURS)]), caption, 2.8), caption))
    return parts


def _control(chart: ControlChart, figure: str) -> Callable[[Figure], None]:
    def paint(canvas: Figure) -> None:
        left, right = canvas.subplots(1, 2, width_ratios=(3, 2)) if chart.average else (canvas.subplots(), None)
        times = [_time(point.at) for point in chart.points]
        errors = [2 * point.deviation / point.count**0.5 for point in chart.points]
        left.errorbar(times, [point.mean for point in chart.points], errors, marker="o", markersize=4, capsize=2)
        if chart.average:
            left.axhline(chart.centre, linestyle="--", linewidth=1, color=COLOURS[2])
        left.set_ylabel(_NAMES[figure])
        _dates(left)
        if right is not None:
            later = times[chart.calibrated :]
            right.plot(later, chart.average, marker="o", markersize=4)
            right.plot(later, chart.limit, color=ALARM, linewidth=1.2)
            right.set_ylabel("EWMA")
            _dates(right)

    return paint


def _lines(trends: Sequence[Trend]) -> Callable[[Figure], None]:
    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for trend in trends:
            points = trend.chart.points
            name = trend.stratum.partition(": ")[2].replace("$", r"\$")
            axes.plot(
                [_time(one.at) for one in points], [one.mean for one in points], marker="o", markersize=4, label=name
            )
        axes.set_ylabel(_NAMES["fsim_mean"])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        _dates(axes)

    return paint


def _histograms(run: AuditRun) -> Chart:
    measured = [one.now for one in run.findings if one.now]

    def paint(canvas: Figure) -> None:
        for number, (axes, name) in enumerate(zip(canvas.subplots(1, len(TRENDS)), TRENDS, strict=True)):
            axes.hist([one[name] for one in measured], bins=20, color=COLOURS[number % len(COLOURS)])
            if name == "burden":
                axes.axvline(1.0, color=ALARM, linewidth=1.2)
            axes.set_xlabel(_NAMES[name])
            axes.locator_params(axis="x", nbins=5)
        canvas.axes[0].set_ylabel("images")

    caption = f"{len(measured)} images measured against their originals; the red line is the limit of the gate."
    return Chart(draw(paint, caption, 2.6), caption)


def _of_the_gate(run: AuditRun) -> Table:
    """Every figure of the gate beside its limit."""
    measured = [one.now for one in run.findings if one.now]
    rows: list[list[str | Mark]] = []
    for name, limit in run.limits.items():
        values = sorted(abs(one[name]) for one in measured if name in one)
        if values:
            columns = (median(values), values[min(int(0.95 * len(values)), len(values) - 1)], values[-1], limit)
            rows.append([name, *(f"{value:.4g}" for value in columns)])
    caption = "Figures of the gate over the images measured; docs/METRICS.md says what each means."
    return Table(["figure", "median", "95%", "greatest", "limit"], rows, caption, "lrrrr")


def _worst(run: AuditRun) -> list[Part]:
    parts: list[Part] = []
    for one, pictures in run.pictures:
        figures = f"mean tile FSIM {one.now['fsim_mean']:.4f}, {one.now['psnr_db']:.1f} dB"
        window = f"{100 * pictures.share:.2g} % of the display window"
        scale = f"structure less original, full colour at ±{pictures.reach:.0f} grey levels, {window}"
        whole = zip(pictures.whole, ("original", "reconstruction", scale), strict=True)
        close = ("original, around the greatest error", "reconstruction", "structure less original, same scale")
        detail = zip(pictures.detail, close, strict=True)
        parts.append(Paragraph(f"{one.sop_instance_uid}: {one.outcome}; {figures}", strong=True))
        parts += [Pictures([PagePicture(*picture) for picture in row]) for row in (whole, detail)]
    parts.append(
        Paragraph(
            "The lowest mean tile FSIM of this run, failures first. Details are at full resolution, with their own "
            "window. In a difference, black is none, orange is brighter and blue is darker than the original."
        )
    )
    return parts


def _method(run: AuditRun) -> list[str]:
    drift, tolerance, summary = run.settings.drift, run.settings.tolerance, run.outcome.summary
    return [
        f"Sample: {summary['sample']} of {summary['images']:,} images that have a reconstruction, at random, "
        "in proportion to device, institution, operating point and time since verification, at least one of each "
        f"combination if the sample is large enough; seed {summary['seed']}. Images that an earlier audit flagged "
        "are always audited again.",
        "Each was reconstructed again by the node's workers. The SHA-256 of the pixels must be the one recorded when "
        "the image was verified. If the original is held, or kept in the audit reserve "
        f"({100 * run.settings.reserve:g} % of originals), FSIM over 256-pixel tiles with breast, and PSNR through the "
        f"display window, were measured again: they may be {tolerance.fsim:g} FSIM and {tolerance.psnr_db:g} dB from "
        f"those recorded. So were the gate's own figures, which may be {100 * tolerance.gate:g} % of their limits from "
        "those recorded, and must meet every limit that the recorded figures meet.",
        "A reconstruction that fails is withdrawn, and its original is served instead; without an original, the image "
        "is flagged, and retrievals of it fail. Both are recorded in the audit trail.",
        "Drift: an EWMA control chart (Roberts 1959; NIST/SEMATECH e-Handbook 6.3.2.4) of each stratum's mean, weight "
        f"{drift.weight:g}, limit {drift.limit:g} standard deviations, widened for the number of charts by Bonferroni, "
        f"calibrated on its first {drift.baseline} runs, or as many as measured 20 images; and a threshold of "
        f"{drift.fsim:g} FSIM and {drift.psnr_db:g} dB below their mean, if chance does not explain the drop. Charts "
        "start again when codec, gate or model change in config.yaml.",
        "FSIM and PSNR do not prove that a microcalcification survived; the gate's own figures, among them lost and "
        "invented specks, test for that.",
    ]


def _tone(outcome: FidelityOutcome) -> Tone:
    if outcome.failed:
        return "bad"
    if outcome.alarming:
        return "warning"
    return "good" if outcome is FidelityOutcome.SAME else "neutral"


def _dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    places = AutoDateLocator(minticks=2, maxticks=6)
    axes.xaxis.set_major_locator(places)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(places))
    left, right = axes.dataLim.intervalx
    if right - left < 1:  # in days; around a single run matplotlib would show years
        axes.set_xlim(left - 1, right + 1)


def _time(at: float) -> Any:
    """A time for matplotlib's axes."""
    return datetime.fromtimestamp(at, UTC)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
