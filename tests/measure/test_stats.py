from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.tango import false_pass_rate, score_statistic, scores
from trimtab.core import Drop, Ratio
from trimtab.errors import TaskError
from trimtab.measure.stats import (
    chance_to_pass,
    gain,
    judge,
    median_interval,
    non_inferiority,
    samples_to_decide,
    tango,
)

FASTER = Ratio(2.0, 1.9, 2.1, 12)


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


def test_no_discordant_pair_is_no_proof_on_few_samples() -> None:
    assert binary_drop(0, 0, 100).low == pytest.approx(-0.0312, abs=1e-4)
    assert judge(binary_drop(0, 0, 100), FASTER, minimise="latency_ms").word == "INCONCLUSIVE"
    assert judge(binary_drop(0, 0, 1000), FASTER, minimise="latency_ms").word == "PASS"


@pytest.mark.parametrize(("wins", "losses", "num"), [(0, 2, 2), (2, 0, 2), (1, 1, 2), (0, 100, 100), (100, 0, 100)])
def test_extreme_outcomes_stay_finite(wins: int, losses: int, num: int) -> None:
    drop = binary_drop(wins, losses, num)
    assert np.isfinite([drop.low, drop.high]).all()
    assert drop.low <= drop.diff <= drop.high


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


def test_identical_real_scores_leave_room_for_what_was_not_seen() -> None:
    values = np.linspace(0, 1, 300)
    drop = non_inferiority(values, values, margin=0.02, confidence=0.95, binary=False)
    assert drop.diff == 0
    assert drop.low == pytest.approx(-0.00994, abs=1e-4)
    assert judge(drop, FASTER, minimise="latency_ms").word == "PASS"


def test_one_event_among_few_samples_is_wide_but_finite() -> None:
    delta = np.zeros(100)
    delta[0] = -1
    drop = real_drop(delta)
    assert -0.1 < drop.low < -0.02
    assert drop.low <= drop.diff <= drop.high


def test_bootstrap_repeats_with_its_seed() -> None:
    delta = np.random.default_rng(0).normal(0, 1, 50)
    assert real_drop(delta) == real_drop(delta)


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


def test_samples_to_decide_decides_when_the_same_data_go_on() -> None:
    drop = binary_drop(10, 13, 1000)
    further = samples_to_decide(drop)
    assert further is not None
    assert 0 < further < 10_000

    def repeated(times: float) -> Drop:
        return binary_drop(round(10 * times), round(13 * times), round(1000 * times))

    factor = 1 + further / drop.n
    assert judge(repeated(1.2 * factor), FASTER, minimise="latency_ms").word == "PASS"
    assert judge(repeated(0.7 * factor), FASTER, minimise="latency_ms").word == "INCONCLUSIVE"


def test_samples_to_decide_at_its_ends() -> None:
    assert samples_to_decide(binary_drop(0, 0, 1000)) == 0
    assert samples_to_decide(binary_drop(0, 500, 1000)) == 0
    on_the_margin = dataclasses.replace(binary_drop(5, 15, 1000), margin=0.01)
    assert samples_to_decide(on_the_margin) is None


def test_chance_to_pass_agrees_with_simulation() -> None:
    rng = np.random.default_rng(3)
    num_select, num_verify, wins, losses, margin = 2000, 4000, 30, 36, 0.009
    chance = chance_to_pass(binary_drop(wins, losses, num_select, margin), num_verify=num_verify)
    rates = rng.dirichlet([wins, losses, num_select - wins - losses], size=1000)
    draws = [rng.multinomial(num_verify, rate) for rate in rates]
    passes = np.mean([binary_drop(int(w), int(lost), num_verify, margin).low >= -margin for w, lost, _ in draws])
    assert chance == pytest.approx(float(passes), abs=0.07)


@given(outcomes(), st.integers(10, 10_000))
def test_chance_to_pass_is_a_probability_that_grows_with_the_margin(
    outcome: tuple[int, int, int], num_verify: int
) -> None:
    drop = binary_drop(*outcome)
    strict = chance_to_pass(drop, num_verify=num_verify)
    generous = chance_to_pass(dataclasses.replace(drop, margin=0.05), num_verify=num_verify)
    assert 0 <= strict <= generous <= 1


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


def drops() -> st.SearchStrategy[Drop]:
    ordered = st.tuples(*[st.floats(-0.1, 0.1)] * 3).map(sorted)
    return st.builds(
        lambda ends, margin: Drop(0.9, 0.9 + ends[1], ends[1], ends[0], ends[2], margin, 1000, 0.95, "given"),
        ordered,
        st.floats(0, 0.05),
    )


def gains() -> st.SearchStrategy[Ratio]:
    return st.tuples(*[st.floats(0.2, 5)] * 3).map(sorted).map(lambda ends: Ratio(ends[1], ends[0], ends[2], 12))


RANK = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


@settings(max_examples=300)
@given(drops(), gains(), st.floats(0, 0.05), st.floats(0, 1))
def test_a_better_result_never_gets_a_worse_verdict(drop: Drop, ratio: Ratio, shift: float, faster: float) -> None:
    before = judge(drop, ratio, minimise="latency_ms").word
    better = dataclasses.replace(drop, diff=drop.diff + shift, low=drop.low + shift, high=drop.high + shift)
    quicker = Ratio(ratio.value + faster, ratio.low + faster, ratio.high + faster, ratio.n)
    for after in (
        judge(better, ratio, minimise="latency_ms"),
        judge(drop, quicker, minimise="latency_ms"),
        judge(dataclasses.replace(drop, margin=drop.margin + shift), ratio, minimise="latency_ms"),
    ):
        assert RANK[after.word] >= RANK[before]


@given(drops(), gains())
def test_a_verdict_says_why_and_what_next(drop: Drop, ratio: Ratio) -> None:
    verdict = judge(drop, ratio, minimise="size_bytes")
    assert verdict.word == "PASS" or any(word in verdict.reason for word in ("lost", "Not smaller", "open", "proven"))
    assert verdict.more_samples is None or (verdict.word == "INCONCLUSIVE" and verdict.more_samples > 0)
    assert (verdict.word == "PASS") == (drop.low >= -drop.margin and ratio.low > 1)


def test_reasons_in_plain_words() -> None:
    good = binary_drop(30, 42, 4000)
    assert judge(good, FASTER, minimise="latency_ms").reason == (
        "Quality holds: the metric changed by -0.003 (at worst -0.00672 with 95 % confidence, -0.009 allowed, "
        "4,000 samples); latency is 2.00x [1.90, 2.10] better than the best free baseline."
    )
    slow = Ratio(0.8, 0.7, 0.9, 12)
    assert judge(good, slow, minimise="latency_ms").reason.startswith("Not faster than the best free baseline")
    level = Ratio(1.1, 0.9, 1.3, 12)
    assert "is not proven: latency 1.10x [0.90, 1.30]" in judge(good, level, minimise="latency_ms").reason
    few = judge(binary_drop(1, 2, 200), FASTER, minimise="latency_ms")
    assert few.more_samples is not None
    assert f"About {few.more_samples:,} more verify samples would decide." in few.reason
    assert judge(binary_drop(0, 200, 1000), FASTER, minimise="latency_ms").reason.startswith("Quality is lost")
