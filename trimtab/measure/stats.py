"""What may be concluded from measurements: how much worse a candidate may be, and how many times better it is.

Quality is bounded by one of three paired intervals, by what the metric is: `proportions` (0 or 1 each), `means` (real
scores), `corpus` (a function of the means of several statistics). Gains: exact order-statistic intervals of a median.
`benchmarks/verdict_calibration.py` shows how often each lets through what it should not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom

from trimtab.core import Drop, Metric, Ratio
from trimtab.errors import MetricError, TaskError
from trimtab.measure import corpus, means, proportions
from trimtab.measure.resample import NUM_RESAMPLES, Floats

# Beyond this many resamples from the end, a bootstrap's quantile means nothing.
TAIL_RESAMPLES = 5


@dataclass(frozen=True)
class Kept:
    """A margin that is a share of the baseline's own value: at least `share` of that is to be kept.

    What may be lost then is estimated from the very samples, and errs as they do. So it is metric(candidate) - share *
    metric(baseline) that is bounded, and the bounds of the change are set so that they meet the margin where that is 0.
    """

    share: float

    def of(self, value: float) -> float:
        """What may be lost of `value`, in its units."""
        return (1 - self.share) * abs(value)

    def weight(self, value: float) -> float:
        """The multiple of `value` that has to be reached."""
        return 1 - float(np.sign(value)) * (1 - self.share)


def non_inferiority(
    baseline: np.ndarray,
    candidate: np.ndarray,
    *,
    margin: float | Kept,
    confidence: float,
    binary: bool = False,
    aggregate: corpus.Aggregate | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Drop:
    """How much worse the candidate may be, from the scores of both on the same N samples.

    Args:
        baseline: score of each sample, [N], larger is better; or its statistics, [N, D], if there is an `aggregate`.
        candidate: the same samples', alike.
        margin: the loss of the metric that is allowed, in its units, or what is to be kept of the baseline's.
        confidence: one-sided, of `low` and of `high` each.
        binary: the scores are 0 or 1 each.
        aggregate: (means of the statistics [..., D]) -> the metric [...].
        seed: of the bootstrap, which binary scores do not need.
        num_resamples: of the bootstrap.

    Raises:
        TaskError: fewer than two samples, or different lengths.
        MetricError: NaN or inf, scores that are not binary, or an aggregate that does not take [..., D] to [...].

    >>> right = np.ones(1000)
    >>> drop = non_inferiority(right, right, margin=0.01, confidence=0.95, binary=True)
    >>> drop.diff, round(drop.low, 4), drop.low >= -drop.margin
    (0.0, -0.0032, True)
    """
    first, second = _paired(baseline, candidate, binary=binary, ndim=2 if aggregate else 1)
    before, after = (_value(scores, aggregate) for scores in (first, second))
    num = len(first)
    allowed, weight = (margin.of(before), margin.weight(before)) if isinstance(margin, Kept) else (margin, 1.0)
    if binary:
        # Of 0 and 1 the margin's own error makes the test stricter: who loses was right before, which lowers the share
        # that is to be kept of such samples. So it is left out.
        wins, losses = int(np.sum(second > first)), int(np.sum(second < first))
        low, high = proportions.bounds(wins, losses, num, confidence=confidence)
        p_lost = proportions.p_lost(wins, losses, num, margin=allowed)
        diff, method = (wins - losses) / num, proportions.METHOD
    else:
        if aggregate:
            at = corpus.bounds(first, second, aggregate, seed=seed, num_resamples=num_resamples, weight=weight)
        else:
            at = means.bounds(first, second, seed=seed, num_resamples=num_resamples, weight=weight)
        method = f"{corpus.METHOD if aggregate else means.METHOD}, {num_resamples:,} resamples"
        beside = (1 - weight) * before  # between the change and what is left of the share
        diff, (low, high) = after - before, (bound - beside for bound in at(confidence))
        p_lost = _p_lost(lambda level: at(level)[1] < beside - allowed, TAIL_RESAMPLES / num_resamples)
    return Drop(before, after, diff, low, high, allowed, num, confidence, method, p_lost=p_lost)


def _value(scores: Floats, aggregate: corpus.Aggregate | None) -> float:
    return float(corpus.value_of(aggregate, scores.mean(0)) if aggregate else scores.mean())


def held_by(
    metric: Metric,
    baseline: np.ndarray,
    candidate: np.ndarray,
    *,
    margin: float | Kept,
    confidence: float,
    num_resamples: int = NUM_RESAMPLES,
) -> Drop:
    """`non_inferiority` of a metric's scores, with no more trust than its limits allow.

    What loses much in few samples may not be among the N: a mean is bounded no nearer than one such sample as large as
    the limits, at the largest rate that N samples can miss, would shift it. The limits of an aggregate are not those
    of a sample and tell nothing here.

    >>> close = np.linspace(0.99, 1, 5)
    >>> metric = Metric("cosine", lambda y, t: y, limits=(-1.0, 1.0))
    >>> drop = held_by(metric, np.ones(5), close, margin=0.05, confidence=0.95)
    >>> round(drop.seen_low, 2), round(drop.low, 2)
    (-0.01, -0.91)
    """
    drop = non_inferiority(
        baseline,
        candidate,
        margin=margin,
        confidence=confidence,
        binary=metric.binary,
        aggregate=metric.aggregate,
        num_resamples=num_resamples,
    )
    if metric.limits is None or metric.aggregate:
        return drop
    reach = metric.limits[1] - metric.limits[0]
    low = min(drop.low, drop.diff - reach * means.unseen(drop.n, confidence=confidence))
    return replace(drop, low=low, reach=reach, seen_low=drop.low)


def _p_lost(lost: Callable[[float], bool], least: float) -> float:
    """1 - the largest confidence at which `lost` is true, down to `least`; 1 if it is not at 50 %."""
    low, high = 0.5, 1 - least
    if not lost(low):
        return 1.0
    if lost(high):
        return 1 - high
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if lost(middle) else (low, middle)
    return 1 - low


def _paired(baseline: np.ndarray, candidate: np.ndarray, *, binary: bool, ndim: int) -> tuple[Floats, Floats]:
    first, second = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if first.ndim != ndim or first.shape != second.shape or len(first) < 2:
        asked, shape = ("one score", "[N]") if ndim == 1 else ("D statistics", "[N, D]")
        raise TaskError(
            f"A paired comparison needs {asked} per sample, for the same two or more samples; got shapes "
            f"{first.shape} and {second.shape}. Give both models the same split, and a metric that returns {shape}."
        )
    for name, scores in (("baseline", first), ("candidate", second)):
        if not np.isfinite(scores).all():
            raise MetricError(
                f"{int(np.sum(~np.isfinite(scores)))} of {scores.size} scores of the {name} are NaN or inf. "
                "Expected finite numbers: look at the model's outputs, or at the metric."
            )
        if binary and not np.isin(scores, (0.0, 1.0)).all():
            raise MetricError(
                f"The metric is declared binary, but the {name} has scores other than 0 and 1, e.g. "
                f"{scores[~np.isin(scores, (0.0, 1.0))][0]:g}. Return 0 or 1 per sample, or set binary=False."
            )
    return first, second


def median_interval(samples: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and its two-sided order-statistic interval, which no distribution can break.

    Below six samples even their whole range holds the median with less than 95 %: it is what is returned.

    >>> median_interval(np.arange(1.0, 12.0))
    (6.0, 2.0, 10.0)
    """
    return quantile_interval(samples, 0.5, confidence=confidence)


