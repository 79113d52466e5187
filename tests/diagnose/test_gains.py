"""The benchmark's table of what is predicted of families beside what their recipes gain."""

from __future__ import annotations

import re

import doctor
import torch
from doctor import Gained, beside, gains, gains_text, representatives

from tests.diagnose.test_examine import digits
from trimtab.diagnose.families import IN_SPACE, Family
from trimtab.graph.capture import capture


def test_each_family_that_the_search_has_is_represented() -> None:
    model, task = digits()
    graph = capture(model, task.select.batch(slice(0, 2)).inputs)
    told = representatives(graph)
    assert {family for family, *_ in told} == set(IN_SPACE)
    assert len({name for _, name, *_ in told}) == len(told), "files are told apart by their recipes"


def test_recipes_are_measured_beside_their_families_and_what_refuses_says_why() -> None:
    torch.manual_seed(0)
    model, task = digits()
    found = {one.recipe: one for one in gains(model, task, rounds=2)}
    assert found["drop 1 blocks"].latency is None
    assert "DropBlocks" in found["drop 1 blocks"].why
    halved = found["prune .5"]
    assert halved.latency
    assert halved.family.name == "prune"
    assert halved.size is not None
    assert 1.2 < halved.size < 2, "half of the 32 channels, in the file as it is on disk"
    told = gains_text({"digits": list(found.values())})
    lines = [line for line in told.splitlines() if line.startswith("| digits |")]
    assert [re.split(r" *\| *", line)[3] for line in lines] == list(found)


def test_the_table_counts_what_lies_within() -> None:
    prune = Family("prune", ("0",), latency=(1.5, 4.0), size=(2.0, 8.0))
    rows = [Gained(prune, f"prune .{place}", x, 1.0, busy=x) for place, x in enumerate((1.0, 2.0, 3.0, 5.0))]
    told = gains_text({"net": [*rows, Gained(Family("int8"), "int8", why="refused")]})
    assert "Of 4 recipes 2 gain in time what is predicted" in told
    assert "| 1.50x to 4.00x | 1.00x | below by 33 % |" in told
    assert "| 1.50x to 4.00x | 5.00x | above by 25 % |" in told
    assert "of which others kept up to 5.0 busy" in told
    assert "| net | int8 | int8 |  |  | refused |" in told


def test_what_misses_a_range_by_next_to_nothing_is_within() -> None:
    assert doctor.NEAR == 0.01
    assert [beside((1.0, 2.0), value) for value in (0.98, 0.995, 2.01, 2.04)] == [
        "below by 2 %",
        "within",
        "within",
        "above by 2 %",
    ]
    assert beside(None, 1.0) == "not predicted"
