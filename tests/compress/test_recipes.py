"""What comes first in a search, and what is left out of it by what others showed."""

from __future__ import annotations

from tests.nets import net
from trimtab.compress.recipes import Known, default_picks, recipe_of, recipes_to_try, settled, space_of
from trimtab.graph.capture import capture
from trimtab.search.sampler import filled

PICKS = {recipe_of(picks).name: picks for picks in default_picks("latency_ms", linear=False, residual=True)}
BOLD, GENTLE = "prune .5 as measured + int8", "prune .25 as measured + int8"
BOLDEST, TRAINED = "prune .75 as measured + int8", "prune .5 as measured + distill 2 epochs + int8"
FLOATS = "prune .5 as measured"


def known(name: str, chance: float, *, gains: bool = True) -> Known:
    return Known(PICKS[name], chance, gains)


def first_of(kind: str) -> list[str]:
    """The names of the recipes that come first for a net of this kind, to make it faster."""
    module, x = net(kind)
    return [recipe.name for recipe in recipes_to_try(None, capture(module, (x,)), "latency_ms")]


def left_out(*tried: Known) -> list[str]:
    """What is not worth trying any more, once these were."""
    return [
        name for name, picks in PICKS.items() if picks not in [one.picks for one in tried] and settled(picks, tried)
    ]


def test_gentle_ones_come_before_bold_ones_training_comes_later_and_floats_come_last() -> None:
    names = list(PICKS)
    assert names[:4] == ["int8", GENTLE, BOLD, BOLDEST]
    order = [(not name.endswith("int8"), "distill" in name) for name in names]
    assert order == sorted(order)
    assert all(len(picks) == 1 or picks["epochs of recovery"] in ("-", "2") for picks in PICKS.values())


def test_where_a_bold_one_is_sure_gentler_ones_are_needless() -> None:
    gone = left_out(known("int8", 1.0), known(BOLD, 0.97))
    assert GENTLE in gone
    assert TRAINED in gone, "there is nothing to recover"
    assert FLOATS in gone, "integers gain more"
    assert BOLDEST not in gone
    assert "prune .75 as measured" not in gone


def test_what_is_sure_without_gain_or_gains_without_being_sure_leaves_nothing_out() -> None:
    assert left_out(known("int8", 1.0), known(BOLD, 0.97, gains=False)) == []
    assert left_out(known("int8", 1.0), known(BOLD, 0.9)) == []


def test_where_integers_do_not_gain_by_themselves_floats_are_tried_all_the_same() -> None:
    gone = left_out(known("int8", 1.0, gains=False), known(BOLD, 0.97))
    assert FLOATS not in gone
    assert GENTLE in gone


def test_where_integers_gain_nothing_by_themselves_no_cut_is_tried_in_them() -> None:
    gone = left_out(known("int8", 0.9, gains=False))
    assert gone == [name for name in PICKS if name.endswith(" int8")]
    assert left_out(known("int8", 0.3, gains=False)) != gone, "it was not timed, as it was not likely to pass"
    assert left_out(known("int8", 0.9)) == []


def test_what_a_gentler_one_does_not_keep_a_bolder_one_is_not_asked_for() -> None:
    gone = left_out(known(GENTLE, 0.3))
    assert BOLD in gone
    assert BOLDEST in gone
    assert TRAINED not in gone, "training may recover it"
    assert FLOATS not in gone, "it was the integers, maybe"
    assert "prune .75 as measured + distill 2 epochs + int8" in left_out(known(TRAINED, 0.3))


def test_where_integers_alone_keep_it_for_sure_a_cut_in_them_that_does_not_tells_of_the_cut() -> None:
    gone = left_out(known("int8", 0.97), known(BOLDEST, 0.3))
    assert "prune .75 as measured" in gone
    assert "prune .75 as measured + distill 2 epochs" not in gone, "training may recover it"
    assert "prune .75 as measured" not in left_out(known("int8", 0.9), known(BOLDEST, 0.3)), (
        "it was the integers, maybe"
    )


