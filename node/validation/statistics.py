"""Computes areas under ROC curves, their uncertainty, and a test of equivalence of two areas.

Areas and their covariance are nonparametric: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, by the midranks
of Sun and Xu, IEEE SPL 21, 2014. Images of one patient are not independent, so the covariance is Obuchowski's for
clustered data, Biometrics 53, 1997; it equals DeLong's if each patient has one image. Equivalence is tested by two
one-sided tests (Schuirmann, J Pharmacokinet Biopharm 15, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from storage.errors import LatentPacsError

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

ALPHA, POWER = 0.05, 0.80
"""Significance level of each one-sided test, and power for which cases are estimated."""
MEASURES = ("auc", "accuracy", "precision", "recall")
"""Measures of a classifier, in the order of the arrays of this module."""
_NORMAL = NormalDist()
_CUT = 0.5
"""Score from which an image is classified as positive, for all measures except the area."""
_AT_ONCE = 4_000_000
"""Maximum number of bootstrap weights in memory at once."""


class TooFewCases(LatentPacsError):
    """There are fewer patients than a statistic needs."""


class Equivalence(StrEnum):
    """Verdict of a comparison of two areas."""

    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Comparison:
    """Comparison of two areas on the same cases.

    ``difference``: second area minus first. ``low``, ``high``: its 90% confidence interval, which lies within the
    margin if and only if both one-sided tests at 5% reject. ``p_different``: two-sided p value of no difference.
    ``p_equivalent``: the larger p value of the two one-sided tests. ``positives_needed``: estimated number of positive
    cases, at the same prevalence, for a conclusive result; None if the result is conclusive.
    """

    difference: float
    se: float
    low: float
    high: float
    p_different: float
    p_equivalent: float
    margin: float
    verdict: Equivalence
    positives_needed: int | None


def areas(scores: Float, truth: Bool, patients: Sequence[str]) -> tuple[Float, Float]:
    """Areas (k,) and their covariance (k, k) for k scores per case: ``scores`` (k, n), ``truth`` (n,).

    Ties count half (Mann-Whitney). Raises TooFewCases if a class has cases of fewer than two patients.
    """
    of_positives, of_negatives = _placements(scores, truth)
    values = of_positives.mean(axis=1)
    groups = np.unique(np.asarray(patients), return_inverse=True)[1]
    m, n = of_positives.shape[1], of_negatives.shape[1]
    positive, with_positive = _by_group(of_positives - values[:, None], groups[truth], groups.max() + 1)
    negative, with_negative = _by_group(of_negatives - values[:, None], groups[~truth], groups.max() + 1)
    if min(with_positive, with_negative) < 2:
        raise TooFewCases("areas need two patients with a positive image and two with a negative one")
    count = positive.shape[1]
    s10 = with_positive / ((with_positive - 1) * m) * positive @ positive.T
    s01 = with_negative / ((with_negative - 1) * n) * negative @ negative.T
    s11 = count / (count - 1) * positive @ negative.T
    return values, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def compare(scores: Float, truth: Bool, patients: Sequence[str], margin: float) -> Comparison:
    """Compare the second of two scores with the first: ``scores`` (2, n). Raises TooFewCases."""
    values, covariance = areas(scores, truth, patients)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    fewest = min(len(set(np.asarray(patients)[of])) for of in (truth, ~truth))
    se = max(math.sqrt(max(variance, 0.0)), smallest_error(fewest))
    return judge(float(values[1] - values[0]), se, margin, int(truth.sum()))


def smallest_error(patients: int) -> float:
    """Lower bound of the standard error of a difference, given the number of ``patients`` in the rarer class.

    DeLong's standard error for two perfect rankings is 0, however few the cases. The bound is the difference if in one
    ranking the cases of one patient of the rarer class lost half of their rank.
    """
    return 0.5 / patients


def judge(difference: float, se: float, margin: float, positives: int) -> Comparison:
    """Two one-sided tests of ``difference`` within ``margin``, and a test of no difference, by the normal distribution.

    ``positives``: number of positive cases.
    """
    z = _NORMAL.inv_cdf(1 - ALPHA)
    p_equivalent = _NORMAL.cdf((abs(difference) - margin) / se)
    p_different = 2 * _NORMAL.cdf(-abs(difference) / se)
    verdict = Equivalence.INCONCLUSIVE
    if p_equivalent < ALPHA:
        verdict = Equivalence.EQUIVALENT
    elif p_different < ALPHA:
        verdict = Equivalence.DIFFERENT
    needed = _positives_needed(difference, se, margin, positives) if verdict is Equivalence.INCONCLUSIVE else None
    low, high = difference - z * se, difference + z * se
    return Comparison(difference, se, low, high, p_different, p_equivalent, margin, verdict, needed)


def _positives_needed(difference: float, se: float, margin: float, positives: int) -> int:
    """Positives at which a test rejects with 80% power if the true difference is the observed one.

    The standard error is inversely proportional to the root of the number of cases. If the difference is within the
    margin, the test is that of equivalence, with half the type II error because it can fail on either side. Otherwise
    it is the test of a difference.
    """
    if abs(difference) < margin:
        reach, z = margin - abs(difference), _NORMAL.inv_cdf(1 - ALPHA) + _NORMAL.inv_cdf(1 - (1 - POWER) / 2)
    else:
        reach, z = abs(difference), _NORMAL.inv_cdf(1 - ALPHA / 2) + _NORMAL.inv_cdf(POWER)
    return max(math.ceil(positives * (z * se / reach) ** 2), positives + 1)


def measures(scores: Float, truth: Bool) -> Float:
    """MEASURES of k scores: float64 (k, 4). Precision is nan if no case is classified as positive."""
    [found] = _weighted(scores, truth, np.ones((1, truth.size)))
    return np.asarray(found)


def bootstrap(scores: Float, truth: Bool, patients: Sequence[str], draws: int, seed: int) -> Float:
    """MEASURES of ``draws`` samples of patients, drawn with replacement: float64 (draws, k, 4).

    All k scores use the same draws, so differences between them are paired. Draws that lack a class are nan.
    """
    groups = np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(groups.max()) + 1
    random = np.random.default_rng(seed)
    step = max(_AT_ONCE // truth.size, 1)
    parts = []
    for start in range(0, draws, step):
        times = random.multinomial(count, np.full(count, 1 / count), size=min(step, draws - start))
        parts.append(_weighted(scores, truth, times[:, groups].astype(np.float64)))
    return np.concatenate(parts)


def interval(values: Float) -> tuple[float, float]:
    """The 95% percentile interval of bootstrapped values (draws,) without nan; nan if all of them are."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.percentile(known, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


