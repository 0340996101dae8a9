"""Proves the statistics of a validation against published and hand-worked values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from node.validation.statistics import (
    Equivalence,
    TooFewCases,
    areas,
    bootstrap,
    compare,
    interval,
    judge,
    measures,
    roc,
    smallest_error,
)

# Albumin, total protein, K-G score and outcome of 43 women: the example of DeLong, DeLong and Clarke-Pearson (1988)
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def ovarian() -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return np.stack([10 - table[:, 2], table[:, 0], table[:, 1]]), table[:, 3] == 1, [str(n) for n in range(len(table))]


def test_delong_on_the_example_of_its_paper() -> None:
    """The expected values are those that SAS/STAT prints for these data (PROC LOGISTIC, Comparing Receiver Operating
    Characteristic Curves)."""
    scores, truth, patients = ovarian()
    values, covariance = areas(scores, truth, patients)
    assert np.round(values, 4).tolist() == [0.7258, 0.7366, 0.6478]
    assert np.round(np.sqrt(np.diag(covariance)), 4).tolist() == [0.1028, 0.0927, 0.1000]
    for other, printed in ((1, [0.0108, 0.0953, 0.9102]), (2, [-0.0780, 0.1046, 0.4561])):
        found = compare(scores[[0, other]], truth, patients, margin=0.02)
        assert [round(found.difference, 4), round(found.se, 4), round(found.p_different, 4)] == printed


def test_an_area_by_hand() -> None:
    """The positives are 4, 2, 3 and the negatives 1, 2, 0: of nine pairs, eight are won and one is tied."""
    scores, truth = np.array([[4.0, 2, 3, 1, 2, 0]]), np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    values, covariance = areas(scores, truth, list("abcdef"))
    assert values[0] == pytest.approx(8.5 / 9)
    # placements: positives 1, 5/6, 1 and negatives 1, 5/6, 1; both have variance 1/108 about the area
    assert covariance[0, 0] == pytest.approx(1 / 108 / 3 + 1 / 108 / 3)
    assert areas(-scores, truth, list("abcdef"))[0] == pytest.approx(1 - values)


def test_images_of_one_patient_are_no_independent_cases() -> None:
    """Every case occurs twice for its patient. The area is the same, and so is its error, unlike the error without
    clustering."""
    scores, truth, patients = ovarian()
    single = areas(scores, truth, patients)
    twice = [np.tile(scores, 2), np.tile(truth, 2)]
    clustered, naive = areas(*twice, patients * 2), areas(*twice, [str(n) for n in range(2 * truth.size)])
    assert clustered[0] == pytest.approx(single[0])
    assert clustered[1] == pytest.approx(single[1])
    assert np.diag(naive[1]) == pytest.approx(np.diag(single[1]) / 2, rel=0.05)


def test_a_patient_with_both_classes_by_hand() -> None:
    """Obuchowski (1997): the placements of the two breasts of a patient vary together, which the covariance must
    include."""
    scores = np.array([[3.0, 1.0, 2.0, 0.0, 1.5, 2.5]])
    truth = np.array([1, 0, 1, 0, 1, 0], dtype=bool)
    values, covariance = areas(scores, truth, ["a", "a", "b", "b", "c", "c"])
    v10, v01, theta = np.array([3, 2, 2]) / 3, np.array([3, 3, 1]) / 3, 7 / 9
    x, y = v10 - theta, v01 - theta
    s10, s01, s11 = (x * x).sum() / 2, (y * y).sum() / 2, 3 / 2 * (x * y).sum()
    assert values[0] == pytest.approx(theta)
    assert covariance[0, 0] == pytest.approx(s10 / 3 + s01 / 3 + 2 * s11 / 9)


@pytest.mark.parametrize(
    ("difference", "se", "verdict"),
    [
        (0.0, 0.0121, Equivalence.EQUIVALENT),  # 1.645 x 0.0121 = 0.0199
        (0.0, 0.0122, Equivalence.INCONCLUSIVE),  # 1.645 x 0.0122 = 0.0201
        (-0.01, 0.0060, Equivalence.EQUIVALENT),
        (0.01, 0.0062, Equivalence.INCONCLUSIVE),
        (-0.015, 0.001, Equivalence.EQUIVALENT),  # surely a difference, and surely one that does not matter
        (-0.10, 0.0500, Equivalence.DIFFERENT),  # z = 2
        (-0.10, 0.0520, Equivalence.INCONCLUSIVE),
        (0.02, 1e-9, Equivalence.DIFFERENT),  # on the margin is not within it
    ],
)
def test_the_limits_of_two_one_sided_tests(difference: float, se: float, verdict: Equivalence) -> None:
    found = judge(difference, se, 0.02, 50)
    assert found.verdict is verdict
    assert (found.positives_needed is None) == (verdict is not Equivalence.INCONCLUSIVE)
    inside = max(abs(found.low), abs(found.high)) < 0.02
    assert inside == (verdict is Equivalence.EQUIVALENT) == (found.p_equivalent < 0.05)


def test_the_positives_that_would_settle_it() -> None:
    """With 100 positives, an error of 0.02 and no difference, ((1.6449 + 1.2816) 0.02 / 0.02)^2 = 8.56 times as many
    are needed."""
    assert judge(0.0, 0.02, 0.02, 100).positives_needed == 857
    # beyond the margin a difference is to be shown: ((1.96 + 0.8416) 0.1 / 0.1)^2 = 7.85
    assert judge(-0.1, 0.1, 0.02, 100).positives_needed == 785
    settled = judge(0.0, 0.02 / math.sqrt(8.57), 0.02, 857)
    assert settled.verdict is Equivalence.EQUIVALENT


def test_perfect_rankings_of_a_few_cases_prove_little() -> None:
    """DeLong's error is zero there, and ours is not. For a margin of 0.02, 20 cases in each class are too few, and 60
    suffice."""
    for cases, verdict in ((20, Equivalence.INCONCLUSIVE), (60, Equivalence.EQUIVALENT)):
        truth = np.arange(2 * cases) >= cases
        scores = np.stack([truth * 1.0, truth * 2.0])
        found = compare(scores, truth, [str(n) for n in range(2 * cases)], margin=0.02)
        assert (found.difference, found.se) == (0.0, smallest_error(cases))
        assert found.verdict is verdict
        again = [np.repeat(each, 4, axis=-1) for each in (scores, truth)]
        four = compare(again[0], again[1], [str(n // 4) for n in range(8 * cases)], margin=0.02)
        assert (four.se, four.verdict) == (found.se, verdict), "four images of a patient prove no more than one"


def test_too_few_patients_are_refused() -> None:
    truth = np.array([True, True, False, False])
    with pytest.raises(TooFewCases, match="two patients"):
        areas(np.arange(4.0)[None], truth, ["a", "a", "b", "c"])
    with pytest.raises(TooFewCases, match="both classes"):
        areas(np.arange(4.0)[None], np.ones(4, dtype=bool), list("abcd"))


def test_measures_by_hand() -> None:
    scores = np.array([[0.9, 0.4, 0.6, 0.1, 0.2], [0.1, 0.2, 0.3, 0.1, 0.2]])
    truth = np.array([True, True, False, False, False])
    found = measures(scores, truth)
    assert found[0] == pytest.approx([5 / 6, 3 / 5, 1 / 2, 1 / 2])
    assert math.isnan(found[1, 2])  # nothing is called positive
    assert found[1, 3] == 0


def test_the_bootstrap_is_paired_and_agrees_with_delong() -> None:
    scores, truth, patients = ovarian()
    drawn = bootstrap(scores, truth, patients, 4000, seed=1)
    values, covariance = areas(scores, truth, patients)
    difference = drawn[:, 0, 0] - drawn[:, 2, 0]
    assert np.nanstd(difference) == pytest.approx(0.1046, rel=0.08)
    low, high = interval(drawn[:, 0, 0])
    assert low < values[0] < high
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(covariance[0, 0]), rel=0.1)
    assert np.array_equal(drawn, bootstrap(scores, truth, patients, 4000, seed=1), equal_nan=True)


def test_the_roc_curve_encloses_the_area() -> None:
    scores, truth, patients = ovarian()
    for score, area in zip(scores, areas(scores, truth, patients)[0], strict=True):
        false, true = roc(score, truth)
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(true, false) == pytest.approx(area)
