from __future__ import annotations

import dataclasses
import functools
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.measure.test_proportions import binary_drop, outcomes
from trimtab.core import Drop, Metric, Ratio, Verdict
from trimtab.measure.stats import held_by
from trimtab.measure.verdict import chance_to_pass, hold, holm, in_order, judge, samples_to_decide

FASTER = Ratio(2.0, 1.9, 2.1, 12)


def test_no_discordant_pair_is_no_proof_on_few_samples() -> None:
    assert binary_drop(0, 0, 100).low == pytest.approx(-0.0312, abs=1e-4)
    assert judge((binary_drop(0, 0, 100),), FASTER, minimise="latency_ms").word == "INCONCLUSIVE"
    assert judge((binary_drop(0, 0, 1000),), FASTER, minimise="latency_ms").word == "PASS"


def test_samples_to_decide_decides_when_the_same_data_go_on() -> None:
    drop = binary_drop(10, 13, 1000)
    further = samples_to_decide(drop)
    assert further is not None
    assert 0 < further < 10_000

    def repeated(times: float) -> Drop:
        return binary_drop(round(10 * times), round(13 * times), round(1000 * times))

    factor = 1 + further / drop.n
    assert judge((repeated(1.2 * factor),), FASTER, minimise="latency_ms").word == "PASS"
    assert judge((repeated(0.7 * factor),), FASTER, minimise="latency_ms").word == "INCONCLUSIVE"


def bounded_drop(num: int) -> Drop:
    metric = Metric("likeness", lambda y, t: y, limits=(0.0, 1.0))
    scores = 1 - np.resize([0.001, 0.003, 0.008, 0.002], num)
    return held_by(metric, np.ones(num), scores, margin=0.05, confidence=0.95)


def test_what_may_have_been_missed_decides_how_many_samples_it_takes() -> None:
    drop = bounded_drop(8)
    assert drop.low < -drop.margin < drop.seen_low, "open only for what eight samples may have missed"
    further = samples_to_decide(drop)
    assert further is not None
    assert 40 < further < 80
    assert bounded_drop(8 + further).low >= -drop.margin > bounded_drop(8 + further - 4).low
    assert chance_to_pass(drop, num_verify=8) < 0.01
    assert chance_to_pass(drop, num_verify=8 + further + 4) > 0.9


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


def made(ends: list[float], margin: float) -> Drop:
    low, diff, high = ends
    return Drop(0.9, 0.9 + diff, diff, low, high, margin, 1000, 0.95, "given", p_lost=0.01 if high < -margin else 1.0)


def drops() -> st.SearchStrategy[Drop]:
    return st.builds(made, st.tuples(*[st.floats(-0.1, 0.1)] * 3).map(sorted), st.floats(0, 0.05))


def gains() -> st.SearchStrategy[Ratio]:
    return st.tuples(*[st.floats(0.2, 5)] * 3).map(sorted).map(lambda ends: Ratio(ends[1], ends[0], ends[2], 12))


RANK = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


@settings(max_examples=300)
@given(drops(), gains(), st.floats(0, 0.05), st.floats(0, 1))
def test_a_better_result_never_gets_a_worse_verdict(drop: Drop, ratio: Ratio, shift: float, faster: float) -> None:
    before = judge((drop,), ratio, minimise="latency_ms").word
    better = made([drop.low + shift, drop.diff + shift, drop.high + shift], drop.margin)
    quicker = Ratio(ratio.value + faster, ratio.low + faster, ratio.high + faster, ratio.n)
    for after in (
        judge((better,), ratio, minimise="latency_ms"),
        judge((drop,), quicker, minimise="latency_ms"),
        judge((made([drop.low, drop.diff, drop.high], drop.margin + shift),), ratio, minimise="latency_ms"),
    ):
        assert RANK[after.word] >= RANK[before]


@given(drops(), gains())
def test_a_verdict_says_why_and_what_next(drop: Drop, ratio: Ratio) -> None:
    verdict = judge((drop,), ratio, minimise="size_bytes")
    assert verdict.word == "PASS" or any(word in verdict.reason for word in ("lost", "Not smaller", "open", "proven"))
    assert verdict.more_samples is None or (verdict.word == "INCONCLUSIVE" and verdict.more_samples > 0)
    assert (verdict.word == "PASS") == (drop.low >= -drop.margin and ratio.low > 1)