def roc(scores: Float, truth: Bool) -> tuple[Float, Float]:
    """The ROC curve as false and true positive rates, both rising from 0 to 1, with a point per distinct score."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits, misses = np.cumsum(truth[order])[ends], np.cumsum(~truth[order])[ends]
    return np.append(0.0, misses / misses[-1]), np.append(0.0, hits / hits[-1])


def _placements(scores: Float, truth: Bool) -> tuple[Float, Float]:
    """V10 (k, m), share of negatives below each positive, and V01 (k, n), share of positives above each negative."""
    from scipy.stats import rankdata

    m, n = int(truth.sum()), int((~truth).sum())
    if not m or not n:
        raise TooFewCases("areas need cases of both classes")
    among_all = rankdata(scores, axis=1)
    positive = (among_all[:, truth] - rankdata(scores[:, truth], axis=1)) / n
    negative = 1 - (among_all[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / m
    return positive, negative


def _by_group(values: Float, groups: NDArray[np.intp], count: int) -> tuple[Float, int]:
    """Sums of ``values`` (k, n) by group, shape (k, count), and the number of groups that occur."""
    sums = np.zeros((values.shape[0], count))
    np.add.at(sums.T, groups, values.T)
    return sums, int(np.unique(groups).size)


def _weighted(scores: Float, truth: Bool, weights: Float) -> Float:
    """MEASURES with case weights ``weights`` (draws, n): shape (draws, k, 4)."""
    positive, negative = weights * truth, weights * ~truth
    total, negatives = positive.sum(axis=1), negative.sum(axis=1)
    found = np.full((weights.shape[0], scores.shape[0], len(MEASURES)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for number, score in enumerate(scores):
            order = np.argsort(score, kind="stable")
            starts = np.flatnonzero(np.append(True, np.diff(score[order]) > 0))
            hits = np.add.reduceat(positive[:, order], starts, axis=1)
            others = np.add.reduceat(negative[:, order], starts, axis=1)
            below = np.cumsum(others, axis=1) - others / 2
            called = score >= _CUT
            true_called, false_called = positive[:, called].sum(axis=1), negative[:, called].sum(axis=1)
            found[:, number] = np.stack(
                [
                    (hits * below).sum(axis=1) / (total * negatives),
                    (true_called + negatives - false_called) / (total + negatives),
                    true_called / (true_called + false_called),
                    true_called / total,
                ],
                axis=1,
            )
    found[(total == 0) | (negatives == 0)] = np.nan
    return found