def quantile_interval(samples: np.ndarray, share: float, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """The value that `share` of the samples do not exceed, and its two-sided order-statistic interval.

    Where too few samples lie beyond it, the interval ends at the largest (or smallest) and holds it less surely.

    >>> quantile_interval(np.arange(1.0, 1001.0), 0.95)
    (950.05, 936.0, 964.0)
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    num = len(ordered)
    assert num > 0, "a quantile of nothing"
    low = max(int(binom.ppf((1 - confidence) / 2, num, share)), 1)
    high = num + 1 - max(int(binom.ppf((1 - confidence) / 2, num, 1 - share)), 1)
    return float(np.quantile(ordered, share)), float(ordered[low - 1]), float(ordered[high - 1])


def gain(baseline_blocks: np.ndarray, candidate_blocks: np.ndarray, *, confidence: float = 0.95) -> Ratio:
    """How many times better the candidate is: the median ratio of M paired blocks, with its interval.

    Args:
        baseline_blocks: one number per block, smaller is better, [M].
        candidate_blocks: measured in the same rounds, [M]. One block (a file size) has no spread.
        confidence: of the interval, two-sided; it takes six blocks to reach 95 %.

    >>> gain(np.array([2.0, 2.2, 1.8]), np.array([1.0, 1.0, 1.0]))
    Ratio(value=2.0, low=1.8, high=2.2, n=3)
    """
    before, after = np.asarray(baseline_blocks, dtype=np.float64), np.asarray(candidate_blocks, dtype=np.float64)
    assert before.shape == after.shape == (len(before),), f"unpaired blocks: {before.shape} and {after.shape}"
    assert min(before.min(), after.min()) > 0, "times and sizes are more than zero"
    value, low, high = median_interval(before / after, confidence=confidence)
    return Ratio(value=value, low=low, high=high, n=len(before))