def test_reasons_in_plain_words() -> None:
    good = binary_drop(30, 42, 4000)
    assert judge((good,), FASTER, minimise="latency_ms").reason == (
        "Quality holds: the metric changed by -0.003 (at worst -0.00672 with 95 % confidence, -0.009 allowed, "
        "4,000 samples); latency is 2.00x [1.90, 2.10] better than the best free baseline."
    )
    slow = Ratio(0.8, 0.7, 0.9, 12)
    assert judge((good,), slow, minimise="latency_ms").reason.startswith("Not faster than the best free baseline")
    level = Ratio(1.1, 0.9, 1.3, 12)
    assert "is not proven: latency 1.10x [0.90, 1.30]" in judge((good,), level, minimise="latency_ms").reason
    few = judge((binary_drop(1, 2, 200),), FASTER, minimise="latency_ms")
    assert few.more_samples is not None
    assert f"About {few.more_samples:,} more verify samples would decide." in few.reason
    assert judge((binary_drop(0, 200, 1000),), FASTER, minimise="latency_ms").reason.startswith("Quality is lost")


def test_every_bound_must_hold_and_needs_no_correction_for_that() -> None:
    holds, open_ = made([-0.01, 0, 0.01], 0.02), made([-0.03, -0.01, 0.01], 0.02)
    assert judge([holds] * 20, FASTER, minimise="latency_ms").word == "PASS"
    verdict = judge([holds, open_], FASTER, minimise="latency_ms")
    assert [held.word for held in verdict.bounds] == ["PASS", "INCONCLUSIVE"]
    assert verdict.more_samples == verdict.bounds[1].more_samples == samples_to_decide(open_)
    assert verdict.drop == holds


def test_what_is_lost_is_corrected_for_how_many_bounds_there_are() -> None:
    lost = dataclasses.replace(made([-0.08, -0.05, -0.021], 0.02), p_lost=0.04)
    holds = made([-0.01, 0, 0.01], 0.02)
    alone, among = hold([lost])[0], hold([lost, holds])[0]
    assert (alone.word, among.word) == ("FAIL", "INCONCLUSIVE")
    assert among.more_samples
    assert judge([holds, dataclasses.replace(lost, p_lost=0.02)], FASTER, minimise="latency_ms").word == "FAIL"


def test_a_slice_needs_its_share_of_further_samples() -> None:
    open_ = made([-0.03, -0.01, 0.01], 0.02)
    quarter = dataclasses.replace(open_, share=0.25, what="accuracy of night")
    whole, part = hold([open_, quarter])
    assert whole.more_samples
    assert part.more_samples == 4 * whole.more_samples
    verdict = judge([open_, quarter], FASTER, minimise="latency_ms")
    assert verdict.more_samples == part.more_samples
    assert "and 1 more bound" in verdict.reason


def slow_holm(p_values: list[float], alpha: float) -> list[bool]:
    """Rejected if every intersection that holds the hypothesis is, by Bonferroni (closed testing)."""
    num = len(p_values)
    sets = [[at for at in range(num) if bits >> at & 1] for bits in range(1, 2**num)]
    passed = {
        at: all(min(p_values[j] for j in one) <= alpha / len(one) for one in sets if at in one) for at in range(num)
    }
    return [passed[at] for at in range(num)]


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    assert holm(p_values, alpha=0.05) == slow_holm(p_values, 0.05)


WORSE = {"FAIL": -0.2, "INCONCLUSIVE": 0.0, "PASS": 0.2}


def worded(word: str, gain: float) -> Verdict:
    """A verdict with that word and gain."""
    middle = WORSE[word]
    drop = made([middle - 0.01, middle, middle + 0.01], 0.005)
    found = judge((drop,), Ratio(gain, gain - 0.01, gain + 0.01, 12), minimise="latency_ms")
    assert found.word == word
    return found


def test_finalists_are_tested_in_turn_until_one_does_not_pass() -> None:
    for words, gains_in_turn in product(product(RANK, repeat=3), ((1.5, 2.0, 3.0), (2.0, 1.5, 3.0), (3.0, 2.0, 1.5))):
        won, tested = [], 0
        for place in range(3):
            tested += 1
            if words[place] != "PASS":
                break
            won.append(place)
        verdicts = [worded(word, gain) for word, gain in zip(words, gains_in_turn, strict=True)]
        best = sorted(won, key=lambda place: -gains_in_turn[place])[0] if won else 0
        assert in_order(verdicts) == (best, tested)


@functools.cache
def lost_at_the_margin(wins: int, losses: int, num: int) -> Drop:
    return binary_drop(wins, losses, num, 0.02)


def test_three_finalists_at_the_margin_pass_wrongly_no_more_often_than_one() -> None:
    rng, num, wrong = np.random.default_rng(0), 400, np.zeros(2)
    tasks = 3000
    for _ in range(tasks):
        verdicts = []
        for gain in (1.5, 2.0, 3.0):
            wins, losses, _ = rng.multinomial(num, (0.03, 0.05, 0.92))
            drop = lost_at_the_margin(int(wins), int(losses), num)
            verdicts.append(judge((drop,), Ratio(gain, gain, gain, 8), minimise="latency_ms"))
        shipped, _ = in_order(verdicts)
        wrong += (verdicts[0].word == "PASS", verdicts[shipped].word == "PASS")
    alone, together = wrong / tasks
    assert together == alone
    assert together <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tasks)
