from __future__ import annotations

import numpy as np
import pytest

from tests.reference.bootstrap import bca as slow_bca
from trimtab.core import Drop
from trimtab.errors import MetricError, TaskError
from trimtab.measure.corpus import bca, influence, value_of
from trimtab.measure.stats import non_inferiority

Floats = np.ndarray


def f1(means: Floats) -> Floats:
    """From the shares of true positives, false positives and false negatives."""
    return 2 * means[..., 0] / (2 * means[..., 0] + means[..., 1] + means[..., 2])


def ratio(means: Floats) -> Floats:
    return 1 - means[..., 0] / means[..., 1]


def perplexity(means: Floats) -> Floats:
    return -np.exp(means[..., 0] / means[..., 1])


def of_f1(rng: np.random.Generator, num: int, hit: float) -> Floats:
    truth, said = rng.random(num) < 0.3, rng.random(num)
    guess = np.where(truth, said < hit, said < 0.1)
    return np.stack([truth & guess, ~truth & guess, truth & ~guess], 1).astype(float)


def of_words(rng: np.random.Generator, num: int, rate: float) -> Floats:
    length = rng.integers(5, 30, num)
    return np.stack([rng.binomial(length, rate), length], 1).astype(float)


def of_tokens(rng: np.random.Generator, num: int, loss: float) -> Floats:
    length = rng.integers(20, 60, num)
    return np.stack([rng.gamma(length, loss), length], 1)


CASES = {"f1": (f1, of_f1, 0.8, 0.75), "error rate": (ratio, of_words, 0.05, 0.06),
         "perplexity": (perplexity, of_tokens, 1.0, 1.1)}  # fmt: skip


def pair(name: str, num: int) -> tuple[Floats, Floats]:
    _, draw, before, after = CASES[name]
    rng = np.random.default_rng(5)
    return draw(rng, num, before), draw(rng, num, after)


def drop_of(name: str, num: int, margin: float = 0.05) -> Drop:
    return non_inferiority(*pair(name, num), margin=margin, confidence=0.95, aggregate=CASES[name][0])


@pytest.mark.parametrize("name", CASES)
def test_bounds_agree_with_scipy(name: str) -> None:
    aggregate = CASES[name][0]
    first, second = pair(name, 150)
    low, high = slow_bca(first, second, lambda rows: float(aggregate(rows.mean(0))), seed=1)
    drop = drop_of(name, 150)
    assert drop.low < low + 0.02 * (high - low), "widened by the guard, so not narrower but for the resampling"
    assert drop.high > high - 0.02 * (high - low)
    assert drop.high - drop.low == pytest.approx(high - low, rel=0.15)
    assert drop.diff == pytest.approx(aggregate(second.mean(0)) - aggregate(first.mean(0)))


def test_influence_is_the_jackknife_to_first_order() -> None:
    rows = of_f1(np.random.default_rng(0), 400, 0.8)
    whole = f1(rows.mean(0))
    left_out = np.array([f1(np.delete(rows, at, 0).mean(0)) for at in range(len(rows))])
    assert influence(f1, rows) == pytest.approx(399 * (whole - left_out), rel=0.03, abs=1e-9)


def test_bca_of_a_symmetric_case_is_the_percentile_interval() -> None:
    drawn = np.linspace(-1, 1, 2001)
    assert bca(drawn, 0.0, np.array([-1.0, 1.0]), confidence=0.95) == pytest.approx((-0.9, 0.9), abs=2e-3)


def test_bca_leans_towards_the_long_tail() -> None:
    rng = np.random.default_rng(2)
    delta = rng.exponential(1, 60) - 1
    drawn = np.array([rng.choice(delta, 60).mean() for _ in range(3000)])
    low, high = bca(drawn, 0.0, delta - delta.mean(), confidence=0.95)
    assert high > np.quantile(drawn, 0.95)
    assert low > np.quantile(drawn, 0.05)


def test_equal_models_leave_room_for_what_was_not_seen() -> None:
    rows = of_words(np.random.default_rng(0), 300, 0.05)
    drop = non_inferiority(rows, rows, margin=0.01, confidence=0.95, aggregate=ratio)
    assert drop.diff == 0
    assert -0.01 < drop.low < 0 < drop.high


def test_a_mean_given_as_an_aggregate_is_bounded_like_the_mean() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1, 400), rng.normal(-0.05, 1, 400)
    mean = non_inferiority(first, second, margin=0.1, confidence=0.95)
    corpus = non_inferiority(
        first[:, None], second[:, None], margin=0.1, confidence=0.95, aggregate=lambda m: m[..., 0]
    )
    assert (corpus.low, corpus.high) == pytest.approx((mean.low, mean.high), abs=0.1 * (mean.high - mean.low))


def test_an_aggregate_that_takes_one_row_only_is_refused() -> None:
    rows = np.ones((10, 2))
    with pytest.raises(MetricError, match=r"returned shape \(2,\) for means of statistics \(10, 2\)"):
        value_of(lambda m: m[0], rows)


def test_a_metric_that_is_not_finite_is_refused() -> None:
    rows = np.zeros((10, 2))
    with pytest.raises(MetricError, match="NaN or inf on the samples"):
        non_inferiority(rows, rows, margin=0.1, confidence=0.95, aggregate=ratio)
    rows[0] = 1
    with pytest.raises(MetricError, match=r"NaN or inf on \d+ of 4999 resamples of the 10 samples"):
        non_inferiority(rows, rows, margin=0.1, confidence=0.95, aggregate=ratio)


def test_statistics_that_are_no_matrix_are_refused() -> None:
    with pytest.raises(TaskError, match=r"needs D statistics per sample.*returns \[N, D\]"):
        non_inferiority(np.ones(5), np.ones(5), margin=0.1, confidence=0.95, aggregate=ratio)
