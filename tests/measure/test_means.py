from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.reference.bootstrap import studentised
from tests.reference.tango import scores
from trimtab.core import Drop, Ratio
from trimtab.measure.means import bounds, unseen
from trimtab.measure.stats import non_inferiority
from trimtab.measure.verdict import judge


def real_drop(delta: np.ndarray, margin: float = 0.1) -> Drop:
    return non_inferiority(np.zeros(len(delta)), delta, margin=margin, confidence=0.95, binary=False)


@pytest.mark.parametrize("num", [100, 200])
@pytest.mark.parametrize("kind", ["normal", "skewed", "rare"])
def test_bootstrap_false_pass_rate(num: int, kind: str) -> None:
    rng = np.random.default_rng(7)
    draw = {
        "normal": lambda: rng.normal(-0.1, 1, num),
        "skewed": lambda: -0.1 * rng.exponential(1, num),
        "rare": lambda: -1.0 * (rng.random(num) < 0.1),
    }[kind]
    repeats = 200
    passes = sum(real_drop(draw()).low >= -0.1 for _ in range(repeats))
    monte_carlo_error = 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert passes / repeats <= 0.05 + monte_carlo_error


def test_bootstrap_agrees_with_the_score_interval_where_both_apply() -> None:
    first, second = scores(60, 80, 4000)
    exact = non_inferiority(first, second, margin=0.01, confidence=0.95, binary=True)
    bootstrap = non_inferiority(first, second, margin=0.01, confidence=0.95, binary=False)
    assert bootstrap.low == pytest.approx(exact.low, abs=5e-4)
    assert bootstrap.high == pytest.approx(exact.high, abs=5e-4)


def test_one_event_among_few_samples_is_wide_but_finite() -> None:
    delta = np.zeros(100)
    delta[0] = -1
    drop = real_drop(delta)
    assert -0.1 < drop.low < -0.02
    assert drop.low <= drop.diff <= drop.high


def test_bootstrap_repeats_with_its_seed() -> None:
    delta = np.random.default_rng(0).normal(0, 1, 50)
    assert real_drop(delta) == real_drop(delta)


def test_identical_real_scores_leave_room_for_what_was_not_seen() -> None:
    values = np.linspace(0, 1, 300)
    drop = non_inferiority(values, values, margin=0.02, confidence=0.95, binary=False)
    assert drop.diff == 0
    assert drop.low == pytest.approx(-0.00994, abs=1e-4)
    assert judge((drop,), Ratio(2.0, 1.9, 2.1, 12), minimise="latency_ms").word == "PASS"


def paired(kind: str, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two models; what the second loses is alike on both sides, or has a long tail."""
    rng = np.random.default_rng(11)
    first = rng.uniform(1, 2, num)
    return first, first - (rng.normal(0.1, 1, num) if kind == "normal" else 0.3 * rng.exponential(1, num))


@pytest.mark.parametrize("weight", [1.0, 0.8])
@pytest.mark.parametrize("kind", ["normal", "long tail"])
def test_bounds_agree_with_the_bootstrap_resample_by_resample(kind: str, weight: float) -> None:
    first, second = paired(kind, 150)
    fast, slow = 50_000, 10_000
    quick = bounds(first, second, seed=1, num_resamples=fast, weight=weight)
    at = studentised(first, second, weight=weight, seed=2, num_resamples=slow)
    for confidence in (0.9, 0.95):
        low, high = quick(confidence)
        # A quantile of R resamples errs by sqrt(p (1 - p) / R) in p: four such errors of both, of any distribution.
        error = 4 * np.sqrt(confidence * (1 - confidence) * (1 / fast + 1 / slow))
        (nearest, least_high), (farthest, most_high) = at(confidence - error), at(confidence + error)
        assert farthest <= low <= nearest
        assert least_high <= high <= most_high
        rare = np.ptp([*first, *second]) * unseen(150, confidence=confidence)
        assert high - np.mean(second - weight * first) > rare, "it is not the rule of three that is compared"


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("weight", [1.0, 0.8])
def test_near_normal_differences_are_bounded_as_by_students_t(weight: float, confidence: float) -> None:
    """The differences are a normal's quantiles, so that they have no skewness that t does not know."""
    num, resamples = 2000, 20_000
    first = np.ones(num)
    second = first - 0.2 + 0.3 * stats.norm.ppf((np.arange(num) + 0.5) / num)
    low, high = bounds(first, second, seed=1, num_resamples=resamples, weight=weight)(confidence)
    left = second - weight * first
    found = stats.ttest_1samp(left, 0).confidence_interval(2 * confidence - 1)
    half = np.abs(second - first).max() / (2 * num)  # what the guard adds on purpose
    quantile = stats.norm.ppf(confidence)
    error = 4 * np.sqrt(confidence * (1 - confidence) / resamples) / stats.norm.pdf(quantile)
    near = pytest.approx((found.low - half, found.high + half), abs=error * stats.sem(left))
    assert (low, high) == near
