"""The space and the choice, on made-up trials."""

from __future__ import annotations

from dataclasses import replace

from trimtab.compress.distill import Distill
from trimtab.compress.recipes import default_picks, recipe_of
from trimtab.core import Drop, Goal, Measurement, Ratio, Recipe, Target, Trial
from trimtab.search.space import best_free, candidates, choose, finalists, unrecovered, worth_adopting, worth_trying


def trial(ident: str, ms: float, *, diff: float = 0.0, gain: float | None = None, runtime: str = "eager") -> Trial:
    return Trial(
        id=ident,
        candidate=ident,
        recipe="original",
        runtime=runtime,
        precision="fp32",
        select=Drop(0.9, 0.9 + diff, diff, diff - 0.01, diff + 0.01, 0.009, 2000, 0.95, "exact"),
        measurements=(Measurement("latency_ms", ms, "ms", 10, ms, ms),),
        gain=Ratio(gain, gain - 0.1, gain + 0.1, 8) if gain else None,
        seconds=1.0,
        folder=ident,
        free=gain is None,
    )


def test_the_space_has_every_recipe_in_every_runtime() -> None:
    recipes = tuple(map(recipe_of, default_picks("latency_ms", linear=False, residual=True)))
    names = [recipe.name for recipe in recipes]
    assert len(set(names)) == len(names) == 13
    assert "prune .5 as measured + distill 2 epochs + int8" in names
    found = candidates(recipes, {"onnxruntime": "fp32", "openvino": "bf16"})
    assert len(found) == 26
    assert {c.precision for c in found if c.recipe.name.endswith("int8")} == {"int8"}
    assert {c.precision for c in found if not c.recipe.name.endswith("int8") and c.runtime == "openvino"} == {"bf16"}


def test_slow_runtimes_are_left_out_with_the_reason() -> None:
    free = [trial("a", 1.0, runtime="openvino"), trial("b", 1.4, runtime="onnxruntime"), trial("c", 9.0)]
    integers, *others = map(recipe_of, default_picks("latency_ms", linear=False, residual=True))
    floats = next(one for one in others if not one.name.endswith("int8"))
    kept, skipped = worth_trying(integers, free, [], "latency_ms")
    assert list(kept) == ["openvino", "onnxruntime"]
    assert [skip.what for skip in skipped] == ["search in eager"]
    assert "9.0 times" in skipped[0].why
    measured = [
        replace(trial("d", 0.5, gain=2.0, runtime="openvino"), precision="int8"),
        replace(trial("e", 0.8, gain=1.2, runtime="onnxruntime"), precision="int8"),
    ]
    kept, skipped = worth_trying(integers, free, measured, "latency_ms")
    assert list(kept) == ["openvino"]
    assert "its first int8 trial costs 1.7 times" in skipped[1].why
    kept, _ = worth_trying(floats, [trial("a", 1.0, runtime="openvino"), trial("b", 1.2)], measured, "latency_ms")
    assert list(kept) == ["openvino", "eager"], "floats do not go by what integers did"
    kept, _ = worth_trying(floats, free, [replace(one, precision="fp32") for one in measured], "latency_ms")
    assert list(kept) == ["openvino"]


def test_what_is_left_of_a_recipe_without_training() -> None:
    by_name = {
        recipe.name: recipe for recipe in map(recipe_of, default_picks("latency_ms", linear=False, residual=True))
    }
    assert (
        unrecovered(by_name["prune .5 as measured + distill 2 epochs + int8"]) == by_name["prune .5 as measured + int8"]
    )
    assert unrecovered(by_name["prune .5 as measured"]) is None
    assert unrecovered(Recipe((Distill(),))) is None, "nothing else is left"


def test_the_best_free_baseline_keeps_the_quality_and_is_allowed() -> None:
    fast_but_wrong = trial("a", 0.5, diff=-0.2, runtime="openvino")
    free = [fast_but_wrong, trial("b", 1.0, runtime="onnxruntime"), trial("c", 9.0)]
    assert best_free(free, Goal(), Target()).id == "b"
    assert best_free(free, Goal(), Target(runtimes=("eager",))).id == "c"


