"""The simulation behind the verdict's own benchmark: its truths are true, and its tables say what was counted."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from verdict_calibration import (
    KEPT,
    KINDS,
    Cell,
    Kind,
    again_table,
    alternatives,
    auc_rows,
    cell,
    cell_tables,
    kept_cell,
    plot,
    several_table,
    winner_table,
)


@pytest.mark.parametrize(("kind", "worst"), KINDS, ids=lambda one: getattr(one, "name", None))
def test_populations_are_distributions_that_lose_what_they_should(kind: Kind, worst: float) -> None:
    margin = kind.population(worst).drop
    assert margin > 0
    for share in (0.0, 0.5, 1.0):
        population = kind.population(kind.badness(worst, share))
        assert population.chances.sum() == pytest.approx(1)
        assert population.chances.min() >= 0
        assert population.drop == pytest.approx(share * margin, abs=1e-9)


def test_the_auc_of_a_population_is_scikit_learns() -> None:
    first, second, chances = auc_rows(0.2)
    found = next(kind for kind, _ in KINDS if kind.name == "AUC").population(0.2)
    before, after = (roc_auc_score(rows[:, 1], rows[:, 0], sample_weight=chances) for rows in (first, second))
    assert found.drop == pytest.approx(before - after)


def test_a_cell_counts_words_and_more_is_passed_where_less_is_lost() -> None:
    kind, worst = KINDS[0]
    lost, kept = (cell(kind, worst, 3000, share, 60) for share in (1.0, 0.0))
    assert lost.passed <= 9
    assert kept.passed > 40
    assert lost.passed + lost.failed <= lost.tasks == 60
    assert lost == cell(kind, worst, 3000, 1.0, 60), "the same seed, the same tasks"


@pytest.mark.parametrize(("kind", "shares", "worst"), KEPT, ids=lambda one: getattr(one, "name", None))
def test_a_share_that_is_kept_exactly_passes_seldom(kind: Kind, shares: tuple[float, ...], worst: float) -> None:
    for share in shares:
        passed, _ = kept_cell(kind, worst, share, 200, 20)
        assert passed <= 5


def test_taking_the_margin_for_known_lets_more_through() -> None:
    kind, _, worst = KEPT[0]
    passed, if_known = kept_cell(kind, worst, 0.8, 5000, 40)
    assert passed <= 7
    assert if_known > 2 * passed


def test_a_cell_again_counts_fresh_tasks_and_says_whether_it_is_above() -> None:
    kind, worst = KINDS[0]
    told = again_table(kind, worst, 300, 60)
    assert cell(kind, worst, 300, 1.0, 60, seed=1) != cell(kind, worst, 300, 1.0, 60)
    assert "60 fresh tasks" in told[0]
    assert told[2].endswith("%): not above 5 %.")


def test_alternatives_are_judged_on_the_same_tasks() -> None:
    kind, worst = next(pair for pair in KINDS if pair[0].name == "overlap, few change")
    student, bca, ours = alternatives(kind, worst, 100, 60)
    assert ours <= 3
    assert student > ours
    assert bca > ours


def test_tables_and_plot_say_what_was_counted(tmp_path: Path) -> None:
    results = {
        "made up": [Cell(num, share, 9 if share else 60, 2, 100) for num in (100, 300) for share in (1.0, 0.5, 0.0)]
    }
    lines = cell_tables(results, 100)
    assert "| made up | 100 | 9.0 % | 2.0 % | 9.0 % | 60.0 % |" in lines
    assert "Worst false PASS: 9.0 % (made up, n = 300)." in lines
    assert lines[-1] == "Cells above 5 % by more than that error: 0."
    plot(results, tmp_path / "plot.svg")
    texts = [node.text for node in ET.parse(tmp_path / "plot.svg").iter() if node.tag.endswith("text")]
    assert "made up" in texts


def test_holm_and_a_fresh_split_hold_their_levels() -> None:
    one, all_ = (
        np.array([float(cell.strip(" %")) for cell in line.split("|")[2:5]]) for line in several_table(150)[-2:]
    )
    assert one[0] <= 10
    assert all_[1] <= 10 < all_[2], "some FAIL among ten at the margin: by Holm, and uncorrected"
    last = [float(cell.strip(" %")) for cell in winner_table(150)[-1].split("|")[2:4]]
    assert last[0] > 20 > 10 >= last[1], "the best of 30, judged on select itself and on verify"
