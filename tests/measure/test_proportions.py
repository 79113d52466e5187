from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import binomtest
from verdict_rules import mcnemar_passes, newcombe_low

from tests.reference.tango import false_pass_rate, score_statistic, scores
from trimtab.core import Drop
from trimtab.measure.proportions import tango
from trimtab.measure.stats import non_inferiority


def binary_drop(wins: int, losses: int, num: int, margin: float = 0.009) -> Drop:
    return non_inferiority(*scores(wins, losses, num), margin=margin, confidence=0.95, binary=True)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[int, int, int]:
    num = draw(st.integers(2, 3000))
    wins = draw(st.integers(0, num))
    return wins, draw(st.integers(0, num - wins)), num


@pytest.mark.parametrize("num", [100, 200, 500, 1000, 2000])
@pytest.mark.parametrize("margin", [0.005, 0.009, 0.02, 0.05])
def test_false_pass_rate_is_at_most_5_percent_exactly(num: int, margin: float) -> None:
    extra = (0, 0.002, 0.01, 0.05)
    rates = [false_pass_rate(num=num, margin=margin, loss_rate=margin + more) for more in extra]
    assert max(rates) <= 0.05
    assert max(rates) > 0.02 or num * margin < 3, "so conservative that it would never pass"


@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("num", [200, 1000])
def test_false_pass_rate_is_what_another_confidence_allows(num: int, confidence: float) -> None:
    cases = [(margin, margin + more) for margin in (0.005, 0.02, 0.05) for more in (0, 0.002, 0.01, 0.05)]
    rates = [false_pass_rate(num=num, margin=m, loss_rate=rate, confidence=confidence) for m, rate in cases]
    allowed = 1 - confidence
    assert 0.7 * allowed < max(rates) <= allowed


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("wins", "losses", "num"), [(4, 38, 900), (30, 42, 4000)])
def test_a_bound_lies_where_the_likelihoods_score_is_the_confidences_quantile(
    wins: int, losses: int, num: int, confidence: float
) -> None:
    drop = non_inferiority(*scores(wins, losses, num), margin=0.02, confidence=confidence, binary=True)
    assert score_statistic(wins - 0.5, losses, num, drop.low) == pytest.approx(ndtri(confidence), abs=1e-3)
    assert score_statistic(wins, losses - 0.5, num, drop.high) == pytest.approx(-ndtri(confidence), abs=1e-3)


@given(outcomes(), st.floats(-0.9, 0.9))
def test_tango_agrees_with_maximum_likelihood(outcome: tuple[int, int, int], diff: float) -> None:
    wins, losses, num = outcome
    slow = score_statistic(wins, losses, num, diff)
    assert tango(wins, losses, num, diff) == pytest.approx(slow, rel=1e-3, abs=1e-3)


@given(outcomes())
def test_interval_holds_the_estimate_and_stays_in_range(outcome: tuple[int, int, int]) -> None:
    drop = binary_drop(*outcome)
    assert -1 <= drop.low <= drop.diff <= drop.high <= 1


@given(outcomes())
def test_swapping_the_models_mirrors_the_interval(outcome: tuple[int, int, int]) -> None:
    wins, losses, num = outcome
    one, other = binary_drop(wins, losses, num), binary_drop(losses, wins, num)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)


@given(outcomes())
def test_more_wins_raise_the_bound_and_more_losses_lower_it(outcome: tuple[int, int, int]) -> None:
    wins, losses, num = outcome
    if wins + losses == num:
        num += 1
    drop = binary_drop(wins, losses, num)
    assert binary_drop(wins + 1, losses, num).low >= drop.low - 1e-9
    assert binary_drop(wins, losses + 1, num).low <= drop.low + 1e-9


@pytest.mark.parametrize(("wins", "losses", "num"), [(0, 2, 2), (2, 0, 2), (1, 1, 2), (0, 100, 100), (100, 0, 100)])
def test_extreme_outcomes_stay_finite(wins: int, losses: int, num: int) -> None:
    drop = binary_drop(wins, losses, num)
    assert np.isfinite([drop.low, drop.high]).all()
    assert drop.low <= drop.diff <= drop.high


def test_the_intervals_that_were_not_taken_are_those_that_they_are_called() -> None:
    """Decision 0004 tells how often they pass wrongly: Newcombe's by a known example, McNemar's exact by SciPy."""
    # Complete response before and after consolidation (Cavo et al. 2012): the R package contingencytables has
    # -.1186 to -.0046 for 59 both times, 6 before, 16 after and 80 never.
    both, before, after = np.array([59.0, 6.0, 16.0])
    assert newcombe_low(before, after, both, 161, confidence=0.975) == pytest.approx(-0.1186, abs=5e-5)
    assert newcombe_low(after, before, both, 161, confidence=0.975) == pytest.approx(0.0046, abs=5e-5)
    margin, num = 0.02, 500
    wins, losses = (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(40)))
    exact, mid = (mcnemar_passes(wins, losses, num, margin=margin, mid=mid) for mid in (False, True))
    for won, lost, passes in zip(wins, losses, exact, strict=True):
        some = max(won + lost, 1)
        least = binomtest(int(won), int(some)).proportion_ci(0.9, method="exact").low
        assert passes == ((2 * least - 1) * (won + lost) / num >= -margin)
    assert np.all(mid >= exact)
    assert 0 < np.sum(mid > exact) < 30