def test_the_reason_names_what_settled_it() -> None:
    why = settled(PICKS[BOLD], [known(GENTLE, 0.3)])
    assert why == f"{GENTLE} takes no more away, and keeps the quality with a chance of 0.30 only"
    why = settled(PICKS[GENTLE], [known("int8", 1.0), known(BOLD, 0.97)])
    assert why == f"{BOLD} takes no less away, gains, and keeps the quality with a chance of 0.97"


def test_where_bytes_count_weights_in_few_bits_come_first_and_with_every_cut() -> None:
    names = [recipe.name for recipe in map(recipe_of, default_picks("size_bytes", linear=False, residual=True))]
    assert names[:3] == ["int8w", "nf4w by gptq", "prune .25 as measured + nf4w by gptq"]
    assert {name.rpartition(" + ")[2] for name in names} == {"int8w", "nf4w by gptq"}
    cuts = [picks.get("channels cut") for picks in default_picks("size_bytes", linear=False, residual=True)]
    assert cuts[2:] == ["0.25", "0.5", "0.75"] * 4


def test_weights_in_4_bits_settle_what_8_bits_are_worth_and_not_the_other_way() -> None:
    picks = {recipe_of(one).name: one for one in default_picks("size_bytes", linear=False, residual=True)}
    fewest, more = (f"prune .5 as measured + {numbers}" for numbers in ("nf4w by gptq", "int8w"))
    alone = Known(picks["nf4w by gptq"], 1.0, gains=True)
    assert settled(picks[more], [alone, Known(picks[fewest], 0.97, gains=True)])
    assert not settled(picks[fewest], [alone, Known(picks[more], 0.97, gains=True)])
    assert not settled(picks[more], [alone, Known(picks[fewest], 0.1, gains=True)]), "8 bits may keep it"
    assert settled(picks[fewest], [alone, Known(picks[more], 0.1, gains=True)])
    integers = Known({"channels cut": "0.5", "numbers": "int8"}, 0.1, gains=True)
    assert not settled(picks[more], [alone, integers]), "values in integers lose in their own way"


def test_of_a_model_of_linear_layers_integers_at_run_time_are_tried_too() -> None:
    linear, other = first_of("encoder"), first_of("conv")
    assert linear[:2] == ["int8", "int8d"]
    assert len(linear) == len(other) + 1
    assert "int8d" not in other


def test_a_chain_of_layers_is_cut_evenly_and_a_residual_stream_is_spared() -> None:
    residual, chain = ([name for name in first_of(kind) if name.endswith("int8")] for kind in ("resnet", "conv"))
    assert residual[1:4] == [GENTLE, BOLD, BOLDEST]
    assert chain[1:4] == [f"prune {cut} by obs + int8" for cut in (".25", ".5", ".75")]
    assert not [name for name in first_of("conv") if "as measured" in name]


def test_the_goal_decides_which_numbers_are_in_the_space() -> None:
    module, x = net("conv")
    graph = capture(module, (x,))
    serving = dict.fromkeys(("fp32", "int8", "int8d", "int8w", "int4w", "nf4w", "fp16"), ("onnxruntime",))
    fast, small = (space_of(graph, serving, minimise=goal) for goal in ("latency_ms", "size_bytes"))
    weights = {f"weights in {name}" for name in ("int8", "int4", "nf4", "fp16")}
    assert {"int8 at run time", *weights} == {skip.what for skip in fast.skipped} - {"blocks dropped"}
    why = {skip.what: skip.why for skip in fast.skipped}
    assert why["weights in nf4"] == "it makes files smaller and hardly anything faster, and the goal is latency_ms"
    assert {skip.what for skip in small.skipped} == {"blocks dropped"}
    numbers = next(slot for slot in small.slots if slot.name == "numbers")
    assert weights < set(numbers.options)
    assert all(filled(small.slots, picks) for picks in default_picks("size_bytes", linear=False, residual=True))
