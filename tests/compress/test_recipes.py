"""What comes first in a search, and what is left out of it by what others showed."""

from __future__ import annotations

from trimtab.compress.recipes import Known, default_picks, recipe_of, settled

PICKS = {recipe_of(picks).name: picks for picks in default_picks()}
BOLD, GENTLE = "prune .5 as measured + int8", "prune .25 as measured + int8"
BOLDEST, TRAINED = "prune .75 by obs + int8", "prune .5 as measured + distill 2 epochs + int8"
FLOATS = "prune .5 as measured"


def known(name: str, chance: float, *, gains: bool = True) -> Known:
    return Known(PICKS[name], chance, gains)


def left_out(*tried: Known) -> list[str]:
    """What is not worth trying any more, once these were."""
    return [
        name for name, picks in PICKS.items() if picks not in [one.picks for one in tried] and settled(picks, tried)
    ]


def test_gentle_ones_come_before_bold_ones_and_training_comes_last() -> None:
    names = list(PICKS)
    assert names[:4] == ["int8", GENTLE, BOLD, BOLDEST]
    trained = ["distill" in name for name in names]
    assert trained == sorted(trained)
    assert all(len(picks) == 1 or picks["epochs of recovery"] in ("-", "2") for picks in PICKS.values())


def test_where_a_bold_one_is_sure_gentler_ones_are_needless() -> None:
    gone = left_out(known("int8", 1.0), known(BOLD, 0.97))
    assert GENTLE in gone
    assert TRAINED in gone, "there is nothing to recover"
    assert FLOATS in gone, "integers gain more"
    assert BOLDEST not in gone
    assert "prune .75 by obs" not in gone


def test_what_is_sure_without_gain_or_gains_without_being_sure_leaves_nothing_out() -> None:
    assert left_out(known("int8", 1.0), known(BOLD, 0.97, gains=False)) == []
    assert left_out(known("int8", 1.0), known(BOLD, 0.9)) == []


def test_where_integers_do_not_gain_by_themselves_floats_are_tried_all_the_same() -> None:
    gone = left_out(known("int8", 1.0, gains=False), known(BOLD, 0.97))
    assert FLOATS not in gone
    assert GENTLE in gone


def test_what_a_gentler_one_does_not_keep_a_bolder_one_is_not_asked_for() -> None:
    gone = left_out(known(GENTLE, 0.3))
    assert BOLD in gone
    assert BOLDEST in gone
    assert TRAINED not in gone, "training may recover it"
    assert FLOATS not in gone, "it was the integers, maybe"
    assert "prune .75 by obs + distill 2 epochs + int8" in left_out(known(TRAINED, 0.3))


def test_the_reason_names_what_settled_it() -> None:
    why = settled(PICKS[BOLD], [known(GENTLE, 0.3)])
    assert why == f"{GENTLE} takes no more away, and keeps the quality with a chance of 0.30 only"
    why = settled(PICKS[GENTLE], [known("int8", 1.0), known(BOLD, 0.97)])
    assert why == f"{BOLD} takes no less away, gains, and keeps the quality with a chance of 0.97"
