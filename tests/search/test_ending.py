"""How a search ends, on made-up trials: what none beats, what cost most, what to try next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.search.test_space import trial
from trimtab.core import Drop, Held, Ratio, Verdict
from trimtab.search.ending import costliest, ending, next_thing, pareto

STEPS = [{"step": "original", "metric": 0.9}, {"step": "prune .5", "metric": 0.8}, {"step": "int8", "metric": 0.79}]
DROP = Drop(0.9, 0.79, -0.11, -0.13, -0.09, 0.009, 2000, 0.95, "exact", "accuracy")
TRIALS = [
    trial("free", 2.0),
    trial("slower and worse", 2.0, diff=-0.1, gain=0.9),
    trial("fast", 1.0, diff=-0.05, gain=2.0),
    trial("faster", 0.5, diff=-0.2, gain=4.0),
    trial("fast and worse", 1.0, diff=-0.1, gain=2.0),
]


def verdict(word="FAIL", *, gain=2.0, more=None) -> Verdict:
    return Verdict(word, "", DROP, Ratio(gain, gain - 0.1, gain + 0.1, 24), more, (Held(DROP, word),))


def test_the_pareto_set_is_what_none_beats_cheapest_first() -> None:
    assert pareto(TRIALS, "latency_ms") == ("faster", "fast", "free")


def test_the_step_that_cost_most_is_named() -> None:
    assert costliest(STEPS) == ("prune .5", pytest.approx(0.1))
    assert costliest(STEPS[:1]) is None
    assert (
        costliest([{"step": "a", "metric": 0.8}, {"step": "b", "metric": None}, {"step": "c", "metric": 0.9}]) is None
    )


def test_the_next_thing_to_try_follows_from_what_is_lacking() -> None:
    assert next_thing(verdict("PASS"), STEPS) == ""
    assert next_thing(verdict("INCONCLUSIVE", more=1500), STEPS).startswith("Bring about 1,500 more verify samples")
    assert "more runtimes" in next_thing(verdict(gain=0.8), STEPS)
    assert next_thing(verdict(), STEPS).startswith("Train after 'prune .5' to recover")
    learned = [*STEPS, {"step": "distill 2 epochs", "metric": 0.8}]
    told = next_thing(verdict(), learned)
    assert told == (
        "Recover for longer (--minutes), or take less away. 'prune .5' cost most. Or allow a loss of 0.13 in accuracy, "
        "which this one would have passed."
    )


def on_the_margin(*, low: float, gain: float = 2.0, spread: float = 0.1) -> Verdict:
    """Open, as the loss is what is allowed and no number of samples decides."""
    drop = replace(DROP, diff=-DROP.margin, low=low, high=0.0)
    return Verdict(
        "INCONCLUSIVE", "", drop, Ratio(gain, gain - spread, gain + spread, 24), None, (Held(drop, "INCONCLUSIVE"),)
    )


def test_on_the_margin_more_must_be_allowed_or_less_taken_away() -> None:
    told = next_thing(on_the_margin(low=-0.0181), STEPS)
    assert told == (
        "Allow a little more (a loss of 0.019 in accuracy would have passed), or take less away at 'prune .5', which "
        "cost most: the loss sits on the margin, where no number of samples decides."
    )
    assert "take less away: the loss sits" in next_thing(on_the_margin(low=-0.0181), STEPS[:1]), "no step cost anything"
    own = on_the_margin(low=-0.0181)
    f1 = replace(own.drop, what="F1", diff=-0.1, low=-0.2)
    several = replace(own, bounds=(*own.bounds, Held(f1, "INCONCLUSIVE"), Held(replace(f1, diff=0.0), "PASS")))
    assert "(a loss of 0.2 in F1 would have passed, with 1 more bound open)" in next_thing(several, STEPS)


@pytest.mark.parametrize(("gain", "spread", "sure"), [(1.2, 0.1, True), (1.1, 0.1, False), (1.0, 0.1, False)])
def test_no_cheaper_for_sure_is_said_only_where_the_gain_is_open(gain: float, spread: float, sure: bool) -> None:
    told = next_thing(on_the_margin(low=-0.02, gain=gain, spread=spread), STEPS)
    assert told.endswith("no cheaper for sure.") != sure


def test_the_end_says_of_how_many_the_choice_is_the_best_and_what_both_splits_tell() -> None:
    end = ending(TRIALS[3], TRIALS, STEPS, verdict(), minimise="latency_ms")
    assert end["candidates"] == 1, "they are all of one recipe"
    assert (end["select_diff"], end["verify_diff"]) == (-0.2, -0.11)
    assert end["nearest_miss"]
    assert end["costliest"] == {"step": "prune .5", "metric_lost": pytest.approx(0.1)}
