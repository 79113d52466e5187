"""The model of what to try next: against slow obvious formulas, and against chance on a made-up space."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

import numpy as np
import pytest

from trimtab.core import Slot
from trimtab.search.halving import hypervolume
from trimtab.search.sampler import all_picks
from trimtab.search.surrogate import (
    LENGTHS,
    NOISES,
    Seen,
    encoded,
    expected_gain,
    matern,
    most_promising,
    predicted,
    squeezed,
    unsqueezed,
)

SLOTS = (
    Slot("cut", tuple("-1234567"), ordered=True),
    Slot("how", ("even", "uneven"), when=(("cut", tuple("1234567")),)),
    Slot("epochs", ("-", "1", "2", "4"), ordered=True, when=(("cut", tuple("1234567")),)),
    Slot("numbers", ("floats", "int8", "int4")),
)


def costs(picks: dict[str, str]) -> tuple[float, float]:
    """A bold cut is cheap and loses much, of which training mends a part; one of two ways to spread it is better."""
    cut = int(picks["cut"].replace("-", "0"))
    mended = {"-": 1.0, "1": 0.7, "2": 0.5, "4": 0.4}[picks.get("epochs", "-")]
    bits = {"floats": 1.0, "int8": 0.6, "int4": 0.55}[picks["numbers"]]
    lost = 0.05 * cut**2 * mended * (0.7 if picks.get("how") == "uneven" else 1.0)
    return (1 - 0.11 * cut) * bits, lost + {"floats": 0.0, "int8": 0.05, "int4": 0.9}[picks["numbers"]]


def reached(choose, num: int) -> float:
    """The hypervolume of `num` candidates, each chosen by what was seen before."""
    seen, left = [Seen({"cut": "-", "numbers": "int8"}, 0.6, 0.05)], all_picks(SLOTS)
    while len(seen) < num:
        picks = choose(seen, left)
        left.remove(picks)
        seen.append(Seen(picks, *costs(picks)))
    return hypervolume([(one.cost, one.lost) for one in seen], (1, 1))


def test_it_finds_more_than_chance_does() -> None:
    everything = hypervolume([costs(picks) for picks in all_picks(SLOTS)], (1, 1))
    promising, drawn = (
        [reached(lambda seen, left, seed=seed, how=how: how(seen, left, seed), 12) / everything for seed in range(8)]
        for how in (
            lambda seen, left, seed: most_promising(SLOTS, seen, left, seed=f"{seed} {len(seen)}"),
            lambda seen, left, seed: random.Random(f"{seed} {len(seen)}").choice(left),
        )
    )
    assert sum(ours > theirs for ours, theirs in zip(promising, drawn, strict=True)) >= 6
    assert median(promising) > 0.95
    assert median(drawn) < 0.9


def test_the_seed_decides_and_only_what_is_left_is_proposed() -> None:
    everything = all_picks(SLOTS)
    seen = [Seen(picks, *costs(picks)) for picks in everything[::9]]
    left = [picks for picks in everything if picks not in [one.picks for one in seen]]
    first = most_promising(SLOTS, seen, left, seed="a")
    assert first == most_promising(SLOTS, seen, left, seed="a")
    assert first in left
    assert most_promising(SLOTS, seen, left[:1], seed="b") == left[0]
    assert most_promising(SLOTS, [], left, seed="c") in left, "without knowledge it is drawn"
    assert most_promising(SLOTS, [Seen(everything[0], 1.0, None)] * 5, left, seed="d") in left


def test_what_is_under_way_is_not_expected_to_add_the_same_again() -> None:
    everything = all_picks(SLOTS)
    seen = [Seen(picks, *costs(picks)) for picks in everything[::5]]
    left = [picks for picks in everything if picks not in [one.picks for one in seen]]
    first = most_promising(SLOTS, seen, left, seed="a")
    others = [picks for picks in left if picks != first]
    second = most_promising(SLOTS, [*seen, Seen(first, None, None)], others, seed="a")
    alone = most_promising(SLOTS, seen, others, seed="a")
    assert costs(second) != costs(first)
    assert second in others
    assert alone in others


def test_a_cost_alone_is_learned_from_too() -> None:
    known = [Seen({"cut": cut, "how": "even", "numbers": "floats"}, 1 - 0.1 * int(cut), None) for cut in "1234567"]
    lost = [Seen({"cut": "-", "numbers": numbers}, 1.0, loss) for numbers, loss in (("floats", 0.0), ("int8", 0.1))]
    left = [picks for picks in all_picks(SLOTS) if picks["numbers"] == "floats" and picks.get("how") != "even"]
    assert int(most_promising(SLOTS, [*known, *lost], left, seed="a")["cut"].replace("-", "0")) >= 4


def test_the_process_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    x, y, asked = rng.random((9, 3)), rng.standard_normal(9), rng.random((4, 3))

    class First(random.Random):
        def choices(self, population, weights=None, **_):
            assert len(population) == len(weights) == len(LENGTHS) * len(NOISES)
            return [population[0]]

    mean, deviation = predicted(x, y, asked, rng=First())
    length, noise = LENGTHS[0], NOISES[0]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        r = np.sqrt(5) * np.linalg.norm(a - b) / length
        return float((1 + r + r**2 / 3) * np.exp(-r))

    scale = y.std() + 1e-6
    inverse = np.linalg.inv([[kernel(a, b) + noise * (i == j) for j, b in enumerate(x)] for i, a in enumerate(x)])
    for at, one in enumerate(asked):
        across = np.array([kernel(one, b) for b in x])
        assert mean[at] == pytest.approx(y.mean() + scale * across @ inverse @ ((y - y.mean()) / scale))
        assert deviation[at] == pytest.approx(scale * np.sqrt(max(1e-6, 1 - across @ inverse @ across)))
    np.testing.assert_allclose(matern(x, asked, length), [[kernel(a, b) for b in asked] for a in x], atol=1e-12)


def test_the_expected_gain_is_the_mean_over_all_pairs_of_values() -> None:
    rng = np.random.default_rng(1)
    points = [tuple(point) for point in rng.random((6, 2)) * 1.3]
    chosen, losses = rng.random((5, 7)) * 1.4, rng.random((5, 7)) * 1.4
    before = hypervolume(points, (1, 1))
    for at, gain in enumerate(expected_gain(points, chosen, losses)):
        every = [hypervolume([*points, (x, y)], (1, 1)) - before for x in chosen[at] for y in losses[at]]
        assert gain == pytest.approx(np.mean(every), abs=1e-12)


def test_likelihood_prefers_the_length_that_the_values_were_drawn_with() -> None:
    rng = np.random.default_rng(2)
    x = rng.random((60, 2))
    drawn: dict[float, list[float]] = {}
    for length in (LENGTHS[0], LENGTHS[-1]):
        smooth = np.linalg.cholesky(matern(x, x, length) + 1e-9 * np.eye(60)) @ rng.standard_normal(60)
        errors = []
        for seed in range(5):
            mean, _ = predicted(x[:40], smooth[:40], x[40:], rng=random.Random(seed))
            errors.append(float(np.abs(mean - smooth[40:]).mean() / smooth.std()))
        drawn[length] = errors
    assert max(drawn[LENGTHS[0]]) < 0.5
    assert max(drawn[LENGTHS[-1]]) < 0.2


TWO = (
    Slot("cut", ("-", "half")),
    Slot("numbers", ("floats", "int8")),
    Slot("epochs", tuple("01234"), ordered=True),
)


def kind(picks: dict[str, str]) -> tuple[bool, bool]:
    return picks["cut"] == "half", picks["numbers"] == "int8"


def additive(picks: Sequence[dict[str, str]], values: Sequence[float], asked: Sequence[dict[str, str]]) -> np.ndarray:
    """What a least-squares model foresees in which every option adds its own share."""
    terms = [[*kind(one), int(one["epochs"]), 1] for one in picks]
    shares, *_ = np.linalg.lstsq(np.array(terms, float), np.array(values), rcond=None)
    return np.array([[*kind(one), int(one["epochs"]), 1] for one in asked], float) @ shares


@pytest.mark.parametrize(("alone", "together"), [(0.6, 1.4), (1.3, 0.5)])
def test_two_options_that_do_not_go_together_or_go_together_alone_are_learned(alone: float, together: float) -> None:
    """Each alone is good and both are bad, or the reverse; by the sum or the product of their gains both are wrong."""
    level = {(False, False): 1.0, (True, False): alone, (False, True): alone + 0.02, (True, True): together}

    def value(picks: dict[str, str]) -> float:
        return level[kind(picks)] * (1 - 0.03 * int(picks["epochs"]))

    everything = all_picks(TWO)
    known = [picks for picks in everything if picks["epochs"] in "024"]
    asked = [picks for picks in everything if picks["epochs"] in "13"]
    logs = [float(np.log(value(picks))) for picks in known]
    right = [sorted(range(4), key=lambda at: value(part[at])) for part in of_each_epoch(asked)]
    for seed in range(8):
        mean, _ = predicted(encoded(TWO, known), np.array(logs), encoded(TWO, asked), rng=random.Random(seed))
        assert ranked(asked, mean) == right
    assert all(ours != theirs for ours, theirs in zip(ranked(asked, additive(known, logs, asked)), right, strict=True))
    seen = [Seen(picks, value(picks), value(picks) / 2) for picks in known]
    best = min(level, key=lambda pair: level[pair])
    assert {kind(most_promising(TWO, seen, asked, seed=f"{seed}")) for seed in range(8)} == {best}


def of_each_epoch(picks: Sequence[dict[str, str]]) -> list[list[dict[str, str]]]:
    return [[one for one in picks if one["epochs"] == epochs] for epochs in sorted({one["epochs"] for one in picks})]


def ranked(asked: Sequence[dict[str, str]], values: np.ndarray) -> list[list[int]]:
    """The four kinds by what is foreseen of each, for every number of epochs."""
    found = [[values[asked.index(one)] for one in part] for part in of_each_epoch(asked)]
    return [sorted(range(4), key=part.__getitem__) for part in found]


def test_options_without_order_are_equally_far_and_what_is_not_asked_is_apart() -> None:
    picks = [{"cut": "-", "numbers": name} for name in ("floats", "int8", "int4")]
    points = encoded(SLOTS, picks)
    distances = [np.linalg.norm(points[a] - points[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(distances, distances[0])
    assert encoded(SLOTS, [{"cut": "7", "how": "even", "numbers": "int8"}])[0, 0] == 1.0
    assert float(unsqueezed(np.array(squeezed(0.7)))) == pytest.approx(0.7)
