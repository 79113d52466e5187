from __future__ import annotations

import numpy as np
import pytest

from tests.reference.tango import scores
from trimtab.core import Drop, Ratio
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