def test_of_the_likely_the_one_that_gains_most_is_chosen_else_the_likeliest() -> None:
    # "fast" was measured while the machine was busy: its latency misleads, its gain over the baseline does not
    trials = [trial("fast", 3.0, gain=3.0), trial("safe", 2.0, gain=1.5), trial("slow", 0.1, gain=1.0)]
    chances = {"fast": 0.3, "safe": 0.9, "slow": 1.0}
    assert choose(trials, lambda t: chances[t.id]).id == "safe"
    assert choose(trials, lambda t: 0.9).id == "fast"
    assert choose(trials, lambda t: chances[t.id] / 2).id == "safe"


def test_the_more_recipes_compete_the_surer_one_must_be() -> None:
    trials = [replace(trial(str(i), 1.0, gain=2.0 + i), recipe=f"recipe {i}") for i in range(5)]
    chances = {"0": 0.97, "1": 0.5, "2": 0.5, "3": 0.5, "4": 0.9}
    assert choose(trials, lambda t: chances[t.id]).id == "0", "0.9 is not enough for the best of five"
    assert choose([trials[0], trials[4]], lambda t: chances[t.id]).id == "4"


def named(chances: dict[str, tuple[float, float]], *, most: int = 3) -> list[str]:
    """The finalists of trials with these gains and chances."""
    trials = [trial(name, 1.0, gain=gain) for name, (gain, _) in chances.items()]
    return [one.id for one in finalists(trials, lambda t: chances[t.id][1], most=most)]


def test_bolder_finalists_follow_the_choice_as_long_as_they_may_pass() -> None:
    assert named({"safe": (1.5, 0.99), "bold": (3.0, 0.7)}) == ["safe", "bold"]
    assert named({"safe": (1.5, 0.99), "bold": (3.0, 0.7)}, most=1) == ["safe"]
    assert named({"safe": (1.5, 0.99), "hopeless": (3.0, 0.05)}) == ["safe"]
    assert named({"safe": (1.5, 0.99), "hardly more": (1.55, 0.7)}) == ["safe"], "two races differ by as much"
    assert named({"safe": (1.5, 0.99), "worse": (1.2, 0.7)}) == ["safe"]
    assert named({"safe": (1.5, 0.99), "beaten": (2.0, 0.3), "bold": (3.0, 0.7)}) == ["safe", "bold"]
    assert named({"unlikely": (1.5, 0.3), "less likely": (3.0, 0.2)}) == ["unlikely", "less likely"]


def test_a_finalist_between_is_worth_its_risk_or_left_out() -> None:
    # with "between": .6 ln 2 + .6 * .55 ln 2 = .64; without: .55 ln 4 = .76
    assert named({"safe": (1.5, 0.99), "between": (3.0, 0.6), "bold": (6.0, 0.55)}) == ["safe", "bold"]
    # with: .75 ln 2 + .75 * .3 ln 2 = .68; without: .3 ln 4 = .42
    found = named({"safe": (1.5, 0.99), "between": (3.0, 0.75), "bold": (6.0, 0.3), "slow": (1.4, 1.0)})
    assert found == ["safe", "between", "bold"]


def test_what_does_not_gain_for_sure_is_no_further_finalist() -> None:
    noisy = replace(trial("noisy", 1.0), gain=Ratio(3.0, 0.8, 5.0, 8), free=False)
    assert [one.id for one in finalists([trial("safe", 1.0, gain=1.5), noisy], lambda t: 0.9)] == ["safe"]
    assert [one.id for one in finalists([noisy], lambda t: 0.9)] == ["noisy"]


def test_what_others_found_is_adopted_where_it_gains_more_than_the_choice_here() -> None:
    own = [trial("own", 1.0, gain=3.0)]
    found = [(2.9, 1.0, "worse"), (4.0, 0.49, "hopeless"), (3.1, 0.98, "likely"), (3.1, 0.98, "the same, told again")]
    assert worth_adopting(found, own, lambda _: 1.0) == ["likely"]
    assert worth_adopting([*found, (5.0, 0.5, "bold")], own, lambda _: 1.0) == ["likely", "bold"]
    assert worth_adopting(found[:2], own, lambda _: 1.0) == []
    assert worth_adopting(found[:1], [], lambda _: 1.0) == ["worse"], "one that has found nothing takes what there is"
    others = [replace(trial(f"o{num}", 1.0, gain=1.5), recipe=f"o{num}") for num in range(20)]
    assert worth_adopting([(5.0, 0.98, "a"), (4.0, 0.995, "b")], [*own, *others], lambda _: 1.0) == ["b", "a"]
