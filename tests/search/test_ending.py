"""How a search ends, on made-up trials: what none beats, what cost most, what to try next."""

from __future__ import annotations

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


def test_the_end_says_of_how_many_the_choice_is_the_best_and_what_both_splits_tell() -> None:
    end = ending(TRIALS[3], TRIALS, STEPS, verdict(), minimise="latency_ms")
    assert end["candidates"] == 1, "they are all of one recipe"
    assert (end["select_diff"], end["verify_diff"]) == (-0.2, -0.11)
    assert end["nearest_miss"]
    assert end["costliest"] == {"step": "prune .5", "metric_lost": pytest.approx(0.1)}
