from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
