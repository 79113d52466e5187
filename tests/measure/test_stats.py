from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core import Metric, Ratio
from trimtab.errors import TaskError
from trimtab.measure.stats import Kept, gain, held_by, median_interval, non_inferiority, quantile_interval


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones(3), np.ones(4), r"shapes \(3,\) and \(4,\)"),
        (np.ones(1), np.ones(1), "two or more samples"),
        (np.ones((3, 2)), np.ones((3, 2)), "one score per sample"),
        (np.ones(3), np.array([1, np.nan, 0]), "1 of 3 scores of the candidate are NaN or inf"),
        (np.array([0.5, 1, 0]), np.ones(3), r"baseline has scores other than 0 and 1, e.g. 0.5"),
    ],
)
def test_unusable_scores_are_refused(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        non_inferiority(first, second, margin=0.01, confidence=0.95, binary=True)


@pytest.mark.parametrize("num", [5, 20, 50])
def test_a_rare_loss_that_the_samples_missed_is_not_excluded(num: int) -> None:
    """The true loss is at the margin: nearly all of it in the 5 % of the samples that lose all they can."""
    rng, margin = np.random.default_rng(0), 0.05
    passed = {None: 0, (0.0, 1.0): 0}
    for _ in range(200):
        lost = np.where(rng.random(num) < margin, 1.0, rng.uniform(0, 1e-3, num))
        for limits in passed:
            metric = Metric("likeness", lambda y, t: y, limits=limits)
            drop = held_by(metric, np.ones(num), 1 - lost, margin=margin, confidence=0.95, num_resamples=199)
            passed[limits] += drop.low >= -margin
    assert passed[0.0, 1.0] <= 10 + 7  # of 200, at most 5 %, and the simulation's own error
    assert passed[None] > 2 * passed[0.0, 1.0], "what the limits are for"


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_error_of_a_margin_that_is_a_share_counts(sign: float) -> None:
    """All samples lose alike, so that the change is known well, and what may be lost of the samples' mean is not."""
    rng, share, num = np.random.default_rng(0), 0.8, 5000
    passed = np.zeros(2, int)
    for _ in range(200):
        first = sign * rng.uniform(0.0, 1.0, num)
        second = first - (1 - share) / 2 + rng.normal(0, 0.01, num)  # in truth exactly at the bound
        given = (1 - share) * abs(float(first.mean()))
        for at, margin in enumerate((Kept(share), given)):
            drop = non_inferiority(first, second, margin=margin, confidence=0.95, num_resamples=199)
            assert drop.margin == pytest.approx(given)
            passed[at] += drop.low >= -drop.margin
    assert passed[0] <= 10 + 7  # of 200, at most 5 %, and the simulation's own error
    assert passed[1] > 2 * passed[0], "what taking the margin for known would let through"


def test_a_share_of_an_aggregate_is_bounded_as_that_of_the_mean_it_is() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.0, 1.0, 400)
    second = first - 0.02 + rng.normal(0, 0.02, 400)
    mean = non_inferiority(first, second, margin=Kept(0.95), confidence=0.95)
    same = non_inferiority(
        first[:, None], second[:, None], margin=Kept(0.95), confidence=0.95, aggregate=lambda m: m[..., 0]
    )
    assert (same.low, same.high) == pytest.approx((mean.low, mean.high), abs=0.02 * (mean.high - mean.low))
    assert (same.margin, same.diff) == pytest.approx((mean.margin, mean.diff))


def test_an_equal_model_passes_any_share_that_is_not_all() -> None:
    scores = np.random.default_rng(0).uniform(0.5, 1.0, 300)
    drop = non_inferiority(scores, scores, margin=Kept(0.98), confidence=0.95)
    assert drop.low >= -drop.margin
    assert drop.diff == 0


@pytest.mark.parametrize("share", [0.8, 0.95])
def test_of_zeros_and_ones_the_margin_may_be_taken_for_known(share: float) -> None:
    """Exactly at the bound, with and without some who win: false PASS stays at 5 % without the margin's error."""
    rng, num, right = np.random.default_rng(1), 400, 0.7
    for wins in (0.0, 0.05):
        passed = 0
        for _ in range(400):
            drawn, first = rng.random(num), (rng.random(num) < right).astype(float)
            loss = (1 - share) + wins * (1 - right) / right
            second = np.where(first > 0, drawn >= loss, drawn < wins).astype(float)
            drop = non_inferiority(first, second, margin=Kept(share), confidence=0.95, binary=True)
            passed += drop.low >= -drop.margin
        assert passed <= 20 + 9


def test_where_much_was_seen_the_limits_change_nothing() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 500))
    bounded = Metric("overlap", lambda y, t: y, limits=(0.0, 1.0))
    drop = held_by(bounded, first, second, margin=0.01, confidence=0.95)
    assert drop.low == non_inferiority(first, second, margin=0.01, confidence=0.95).low == drop.seen_low


def test_median_interval_covers_the_median() -> None:
    rng = np.random.default_rng(1)
    truth = np.log(2)
    held = [low <= truth <= high for _, low, high in (median_interval(rng.exponential(1, 20)) for _ in range(1000))]
    assert np.mean(held) >= 0.94


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40))
def test_median_interval_holds_the_median(samples: list[float]) -> None:
    value, low, high = median_interval(np.array(samples))
    assert min(samples) <= low <= value <= high <= max(samples)


def test_gain_cancels_a_drift_that_both_share() -> None:
    drift = np.linspace(1, 3, 12)
    ratio = gain(2.9 * drift, 1.0 * drift)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.9, 2.9, 2.9))
    assert ratio.n == 12


def test_gain_of_one_block_has_no_spread() -> None:
    assert gain(np.array([300.0]), np.array([100.0])) == Ratio(3.0, 3.0, 3.0, 1)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_quantile_interval_covers_the_quantile(share: float) -> None:
    rng = np.random.default_rng(1)
    truth = -np.log1p(-share)
    found = [quantile_interval(rng.exponential(1, 300), share) for _ in range(1000)]
    assert 0.94 <= np.mean([low <= truth <= high for _, low, high in found]) <= 0.985


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_quantile_interval_stays_among_the_samples(samples: list[float], share: float) -> None:
    _, low, high = quantile_interval(np.array(samples), share)
    assert min(samples) <= low <= high <= max(samples)
