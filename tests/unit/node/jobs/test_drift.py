"""Proves stratified sampling and control charts: drift is found, and chance is not reported as drift."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta
from statistics import fmean, stdev

import pytest

from node.config import DriftSettings
from node.jobs.audit_sampling import cell_of, draw
from node.jobs.drift import ChartPoint, ControlChart, control_chart
from storage.index.audit_outcomes import AuditCandidate

NOW = datetime(2026, 3, 1)
SETTINGS = DriftSettings()


def runs(lots: random.Random, count: int, mean: float, images: int = 50) -> list[ChartPoint]:
    """Runs that each draw images from a population with a standard deviation of 0.01."""
    drawn = ([lots.gauss(mean, 0.01) for _ in range(images)] for _ in range(count))
    return [ChartPoint(number, images, fmean(values), stdev(values)) for number, values in enumerate(drawn)]


def alarms(points: list[ChartPoint], charts: int = 1) -> list[int]:
    """The runs after which the chart has an alarm."""
    return [end for end in range(1, len(points) + 1) if control_chart(points[:end], SETTINGS, 0.01, charts).alarm]


def test_chance_is_rarely_an_alarm() -> None:
    """30 archives with 25 runs each after calibration make 750 points. A limit of 3 gives 1 false alarm in 740
    points."""
    lots = random.Random(6)
    troubled = sum(bool(alarms(runs(lots, 30, 0.95))) for _ in range(30))
    assert troubled <= 2


def test_a_small_drift_is_found_by_the_average_alone() -> None:
    """The drift is half a standard deviation of the images, which is less than single images differ by."""
    lots = random.Random(7)
    points = runs(lots, 12, 0.95) + runs(lots, 8, 0.945)
    found = alarms(points)
    assert found
    assert 13 <= found[0] <= 17
    assert "control limit" in control_chart(points[: found[0]], SETTINGS, 0.01).alarm


def test_a_sudden_drop_is_found_by_the_threshold_at_once() -> None:
    lots = random.Random(8)
    points = runs(lots, 6, 0.95) + runs(lots, 1, 0.935)
    assert "more than 0.01 below" in control_chart(points, SETTINGS, 0.01).alarm


def test_a_single_image_below_the_threshold_is_no_alarm() -> None:
    """Images differ by three times the threshold, and a run may have four images of a stratum. This is chance, not
    drift."""
    lots = random.Random(12)
    points = [
        ChartPoint(at, one.count, 3 * one.mean, 3 * one.deviation) for at, one in enumerate(runs(lots, 200, 1, 4))
    ]
    assert any(one.mean < 3 - 0.03 for one in points)
    assert len(alarms(points)) <= 2


def test_runs_of_few_images_calibrate_a_chart_together() -> None:
    """If only originals of the audit reserve are left, a run may measure one image."""
    points = [ChartPoint(number, 1, 0.95 + 0.01 * (-1) ** number, 0.0) for number in range(30)]
    chart = control_chart(points, SETTINGS, 0.01)
    assert (chart.calibrated, len(chart.average), chart.alarm) == (20, 10, "")
    assert chart.centre == pytest.approx(0.95)
    assert control_chart([*points, ChartPoint(30, 1, 0.85, 0.0)], SETTINGS, 0.01).alarm


def test_a_slow_drift_over_years_is_measured_from_the_first_runs() -> None:
    """The drift is 0.0001 a week. The mean of the last 50 runs falls with it, and that of the first runs does not."""
    points = [ChartPoint(number, 50, 0.95 - 0.0001 * number, 0.01) for number in range(260)]
    chart = control_chart(points, SETTINGS, 0.01)
    shown = chart.newest(50)
    assert chart.alarm == shown.alarm != ""
    assert shown.centre == chart.centre == pytest.approx(0.95, abs=0.001)
    assert (len(shown.points), shown.calibrated, len(shown.average)) == (50, 0, 50)
    early = control_chart(points[:12], SETTINGS, 0.01).newest(10)
    assert (len(early.points), early.calibrated, len(early.average), len(early.limit)) == (10, 3, 7, 7)


def test_an_improvement_is_not_an_alarm() -> None:
    lots = random.Random(9)
    assert alarms(runs(lots, 6, 0.95) + runs(lots, 6, 0.97)) == []


def test_many_charts_need_more_evidence() -> None:
    lots = random.Random(10)
    points = runs(lots, 6, 0.95) + runs(lots, 12, 0.9455)
    assert alarms(points, charts=200)[0] > alarms(points)[0]


def test_there_is_no_alarm_before_a_baseline() -> None:
    few = runs(random.Random(11), 4, 0.95)
    assert control_chart(few, SETTINGS, 0.01) == ControlChart(tuple(few))
    single = [ChartPoint(number, 1, 0.95, 0.0) for number in range(9)]
    assert control_chart(single, SETTINGS, 0.01).calibrated == 0
    same = [ChartPoint(number, 20, 0.95, 0.0) for number in range(9)]
    assert control_chart(same, SETTINGS, 0.01).alarm == ""


# --- samples ----------------------------------------------------------------------------------------------------


def candidates() -> list[AuditCandidate]:
    """1,000 images: 900 of one device, 90 of another, 10 of a third that only one site has, and 3 flagged ones."""
    devices = ["A"] * 900 + ["B"] * 90 + ["C"] * 10
    made = [
        AuditCandidate(key, device, "West" if device == "C" else "East", "x2", NOW - timedelta(days=key % 500), False)
        for key, device in enumerate(devices)
    ]
    return made + [AuditCandidate(2000 + number, "A", "East", "x2", NOW, True) for number in range(3)]


def test_a_sample_is_proportional_and_includes_every_cell() -> None:
    taken = draw(candidates(), 100, 1, NOW)
    assert len(taken) == 103
    assert sum(one.flagged for one in taken) == 3
    devices = Counter(one.device for one in taken if not one.flagged)
    assert devices["A"] == pytest.approx(90, abs=4)
    assert devices["B"] == pytest.approx(9, abs=3)
    assert devices["C"] >= 1
    every = {cell_of(one, NOW) for one in candidates()}
    assert {cell_of(one, NOW) for one in taken} == every
    assert len({one.instance_key for one in taken}) == len(taken)


def test_the_same_seed_draws_the_same_images() -> None:
    assert draw(candidates(), 0.05, 7, NOW) == draw(candidates(), 0.05, 7, NOW)
    assert draw(candidates(), 0.05, 7, NOW) != draw(candidates(), 0.05, 8, NOW)
    assert len(draw(candidates(), 0.05, 7, NOW)) == 53


@pytest.mark.parametrize("sample", [1, 2, 5, 999, 1000, 5000, 1.0, 0.0001])
def test_any_size_of_sample(sample: float) -> None:
    taken = [one for one in draw(candidates(), sample, 3, NOW) if not one.flagged]
    wanted = min(1000, sample) if isinstance(sample, int) else max(1, round(sample * 1000))
    assert len(taken) == wanted


@pytest.mark.slow
def test_every_image_has_the_same_chance() -> None:
    drawn = Counter(one.instance_key for seed in range(300) for one in draw(candidates(), 100, seed, NOW))
    of_a = [drawn[key] for key in range(900)]
    assert fmean(of_a) == pytest.approx(30, abs=1.5)
    assert max(of_a) < 60
    assert draw([], 100, 1, NOW) == []
